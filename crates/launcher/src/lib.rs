//! Runs a private Postgres cluster in a data directory.
//!
//! This crate owns everything between "here is a directory" and "here is a
//! connection URL": finding the programs, choosing an unprivileged account,
//! initialising, starting, restarting after a crash, and stopping. It knows
//! nothing of Muster's schema and never opens a SQL connection.
//!
//! [`Cluster`] is for production: its postmaster is restarted when it dies.
//! [`TemporaryCluster`] is for tests: not durable, and gone when the process that
//! started it ends, however it ends.
//!
//! What lies in the directory:
//!
//! | name | content |
//! | --- | --- |
//! | `muster.lock` | locked while a launcher runs here; holds its process id |
//! | `postgres/` | the cluster |
//! | `postgres.log` | what Postgres prints; one older file is kept as `postgres.log.1` |
//! | `run/` | the Unix socket, unless the path is too long for one |
//!
//! Start reading at `supervisor.rs` (the life of a postmaster), then `launch.rs`
//! (what one start takes). Linux only: other processes are looked up in `/proc`.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a panic is how a test fails")
)]

mod account;
mod cluster;
mod error;
mod initialize;
mod launch;
mod layout;
mod leftovers;
mod log;
mod memory;
mod postmaster;
mod programs;
mod stop;
mod supervisor;
mod temporary;

pub use cluster::Cluster;
pub use error::Error;
pub use temporary::TemporaryCluster;

use std::fs::File;
use std::path::{Path, PathBuf};

/// Takes a data directory, created if missing, as a [`Cluster`] does: for a process that keeps its
/// files there but needs no private Postgres. It is taken until the file is closed.
///
/// # Errors
/// [`Error::InUse`] if another process has it.
pub fn lock(directory: &Path) -> Result<File, Error> {
    layout::Layout::create(directory)?.lock()
}

/// Whether a data directory has a cluster in it.
pub fn has_cluster(directory: &Path) -> bool {
    directory.join("postgres/PG_VERSION").is_file()
}

/// A URL to connect with to a database of the cluster in a data directory, as [`Cluster::url`]
/// gives it; for another process than the one that runs the cluster.
///
/// # Errors
/// If the directory cannot be reached.
pub fn url(directory: &Path, database: &str) -> Result<String, Error> {
    Ok(layout::Layout::create(directory)?.url(database))
}

/// Finds one of Postgres' client programs, such as `pg_dump`, for a server of the major version
/// given: of that version if it is there, else of the next one. A given directory is the only one
/// looked at.
///
/// # Errors
/// [`Error::ToolNotInstalled`] with what to install.
pub fn client_program(name: &str, given: Option<&Path>, server: u32) -> Result<PathBuf, Error> {
    programs::client_program(name, given, server)
}

/// What to run, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything lives; created if missing. The cluster is in `directory/postgres`.
    pub directory: PathBuf,
    /// The directory of `initdb` and `postgres`; searched for if not given.
    pub pg_bin: Option<PathBuf>,
    /// Postgres settings, as name and value, over the launcher's own defaults; the
    /// few that keep the cluster private (socket, port, log) cannot be changed.
    pub settings: Vec<(String, String)>,
    /// Whether data survives a crash of the machine; `false` is for tests.
    pub durable: bool,
}

impl Config {
    /// A durable cluster in `directory`, with found programs and default settings.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            pg_bin: None,
            settings: Vec::new(),
            durable: true,
        }
    }
}
