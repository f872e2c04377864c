//! Writes users of an audience as CSV or NDJSON.
//!
//! NDJSON and raw CSV hold identifiers byte for byte. Plain CSV is safe to open in a spreadsheet
//! program ([`Guard`]), and says how many values that changed: to a program that reads the file
//! they are other ids.

use std::io::Write;

use muster_proto::{segments::v1 as pb, users::v1::Alias};
use serde::Serialize;

use crate::{
    error::{CliError, Result},
    output::Guard,
};

/// How an audience is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum StreamFormat {
    /// A header line, then a line a user
    Csv,
    /// A JSON object a line
    Ndjson,
}

/// What is written of each user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum View {
    /// user_no
    UserNo,
    /// user_no and external_id
    ExternalId,
    /// user_no, external_id, aliases and device_ids
    Full,
}

impl View {
    /// The value of the contract.
    pub(super) fn wire(self) -> pb::AudienceView {
        match self {
            Self::UserNo => pb::AudienceView::UserNo,
            Self::ExternalId => pb::AudienceView::ExternalId,
            Self::Full => pb::AudienceView::Full,
        }
    }
}

/// One user as JSON. Keys depend on the view, never on the user.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    side: Option<&'a str>,
    user_no: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aliases: Option<Vec<AliasRecord<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_ids: Option<&'a [String]>,
}

#[derive(Serialize)]
struct AliasRecord<'a> {
    label: &'a str,
    name: &'a str,
}

/// Writes users to `W`.
pub(super) struct AudienceWriter<W: Write> {
    form: Form<W>,
    view: View,
    guard: Guard,
}

enum Form<W: Write> {
    Csv(Box<csv::Writer<W>>),
    Ndjson(W),
}

impl<W: Write> AudienceWriter<W> {
    /// Writes to `out`; `raw` as for [`Guard::new`].
    pub(super) fn new(out: W, format: StreamFormat, view: View, raw: bool) -> Self {
        let form = match format {
            StreamFormat::Csv => Form::Csv(Box::new(csv::Writer::from_writer(out))),
            StreamFormat::Ndjson => Form::Ndjson(out),
        };
        let guard = Guard::new(raw);
        Self { form, view, guard }
    }

    /// Writes the header line of CSV; `with_side` as for [`write`](Self::write).
    pub(super) fn write_header(&mut self, with_side: bool) -> Result<()> {
        let Form::Csv(out) = &mut self.form else {
            return Ok(());
        };
        let columns: &[&str] = match self.view {
            View::UserNo => &["user_no"],
            View::ExternalId => &["user_no", "external_id"],
            View::Full => &["user_no", "external_id", "aliases", "device_ids"],
        };
        let side = with_side.then_some("side");
        out.write_record(side.iter().chain(columns))?;
        Ok(())
    }

    /// Writes one user; in a comparison with the side it is on.
    pub(super) fn write(&mut self, side: Option<&str>, user: &pb::AudienceMember) -> Result<()> {
        match &mut self.form {
            Form::Csv(out) => write_csv(out, &mut self.guard, self.view, side, user),
            Form::Ndjson(out) => {
                let record = record(self.view, side, user);
                // An I/O error stays one, so that a closed pipe is still recognised.
                serde_json::to_writer(&mut *out, &record).map_err(std::io::Error::from)?;
                out.write_all(b"\n")?;
                Ok(())
            }
        }
    }

    /// What to tell of values that were changed.
    pub(super) fn remark(&self) -> Option<String> {
        self.guard.remark()
    }

    /// Hands everything on to whoever reads.
    pub(super) fn flush(&mut self) -> Result<()> {
        match &mut self.form {
            Form::Csv(out) => out.flush()?,
            Form::Ndjson(out) => out.flush()?,
        }
        Ok(())
    }
}

fn record<'a>(view: View, side: Option<&'a str>, user: &'a pb::AudienceMember) -> Record<'a> {
    let external_id = Some(user.external_id.as_str()).filter(|id| !id.is_empty());
    Record {
        side,
        user_no: user.user_no,
        external_id: (view != View::UserNo).then_some(external_id),
        aliases: (view == View::Full).then(|| alias_records(&user.aliases)),
        device_ids: (view == View::Full).then_some(user.device_ids.as_slice()),
    }
}

fn alias_records(aliases: &[Alias]) -> Vec<AliasRecord<'_>> {
    let records = aliases.iter().map(|alias| AliasRecord {
        label: &alias.label,
        name: &alias.name,
    });
    records.collect()
}

