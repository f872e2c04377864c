//! How identifiers are stored: with their user, a line each, and as a key that leads to the user.
//!
//! A line is the code of the kind as a digit, for an alias its label and a tab, and the id. No
//! identifier has control characters, so each has its own line, and lines can be told apart. A key is
//! the first half of the SHA-256 of the line: to find two identifiers with one key takes some 2⁶⁴
//! hashes, and gives whoever finds them nothing but two names for a user of theirs.

use muster_domain::{
    error::Error,
    identifier::{IdentifierKind, IdentifierRef},
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::Result;

/// Parts the label of an alias from its name.
const TAB: &str = "\t";

/// By what an identifier is found.
pub(super) fn key(identifier: IdentifierRef<'_>) -> Uuid {
    let mut hash = Sha256::new();
    for part in parts(identifier) {
        hash.update(part);
    }
    let digest = hash.finalize();
    Uuid::from_bytes(*digest.first_chunk().expect("a digest is longer"))
}

/// Adds a line.
pub(super) fn append(lines: &mut String, identifier: IdentifierRef<'_>) {
    if !lines.is_empty() {
        lines.push('\n');
    }
    lines.extend(parts(identifier));
}

/// The identifiers in some lines, in order.
pub(crate) fn read(lines: &str) -> impl Iterator<Item = Result<IdentifierRef<'_>>> {
    lines.lines().map(|line| {
        let identifier = match line.split_at_checked(1) {
            Some(("1", id)) => Some(IdentifierRef::external_id(id)),
            Some(("2", alias)) => alias
                .split_once(TAB)
                .map(|(label, name)| IdentifierRef::alias(label, name)),
            Some(("3", id)) => Some(IdentifierRef::device_id(id)),
            _ => None,
        };
        Ok(identifier.ok_or_else(|| Error::internal("a line is no identifier"))?)
    })
}

/// All identifiers of a user, as its row has them: the external id that audiences print first, then
/// the lines, in order.
pub(super) fn read_all<'a>(
    external_id: Option<&'a str>,
    lines: Option<&'a str>,
) -> impl Iterator<Item = Result<IdentifierRef<'a>>> {
    let printed = external_id.map(|id| Ok(IdentifierRef::external_id(id)));
    printed.into_iter().chain(read(lines.unwrap_or_default()))
}

/// What makes up a line.
fn parts(identifier: IdentifierRef<'_>) -> [&str; 4] {
    let IdentifierRef { kind, label, id } = identifier;
    match kind {
        IdentifierKind::ExternalId => ["1", "", "", id],
        IdentifierKind::Alias => ["2", label, TAB, id],
        IdentifierKind::DeviceId => ["3", "", "", id],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let identifiers = [
            IdentifierRef::external_id("2x"),
            IdentifierRef::alias("mail", "ann = ann"),
            IdentifierRef::alias("3", "1"),
            IdentifierRef::device_id("d"),
        ];
        let mut lines = String::new();
        for identifier in identifiers {
            append(&mut lines, identifier);
        }
        assert_eq!(lines, "12x\n2mail\tann = ann\n23\t1\n3d");
        let all = read_all(None, Some(&lines)).collect::<Result<Vec<_>>>();
        assert_eq!(all.unwrap(), identifiers);
        assert!(read_all(None, None).next().is_none());
        for damaged in ["4x", "2label", "1x\n\n3y", "é"] {
            assert!(read(damaged).any(|line| line.is_err()), "{damaged}");
        }
    }

    #[test]
    fn who_differs_in_any_part_has_another_key() {
        let identifiers = [
            IdentifierRef::external_id("a"),
            IdentifierRef::device_id("a"),
            IdentifierRef::alias("a", "a"),
            IdentifierRef::alias("a", "aa"),
            IdentifierRef::alias("aa", "a"),
        ];
        let keys: std::collections::HashSet<Uuid> = identifiers.map(key).into();
        assert_eq!(keys.len(), identifiers.len());
    }
}
