//! The file Postgres prints to.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// A start moves a longer log aside; one older file is kept.
const KEEP_BYTES: u64 = 16 * 1024 * 1024;

const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 16 * 1024;

/// The log of the postmasters run in one data directory.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
}

impl Log {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the log to append to it, readable by us alone: statements may be in it.
    pub(crate) fn open(&self) -> Result<File, Error> {
        if self.length() > KEEP_BYTES {
            fs::rename(&self.path, self.path.with_extension("log.1"))
                .map_err(Error::io("rename", &self.path))?;
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(Error::io("open", &self.path))
    }

    /// How much is in the log, in bytes: a place to [`Log::tail`] from.
    pub(crate) fn length(&self) -> u64 {
        self.path.metadata().map_or(0, |metadata| metadata.len())
    }

    /// The last lines printed after `start`; empty if there are none to be read.
    pub(crate) fn tail(&self, start: u64) -> String {
        let from = start.max(self.length().saturating_sub(TAIL_BYTES));
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(from))?;
            file.take(TAIL_BYTES).read_to_end(&mut bytes)
        });
        if let Err(error) = read {
            tracing::warn!(%error, path = %self.path.display(), "cannot read the postgres log");
        }
        last_lines(&bytes)
    }
}

/// The last lines of what a program printed.
pub(crate) fn last_lines(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Whether a program says that the disk is full.
pub(crate) fn says_no_space(printed: &str) -> bool {
    printed.contains("No space left on device") || printed.contains("Disk quota exceeded")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_tail_begins_at_the_mark_and_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::new(directory.path().join("postgres.log"));
        assert_eq!(log.tail(0), "");
        writeln!(log.open().unwrap(), "of an earlier start").unwrap();
        let mark = log.length();
        let mut file = log.open().unwrap();
        for line in 0..100 {
            writeln!(file, "line {line}").unwrap();
        }
        assert!(log.tail(mark).starts_with("line 80\n"));
        assert!(log.tail(mark).ends_with("line 99"));
    }

    #[test]
    fn a_long_log_is_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::new(directory.path().join("postgres.log"));
        log.open().unwrap().set_len(KEEP_BYTES + 1).unwrap();
        log.open().unwrap();
        assert_eq!(log.length(), 0);
        assert!(directory.path().join("postgres.log.1").exists());
    }
}