fn write_csv<W: Write>(
    out: &mut csv::Writer<W>,
    guard: &mut Guard,
    view: View,
    side: Option<&str>,
    user: &pb::AudienceMember,
) -> Result<()> {
    if let Some(side) = side {
        out.write_field(side)?;
    }
    out.write_field(user.user_no.to_string())?;
    if view != View::UserNo {
        out.write_field(guard.cell(&user.external_id).as_bytes())?;
    }
    if view == View::Full {
        let aliases = serde_json::to_string(&alias_records(&user.aliases));
        out.write_field(aliases.map_err(|error| CliError::Failed(error.to_string()))?)?;
        if user.device_ids.iter().any(|id| id.contains(';')) {
            return Err(CliError::Failed(format!(
                "a device id of user {} contains ';', which separates device ids in CSV: use \
                 --format ndjson",
                user.user_no
            )));
        }
        // Each of them: some programs take the semicolon for the next cell.
        let ids: Vec<_> = user.device_ids.iter().map(|id| guard.cell(id)).collect();
        out.write_field(ids.join(";"))?;
    }
    out.write_record(None::<&[u8]>)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(user_no: u32, external_id: &str) -> pb::AudienceMember {
        pb::AudienceMember {
            user_no,
            external_id: external_id.to_owned(),
            aliases: vec![Alias {
                label: "mail".to_owned(),
                name: "a\"x".to_owned(),
            }],
            device_ids: vec!["d1".to_owned(), "d2".to_owned()],
            withheld: 0,
        }
    }

    fn written(format: StreamFormat, view: View, side: Option<&str>) -> String {
        let mut out = Vec::new();
        let mut writer = AudienceWriter::new(&mut out, format, view, true);
        writer.write_header(side.is_some()).unwrap();
        writer.write(side, &user(7, "=1+2,\"x\"")).unwrap();
        writer.write(side, &user(8, "")).unwrap();
        writer.flush().unwrap();
        drop(writer);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn raw_csv_holds_identifiers_exactly() {
        let csv = written(StreamFormat::Csv, View::ExternalId, None);
        assert_eq!(csv, "user_no,external_id\n7,\"=1+2,\"\"x\"\"\"\n8,\n");
        assert_eq!(
            written(StreamFormat::Csv, View::UserNo, Some("left")),
            "side,user_no\nleft,7\nleft,8\n"
        );
        let full = written(StreamFormat::Csv, View::Full, None);
        let mut reader = csv::Reader::from_reader(full.as_bytes());
        let row = reader.records().next().unwrap().unwrap();
        assert_eq!(&row[1], "=1+2,\"x\"");
        assert_eq!(&row[2], r#"[{"label":"mail","name":"a\"x"}]"#);
        assert_eq!(&row[3], "d1;d2");
    }

    #[test]
    fn csv_is_safe_to_open_in_a_spreadsheet_and_says_what_that_changed() {
        let mut out = Vec::new();
        let mut writer = AudienceWriter::new(&mut out, StreamFormat::Csv, View::Full, false);
        let mut hostile = user(7, "=HYPERLINK(1)");
        hostile.device_ids = vec!["d1".to_owned(), "@SUM(1)".to_owned()];
        writer.write(None, &hostile).unwrap();
        writer.write(None, &user(8, "'=1")).unwrap();
        writer.flush().unwrap();
        assert!(writer.remark().unwrap().starts_with("3 values"));
        drop(writer);
        let mut reader = csv::ReaderBuilder::new();
        let mut reader = reader.has_headers(false).from_reader(out.as_slice());
        let rows: Vec<_> = reader.records().collect::<Result<_, _>>().unwrap();
        assert_eq!(&rows[0][1], "'=HYPERLINK(1)");
        assert_eq!(&rows[0][3], "d1;'@SUM(1)");
        assert_eq!(&rows[1][1], "''=1");
    }

    #[test]
    fn ndjson_has_the_same_keys_for_every_user() {
        let lines = written(StreamFormat::Ndjson, View::ExternalId, None);
        let expected = "{\"user_no\":7,\"external_id\":\"=1+2,\\\"x\\\"\"}\n\
                        {\"user_no\":8,\"external_id\":null}\n";
        assert_eq!(lines, expected);
        let lines = written(StreamFormat::Ndjson, View::Full, Some("entered"));
        let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(first["side"], "entered");
        assert_eq!(first["aliases"][0]["label"], "mail");
        assert_eq!(first["device_ids"][1], "d2");
        assert_eq!(
            written(StreamFormat::Ndjson, View::UserNo, None)
                .lines()
                .next(),
            Some("{\"user_no\":7}")
        );
    }

    #[test]
    fn a_device_id_that_csv_cannot_hold_is_an_error_not_two_ids() {
        let mut user = user(7, "u");
        user.device_ids = vec!["a;b".to_owned()];
        let mut writer = AudienceWriter::new(Vec::new(), StreamFormat::Csv, View::Full, false);
        assert!(writer.write(None, &user).is_err());
        let mut writer = AudienceWriter::new(Vec::new(), StreamFormat::Ndjson, View::Full, false);
        assert!(writer.write(None, &user).is_ok());
    }

    #[test]
    fn a_closed_pipe_is_recognised_in_both_formats() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        for format in [StreamFormat::Csv, StreamFormat::Ndjson] {
            let mut writer = AudienceWriter::new(Closed, format, View::UserNo, false);
            let result = writer
                .write(None, &user(1, "u"))
                .and_then(|()| writer.flush());
            assert!(matches!(result, Err(CliError::OutputClosed)), "{format:?}");
        }
    }
}
