//! Secrets that Muster issues: how they are made, recognised, stored and shown.
//!
//! A secret reads `mst_<kind>_<43 digits><6 digits>`: a prefix that secret scanners can find, 256
//! random bits in base 62, and a CRC-32 of everything before it, also in base 62. The checksum
//! catches typos and truncation before any query; it proves nothing. Only the [`Digest`] is stored.

use std::{borrow::Cow, fmt};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{Error, Result};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Digits that 256 bits need in base 62.
const RANDOM_DIGITS: usize = 43;
/// Digits that a CRC-32 needs in base 62.
const CHECKSUM_DIGITS: usize = 6;
/// Digits of the random part that are kept for display: 24 of its 256 bits.
const HINT_DIGITS: usize = 4;

/// Whom a secret authenticates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An internal caller with scopes.
    ServiceToken,
    /// A partner's import into one workspace; `client_secret` of the REST contract.
    DataImportKey,
    /// A partner, to the whole deployment.
    PartnerApiKey,
}

impl Kind {
    const ALL: [Self; 3] = [Self::ServiceToken, Self::DataImportKey, Self::PartnerApiKey];

    /// The kind's part of the prefix, such as `dik`.
    pub fn tag(self) -> &'static str {
        match self {
            Self::ServiceToken => "svc",
            Self::DataImportKey => "dik",
            Self::PartnerApiKey => "pak",
        }
    }

    fn prefix(self) -> String {
        format!("mst_{}_", self.tag())
    }
}

/// A secret in clear: shown once when it is made, and read from a request.
///
/// There is no `Display` and `Debug` is redacted; [`Secret::expose`] is the only way to the text.
#[derive(Clone)]
pub struct Secret {
    kind: Kind,
    text: String,
}

/// Why a text is not a secret of ours; it never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It does not start with `mst_` and a known kind.
    #[error("the credential does not start with a known prefix")]
    Prefix,
    /// It is shorter or longer than every secret of its kind, probably cut off.
    #[error("the credential has the wrong length")]
    Length,
    /// The part behind the prefix holds something else than letters and digits.
    #[error("the credential holds a character that no credential has")]
    Alphabet,
    /// A character is mistyped.
    #[error("the credential is mistyped: its checksum does not match")]
    Checksum,
}

impl Secret {
    /// Makes a secret from 256 bits of the operating system's randomness.
    ///
    /// Fails with `INTERNAL` where the system has none to give.
    pub fn generate(kind: Kind) -> Result<Self> {
        let mut random = [0; 32];
        getrandom::fill(&mut random)
            .map_err(|error| Error::internal(format!("no randomness: {error}")))?;
        Ok(Self::from_random(kind, random))
    }

    fn from_random(kind: Kind, random: [u8; 32]) -> Self {
        let mut text = kind.prefix();
        text.push_str(&base62::<RANDOM_DIGITS>(random));
        text.push_str(&checksum(&text));
        Self { kind, text }
    }

    /// Reads a secret, byte for byte, and checks all that can be checked without a query.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (kind, digits) = Kind::ALL
            .into_iter()
            .find_map(|kind| Some((kind, text.strip_prefix(&kind.prefix())?)))
            .ok_or(ParseError::Prefix)?;
        if !digits.bytes().all(|digit| ALPHABET.contains(&digit)) {
            return Err(ParseError::Alphabet);
        }
        if digits.len() != RANDOM_DIGITS + CHECKSUM_DIGITS {
            return Err(ParseError::Length);
        }
        let (body, sum) = text.split_at(text.len() - CHECKSUM_DIGITS);
        if sum != checksum(body) {
            return Err(ParseError::Checksum);
        }
        let text = text.to_owned();
        Ok(Self { kind, text })
    }

    /// Whom the secret authenticates.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The secret in clear, to hand to its owner and to nobody else.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// What is stored and compared in place of the secret: the SHA-256 of its full text.
    pub fn digest(&self) -> Digest {
        Digest(Sha256::digest(&self.text).into())
    }

    /// The last 4 characters, to tell keys apart as in `mst_dik_…aB3x`.
    pub fn hint(&self) -> &str {
        &self.text[self.text.len() - HINT_DIGITS..]
    }
}

/// A text that may repeat what somebody sent, with what looks like a secret of ours cut after its
/// prefix: people put secrets where they do not belong.
pub fn redacted(text: &str) -> Cow<'_, str> {
    const START: &str = "mst_";
    if !text.contains(START) {
        return Cow::Borrowed(text);
    }
    let mut parts = text.split(START);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(START);
        let tag = Kind::ALL.into_iter().find_map(|kind| {
            let rest = part.strip_prefix(kind.tag())?;
            rest.starts_with('_').then(|| kind.tag().len() + 1)
        });
        let Some(tag) = tag else {
            kept.push_str(part);
            continue;
        };
        let digits = |digit: u8| digit.is_ascii_alphanumeric();
        let end = part.bytes().skip(tag).position(|digit| !digits(digit));
        let end = end.map_or(part.len(), |end| tag + end);
        kept.push_str(&part[..tag]);
        kept.push('…');
        kept.push_str(&part[end..]);
    }
    Cow::Owned(kept)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}…)", self.kind.prefix())
    }
}

