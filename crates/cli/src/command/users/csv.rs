//! Reads users from CSV, one row at a time.
//!
//! The header decides: `external_id`, `alias:LABEL` (any number) and `device_id` (several ids
//! separated by `;`). Values are taken byte for byte; nothing is trimmed, because identifiers are
//! exact. A file with a column `user_no` is an audience that Muster wrote: then `aliases` (JSON) and
//! `device_ids` are known, too, and what was put in front of values for spreadsheet programs
//! ([`spreadsheet`]) is taken off. A row that cannot be read is a refused row with its line, not the
//! end of the file, unless it is larger than any row can be: then a quote is open, and so would be the
//! rest of the file in memory.

use std::io::{self, Read};

use csv::{ByteRecord, ReaderBuilder, Terminator};
use muster_domain::spreadsheet;
use muster_proto::users::v1::{Alias, UserRecord};
use serde::Deserialize;

/// A row of so many bytes is read; of one with this and a buffer more, nobody reads the end.
const MAX_ROW_BYTES: usize = 1024 * 1024;

/// How much is read at once, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// What a column holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    ExternalId,
    Alias(String),
    DeviceIds,
    /// Of an audience: every alias, as JSON.
    Aliases,
    Ignored,
}

/// An alias in the JSON of an audience.
#[derive(Deserialize)]
struct AliasRecord {
    label: String,
    name: String,
}

/// One row of the file.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// Line of the file the row begins on; the header is line 1.
    pub(super) line: u64,
    /// The user, or why there is none in this row.
    pub(super) user: Result<UserRecord, String>,
}

/// Reads rows until the file ends; an item is an error only if reading itself failed.
#[derive(Debug)]
pub(super) struct UserReader<R> {
    csv: csv::Reader<Terminated<R>>,
    fields: Vec<Field>,
    /// Whether Muster wrote the file.
    ours: bool,
    record: ByteRecord,
}

impl<R: Read> UserReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// Names the column that is wrong, or missing.
    pub(super) fn new(source: R, ignore_unknown_columns: bool) -> Result<Self, String> {
        let mut csv = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            // Lines are counted by their ends, so a row has to end with its line feed, not with the
            // carriage return before it, which is taken off the last value instead.
            .terminator(Terminator::Any(b'\n'))
            .buffer_capacity(BUFFER_BYTES)
            .from_reader(Terminated::new(source));
        let mut record = ByteRecord::new();
        match csv.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Err(format!("the file is empty; {COLUMNS}")),
            Err(error) => return Err(error.to_string()),
        }
        let ours = record.iter().any(|name| name == b"user_no");
        let fields = record
            .iter()
            .map(|name| field(name, ours, ignore_unknown_columns))
            .collect::<Result<Vec<_>, _>>()?;
        if fields.iter().filter(|f| **f == Field::ExternalId).count() > 1 {
            return Err("the column external_id is there twice".to_owned());
        }
        if fields.iter().all(|field| *field == Field::Ignored) {
            return Err(format!("no column holds identifiers; {COLUMNS}"));
        }
        Ok(Self {
            csv,
            fields,
            ours,
            record,
        })
    }

    fn user(&self) -> Result<UserRecord, String> {
        if self.record.len() != self.fields.len() {
            return Err(format!(
                "the row has {} columns, the header has {}",
                self.record.len(),
                self.fields.len()
            ));
        }
        let mut user = UserRecord::default();
        for (index, (field, value)) in self.fields.iter().zip(&self.record).enumerate() {
            if *field == Field::Ignored || value.is_empty() {
                continue;
            }
            let value = if index + 1 == self.fields.len() {
                value.strip_suffix(b"\r").unwrap_or(value)
            } else {
                value
            };
            let value = std::str::from_utf8(value)
                .map_err(|_| format!("column {} is not valid UTF-8", index + 1))?;
            let exact = |value| {
                if self.ours {
                    spreadsheet::unguarded(value)
                } else {
                    value
                }
            };
            match field {
                Field::ExternalId => user.external_id = exact(value).to_owned(),
                Field::Alias(label) => user.aliases.push(Alias {
                    label: label.clone(),
                    name: exact(value).to_owned(),
                }),
                Field::DeviceIds => {
                    let ids = value.split(';').filter(|id| !id.is_empty());
                    user.device_ids.extend(ids.map(|id| exact(id).to_owned()));
                }
                Field::Aliases => {
                    let aliases: Vec<AliasRecord> = serde_json::from_str(value)
                        .map_err(|_| "aliases is not what an audience has there".to_owned())?;
                    user.aliases.extend(aliases.into_iter().map(|alias| Alias {
                        label: alias.label,
                        name: alias.name,
                    }));
                }
                Field::Ignored => {}
            }
        }
        if identifier_count(&user) == 0 {
            return Err("the row has no identifier".to_owned());
        }
        Ok(user)
    }
}

