//! A batch of an audience. Its users are most of what a server writes, and generated code would
//! allocate a string for each of a million, to copy it a moment later; and a client would read each
//! field of each through the buffer of its connection.

use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut},
    encoding::{
        DecodeContext, WireType, check_wire_type, encode_key, encode_varint, encoded_len_varint,
        message, skip_field, string,
    },
};

use crate::{delimited::delimited, segments::v1::AudienceMember};

/// Some users, by user_no; see `AudienceBatch` in `segment_service.proto`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AudienceBatch {
    /// The users.
    pub users: Vec<AudienceMember>,
    /// Goes on after this batch.
    pub resume_token: String,
    /// Users after those, already in the form that the wire has. Only what is sent has some.
    pub encoded: EncodedMembers,
}

const USERS: u32 = 1;
const RESUME_TOKEN: u32 = 2;

impl Message for AudienceBatch {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        message::encode_repeated(USERS, &self.users, buf);
        buf.put_slice(&self.encoded.0);
        if !self.resume_token.is_empty() {
            string::encode(RESUME_TOKEN, &self.resume_token, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            USERS => {
                check_wire_type(WireType::LengthDelimited, wire_type)?;
                if let Some((user, taken)) = delimited(buf.chunk())
                    && let Ok(user) = AudienceMember::decode(user)
                {
                    self.users.push(user);
                    buf.advance(taken);
                    return Ok(());
                }
                message::merge_repeated(wire_type, &mut self.users, buf, ctx)
            }
            RESUME_TOKEN => string::merge(wire_type, &mut self.resume_token, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let token = match self.resume_token.as_str() {
            "" => 0,
            _ => string::encoded_len(RESUME_TOKEN, &self.resume_token),
        };
        message::encoded_len_repeated(USERS, &self.users) + self.encoded.0.len() + token
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Users of an audience in the form that the wire has.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EncodedMembers(Vec<u8>);

impl EncodedMembers {
    /// Nobody yet, and room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Adds a user.
    pub fn push(&mut self, user: &AudienceMember) {
        message::encode(USERS, user, &mut self.0);
    }

    /// Adds a user of whom there is nothing to tell but number and external id, if that.
    pub fn push_plain(&mut self, user_no: u32, external_id: &str) {
        /// Tags of fields 1 (a varint) and 2 (a string): of one byte, as all up to 15.
        const TAGS: [u32; 2] = [1, 2];
        let number = match user_no {
            0 => 0,
            number => 1 + encoded_len_varint(number.into()),
        };
        let id = match external_id.len() as u64 {
            0 => 0,
            length => 1 + encoded_len_varint(length) + external_id.len(),
        };
        let buf = &mut self.0;
        encode_key(USERS, WireType::LengthDelimited, buf);
        encode_varint((number + id) as u64, buf);
        if number > 0 {
            encode_key(TAGS[0], WireType::Varint, buf);
            encode_varint(user_no.into(), buf);
        }
        if id > 0 {
            encode_key(TAGS[1], WireType::LengthDelimited, buf);
            encode_varint(external_id.len() as u64, buf);
            buf.extend_from_slice(external_id.as_bytes());
        }
    }
}

impl From<EncodedMembers> for Vec<AudienceMember> {
    /// They, for a message that has them as generated code does.
    fn from(members: EncodedMembers) -> Self {
        let batch = AudienceBatch::decode(members.0.as_slice());
        batch.expect("what was encoded can be decoded").users
    }
}

impl std::fmt::Debug for EncodedMembers {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "EncodedMembers({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::v1::Alias;

    fn members() -> Vec<AudienceMember> {
        let plain = |user_no, external_id: &str| AudienceMember {
            user_no,
            external_id: external_id.to_owned(),
            ..AudienceMember::default()
        };
        let mut full = plain(9, "nine");
        full.device_ids.push("d".to_owned());
        full.aliases.push(Alias {
            label: "l".to_owned(),
            name: "n".to_owned(),
        });
        let long = "x".repeat(500);
        vec![
            plain(0, ""),
            plain(0, "zero"),
            plain(7, ""),
            plain(8, &long),
            full,
            plain(u32::MAX, "ü"),
        ]
    }

    #[test]
    fn what_is_encoded_ahead_comes_out_like_what_is_not() {
        let users = members();
        let mut encoded = EncodedMembers::default();
        for user in &users {
            if user.device_ids.is_empty() {
                encoded.push_plain(user.user_no, &user.external_id);
            } else {
                encoded.push(user);
            }
        }
        let resume_token = "t".to_owned();
        let ahead = AudienceBatch {
            resume_token: resume_token.clone(),
            encoded,
            ..AudienceBatch::default()
        };
        let usual = AudienceBatch {
            users,
            resume_token,
            ..AudienceBatch::default()
        };
        let bytes = ahead.encode_to_vec();
        assert_eq!(bytes, usual.encode_to_vec());
        assert_eq!(bytes.len(), ahead.encoded_len());
        assert_eq!(AudienceBatch::decode(&*bytes).unwrap(), usual);
        assert!(AudienceBatch::default().encode_to_vec().is_empty());
        assert_eq!(Vec::from(ahead.encoded), usual.users);
    }

    #[test]
    fn it_comes_back_from_any_pieces() {
        let sent = AudienceBatch {
            users: members(),
            resume_token: "t".to_owned(),
            ..AudienceBatch::default()
        };
        let encoded = sent.encode_to_vec();
        for cut in 0..=encoded.len() {
            let (first, second) = encoded.split_at(cut);
            let received = AudienceBatch::decode(first.chain(second)).unwrap();
            assert_eq!(received, sent, "cut at {cut}");
        }
    }

    #[test]
    fn damaged_users_are_refused() {
        let too_short = [0x0a, 5, 0x08];
        let no_length = [0x0a];
        let no_text = [0x0a, 3, 0x12, 1, 0xff];
        let no_message = [0x08, 1];
        for damaged in [&too_short[..], &no_length, &no_text, &no_message] {
            assert!(AudienceBatch::decode(damaged).is_err(), "{damaged:?}");
        }
    }
}
