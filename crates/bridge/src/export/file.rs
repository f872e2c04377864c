//! Campaign audience files: which person a row is about, and what was in the whole.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::bufread::MultiGzDecoder;
use muster_domain::{
    identifier::{Identifier, IdentifierKind},
    import::Effect,
    spreadsheet,
};

use super::csv::{Fields, Rows};

/// Read buffers, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// An audience file: CSV, possibly gzip, with a header of `external_id`, `device_id` and
/// `alias:LABEL` columns. Other columns are ignored.
///
/// Each row is about one person; the first of those columns, in the order of the file, that is not
/// empty identifies them. In a file with a column `user_no`, which is an audience that Muster wrote,
/// what was put in front of identifiers for [spreadsheet programs](spreadsheet) is taken off. It can be read from its start as often as needed, by clones, too.
#[derive(Debug, Clone)]
pub struct FileSource {
    path: PathBuf,
    total_bytes: u64,
    /// Of the reader that began last.
    read_bytes: Arc<AtomicU64>,
    tally: Arc<Mutex<Option<FileTally>>>,
}

/// What was in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileTally {
    /// Rows after the header; blank lines are none.
    pub rows: u64,
    /// Rows that name somebody.
    pub identifiers: u64,
    /// The others, all of them, in the order of the file.
    pub malformed: Vec<MalformedRow>,
}

/// A row that names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedRow {
    /// Its first line, from 1; the header has the first.
    pub line: u64,
    /// Its last line. Far from the first, it tells of a quote that is not closed: everything in
    /// between is part of this row.
    pub last_line: u64,
    /// What is wrong.
    pub defect: Defect,
}

/// Why a row names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// It has more or fewer fields than the header.
    FieldCount {
        /// Fields of the header.
        expected: u32,
        /// Fields of the row.
        found: u32,
    },
    /// The identifier is not UTF-8.
    NotUtf8,
    /// The identifier has a line break in it: most likely a quote is not closed.
    LineBreak,
    /// Every identifying column is empty.
    NoIdentifier,
    /// It is larger than 1 MiB.
    TooLarge,
}

impl fmt::Display for Defect {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FieldCount { expected, found } => {
                write!(out, "{found} fields where the header has {expected}")
            }
            Self::NotUtf8 => out.write_str("the identifier is not UTF-8"),
            Self::LineBreak => {
                out.write_str("a line break in the identifier; is a quote not closed?")
            }
            Self::NoIdentifier => out.write_str("every identifying column is empty"),
            Self::TooLarge => out.write_str("larger than 1 MiB; is a quote not closed?"),
        }
    }
}

impl fmt::Display for MalformedRow {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == self.last_line {
            write!(out, "line {}: {}", self.line, self.defect)
        } else {
            write!(
                out,
                "lines {} to {}: {}",
                self.line, self.last_line, self.defect
            )
        }
    }
}

/// Why a file cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read, or its compression is damaged.
    #[error("cannot read the file: {0}")]
    Io(#[source] io::Error),
    /// It is a directory, a pipe or a device. A file is read from its start more than once, and a
    /// pipe would silently lose what was read before.
    #[error("it is not a regular file; write what a pipe brings into a file first")]
    NotAFile,
    /// Its header does not say where the identifiers are.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// What is wrong with a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// There is no row at all.
    #[error(
        "the file is empty: it needs a header with `external_id`, `device_id` or `alias:LABEL`"
    )]
    Empty,
    /// No column identifies anybody.
    #[error(
        "no column identifies anybody: expected `external_id`, `device_id` or `alias:LABEL`, found {}",
        listed(.found)
    )]
    NoIdentifierColumn {
        /// The columns there are, the first 20.
        found: Vec<String>,
    },
    /// An alias column without a label.
    #[error("the column `alias:` needs a label, as in `alias:newsletter`")]
    AliasWithoutLabel,
    /// It is larger than 1 MiB.
    #[error("the header is larger than 1 MiB: is this a CSV file?")]
    TooLarge,
}

fn listed(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    quoted.join(", ")
}

impl FileSource {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// If it cannot be read or its header names no identifying column.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let metadata = std::fs::metadata(path).map_err(FileError::Io)?;
        if !metadata.is_file() {
            return Err(FileError::NotAFile);
        }
        let source = Self {
            path: path.to_owned(),
            total_bytes: metadata.len(),
            read_bytes: Arc::default(),
            tally: Arc::default(),
        };
        source.rows()?;
        Ok(source)
    }

    /// Reads it from its start.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn read(&self) -> io::Result<FileRows> {
        self.rows().map_err(|error| match error {
            FileError::Io(error) => error,
            FileError::NotAFile => io::Error::other(error),
            FileError::Header(error) => io::Error::new(io::ErrorKind::InvalidData, error),
        })
    }

    fn rows(&self) -> Result<FileRows, FileError> {
        let file = File::open(&self.path).map_err(FileError::Io)?;
        self.read_bytes.store(0, Ordering::Relaxed);
        let counted = Counted {
            file,
            read_bytes: Arc::clone(&self.read_bytes),
        };
        let input = decoded(counted).map_err(FileError::Io)?;
        let mut rows = Rows::new(input);
        let header = Header::read(&mut rows)?;
        Ok(FileRows {
            rows,
            header,
            tally: FileTally::default(),
            result: Arc::clone(&self.tally),
            failed: false,
        })
    }

    /// Size of the file, in bytes as stored.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// How far the latest reader is, in bytes as stored.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// What was in it, as the reader found that came to the end last; `None` before.
    pub fn tally(&self) -> Option<FileTally> {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.clone()
    }
}

