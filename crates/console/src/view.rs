//! How numbers, shares and times are written.
//!
//! These print HTML where they must; none prints anything that somebody else wrote.

use std::fmt;

use askama::filters::HtmlSafe;
use prost_types::Timestamp;
use time::{
    OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::format_description,
};

/// A number with its digits in groups of three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Count(pub(crate) u64);

impl From<u64> for Count {
    fn from(count: u64) -> Self {
        Self(count)
    }
}

impl From<&u64> for Count {
    fn from(count: &u64) -> Self {
        Self(*count)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (n, digit) in digits.char_indices() {
            if n > 0 && (digits.len() - n).is_multiple_of(3) {
                out.write_str(",")?;
            }
            write!(out, "{digit}")?;
        }
        Ok(())
    }
}

impl HtmlSafe for Count {}

/// A part of a whole in percent: exact at both ends, so that 99.97 % never reads as all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) part: u64,
    pub(crate) whole: u64,
}

impl fmt::Display for Share {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.whole == 0 {
            return out.write_str("–");
        }
        let tenths = u128::from(self.part) * 1_000 / u128::from(self.whole);
        match (tenths, self.part) {
            (0, 1..) => out.write_str("&lt;0.1 %"),
            (1_000.., _) | (0, 0) => write!(out, "{} %", tenths / 10),
            _ => write!(out, "{}.{} %", tenths / 10, tenths % 10),
        }
    }
}

impl HtmlSafe for Share {}

/// A moment: in UTC as it leaves the server, in the reader's zone once the script has run, and with
/// the exact instant on hover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct When(Option<OffsetDateTime>);

impl When {
    /// Whether there is a moment.
    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }
}

/// A moment as it comes over the wire; `None` if there is none.
pub(crate) fn instant(timestamp: &Option<Timestamp>) -> Option<OffsetDateTime> {
    let timestamp = timestamp.as_ref()?;
    let nanos = i128::from(timestamp.seconds) * 1_000_000_000 + i128::from(timestamp.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
}

impl From<Option<Timestamp>> for When {
    fn from(timestamp: Option<Timestamp>) -> Self {
        Self(instant(&timestamp))
    }
}

impl From<&Option<Timestamp>> for When {
    fn from(timestamp: &Option<Timestamp>) -> Self {
        (*timestamp).into()
    }
}

impl fmt::Display for When {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(instant) = self.0 else {
            return out.write_str("<span class=\"none\">never</span>");
        };
        let instant = instant.to_offset(UtcOffset::UTC);
        let exact = instant.format(&Rfc3339).map_err(|_| fmt::Error)?;
        let to_second = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
        let title = instant.format(to_second).map_err(|_| fmt::Error)?;
        let to_minute =
            format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute]");
        let text = instant.format(to_minute).map_err(|_| fmt::Error)?;
        write!(
            out,
            "<time datetime=\"{exact}\" title=\"{title} UTC\">{text} UTC</time>"
        )
    }
}

impl HtmlSafe for When {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(Count(number).to_string(), text);
        }
    }

    #[test]
    fn a_share_is_never_rounded_to_all_or_nothing() {
        let share = |part, whole| Share { part, whole }.to_string();
        assert_eq!(share(0, 10), "0 %");
        assert_eq!(share(1, 100_000), "&lt;0.1 %");
        assert_eq!(share(1, 3), "33.3 %");
        assert_eq!(share(9_999, 10_000), "99.9 %");
        assert_eq!(share(10, 10), "100 %");
        assert_eq!(share(0, 0), "–");
    }

    #[test]
    fn a_moment_tells_the_exact_instant() {
        let when = When::from(Some(Timestamp {
            seconds: 1_795_624_924,
            nanos: 0,
        }));
        assert_eq!(
            when.to_string(),
            "<time datetime=\"2026-11-25T16:42:04Z\" title=\"2026-11-25 16:42:04 UTC\">\
             25 Nov 2026, 16:42 UTC</time>"
        );
    }
}
