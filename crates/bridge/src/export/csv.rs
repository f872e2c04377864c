//! Rows of a CSV file, streamed in bounded memory, each with the lines it came from.
//!
//! The `csv` crate keeps a whole record in memory, and a stray quote turns the rest of a file into
//! one record; so this is on `csv_core`, with a limit.

use std::io::{self, BufRead};

use csv_core::ReadRecordResult;

/// Largest row, in bytes: far more than any row of identifiers, and little enough to keep.
const MAX_ROW_BYTES: usize = 1024 * 1024;

/// Most fields of a row.
const MAX_FIELDS: usize = 4096;

/// The rows of a file, by RFC 4180: comma, quotes doubled inside quotes, `\n`, `\r\n` or `\r`.
/// Blank lines are not rows.
pub(super) struct Rows<R> {
    input: R,
    parser: csv_core::Reader,
    text: Vec<u8>,
    ends: Vec<usize>,
}

/// One row.
pub(super) struct Row<'a> {
    /// Its first line, from 1.
    pub(super) line: u64,
    /// Its last line: another one if a quoted field holds line breaks.
    pub(super) last_line: u64,
    /// `None` if it is larger than what is kept.
    pub(super) fields: Option<Fields<'a>>,
}

/// The fields of a row, unquoted.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    text: &'a [u8],
    ends: &'a [usize],
}

impl<'a> Fields<'a> {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The field at an index below [`len`](Self::len).
    pub(super) fn get(&self, index: usize) -> &'a [u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[index]]
    }

    pub(super) fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        (0..self.len()).map(move |index| self.get(index))
    }
}

impl<R: BufRead> Rows<R> {
    /// Reads from an input without a byte order mark.
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            parser: csv_core::Reader::new(),
            text: vec![0; MAX_ROW_BYTES],
            ends: vec![0; MAX_FIELDS],
        }
    }

    /// The next row; `None` at the end.
    pub(super) fn next_row(&mut self) -> io::Result<Option<Row<'_>>> {
        self.skip_line_breaks()?;
        let line = self.parser.line();
        let (mut bytes, mut fields, mut fits) = (0, 0, true);
        let last_line = loop {
            let input = self.input.fill_buf()?;
            let (result, read, written, ended) =
                self.parser
                    .read_record(input, &mut self.text[bytes..], &mut self.ends[fields..]);
            // The break that ends a row is counted already, but belongs to the row.
            let ends_in_break = input[..read].last() == Some(&b'\n');
            self.input.consume(read);
            bytes += written;
            fields += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                // Go on to the end of the row, but keep nothing of it.
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    fits = false;
                    (bytes, fields) = (0, 0);
                }
                ReadRecordResult::Record => {
                    break self.parser.line() - u64::from(ends_in_break);
                }
                ReadRecordResult::End => return Ok(None),
            }
        };
        Ok(Some(Row {
            line,
            last_line,
            fields: fits.then(|| Fields {
                text: &self.text[..bytes],
                ends: &self.ends[..fields],
            }),
        }))
    }

    /// The parser takes blank lines, and the `\n` of the `\r\n` before, for the beginning of the
    /// next row; without them it knows the line where the row begins.
    fn skip_line_breaks(&mut self) -> io::Result<()> {
        loop {
            let input = self.input.fill_buf()?;
            let breaks = input.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
            let breaks = breaks.count();
            if breaks == 0 {
                return Ok(());
            }
            let (_, read, _, _) =
                self.parser
                    .read_record(&input[..breaks], &mut self.text, &mut self.ends);
            self.input.consume(read);
        }
    }
}
