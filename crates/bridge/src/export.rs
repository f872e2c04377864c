//! The partner's side: campaign audience files in, cohorts out.
//!
//! [`export`] sends one file as one cohort named after it. `csv` reads rows, `file` finds the
//! identifier of each, `rest` speaks the HTTP contract; gRPC goes through
//! [`muster_client::upload`].

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use muster_client::{
    Connection, Retry,
    upload::{Outcome, Progress, Upload, UploadError},
};
use muster_domain::{
    import::{Mode, Outcomes, Summary},
    name,
};
use uuid::Uuid;

mod csv;
mod file;
mod rest;

#[doc(hidden)]
pub use file::fuzz as fuzz_file;
pub use file::{Defect, FileError, FileRows, FileSource, FileTally, HeaderError, MalformedRow};
pub use rest::{RestError, RestFailure, RestTarget};

/// Where a file goes.
#[derive(Debug, Clone)]
pub enum Target {
    /// To the ingest server: one resumable import, published atomically.
    Grpc {
        /// With a credential: a data import key or a service token.
        connection: Connection,
        /// Slug of the workspace; may be empty if the credential is a data import key.
        workspace: String,
        /// Slug of the partner; may be empty if the credential is a data import key.
        partner: String,
    },
    /// To an endpoint of the HTTP contract: adds only, in calls of up to 1,000.
    Rest(RestTarget),
}

/// How a file is sent.
#[derive(Debug, Clone)]
pub struct Options {
    /// Adds to the cohort, or replaces its members. The HTTP contract only has the former.
    pub mode: Mode,
    /// The partner's id of the cohort; `None` for the file's stem.
    pub cohort_id: Option<String>,
    /// Its name; `None` for the file's stem.
    pub name: Option<String>,
    /// Id of the import, to resume one of an earlier process; `None` for a new one. gRPC only.
    pub import_id: Option<String>,
    /// When the file's data is from.
    pub source_time: Option<SystemTime>,
    /// For a delta: be refused if newer data was imported before. gRPC only.
    pub refuse_if_older: bool,
    /// For a replacement: the largest share of the members, 0 to 1, to remove without confirmation;
    /// `None` for any share.
    pub max_removed_fraction: Option<f64>,
    /// For a replacement: send a file that names nobody, which empties the cohort. Without it such a
    /// file is refused, because it is nearly always an export that went wrong.
    pub allow_empty: bool,
    /// How hard to try.
    pub retry: Retry,
}

impl Options {
    /// Everything optional left out.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            cohort_id: None,
            name: None,
            import_id: None,
            source_time: None,
            refuse_if_older: false,
            max_removed_fraction: None,
            allow_empty: false,
            retry: Retry::default(),
        }
    }
}

/// What happens while a file is sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// More of it is read or durable.
    Advanced {
        /// Bytes of the file read, as stored (compressed, if it is).
        read_bytes: u64,
        /// Bytes of the file in all.
        total_bytes: u64,
        /// Identifiers durable on the other side.
        durable: u64,
    },
    /// All is sent; the other side publishes.
    Committing {
        /// Identifiers in all.
        identifiers: u64,
    },
    /// A try failed, and there will be another.
    Retrying {
        /// How long until then.
        wait: Duration,
        /// What failed, in words.
        cause: String,
    },
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct FileReport {
    /// The file.
    pub file: PathBuf,
    /// The partner's id of the cohort.
    pub cohort_id: String,
    /// The cohort's name.
    pub name: String,
    /// How it was sent and how that ended.
    pub delivery: Delivery,
    /// What was in the file: rows = identifiers sent + malformed rows.
    pub tally: FileTally,
}

/// How a file was sent and how that ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// As one import, which is published.
    Committed {
        /// Id of the import.
        import_id: String,
        /// What became of every identifier.
        summary: Summary,
        /// The version of the cohort it published.
        version: u64,
        /// Given to a resolution, makes it see this version.
        consistency_token: String,
    },
    /// As one import that would remove too many members and waits for a person.
    AwaitingConfirmation {
        /// Id of the import.
        import_id: String,
        /// What publishing it would do.
        preview: Summary,
    },
    /// By calls of the HTTP contract. Each published by itself, and nobody was removed: see
    /// [`FileReport::note`].
    Calls {
        /// How many calls carried identifiers.
        calls: u64,
        /// What became of every identifier; `None` if the other side does not tell. An identifier
        /// whose call was repeated, because its answer was lost, may count as a member already.
        outcomes: Option<Outcomes>,
        /// The version of the cohort after the last call; `None` if the other side does not tell.
        version: Option<u64>,
    },
}

impl FileReport {
    /// What a reader of the report must know about the way it was sent, if anything.
    pub fn note(&self) -> Option<&'static str> {
        match self.delivery {
            Delivery::Calls { .. } => Some(
                "sent over REST, which can only add: members that are not in the file stay. \
                 To replace the list, send it over gRPC",
            ),
            Delivery::Committed { .. } | Delivery::AwaitingConfirmation { .. } => None,
        }
    }
}

