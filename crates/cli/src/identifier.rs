//! How users are named on the command line: one text form, everywhere.
//!
//! `external_id=ID` (or a bare `ID`), `alias:LABEL=NAME`, `device_id=ID`, and `user_no=N` where a
//! number is as good. A bare word with an equals sign is refused rather than guessed at: it is far
//! more often a mistyped kind than an id.

use muster_domain::identifier::IdentifierRef;
use muster_proto::users::v1::{Alias, Identifier, identifier::Kind};

/// A user, named by an identifier or by number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum UserRef {
    /// By one of the identifiers.
    Identifier(Identifier),
    /// By the number in the workspace.
    UserNo(u32),
}

/// Parses an identifier or `user_no=N`.
///
/// # Errors
/// Says what is wrong, or what the forms are.
pub(crate) fn parse_user(text: &str) -> Result<UserRef, String> {
    match text.strip_prefix("user_no=") {
        Some(number) => number
            .parse()
            .map(UserRef::UserNo)
            .map_err(|_| format!("user_no {number:?} is not a whole number below 2^32")),
        None => parse_identifier(text).map(UserRef::Identifier),
    }
}

/// Parses an identifier.
///
/// # Errors
/// Says what is wrong, or what the forms are.
pub(crate) fn parse_identifier(text: &str) -> Result<Identifier, String> {
    let kind = match text.split_once('=') {
        None => Kind::ExternalId(text.to_owned()),
        Some(("external_id", id)) => Kind::ExternalId(id.to_owned()),
        Some(("device_id", id)) => Kind::DeviceId(id.to_owned()),
        Some(("user_no", _)) => {
            return Err("an identifier is needed here, not a user_no".to_owned());
        }
        Some((kind, name)) => match kind.strip_prefix("alias:") {
            Some(label) => Kind::Alias(Alias {
                label: label.to_owned(),
                name: name.to_owned(),
            }),
            None => {
                return Err(format!(
                    "{kind:?} is no kind of identifier: write external_id=…, alias:LABEL=… or \
                     device_id=…, and external_id={text} if that is the id"
                ));
            }
        },
    };
    let identifier = Identifier { kind: Some(kind) };
    match borrowed(&identifier).map(|identifier| identifier.check()) {
        Some(Err(error)) => Err(error.to_string()),
        _ => Ok(identifier),
    }
}

fn borrowed(identifier: &Identifier) -> Option<IdentifierRef<'_>> {
    Some(match identifier.kind.as_ref()? {
        Kind::ExternalId(id) => IdentifierRef::external_id(id),
        Kind::Alias(alias) => IdentifierRef::alias(&alias.label, &alias.name),
        Kind::DeviceId(id) => IdentifierRef::device_id(id),
    })
}

/// The text form of an identifier; parses back to it.
pub(crate) fn text(identifier: &Identifier) -> String {
    match &identifier.kind {
        Some(Kind::ExternalId(id)) => format!("external_id={id}"),
        Some(Kind::Alias(Alias { label, name })) => format!("alias:{label}={name}"),
        Some(Kind::DeviceId(id)) => format!("device_id={id}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bare_word_is_an_external_id() {
        assert_eq!(parse_identifier("u-1"), parse_identifier("external_id=u-1"));
        assert_eq!(text(&parse_identifier("u-1").unwrap()), "external_id=u-1");
    }

    #[test]
    fn only_the_first_equals_sign_separates() {
        for form in [
            "external_id=a=b",
            "device_id==",
            "alias:mail=x=y",
            "alias:a:b=c",
        ] {
            assert_eq!(text(&parse_identifier(form).unwrap()), form);
        }
    }

    #[test]
    fn a_mistyped_kind_is_not_taken_for_an_id() {
        for bad in ["devcie_id=1", "EXTERNAL_ID=1", "user=1", "alias=1", "abc=="] {
            let error = parse_identifier(bad).unwrap_err();
            assert!(error.contains(&format!("external_id={bad}")), "{error}");
        }
    }

    #[test]
    fn what_no_server_would_accept_is_refused_here() {
        let long = format!("device_id={}", "x".repeat(513));
        for bad in ["", "external_id=", "alias:=x", "alias:x=", "a\tb", &long] {
            assert!(parse_identifier(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_user_no_is_taken_only_where_it_makes_sense() {
        assert_eq!(parse_user("user_no=7"), Ok(UserRef::UserNo(7)));
        assert!(parse_user("user_no=-1").is_err());
        assert!(parse_user("user_no=4294967296").is_err());
        assert!(parse_identifier("user_no=7").is_err());
    }

    proptest! {
        #[test]
        fn the_text_form_parses_back(
            kind in 0..3_u8,
            label in "[^=\\p{Cc}]{1,20}",
            id in "\\P{Cc}{1,40}",
        ) {
            let kind = match kind {
                0 => Kind::ExternalId(id),
                1 => Kind::Alias(Alias { label, name: id }),
                _ => Kind::DeviceId(id),
            };
            let identifier = Identifier { kind: Some(kind) };
            prop_assert_eq!(parse_identifier(&text(&identifier)), Ok(identifier));
        }
    }
}