/// Counts the bytes that leave a file.
struct Counted {
    file: File,
    read_bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The text of a file: decompressed if it is gzip, without a byte order mark.
fn decoded(file: impl Read + 'static) -> io::Result<Box<dyn BufRead>> {
    let (magic, file) = peek(
        BufReader::with_capacity(BUFFER_BYTES, file),
        GZIP_MAGIC.len(),
    )?;
    let text: Box<dyn BufRead> = if magic == GZIP_MAGIC {
        let decoder = MultiGzDecoder::new(file);
        Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
    } else {
        Box::new(file)
    };
    let (mark, mut text) = peek(text, BYTE_ORDER_MARK.len())?;
    if mark == BYTE_ORDER_MARK {
        text.consume(mark.len());
    }
    Ok(Box::new(text))
}

/// An input with its first bytes put back in front.
type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// The first bytes of an input, and the input with them in front.
fn peek<R: BufRead>(mut input: R, bytes: usize) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut first = Vec::with_capacity(bytes);
    input.by_ref().take(bytes as u64).read_to_end(&mut first)?;
    Ok((first.clone(), io::Cursor::new(first).chain(input)))
}

/// Which fields identify.
struct Header {
    width: usize,
    columns: Vec<Column>,
    /// Whether Muster wrote the file.
    ours: bool,
}

struct Column {
    index: usize,
    kind: IdentifierKind,
    label: String,
}

impl Header {
    fn read<R: BufRead>(rows: &mut Rows<R>) -> Result<Self, FileError> {
        let row = rows.next_row().map_err(FileError::Io)?;
        let row = row.ok_or(HeaderError::Empty)?;
        let fields = row.fields.ok_or(HeaderError::TooLarge)?;
        let names: Vec<String> = fields
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim().to_owned())
            .collect();
        let ours = names.iter().any(|name| name == "user_no");
        let mut columns = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let (kind, label) = match name.as_str() {
                "external_id" => (IdentifierKind::ExternalId, ""),
                "device_id" => (IdentifierKind::DeviceId, ""),
                alias => match alias.strip_prefix("alias:") {
                    Some("") => return Err(HeaderError::AliasWithoutLabel.into()),
                    Some(label) => (IdentifierKind::Alias, label),
                    None => continue,
                },
            };
            let label = label.to_owned();
            columns.push(Column { index, kind, label });
        }
        if columns.is_empty() {
            let found = names.into_iter().take(20).collect();
            return Err(HeaderError::NoIdentifierColumn { found }.into());
        }
        let width = fields.len();
        Ok(Self {
            width,
            columns,
            ours,
        })
    }

    /// Whom a row is about.
    fn identify(&self, fields: Option<Fields<'_>>) -> Result<Identifier, Defect> {
        let fields = fields.ok_or(Defect::TooLarge)?;
        if fields.len() != self.width {
            return Err(Defect::FieldCount {
                expected: clamp(self.width),
                found: clamp(fields.len()),
            });
        }
        let filled = |column: &&Column| !fields.get(column.index).is_empty();
        let column = self.columns.iter().find(filled);
        let column = column.ok_or(Defect::NoIdentifier)?;
        let id = std::str::from_utf8(fields.get(column.index)).map_err(|_| Defect::NotUtf8)?;
        if id.contains(['\n', '\r']) {
            return Err(Defect::LineBreak);
        }
        let id = if self.ours {
            spreadsheet::unguarded(id)
        } else {
            id
        };
        Ok(Identifier {
            kind: column.kind,
            label: column.label.clone(),
            id: id.to_owned(),
        })
    }
}

fn clamp(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The people of a file, each to be added, in the order of the file.
pub struct FileRows {
    rows: Rows<Box<dyn BufRead>>,
    header: Header,
    tally: FileTally,
    result: Arc<Mutex<Option<FileTally>>>,
    failed: bool,
}

impl Iterator for FileRows {
    type Item = io::Result<(Effect, Identifier)>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            let row = match self.rows.next_row() {
                Ok(Some(row)) => row,
                Ok(None) => {
                    let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
                    *result = Some(std::mem::take(&mut self.tally));
                    return None;
                }
                Err(error) => {
                    // A damaged file fails the same way for ever; the tally stays untold.
                    self.failed = true;
                    return Some(Err(error));
                }
            };
            self.tally.rows += 1;
            match self.header.identify(row.fields) {
                Ok(identifier) => {
                    self.tally.identifiers += 1;
                    return Some(Ok((Effect::Add, identifier)));
                }
                Err(defect) => self.tally.malformed.push(MalformedRow {
                    line: row.line,
                    last_line: row.last_line,
                    defect,
                }),
            }
        }
        None
    }
}

/// The way in of a fuzz target (`tests/fuzz`); not an interface.
///
/// # Panics
/// If a row is neither somebody nor malformed.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Ok(text) = decoded(io::Cursor::new(bytes.to_vec())) else {
        return;
    };
    let mut rows = Rows::new(text);
    let Ok(header) = Header::read(&mut rows) else {
        return;
    };
    let result = Arc::default();
    let people = FileRows {
        rows,
        header,
        tally: FileTally::default(),
        result: Arc::clone(&result),
        failed: false,
    };
    let people = people.take_while(Result::is_ok).count() as u64;
    let tally = result.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(tally) = &*tally {
        assert_eq!(people, tally.identifiers);
        assert_eq!(tally.rows, people + tally.malformed.len() as u64);
    }
}

#[cfg(test)]
mod tests;
