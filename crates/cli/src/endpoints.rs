//! `endpoints.json`: how a command finds the Muster that runs from a data directory.
//!
//! `muster up` writes the file once everything listens; every other command reads it for its
//! defaults. It holds addresses and the path of a token file, never a secret.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Name of the file in the data directory.
pub const FILE_NAME: &str = "endpoints.json";

/// Where a running Muster listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// URL of the gRPC services, such as `http://127.0.0.1:7410`.
    pub grpc: String,
    /// URL of the partner-facing REST endpoint; absent if it is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<String>,
    /// URL of the console; absent if it is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
    /// File that holds the operator's token; relative to the data directory unless absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_token_file: Option<PathBuf>,
}

/// Why the file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointsError {
    /// There is no such file.
    #[error(
        "no Muster is running from {}: start one with `muster up`, or give --endpoint and --token",
        .0.display()
    )]
    NotRunning(PathBuf),
    /// The file, or the token file it names, cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{}: {source}; `muster up` writes it anew", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where reading it stopped.
        source: serde_json::Error,
    },
    /// The file names no operator token.
    #[error("{} names no operator token: give --token", .0.display())]
    NoOperatorToken(PathBuf),
}

impl Endpoints {
    /// Reads the file of a data directory.
    ///
    /// # Errors
    /// [`EndpointsError::NotRunning`] if there is none.
    pub fn read(data_dir: &Path) -> Result<Self, EndpointsError> {
        let path = data_dir.join(FILE_NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(EndpointsError::NotRunning(data_dir.to_owned()));
            }
            Err(source) => return Err(EndpointsError::Io { path, source }),
        };
        serde_json::from_slice(&bytes).map_err(|source| EndpointsError::Malformed { path, source })
    }

    /// Writes the file of a data directory in one step: a reader sees the old file or the new one.
    ///
    /// # Errors
    /// If the directory does not exist or cannot be written.
    pub fn write(&self, data_dir: &Path) -> Result<(), EndpointsError> {
        let path = data_dir.join(FILE_NAME);
        let draft = data_dir.join(format!(".{FILE_NAME}.{}", std::process::id()));
        let written = (|| {
            let mut file = fs::File::create(&draft)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&draft, &path)
        })();
        written.map_err(|source| {
            // Best effort: the draft is of no use, and the first error is the one to tell.
            let _ = fs::remove_file(&draft);
            EndpointsError::Io { path, source }
        })
    }

    /// Removes the file, so that later commands say that nothing is running. A missing file is fine.
    ///
    /// # Errors
    /// If the file is there and cannot be removed.
    pub fn remove(data_dir: &Path) -> Result<(), EndpointsError> {
        let path = data_dir.join(FILE_NAME);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(EndpointsError::Io { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Reads the operator's token.
    ///
    /// # Errors
    /// If none is named, or this user may not read the file.
    pub fn operator_token(&self, data_dir: &Path) -> Result<String, EndpointsError> {
        let Some(file) = &self.operator_token_file else {
            return Err(EndpointsError::NoOperatorToken(data_dir.join(FILE_NAME)));
        };
        let path = data_dir.join(file);
        match fs::read_to_string(&path) {
            Ok(token) => Ok(token.trim().to_owned()),
            Err(source) => Err(EndpointsError::Io { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints() -> Endpoints {
        Endpoints {
            grpc: "http://127.0.0.1:7410".to_owned(),
            rest: Some("http://127.0.0.1:7411".to_owned()),
            console: Some("http://127.0.0.1:7412".to_owned()),
            operator_token_file: Some("operator.token".into()),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        endpoints().write(directory.path()).unwrap();
        assert_eq!(Endpoints::read(directory.path()).unwrap(), endpoints());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        Endpoints::remove(directory.path()).unwrap();
        Endpoints::remove(directory.path()).unwrap();
        assert!(Endpoints::read(directory.path()).is_err());
    }

    #[test]
    fn a_missing_file_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let error = Endpoints::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("`muster up`"), "{error}");
        assert!(error.contains("--endpoint and --token"), "{error}");
    }

    #[test]
    fn the_token_file_is_relative_to_the_data_directory() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("operator.token"), "mst_tok_x\n").unwrap();
        let token = endpoints().operator_token(directory.path()).unwrap();
        assert_eq!(token, "mst_tok_x");
    }
}
