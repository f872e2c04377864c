//! Why a cluster could not be started, or kept running.

use std::io;
use std::path::{Path, PathBuf};

use crate::programs::MINIMUM_MAJOR;

/// Why a cluster could not be started, kept running or stopped.
///
/// The texts are written for the operator: each says what to do where that is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No directory holds both `initdb` and `postgres`.
    #[error(
        "PostgreSQL is not installed (looked in {searched}): install version {MINIMUM_MAJOR} or newer, \
         on Debian or Ubuntu with `apt-get install postgresql`, or name the directory of its programs"
    )]
    NotInstalled {
        /// The directories that were looked at, for people.
        searched: String,
    },

    /// A client program of Postgres is not there, or too old for the server.
    #[error(
        "{name} of PostgreSQL {server} or newer is not installed (looked in {searched}): install it, \
         on Debian or Ubuntu with `apt-get install postgresql-client`, or name the directory of \
         PostgreSQL's programs"
    )]
    ToolNotInstalled {
        /// The program.
        name: String,
        /// The major version of the server.
        server: u32,
        /// The directories that were looked at, for people.
        searched: String,
    },

    /// Only a version older than the oldest supported one was found.
    #[error(
        "PostgreSQL {found} in {directory} is too old: version {MINIMUM_MAJOR} or newer is needed"
    )]
    TooOld {
        /// The newest major version found.
        found: u32,
        /// The directory of its programs.
        directory: PathBuf,
    },

    /// The cluster belongs to another major version; the data was not touched.
    #[error(
        "the cluster in {directory} belongs to PostgreSQL {cluster}, but the programs found are of \
         version {found}; its data was not touched. Install PostgreSQL {cluster} (on Debian \
         `apt-get install postgresql-{cluster}`), or dump it with {cluster} and restore into a new \
         data directory"
    )]
    VersionMismatch {
        /// The major version in the cluster's `PG_VERSION`.
        cluster: u32,
        /// The major version of the programs.
        found: u32,
        /// The cluster's directory.
        directory: PathBuf,
    },

    /// Another launcher holds the directory.
    #[error("{directory} is in use by another muster{}", holder(*.pid))]
    InUse {
        /// The data directory.
        directory: PathBuf,
        /// The process id the holder wrote down, if it got that far.
        pid: Option<u32>,
    },

    /// The cluster's place is taken by something that is not a cluster.
    #[error("{directory} is not empty, and not a PostgreSQL cluster: it has no PG_VERSION")]
    NotACluster {
        /// Where the cluster should be.
        directory: PathBuf,
    },

    /// The cluster belongs to another user than the one Postgres would run as.
    #[error(
        "the cluster in {directory} belongs to user id {owner}, but PostgreSQL would run as \
         {account}: start as its owner, or change the owner with `chown -R {account} {directory}`"
    )]
    ForeignOwner {
        /// The cluster's directory.
        directory: PathBuf,
        /// The user id that owns it.
        owner: u32,
        /// The account Postgres would run as.
        account: String,
    },

    /// Postgres' account may not pass through a directory on the way to the data.
    #[error(
        "PostgreSQL does not run as root but as {account}, who may not enter {blocking}: choose a \
         data directory elsewhere, such as /var/lib/muster, or allow it with `chmod o+x {blocking}`"
    )]
    Unsearchable {
        /// The first directory, from the root on, that blocks the way.
        blocking: PathBuf,
        /// The account Postgres would run as.
        account: String,
    },

    /// We are root, and there is no account to run Postgres as.
    #[error("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")]
    NoAccount,

    /// The short socket directory exists and is not safely ours.
    #[error(
        "{directory} should hold the private socket, but it is not a directory that only {account} may \
         enter: remove it, or choose a shorter data directory"
    )]
    UnsafeSocketDirectory {
        /// The directory for the socket.
        directory: PathBuf,
        /// The account Postgres would run as.
        account: String,
    },

    /// The disk is full.
    #[error("no space left on the disk of {directory} ({free_bytes} bytes free)\n{log}")]
    NoSpace {
        /// What was to be written to.
        directory: PathBuf,
        /// Bytes an ordinary user may still write there.
        free_bytes: u64,
        /// The last lines Postgres printed; empty if it did not run yet.
        log: String,
    },

    /// `initdb` failed; nothing was left behind.
    #[error("initdb failed ({status})\n{log}")]
    InitializationFailed {
        /// How `initdb` ended.
        status: String,
        /// The last lines it printed.
        log: String,
    },

    /// The postmaster ended though nobody asked for it.
    #[error("PostgreSQL ended unexpectedly ({status})\n{log}")]
    Ended {
        /// How the postmaster ended.
        status: String,
        /// The last lines it printed.
        log: String,
    },

    /// The postmaster runs, but neither accepts connections nor reports progress.
    #[error("PostgreSQL did not become ready, and printed nothing for {seconds} s\n{log}")]
    NotReady {
        /// How long it was silent, in seconds.
        seconds: u64,
        /// The last lines it printed.
        log: String,
    },

    /// A process of this cluster outlived even SIGKILL.
    #[error("process {pid} of the cluster in {directory} does not end")]
    StillRunning {
        /// The process id.
        pid: u32,
        /// The cluster's directory.
        directory: PathBuf,
    },

    /// The start was given up because a stop was asked for meanwhile.
    #[error("stopped before PostgreSQL was ready")]
    Stopped,

    /// The postmaster died and could not be brought back.
    #[error("gave up after restarting PostgreSQL {restarts} times: {last}")]
    GaveUp {
        /// How many restarts were tried in a row.
        restarts: u32,
        /// What went wrong the last time.
        last: Box<Error>,
    },

    /// The supervising thread panicked; Postgres was stopped.
    #[error("the thread that supervises PostgreSQL panicked")]
    Panicked,

    /// The operating system refused something.
    #[error("cannot {action}: {cause}")]
    Io {
        /// What was tried, and on which path.
        action: String,
        /// The system's answer.
        cause: io::Error,
    },
}

impl Error {
    /// Adapts an I/O error; a full disk becomes [`Error::NoSpace`].
    pub(crate) fn io(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |cause| {
            if cause.kind() == io::ErrorKind::StorageFull {
                return Error::no_space(path, String::new());
            }
            Error::Io {
                action: format!("{action} {}", path.display()),
                cause,
            }
        }
    }

    /// A full disk under `path`, which need not exist itself.
    pub(crate) fn no_space(path: &Path, log: String) -> Error {
        let free_bytes = path
            .ancestors()
            .find_map(|existing| nix::sys::statvfs::statvfs(existing).ok())
            .map_or(0, |disk| disk.blocks_available() * disk.fragment_size());
        Error::NoSpace {
            directory: path.to_owned(),
            free_bytes,
            log,
        }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_as_such() {
        let error = Error::io("write", Path::new("/tmp/no/such/file"))(io::Error::from(
            io::ErrorKind::StorageFull,
        ));
        assert!(matches!(error, Error::NoSpace { free_bytes, .. } if free_bytes > 0));
    }

    #[test]
    fn the_holder_of_a_directory_is_named_when_known() {
        let in_use = |pid| Error::InUse {
            directory: "/data".into(),
            pid,
        };
        assert!(in_use(Some(7)).to_string().ends_with("(process 7)"));
        assert!(in_use(None).to_string().ends_with("another muster"));
    }
}