/// The SHA-256 of a secret; equality takes the same time wherever two digests differ.
///
/// A plain hash is enough, as nobody can guess 256 random bits; a slow one would only slow us.
#[derive(Clone, Copy)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The 32 bytes, as they are stored.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Digest {}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

fn checksum(text: &str) -> String {
    base62::<CHECKSUM_DIGITS>(crc32fast::hash(text.as_bytes()).to_be_bytes())
}

/// Writes a big-endian number with exactly `DIGITS` digits, which must be enough for it.
fn base62<const DIGITS: usize>(mut number: impl AsMut<[u8]>) -> String {
    let number = number.as_mut();
    let mut digits = [0; DIGITS];
    for digit in digits.iter_mut().rev() {
        // Long division by 62: the remainder is the next digit from the right.
        let remainder = number.iter_mut().fold(0, |remainder, byte| {
            let dividend = remainder << 8 | u16::from(*byte);
            *byte = u8::try_from(dividend / 62).expect("a remainder below 62 gives one byte");
            dividend % 62
        });
        *digit = ALPHABET[usize::from(remainder)];
    }
    digits.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secrets() -> impl Strategy<Value = Secret> {
        (prop::sample::select(Kind::ALL.to_vec()), any::<[u8; 32]>())
            .prop_map(|(kind, random)| Secret::from_random(kind, random))
    }

    proptest! {
        #[test]
        fn what_is_made_can_be_read(secret in secrets()) {
            let read = Secret::parse(secret.expose()).unwrap();
            prop_assert_eq!(read.expose(), secret.expose());
            prop_assert_eq!(read.kind(), secret.kind());
            prop_assert_eq!(read.digest(), secret.digest());
        }

        #[test]
        fn any_changed_character_is_refused(
            secret in secrets(),
            at in any::<prop::sample::Index>(),
            with in prop_oneof![prop::char::range('!', '~'), any::<char>()],
        ) {
            let mut changed: Vec<char> = secret.expose().chars().collect();
            let at = at.index(changed.len());
            prop_assume!(changed[at] != with);
            changed[at] = with;
            prop_assert!(Secret::parse(&String::from_iter(changed)).is_err());
        }

        #[test]
        fn any_cut_or_longer_text_is_refused(secret in secrets(), keep in 0..57_usize, more in ".+") {
            prop_assert!(Secret::parse(&secret.expose()[..keep]).is_err());
            let longer = secret.expose().to_owned() + &more;
            prop_assert!(Secret::parse(&longer).is_err());
        }

        #[test]
        fn no_text_panics(text in any::<String>(), tail in ".{49}") {
            let _ = Secret::parse(&text);
            let _ = Secret::parse(&format!("mst_dik_{tail}"));
        }
    }

    #[test]
    fn the_shape_never_changes() {
        let lowest = Secret::from_random(Kind::DataImportKey, [0; 32]);
        assert_eq!(
            lowest.expose(),
            format!(
                "mst_dik_{}{}",
                "0".repeat(43),
                checksum(&format!("mst_dik_{}", "0".repeat(43)))
            )
        );
        let highest = Secret::from_random(Kind::ServiceToken, [0xff; 32]);
        assert_eq!(
            &highest.expose()[..51],
            "mst_svc_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1"
        );
        assert_eq!(base62::<6>([0xff; 4]), "4gfFC3");
    }

    #[test]
    fn each_mistake_is_named_without_repeating_the_text() {
        let text = Secret::from_random(Kind::PartnerApiKey, [7; 32])
            .expose()
            .to_owned();
        let refused = |text: &str| Secret::parse(text).unwrap_err();
        assert_eq!(refused(""), ParseError::Prefix);
        assert_eq!(refused(&text.replace("pak", "abc")), ParseError::Prefix);
        assert_eq!(refused(&text[..20]), ParseError::Length);
        assert_eq!(refused(&format!("{text} ")), ParseError::Alphabet);
        assert_eq!(refused(&text.replace("pak", "dik")), ParseError::Checksum);
    }

    #[test]
    fn debug_shows_nothing_of_the_secret() {
        let secret = Secret::generate(Kind::DataImportKey).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(mst_dik_…)");
        assert_eq!(format!("{:?}", secret.digest()), "Digest(…)");
        assert!(secret.expose().ends_with(secret.hint()));
    }

    #[test]
    fn digests_are_equal_only_when_all_bytes_are() {
        let digest = Digest::from([7; 32]);
        assert_eq!(digest, Digest::from([7; 32]));
        for at in 0..32 {
            let mut other = [7; 32];
            other[at] ^= 1;
            assert_ne!(digest, Digest::from(other), "byte {at}");
        }
    }

    #[test]
    fn two_secrets_differ() {
        let [one, other] = [(); 2].map(|()| Secret::generate(Kind::ServiceToken).unwrap());
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn what_looks_like_a_secret_is_not_repeated() {
        let secret = Secret::generate(Kind::DataImportKey).unwrap();
        let text = format!("é {0}: {0}x, {0}é mst_ mst_x_1 {0}", secret.expose());
        assert_eq!(
            redacted(&text),
            "é mst_dik_…: mst_dik_…, mst_dik_…é mst_ mst_x_1 mst_dik_…"
        );
        assert!(matches!(redacted("nothing of ours"), Cow::Borrowed(_)));
    }
}
