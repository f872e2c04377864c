//! `muster backup`: one file that `muster restore` makes the same database of.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Instant,
};

use muster_storage::{Role, contents};
use nix::fcntl::OFlag;
use serde_json::json;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
};

use crate::{
    database::{Place, PlaceArgs},
    error::{CliError, Result},
    global::Global,
    output::{Output, grouped, progress::Progress, remark},
    postgres_tools::Tool,
    signals::Signals,
};

/// Write the whole database to a file, also while servers use it.
///
/// The file holds one moment: every cohort at a version that was complete, and every open import
/// with what it had acknowledged. It is compressed, in the custom format of pg_dump, readable by its
/// owner only, and appears under its name once it is complete and safe on disk.
#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    /// The file; - for standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What a backup took.
struct Written {
    bytes: u64,
    /// `None` for standard output.
    file: Option<PathBuf>,
}

impl Backup {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let began = Instant::now();
        // A private Postgres must not be left behind by Ctrl-C.
        let mut signals = Signals::listen()?;
        self.check_name()?;
        let stopped = || CliError::Failed("stopped; there is no backup".to_owned());
        let place = tokio::select! {
            opened = Place::existing(&self.place, global) => opened?,
            () = signals.next() => return Err(stopped()),
        };
        let output = Output::new(global.output);
        let written = tokio::select! {
            written = self.write(&place, output) => written,
            () = signals.next() => Err(stopped()),
        };
        place.close(&mut signals).await?;
        let (written, took) = (written?, began.elapsed().as_secs_f64());
        let bytes = written.bytes;
        match written.file {
            None => {
                remark(&format!("{} bytes in {took:.1} s", grouped(&bytes)));
                Ok(())
            }
            Some(file) if output.is_json() => {
                output.json(&json!({ "file": file, "bytes": bytes, "seconds": took }))
            }
            Some(file) => output.text(&format!(
                "{}: {} bytes in {took:.1} s\n",
                file.display(),
                grouped(&bytes)
            )),
        }
    }

    fn is_stream(&self) -> bool {
        self.file.as_os_str() == "-"
    }

    fn check_name(&self) -> Result<()> {
        if self.is_stream() {
            return match io::IsTerminal::is_terminal(&io::stdout()) {
                true => Err(CliError::Usage(
                    "a backup is not for a terminal: name a file".to_owned(),
                )),
                false => Ok(()),
            };
        }
        if self.file.is_dir() {
            return Err(CliError::Usage(format!(
                "{} is a directory: name a file",
                self.file.display()
            )));
        }
        if self.file.exists() && !self.force {
            return Err(CliError::Failed(format!(
                "{} is there already; --force replaces it",
                self.file.display()
            )));
        }
        Ok(())
    }

    async fn write(&self, place: &Place, output: Output) -> Result<Written> {
        if self.is_stream() {
            let bytes = dump(place, output, &mut tokio::io::stdout(), "standard output").await?;
            return Ok(Written { bytes, file: None });
        }
        let draft = Draft::create(&self.file)?;
        let mut file = File::from_std(draft.file.try_clone().map_err(failed(&draft.path))?);
        let bytes = dump(place, output, &mut file, &draft.path.display().to_string()).await?;
        // Another one may have come meanwhile.
        self.check_name()?;
        draft.finish(&self.file)?;
        let file = std::path::absolute(&self.file).map_err(failed(&self.file))?;
        let file = Some(file);
        Ok(Written { bytes, file })
    }
}

/// Writes what pg_dump makes of the database; returns how many bytes that were.
async fn dump(
    place: &Place,
    output: Output,
    to: &mut (impl AsyncWrite + Unpin),
    name: &str,
) -> Result<u64> {
    let mut connection = place.store.connection().await?;
    let relations = contents::relations(&mut connection).await?;
    let major = contents::server_major(&mut connection).await?;
    let isolated = contents::is_isolated(&mut connection).await?;
    drop(connection);
    if !relations
        .iter()
        .any(|(name, _)| name.ends_with("._sqlx_migrations"))
    {
        return Err(CliError::Failed(
            "the database holds no Muster: there is nothing to back up".to_owned(),
        ));
    }
    let program = place.tool("pg_dump", major)?;
    let mut words = vec![
        "--format=custom",
        "--no-owner",
        "--no-privileges",
        "--lock-wait-timeout=30s",
        "--verbose",
    ];
    // The owner sees no row of any workspace. This role sees all, by policies: row security stays on.
    let role = format!("--role={}", Role::Backup.name());
    if isolated {
        words.extend([role.as_str(), "--enable-row-security"]);
    }
    let mut tool = Tool::start(&program, &words, Some(&place.target))?;
    let mut from = tool.child.stdout.take().expect("it is a pipe");
    let mut way = Way::new(relations);
    let mut progress = Progress::start(output, "bytes", Some(way.total()));
    let mut buffer = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        let read = from.read(&mut buffer).await;
        let read = read.map_err(|error| CliError::Failed(format!("pg_dump: {error}")))?;
        if read == 0 {
            break;
        }
        let written = to.write_all(&buffer[..read]).await;
        written.map_err(|error| CliError::Failed(format!("{name}: {error}")))?;
        bytes += read as u64;
        while let Ok(said) = tool.remarks.try_recv() {
            way.heard(&said, bytes);
        }
        progress.update(bytes, way.position(bytes));
    }
    let flushed = to.flush().await;
    flushed.map_err(|error| CliError::Failed(format!("{name}: {error}")))?;
    tool.end().await?;
    Ok(bytes)
}

/// How far a dump is, in bytes of the tables in the database.
struct Way {
    sizes: HashMap<String, u64>,
    done: u64,
    current: u64,
    /// Bytes written when the current table began.
    began: u64,
}

impl Way {
    fn new(relations: Vec<(String, u64)>) -> Self {
        Self {
            sizes: relations.into_iter().collect(),
            done: 0,
            current: 0,
            began: 0,
        }
    }

    fn total(&self) -> u64 {
        self.sizes.values().sum::<u64>() + self.done + self.current
    }

    fn heard(&mut self, said: &str, bytes: u64) {
        let Some((_, table)) = said.split_once("dumping contents of table ") else {
            return;
        };
        self.done += self.current;
        self.current = self.sizes.remove(table.trim_matches('"')).unwrap_or(0);
        self.began = bytes;
    }

    /// A table takes less in the file than in the database, as it is compressed.
    fn position(&self, bytes: u64) -> u64 {
        self.done + self.current.min(bytes - self.began)
    }
}

/// A file that gets its name when it is complete.
struct Draft {
    path: PathBuf,
    /// Locked, so that two backups do not write the same one.
    file: fs::File,
    finished: bool,
}

impl Draft {
    fn create(target: &Path) -> Result<Self> {
        let mut path = target.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(failed(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CliError::Failed(format!(
                    "another backup is being written to {}",
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&path)(error)),
        }
        // One that was killed may have left it.
        file.set_len(0)
            .and_then(|()| file.set_permissions(Permissions::from_mode(0o600)))
            .map_err(failed(&path))?;
        Ok(Self {
            path,
            file,
            finished: false,
        })
    }

    /// Makes it durable under its name.
    fn finish(mut self, target: &Path) -> Result<()> {
        self.file.sync_all().map_err(failed(&self.path))?;
        fs::rename(&self.path, target).map_err(failed(target))?;
        self.finished = true;
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed(directory))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            // What is left is not worth more than the disk it takes.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// How an error of a file is told.
pub(crate) fn failed(path: &Path) -> impl Fn(io::Error) -> CliError {
    move |error| CliError::Failed(format!("{}: {error}", path.display()))
}
