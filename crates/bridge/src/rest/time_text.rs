//! Times as partners write them.

use time::{Date, OffsetDateTime, PrimitiveDateTime, format_description::well_known::Iso8601};

/// Reads an ISO-8601 time; without an offset it is UTC, without a time of day midnight.
///
/// Beyond the standard it takes a space for the `T`, small letters, and an offset without a colon
/// behind a time with colons, as in `2024-05-01 10:00:00 +0000`. Years are 1 to 9999, what a
/// timestamp on the wire can hold.
pub(super) fn parse(text: &str) -> Option<OffsetDateTime> {
    let time = standard(text).or_else(|| standard(&standardised(text)?))?;
    let utc = time.checked_to_offset(time::UtcOffset::UTC)?;
    (1..=9999).contains(&utc.year()).then_some(utc)
}

fn standard(text: &str) -> Option<OffsetDateTime> {
    let with_offset = OffsetDateTime::parse(text, &Iso8601::PARSING).ok();
    let local = || PrimitiveDateTime::parse(text, &Iso8601::PARSING).ok();
    let date = || Date::parse(text, &Iso8601::PARSING).ok();
    with_offset
        .or_else(|| Some(local()?.assume_utc()))
        .or_else(|| Some(date()?.midnight().assume_utc()))
}

fn standardised(text: &str) -> Option<String> {
    let mut text = text.trim().to_ascii_uppercase();
    if !text.is_ascii() {
        return None;
    }
    if text.as_bytes().get(10) == Some(&b' ') {
        text.replace_range(10..11, "T");
    }
    text.retain(|c| c != ' ');
    let offset = text.len().checked_sub(5)?;
    let (sign, digits) = text[offset..].split_at(1);
    let bare = matches!(sign, "+" | "-") && digits.bytes().all(|b| b.is_ascii_digit());
    if bare && text.contains('T') {
        text.insert(offset + 3, ':');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn what_partners_write_is_understood() {
        let ten = datetime!(2024-05-01 10:00:00 UTC);
        for text in [
            "2024-05-01T10:00:00Z",
            "2024-05-01T10:00:00z",
            "2024-05-01t10:00:00Z",
            "2024-05-01T10:00:00+00:00",
            "2024-05-01T10:00:00+0000",
            "2024-05-01T12:00:00+0200",
            "2024-05-01T12:00:00+02",
            "2024-05-01T05:30:00-04:30",
            "2024-05-01T10:00:00.000Z",
            "2024-05-01T10:00:00.000+0000",
            "2024-05-01T10:00:00",
            "2024-05-01T10:00",
            "2024-05-01 10:00:00",
            "2024-05-01 10:00:00 +0000",
            " 2024-05-01T10:00:00Z ",
            "20240501T100000Z",
            "20240501T100000+0000",
        ] {
            assert_eq!(parse(text), Some(ten), "{text}");
        }
        assert_eq!(
            parse("2024-05-01"),
            Some(datetime!(2024-05-01 00:00:00 UTC))
        );
        assert_eq!(
            parse("2024-05-01T10:00:00.123456789Z"),
            Some(datetime!(2024-05-01 10:00:00.123456789 UTC))
        );
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "now",
            "1714557600",
            "2024-13-01",
            "2024-02-30T10:00:00Z",
            "01/05/2024",
            "2024-05-01T25:00:00Z",
            "0000-01-01T00:00:00Z",
            "2024-05-01T10:00:00 UTC",
            "२०२४-05-01",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,40}", near in "[-+0-9TZ:. ]{0,30}") {
            let _ = (parse(&text), parse(&near));
        }
    }
}
