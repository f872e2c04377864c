//! A change of a cohort. Its ids are most of what a server reads, and generated code would allocate a
//! string for each of a million.

use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut},
    encoding::{
        DecodeContext, WireType, check_wire_type, encode_key, encode_varint, encoded_len_varint,
        int32, key_len, message, skip_field, string,
    },
};

use crate::{delimited::delimited, ingest::v1::ChangeEffect, users::v1::Alias};

/// Identifiers that all have the same effect; see `CohortChange` in `ingest_cohort.proto`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CohortChange {
    /// What they do, as a [`ChangeEffect`].
    pub effect: i32,
    /// Ids of identified users.
    pub external_ids: Texts,
    /// Aliases.
    pub aliases: Vec<Alias>,
    /// Devices; they match anonymous users only.
    pub device_ids: Texts,
}

const EFFECT: u32 = 1;
const EXTERNAL_IDS: u32 = 2;
const ALIASES: u32 = 3;
const DEVICE_IDS: u32 = 4;

impl CohortChange {
    /// What they do; `Unspecified` for an effect that this build does not know.
    pub fn effect(&self) -> ChangeEffect {
        ChangeEffect::try_from(self.effect).unwrap_or_default()
    }
}

impl Message for CohortChange {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if self.effect != 0 {
            int32::encode(EFFECT, &self.effect, buf);
        }
        self.external_ids.encode(EXTERNAL_IDS, buf);
        message::encode_repeated(ALIASES, &self.aliases, buf);
        self.device_ids.encode(DEVICE_IDS, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            EFFECT => int32::merge(wire_type, &mut self.effect, buf, ctx),
            EXTERNAL_IDS => self.external_ids.merge(wire_type, buf, ctx),
            ALIASES => message::merge_repeated(wire_type, &mut self.aliases, buf, ctx),
            DEVICE_IDS => self.device_ids.merge(wire_type, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let effect = match self.effect {
            0 => 0,
            effect => int32::encoded_len(EFFECT, &effect),
        };
        effect
            + self.external_ids.encoded_len(EXTERNAL_IDS)
            + message::encoded_len_repeated(ALIASES, &self.aliases)
            + self.device_ids.encoded_len(DEVICE_IDS)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Texts one after the other in a single buffer; a `repeated string` on the wire.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Texts {
    all: String,
    /// Where each ends in `all`.
    ends: Vec<u32>,
    /// Bytes that their lengths take on the wire, which is asked for at each level around them.
    length_bytes: usize,
}

impl Texts {
    /// Adds one at the end.
    ///
    /// # Panics
    /// If all of them take more than 4 GiB, a thousand times as much as a message may have.
    pub fn push(&mut self, text: impl AsRef<str>) {
        let text = text.as_ref();
        self.all.push_str(text);
        self.length_bytes += encoded_len_varint(text.len() as u64);
        let end = u32::try_from(self.all.len()).expect("texts take less than 4 GiB");
        self.ends.push(end);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// They, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> + Clone {
        let mut begin = 0;
        self.ends.iter().map(move |&end| {
            let text = &self.all[begin..end as usize];
            begin = end as usize;
            text
        })
    }

    /// All of them without anything in between.
    pub fn concatenated(&self) -> &str {
        &self.all
    }

    fn encode(&self, tag: u32, buf: &mut impl BufMut) {
        for text in self.iter() {
            encode_key(tag, WireType::LengthDelimited, buf);
            encode_varint(text.len() as u64, buf);
            buf.put_slice(text.as_bytes());
        }
    }

    fn encoded_len(&self, tag: u32) -> usize {
        self.len() * key_len(tag) + self.length_bytes + self.all.len()
    }

    fn merge(
        &mut self,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        check_wire_type(WireType::LengthDelimited, wire_type)?;
        if let Some((text, taken)) = delimited(buf.chunk())
            && let Ok(text) = str::from_utf8(text)
        {
            self.push(text);
            buf.advance(taken);
            return Ok(());
        }
        let mut text = String::new();
        string::merge(wire_type, &mut text, buf, ctx)?;
        self.push(text);
        Ok(())
    }
}

impl std::fmt::Debug for Texts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_list().entries(self.iter()).finish()
    }
}

impl<T: AsRef<str>> FromIterator<T> for Texts {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let mut all = Self::default();
        texts.into_iter().for_each(|text| all.push(text));
        all
    }
}

#[cfg(test)]
mod tests {
    use prost::encoding::bytes;

    use super::*;

    fn change(ids: &[&str]) -> CohortChange {
        CohortChange {
            effect: ChangeEffect::Remove.into(),
            external_ids: ids.iter().collect(),
            aliases: vec![Alias {
                label: "l".to_owned(),
                name: "n".to_owned(),
            }],
            device_ids: ids.iter().rev().collect(),
        }
    }

    #[test]
    fn it_is_on_the_wire_what_the_contract_says() {
        let encoded = change(&["a", "", "ü"]).encode_to_vec();
        let expected = [
            &[0x08, 2][..],
            &[0x12, 1, b'a', 0x12, 0, 0x12, 2, 0xc3, 0xbc],
            &[0x1a, 6, 0x0a, 1, b'l', 0x12, 1, b'n'],
            &[0x22, 2, 0xc3, 0xbc, 0x22, 0, 0x22, 1, b'a'],
        ];
        assert_eq!(encoded, expected.concat());
        assert!(CohortChange::default().encode_to_vec().is_empty());
    }

    #[test]
    fn it_comes_back_from_any_pieces() {
        let long = "x".repeat(300);
        let sent = change(&["a", "", "ü", &long]);
        let encoded = sent.encode_to_vec();
        assert_eq!(sent.encoded_len(), encoded.len());
        for cut in 0..=encoded.len() {
            let (first, second) = encoded.split_at(cut);
            let received = CohortChange::decode(first.chain(second)).unwrap();
            assert_eq!(received, sent, "cut at {cut}");
            // Fields may be repeated, and unknown ones are passed over.
            let mut more = encoded.clone();
            bytes::encode(9, &b"unknown".to_vec(), &mut more);
            more.extend_from_slice(&encoded);
            let received = CohortChange::decode(&*more).unwrap();
            assert_eq!(received.external_ids.len(), 2 * sent.external_ids.len());
        }
    }

    #[test]
    fn damaged_ids_are_refused() {
        let too_short = [0x12, 5, b'a'];
        let no_length = [0x12];
        let no_text = [0x22, 1, 0xff];
        let no_string = [0x10, 1];
        for damaged in [&too_short[..], &no_length, &no_text, &no_string] {
            assert!(CohortChange::decode(damaged).is_err(), "{damaged:?}");
        }
    }
}
