//! Identifiers: how partners and the company name a user.

use crate::error::{Error, Result};

/// Longest identifier, and longest alias label, in bytes of UTF-8.
pub const MAX_IDENTIFIER_BYTES: usize = 512;

/// Which sort of identifier it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum IdentifierKind {
    /// The company's own id of an identified user.
    ExternalId = 1,
    /// A labelled name, of an identified or an anonymous user.
    Alias = 2,
    /// A device; in an import it matches anonymous users only.
    DeviceId = 3,
}

impl IdentifierKind {
    /// The number that stands for it in storage and in digests.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The kind that a number in storage stands for.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::ExternalId, Self::Alias, Self::DeviceId]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// One way to name a user, as sent; borrowed, and not necessarily well-formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentifierRef<'a> {
    /// Which sort it is.
    pub kind: IdentifierKind,
    /// The label of an alias; empty for the others.
    pub label: &'a str,
    /// The id, or the name of an alias.
    pub id: &'a str,
}

impl<'a> IdentifierRef<'a> {
    /// An external id.
    pub fn external_id(id: &'a str) -> Self {
        Self {
            kind: IdentifierKind::ExternalId,
            label: "",
            id,
        }
    }

    /// An alias.
    pub fn alias(label: &'a str, name: &'a str) -> Self {
        Self {
            kind: IdentifierKind::Alias,
            label,
            id: name,
        }
    }

    /// A device id.
    pub fn device_id(id: &'a str) -> Self {
        Self {
            kind: IdentifierKind::DeviceId,
            label: "",
            id,
        }
    }

    /// Whether [`check`](Self::check) would accept it.
    pub fn is_valid(&self) -> bool {
        problem(self.id).is_none()
            && (self.kind != IdentifierKind::Alias || problem(self.label).is_none())
    }

    /// Refuses an identifier that is empty, too long or has control characters, naming the part.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with a path relative to the identifier, such as `alias.name`.
    pub fn check(&self) -> Result<()> {
        let (field, parts): (_, &[(&str, &str)]) = match self.kind {
            IdentifierKind::ExternalId => ("external_id", &[("", self.id)]),
            IdentifierKind::Alias => ("alias", &[("label", self.label), ("name", self.id)]),
            IdentifierKind::DeviceId => ("device_id", &[("", self.id)]),
        };
        for (part, text) in parts {
            if let Some(problem) = problem(text) {
                return Err(Error::field(*part, problem).within(field));
            }
        }
        Ok(())
    }

    /// An owned copy.
    pub fn to_owned(self) -> Identifier {
        Identifier {
            kind: self.kind,
            label: self.label.to_owned(),
            id: self.id.to_owned(),
        }
    }
}

/// What is wrong with the text of an identifier, if anything.
fn problem(text: &str) -> Option<String> {
    if text.is_empty() {
        Some("must not be empty".to_owned())
    } else if text.len() > MAX_IDENTIFIER_BYTES {
        Some(format!(
            "must be at most {MAX_IDENTIFIER_BYTES} bytes, not {}",
            text.len()
        ))
    } else if may_have_controls(text) && text.chars().any(char::is_control) {
        Some("must not contain control characters".to_owned())
    } else {
        None
    }
}

/// Whether a closer look for control characters is needed: quick, as most texts need none. They are
/// single bytes, or begin with 0xc2, as some letters do.
fn may_have_controls(text: &str) -> bool {
    let suspect = |byte: u8| byte < 0x20 || byte == 0x7f || byte == 0xc2;
    text.bytes()
        .fold(false, |found, byte| found | suspect(byte))
}

/// One way to name a user; owned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identifier {
    /// Which sort it is.
    pub kind: IdentifierKind,
    /// The label of an alias; empty for the others.
    pub label: String,
    /// The id, or the name of an alias.
    pub id: String,
}

impl Identifier {
    /// Borrows it.
    pub fn as_ref(&self) -> IdentifierRef<'_> {
        IdentifierRef {
            kind: self.kind,
            label: &self.label,
            id: &self.id,
        }
    }
}

impl std::fmt::Display for Identifier {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            IdentifierKind::ExternalId => write!(out, "external_id {:?}", self.id),
            IdentifierKind::Alias => write!(out, "alias {}:{:?}", self.label, self.id),
            IdentifierKind::DeviceId => write!(out, "device_id {:?}", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_counts_bytes_and_both_ends_are_allowed() {
        assert!(IdentifierRef::external_id("x").is_valid());
        assert!(IdentifierRef::external_id(&"x".repeat(512)).is_valid());
        assert!(!IdentifierRef::external_id(&"x".repeat(513)).is_valid());
        assert!(!IdentifierRef::external_id(&"é".repeat(257)).is_valid());
    }

    #[test]
    fn the_error_names_the_part_and_the_limit() {
        let error = IdentifierRef::alias("newsletter", &"x".repeat(600))
            .check()
            .unwrap_err();
        assert_eq!(error.fields[0].field, "alias.name");
        assert!(error.to_string().contains("512 bytes"), "{error}");
        assert!(IdentifierRef::alias("", "x").check().is_err());
    }

    #[test]
    fn control_characters_are_refused_everywhere() {
        for bad in ["", "a\0", "a\n", "\u{7f}", "\u{85}"] {
            assert!(!IdentifierRef::device_id(bad).is_valid(), "{bad:?}");
            assert!(!IdentifierRef::alias(bad, "x").is_valid(), "{bad:?}");
        }
    }
}