/// Why a file was not sent.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file is unusable.
    #[error(transparent)]
    File(#[from] FileError),
    /// The cohort cannot be called so.
    #[error("{what} {text:?} {problem}; give another one explicitly")]
    Name {
        /// `name` or `cohort id`.
        what: &'static str,
        /// What it would be.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The HTTP contract has no replacement; adding instead would keep people who must leave.
    #[error("REST can only add: replacing a list needs gRPC")]
    ReplaceOverRest,
    /// A replacement that nobody is in; see [`Options::allow_empty`].
    #[error("the file names nobody{}, and as a replacement it would empty the cohort", among(.0))]
    Nobody(FileTally),
    /// The import failed.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// A call of the HTTP contract failed.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// The file was sent but its end was never reached.
    #[error("the file was not read to its end")]
    Unread,
}

/// Sends a file as a cohort.
///
/// Memory is bounded by a few batches plus 32 bytes for each malformed row; nothing is published
/// before the whole file was read, except over REST.
///
/// # Errors
/// See [`ExportError`]. Over gRPC nothing is published then, unless the answer to the commit was
/// lost: the same import id tells. Over REST [`RestError`] says how much was.
pub async fn export(
    file: &Path,
    target: &Target,
    options: &Options,
    progress: &mut (dyn FnMut(Event) + Send),
) -> Result<FileReport, ExportError> {
    if matches!((target, options.mode), (Target::Rest(_), Mode::Replace)) {
        return Err(ExportError::ReplaceOverRest);
    }
    let stem = file_stem(file);
    let name = checked("name", options.name.as_ref().unwrap_or(&stem))?;
    let cohort_id = checked("cohort id", options.cohort_id.as_ref().unwrap_or(&stem))?;
    let path = file.to_owned();
    let source = tokio::task::spawn_blocking(move || FileSource::open(&path))
        .await
        .map_err(|panic| FileError::Io(io::Error::other(panic)))??;
    if options.mode == Mode::Replace && !options.allow_empty {
        require_somebody(&source).await?;
    }
    let delivery = match target {
        Target::Grpc {
            connection,
            workspace,
            partner,
        } => {
            let upload = Upload {
                workspace: workspace.clone(),
                partner: partner.clone(),
                cohort_id: cohort_id.clone(),
                name: name.clone(),
                mode: options.mode,
                import_id: options
                    .import_id
                    .clone()
                    .unwrap_or_else(|| Uuid::now_v7().to_string()),
                source_time: options.source_time,
                refuse_if_older: options.refuse_if_older,
                max_removed_fraction: options.max_removed_fraction,
                retry: options.retry,
            };
            send_import(upload, connection, &source, progress).await?
        }
        Target::Rest(target) => {
            let cohort = rest::Cohort {
                id: &cohort_id,
                name: &name,
                created_at: options.source_time.unwrap_or_else(SystemTime::now),
            };
            rest::send(target, &cohort, &options.retry, &source, progress).await?
        }
    };
    // A resumed import may be complete on the server before this side has read anything; reading
    // it still happens, as the commit states the whole.
    let tally = source.tally().ok_or(ExportError::Unread)?;
    Ok(FileReport {
        file: file.to_owned(),
        cohort_id,
        name,
        delivery,
        tally,
    })
}

/// Refuses a file that names nobody; usually its first row tells.
async fn require_somebody(source: &FileSource) -> Result<(), ExportError> {
    let looked_at = source.clone();
    let first = tokio::task::spawn_blocking(move || looked_at.read()?.next().transpose())
        .await
        .map_err(io::Error::other)
        .flatten();
    match first.map_err(FileError::Io)? {
        Some(_) => Ok(()),
        None => Err(ExportError::Nobody(source.tally().unwrap_or_default())),
    }
}

/// The malformed rows of a file that names nobody.
fn among(tally: &FileTally) -> String {
    match tally.malformed.first() {
        Some(first) => format!(" in its {} rows ({first})", tally.rows),
        None => String::new(),
    }
}

async fn send_import(
    upload: Upload,
    connection: &Connection,
    source: &FileSource,
    progress: &mut (dyn FnMut(Event) + Send),
) -> Result<Delivery, UploadError> {
    let mut report = |event| {
        progress(match event {
            Progress::Opened { durable } | Progress::Acknowledged { durable } => Event::Advanced {
                read_bytes: source.read_bytes(),
                total_bytes: source.total_bytes(),
                durable,
            },
            Progress::Committing { total } => Event::Committing { identifiers: total },
            Progress::Retrying { wait, cause } => Event::Retrying {
                wait,
                cause: cause.to_string(),
            },
        });
    };
    let rows = source.clone();
    let outcome = upload
        .run(connection, move || rows.read(), &mut report)
        .await?;
    let import_id = upload.import_id;
    Ok(match outcome {
        Outcome::Committed {
            summary,
            version,
            consistency_token,
        } => Delivery::Committed {
            import_id,
            summary,
            version,
            consistency_token,
        },
        Outcome::AwaitingConfirmation { preview } => {
            Delivery::AwaitingConfirmation { import_id, preview }
        }
    })
}

/// The file's name without `.gz` and then without `.csv`: `spring sale.csv.gz` → `spring sale`.
///
/// Other endings may be part of the name, as in `v1.2 list`, and stay.
pub fn file_stem(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut stem: &str = &name;
    for ending in [".gz", ".csv"] {
        let cut = stem.len().saturating_sub(ending.len());
        if stem.is_char_boundary(cut) && cut > 0 && stem[cut..].eq_ignore_ascii_case(ending) {
            stem = &stem[..cut];
        }
    }
    stem.to_owned()
}

fn checked(what: &'static str, text: &str) -> Result<String, ExportError> {
    match name::check_name(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(ExportError::Name {
            what,
            text: text.to_owned(),
            problem: error.fields.into_iter().map(|f| f.description).collect(),
        }),
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Committed { version, .. } => write!(out, "published as version {version}"),
            Self::AwaitingConfirmation { import_id, .. } => {
                write!(out, "import {import_id} awaits confirmation")
            }
            Self::Calls { calls, .. } => write!(out, "added in {calls} calls"),
        }
    }
}

#[cfg(test)]
mod tests;
