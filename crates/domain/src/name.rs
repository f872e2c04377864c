//! Slugs and names: what workspaces, partners, cohorts and segments are called.

use crate::error::{Error, Result};

/// Longest name, in characters.
pub const MAX_NAME_CHARS: usize = 255;

/// Longest slug, in characters.
pub const MAX_SLUG_CHARS: usize = 64;

/// Accepts a slug: 1 to 64 of `a-z`, `0-9`, `-` and `_`, beginning with a letter or digit.
///
/// # Errors
/// `INVALID_ARGUMENT` with an empty path.
pub fn check_slug(text: &str) -> Result<()> {
    let well_formed = (1..=MAX_SLUG_CHARS).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        && !text.starts_with(['-', '_']);
    if well_formed {
        Ok(())
    } else {
        Err(Error::field(
            "",
            format!(
                "must be 1 to {MAX_SLUG_CHARS} of a-z, 0-9, '-' and '_', beginning with a letter or digit"
            ),
        ))
    }
}

/// Accepts a name, or an id chosen by a client: 1 to 255 characters, none of them a control
/// character.
///
/// # Errors
/// `INVALID_ARGUMENT` with an empty path.
pub fn check_name(text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::field("", "must not be empty"));
    }
    check_label(text)
}

/// Accepts an optional name: 0 to 255 characters, none of them a control character.
///
/// # Errors
/// `INVALID_ARGUMENT` with an empty path.
pub fn check_label(text: &str) -> Result<()> {
    let length = text.chars().count();
    if length > MAX_NAME_CHARS {
        return Err(Error::field(
            "",
            format!("must be at most {MAX_NAME_CHARS} characters, not {length}"),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::field("", "must not contain control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_plain() {
        for good in ["a", "tinyclues", "shop-eu_2", "0x"] {
            assert!(check_slug(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "A", "a b", "é", "a/b", &"a".repeat(65)] {
            assert!(check_slug(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_count_characters() {
        assert!(check_name(&"é".repeat(255)).is_ok());
        assert!(check_name(&"é".repeat(256)).is_err());
        assert!(check_name("").is_err());
        assert!(check_label("").is_ok());
        assert!(check_name("a\0b").is_err());
    }
}