const COLUMNS: &str = "the header must name the columns external_id, alias:LABEL (any number) \
                       or device_id, separated by commas";

fn field(name: &[u8], ours: bool, ignore_unknown: bool) -> Result<Field, String> {
    let name = std::str::from_utf8(name)
        .map_err(|_| format!("the header is not UTF-8 text; {COLUMNS}"))?
        .trim();
    match (name, name.strip_prefix("alias:")) {
        ("external_id", _) => Ok(Field::ExternalId),
        ("device_id", _) => Ok(Field::DeviceIds),
        (_, Some("")) => Err("a column alias: has no label; write alias:LABEL".to_owned()),
        (_, Some(label)) => Ok(Field::Alias(label.to_owned())),
        ("aliases", _) if ours => Ok(Field::Aliases),
        ("device_ids", _) if ours => Ok(Field::DeviceIds),
        ("user_no" | "side", _) if ours => Ok(Field::Ignored),
        _ if ignore_unknown => Ok(Field::Ignored),
        _ => Err(format!(
            "the column {name:?} is unknown (--ignore-unknown-columns leaves such out); {COLUMNS}"
        )),
    }
}

/// How many identifiers a user has, as the limit of a batch counts them.
pub(super) fn identifier_count(user: &UserRecord) -> usize {
    usize::from(!user.external_id.is_empty()) + user.aliases.len() + user.device_ids.len()
}

impl<R: Read> Iterator for UserReader<R> {
    type Item = Result<Row, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = self.csv.position().line();
            self.csv.get_mut().within_row = 0;
            match self.csv.read_byte_record(&mut self.record) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(format!("from line {line} on: {error}"))),
            }
            // The csv crate passes over empty lines; with a carriage return they are as empty.
            if self.record.len() != 1 || &self.record[0] != b"\r" {
                break;
            }
        }
        let breaks = self.record.as_slice().iter().filter(|b| **b == b'\n');
        let breaks = breaks.count() as u64;
        let ends = self.csv.position().line() - 1;
        // A row that nothing terminates has an open quote, and the last line feed is within it.
        let lines = breaks + u64::from(!self.csv.get_ref().exhausted);
        let line = ends + 1 - lines;
        // Line breaks are control characters, which no identifier may have. So a field with some is
        // a mistake, and nearly always a quote that was never closed and swallowed rows.
        let user = if breaks > 0 {
            Err(format!(
                "a quoted field runs over {lines} lines: is a closing quote missing?"
            ))
        } else {
            self.user()
        };
        Some(Ok(Row { line, user }))
    }
}

/// Ends the last line of a file if it is not ended, so that lines can be counted by their ends.
#[derive(Debug)]
struct Terminated<R> {
    source: R,
    last: u8,
    /// The end of the file has been read; then a row that comes is one that nothing terminates.
    exhausted: bool,
    /// How many bytes were read since somebody began to look for the end of a row.
    within_row: usize,
}

impl<R> Terminated<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            last: b'\n',
            exhausted: false,
            within_row: 0,
        }
    }
}

impl<R: Read> Read for Terminated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.within_row >= MAX_ROW_BYTES + BUFFER_BYTES {
            return Err(io::Error::other(
                "the row is larger than 1 MiB: is a closing quote missing?",
            ));
        }
        let count = self.source.read(buffer)?;
        self.within_row += count;
        if count > 0 {
            self.last = buffer[count - 1];
            return Ok(count);
        }
        if self.last == b'\n' || buffer.is_empty() {
            self.exhausted = !buffer.is_empty();
            return Ok(0);
        }
        self.last = b'\n';
        buffer[0] = b'\n';
        Ok(1)
    }
}

