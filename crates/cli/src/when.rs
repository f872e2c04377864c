//! Durations and times as people write them.

use std::time::Duration;

use prost_types::Timestamp;
use time::{
    Date, OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description,
};

/// Parses `90d`, `24h`, `30m`, `15s`, `2w` and combinations such as `1d12h`.
///
/// # Errors
/// Says what the form is.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 90d, 24h, 30m or 1d12h");
    let mut seconds: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let mut letters = rest[digits..].chars();
        let unit = match letters.next() {
            Some('w') => 7 * 86_400,
            Some('d') => 86_400,
            Some('h') => 3_600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(wrong()),
        };
        let part = count.checked_mul(unit).ok_or_else(wrong)?;
        seconds = seconds.checked_add(part).ok_or_else(wrong)?;
        rest = letters.as_str();
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Ok(Duration::from_secs(seconds))
}

/// Parses a duration that must not be nothing.
///
/// # Errors
/// Says what the form is.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text:?} is no time at all")),
        some => Ok(some),
    }
}

/// Parses a time, where a duration means from now.
///
/// # Errors
/// Says what the forms are.
pub(crate) fn ahead(text: &str) -> Result<Timestamp, String> {
    instant(text, |now, by| now.checked_add(by))
}

/// Parses a time, where a duration means ago.
///
/// # Errors
/// Says what the forms are.
pub(crate) fn ago(text: &str) -> Result<Timestamp, String> {
    instant(text, |now, by| now.checked_sub(by))
}

fn instant(
    text: &str,
    shift: impl Fn(OffsetDateTime, time::Duration) -> Option<OffsetDateTime>,
) -> Result<Timestamp, String> {
    let wrong = || {
        format!(
            "{text:?} is neither a time such as 2026-03-01T12:00:00Z, nor a date, nor a duration such as 90d"
        )
    };
    if let Ok(by) = duration(text) {
        let by = time::Duration::try_from(by).map_err(|_| wrong())?;
        return shift(OffsetDateTime::now_utc(), by)
            .map(timestamp)
            .ok_or_else(wrong);
    }
    if let Ok(date) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
        return Ok(timestamp(date.midnight().assume_utc()));
    }
    OffsetDateTime::parse(text, &Rfc3339)
        .map(timestamp)
        .map_err(|_| wrong())
}

fn timestamp(at: OffsetDateTime) -> Timestamp {
    Timestamp {
        seconds: at.unix_timestamp(),
        nanos: at.nanosecond().cast_signed(),
    }
}

/// RFC 3339 in UTC, with fractions only where there are some.
pub(crate) fn rfc3339(seconds: i64, nanos: i32) -> Option<String> {
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    let at = at.replace_nanosecond(u32::try_from(nanos).ok()?).ok()?;
    at.format(&Rfc3339).ok()
}

/// RFC 3339 without the fraction of the second, for people; other text stays as it is.
pub(crate) fn to_the_second(text: &str) -> String {
    match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(at) => rfc3339(at.unix_timestamp(), 0).unwrap_or_else(|| text.to_owned()),
        Err(_) => text.to_owned(),
    }
}

/// A duration for the wire.
pub(crate) fn wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(duration("1d12h"), Ok(Duration::from_secs(36 * 3_600)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in [
            "",
            "90",
            "d",
            "1y",
            "-1d",
            "1.5h",
            "99999999999999999999d",
            "1d ",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn people_read_times_to_the_second() {
        assert_eq!(
            to_the_second("2026-03-01T12:00:59.999999Z"),
            "2026-03-01T12:00:59Z"
        );
        assert_eq!(
            to_the_second("2026-03-01T12:00:59Z"),
            "2026-03-01T12:00:59Z"
        );
        assert_eq!(to_the_second("noon"), "noon");
    }

    #[test]
    fn times_are_absolute_or_relative() {
        let noon = ahead("2026-03-01T12:00:00Z").unwrap();
        assert_eq!(
            rfc3339(noon.seconds, noon.nanos).unwrap(),
            "2026-03-01T12:00:00Z"
        );
        assert_eq!(ago("2026-03-01T13:00:00+01:00").unwrap(), noon);
        assert_eq!(
            ago("2026-03-01").unwrap().seconds,
            noon.seconds - 12 * 3_600
        );
        let now = OffsetDateTime::now_utc().unix_timestamp();
        assert!((ahead("1h").unwrap().seconds - now - 3_600).abs() < 5);
        assert!((ago("1h").unwrap().seconds - now + 3_600).abs() < 5);
        assert!(ahead("tomorrow").is_err());
    }
}
