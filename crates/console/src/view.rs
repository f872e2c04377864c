//! How times are written.

use std::fmt;

use askama::filters::HtmlSafe;
use prost_types::Timestamp;
use time::{
    OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::format_description,
};

/// A moment: in UTC as it leaves the server, in the reader's zone once the script has run, and with
/// the exact instant on hover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct When(Option<OffsetDateTime>);

impl From<Option<Timestamp>> for When {
    fn from(timestamp: Option<Timestamp>) -> Self {
        Self(timestamp.and_then(|timestamp| {
            let nanos = i128::from(timestamp.seconds) * 1_000_000_000 + i128::from(timestamp.nanos);
            OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
        }))
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