/// The way in of a fuzz target (`tests/fuzz`); not an interface.
///
/// # Panics
/// If lines go back, or a row is a user without an identifier.
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(reader) = UserReader::new(bytes, true) else {
        return;
    };
    let mut line = 1;
    for row in reader.map_while(Result::ok) {
        assert!(row.line > line, "line {} after {line}", row.line);
        line = row.line;
        if let Ok(user) = row.user {
            assert!(identifier_count(&user) > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Hands out a few bytes at a time, so that every boundary falls everywhere.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buffer.len());
            self.0.read(&mut buffer[..count])
        }
    }

    proptest! {
        #[test]
        fn every_row_knows_its_line(
            rows in proptest::collection::vec(
                prop_oneof![Just(""), Just("u"), Just("\"u\""), Just("u,x"), Just("\"a\nb\"")],
                0..12,
            ),
            end in prop_oneof![Just("\n"), Just("\r\n")],
            last_line_ends: bool,
            open_quote: bool,
            step in 1..9_usize,
        ) {
            let mut text = format!("external_id{end}");
            let mut expected = Vec::new();
            let mut line = 2;
            let open = if open_quote { vec!["\"open"] } else { vec![] };
            for row in rows.iter().chain(&open) {
                if !row.is_empty() {
                    expected.push(line);
                }
                text.push_str(row);
                text.push_str(end);
                line += 1 + row.matches('\n').count() as u64;
            }
            if !last_line_ends {
                text.truncate(text.len() - end.len());
            }
            let reader = UserReader::new(Trickle(text.as_bytes(), step), false).unwrap();
            let rows: Vec<Row> = reader.collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(lines(&rows), expected);
        }
    }

    fn read(text: impl AsRef<[u8]>) -> Vec<Row> {
        let reader = UserReader::new(text.as_ref(), false).unwrap();
        reader.collect::<Result<_, _>>().unwrap()
    }

    fn refusal(header: &str) -> String {
        UserReader::new(header.as_bytes(), false).unwrap_err()
    }

    fn lines(rows: &[Row]) -> Vec<u64> {
        rows.iter().map(|row| row.line).collect()
    }

    #[test]
    fn columns_become_identifiers_in_any_order() {
        let rows = read("device_id,alias:mail,external_id,alias:phone\nd1;d2,a@x,u1,\n,,u 2 ,\n");
        let user = rows[0].user.as_ref().unwrap();
        assert_eq!(user.external_id, "u1");
        assert_eq!(user.device_ids, ["d1", "d2"]);
        let mail = Alias {
            label: "mail".to_owned(),
            name: "a@x".to_owned(),
        };
        assert_eq!(user.aliases, [mail]);
        // Identifiers are exact: spaces stay.
        assert_eq!(rows[1].user.as_ref().unwrap().external_id, "u 2 ");
    }

    #[test]
    fn byte_order_mark_and_crlf_change_nothing() {
        let plain = read("external_id,device_id\nu1,d1\n\nu2,\n");
        let windows = read("\u{feff}external_id,device_id\r\nu1,d1\r\n\r\nu2,");
        assert_eq!(plain, windows);
        assert_eq!(lines(&plain), [2, 4]);
    }

    #[test]
    fn a_bad_row_is_refused_with_its_line_and_the_rest_is_read() {
        let mut text = b"external_id,device_id\nu1\nu2,d,x\n,\nu3,".to_vec();
        text.extend(b"\xff\nu4,d4\n");
        let rows = read(text);
        assert_eq!(lines(&rows), [2, 3, 4, 5, 6]);
        let refused = |row: usize| rows[row].user.clone().unwrap_err();
        assert!(refused(0).contains("1 columns"));
        assert!(refused(1).contains("3 columns"));
        assert!(refused(2).contains("no identifier"));
        assert!(refused(3).contains("UTF-8"));
        assert_eq!(rows[4].user.as_ref().unwrap().external_id, "u4");
    }

    #[test]
    fn an_unclosed_quote_says_how_much_it_swallowed() {
        let rows = read("external_id\nu1\n\"u2\nu3\nu4\n");
        assert_eq!(lines(&rows), [2, 3]);
        let error = rows[1].user.clone().unwrap_err();
        assert!(error.contains("3 lines"), "{error}");
        let rows = read("external_id\r\n\"a\r\nb\"\r\nu2");
        assert_eq!(lines(&rows), [2, 4]);
        assert!(rows[0].user.clone().unwrap_err().contains("2 lines"));
        assert_eq!(rows[1].user.as_ref().unwrap().external_id, "u2");
    }

    #[test]
    fn a_row_without_an_end_is_not_read_to_the_end_of_the_file() {
        let mut text = "external_id\nu1\n\"u2\n".to_owned();
        // As long as a row may be, it is one that swallowed others.
        let fill = |text: &mut String, bytes| {
            while text.len() < bytes {
                text.push_str("u3\n");
            }
        };
        fill(&mut text, MAX_ROW_BYTES);
        let rows = read(&text);
        assert_eq!(lines(&rows), [2, 3]);
        // Beyond, reading ends, however much there is.
        fill(&mut text, 4 * MAX_ROW_BYTES);
        let endless = text.as_bytes().chain(io::repeat(b'x'));
        let mut reader = UserReader::new(endless, false).unwrap();
        assert!(reader.next().unwrap().is_ok());
        let error = reader.next().unwrap().unwrap_err();
        assert!(
            error.contains("line 3") && error.contains("1 MiB"),
            "{error}"
        );
        let header = format!("\"{}", "x".repeat(4 * MAX_ROW_BYTES));
        assert!(refusal(&header).contains("1 MiB"));
    }

    #[test]
    fn quotes_protect_commas_and_semicolons_separate_devices() {
        let rows = read("external_id,device_id\n\"a,\"\"b\",\";d1;;d2;\"\n");
        let user = rows[0].user.as_ref().unwrap();
        assert_eq!(user.external_id, "a,\"b");
        assert_eq!(user.device_ids, ["d1", "d2"]);
    }

    #[test]
    fn a_header_that_cannot_be_used_says_why() {
        assert!(refusal("").contains("empty"));
        assert!(refusal("u1,u2\n").contains("\"u1\" is unknown"));
        assert!(refusal("external_id;device_id\n").contains("separated by commas"));
        assert!(refusal("external_id,external_id\n").contains("twice"));
        assert!(refusal("alias:\n").contains("label"));
        let utf16 = UserReader::new(&b"\xff\xfee\0x\0"[..], false).unwrap_err();
        assert!(utf16.contains("UTF-8"));
    }

    #[test]
    fn an_audience_that_muster_wrote_is_read_back() {
        let rows = read(
            "user_no,external_id,aliases,device_ids\n\
             7,'=1+1,\"[{\"\"label\"\":\"\"mail\"\",\"\"name\"\":\"\"=x\"\"}]\",d1;'@2\n\
             8,''+1,[],\n",
        );
        let user = rows[0].user.as_ref().unwrap();
        assert_eq!(user.external_id, "=1+1");
        assert_eq!(
            (&*user.aliases[0].label, &*user.aliases[0].name),
            ("mail", "=x")
        );
        assert_eq!(user.device_ids, ["d1", "@2"]);
        assert_eq!(rows[1].user.as_ref().unwrap().external_id, "'+1");
        // In files of others an apostrophe belongs to the identifier.
        let rows = read("external_id\n'=1\n");
        assert_eq!(rows[0].user.as_ref().unwrap().external_id, "'=1");
    }

    #[test]
    fn unknown_columns_are_left_out_on_request() {
        let text = "first name,external_id\nAnn,u1\n";
        let mut reader = UserReader::new(text.as_bytes(), true).unwrap();
        let row = reader.next().unwrap().unwrap();
        assert_eq!(row.user.unwrap().external_id, "u1");
        assert!(UserReader::new(&b"first name\n"[..], true).is_err());
    }

    #[test]
    fn lines_count_to_a_million() {
        let mut text = "external_id\r\n".to_owned();
        for number in 0..1_000_000 {
            text.push_str(&format!("u{number}\r\n"));
        }
        let reader = UserReader::new(text.as_bytes(), false).unwrap();
        let last = reader.last().unwrap().unwrap();
        assert_eq!(last.line, 1_000_001);
    }
}
