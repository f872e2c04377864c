//! Starts postmasters in one data directory.

use std::fs::{self, File};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::account::Account;
use crate::initialize::initialize;
use crate::layout::Layout;
use crate::leftovers;
use crate::log::says_no_space;
use crate::memory::shared_buffers;
use crate::postmaster::Postmaster;
use crate::programs::Programs;
use crate::stop::StopRequests;
use crate::{Config, Error};

const POLL: Duration = Duration::from_millis(20);

/// Recovery may take long, but it reports its progress every ten seconds; a start
/// that is silent for longer than this has failed.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a start is tried again while Postgres sees traces of the one before.
const TRACES_FADE: Duration = Duration::from_secs(10);

/// How Postgres says that it sees them.
const TRACES: [&str; 2] = [
    "pre-existing shared memory block",
    "lock file \"postmaster.pid\" already exists",
];

/// Over these come the caller's settings.
const DEFAULTS: &[(&str, &str)] = &[
    ("max_connections", "200"),
    // After a checkpoint, each page that changes is logged whole once. A directory being loaded
    // changes pages all over its index: with a gigabyte, most of its log would be that.
    ("max_wal_size", "4GB"),
    // Muster's statements are many and short; compiling them costs more than it saves.
    ("jit", "off"),
    // After a crash every file of the cluster is synced: one by one that takes seconds, of which
    // there are few until callers give up.
    ("recovery_init_sync_method", "syncfs"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_checkpoints", "off"),
    ("log_line_prefix", "%m [%p] "),
];

/// Over these, too: a crash of the machine destroys the cluster.
const NOT_DURABLE: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
];

/// A data directory that is ours, ready for postmasters to be started in it.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) layout: Arc<Layout>,
    programs: Programs,
    account: Account,
    settings: Vec<(String, String)>,
    /// Held, never read.
    _lock: File,
}

impl Launch {
    /// Takes the directory, ends what runs there, and makes a cluster if there is none.
    pub(crate) fn prepare(config: Config, stop: &StopRequests) -> Result<Self, Error> {
        let layout = Arc::new(Layout::create(&config.directory)?);
        let account = Account::choose()?;
        account.require_search(&layout.directory)?;
        let lock = layout.lock()?;

        let major = layout.cluster_major(&account)?;
        let cluster = major.map(|major| (layout.data.as_path(), major));
        let programs = Programs::find(config.pg_bin.as_deref(), cluster)?;
        if major.is_none() {
            initialize(&layout, &programs, &account, config.durable, stop)?;
        }

        let defaults = if config.durable { &[] } else { NOT_DURABLE };
        let mut settings: Vec<_> = DEFAULTS
            .iter()
            .chain(defaults)
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        settings.push(("shared_buffers".into(), shared_buffers()));
        let compression = wal_compression(&layout, &programs, &account);
        settings.push(("wal_compression".into(), compression.into()));
        settings.extend(config.settings);
        settings.extend(private_settings(&layout));
        Ok(Self {
            layout,
            programs,
            account,
            settings,
            _lock: lock,
        })
    }

    /// Starts a postmaster and waits until it accepts connections.
    pub(crate) fn start(&self, stop: &StopRequests) -> Result<Postmaster, Error> {
        let deadline = Instant::now() + TRACES_FADE;
        loop {
            self.clear_leftovers()?;
            match self.start_once(stop) {
                Err(Error::Ended { log, .. })
                    if TRACES.iter().any(|trace| log.contains(trace))
                        && Instant::now() < deadline =>
                {
                    tracing::debug!("Postgres sees traces of an earlier postmaster; trying again");
                    if stop.wait(Duration::from_millis(200)).is_some() {
                        return Err(Error::Stopped);
                    }
                }
                result => return result,
            }
        }
    }

    /// Ends every process of the cluster, except those of no concern to it.
    pub(crate) fn clear_leftovers(&self) -> Result<(), Error> {
        leftovers::ClusterProcesses {
            data: &self.layout.data,
            name: &self.layout.name,
            uid: self.account.uid,
        }
        .clear()
    }

    /// How the end of a postmaster is told, with what it printed.
    pub(crate) fn ended(&self, postmaster: &Postmaster, status: ExitStatus) -> Error {
        let log = self.layout.log.tail(postmaster.log_start);
        if says_no_space(&log) {
            return Error::no_space(&self.layout.data, log);
        }
        Error::Ended {
            status: status.to_string(),
            log,
        }
    }

    fn start_once(&self, stop: &StopRequests) -> Result<Postmaster, Error> {
        self.layout.create_socket_directory(&self.account)?;
        let lock_file = self.layout.data.join("postmaster.pid");
        let stale = modified(&lock_file);
        let log = self.layout.log.open()?;
        let log_start = self.layout.log.length();
        let also_log = log
            .try_clone()
            .map_err(Error::io("open", self.layout.log.path()))?;

        let mut command = self.account.command(&self.programs.postgres());
        command.arg("-D").arg(&self.layout.data);
        for (name, value) in &self.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let child = command
            .current_dir(&self.layout.directory)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(also_log)
            .spawn()
            .map_err(Error::io("run", &self.programs.postgres()))?;
        let mut postmaster = Postmaster::new(child, log_start);

        let (mut printed, mut silent_since) = (log_start, Instant::now());
        while !is_ready(&lock_file, postmaster.pid(), stale) {
            if stop.wait(POLL).is_some() {
                return Err(Error::Stopped);
            }
            if let Some(status) = postmaster.exit_status()? {
                return Err(self.ended(&postmaster, status));
            }
            if self.layout.log.length() != printed {
                (printed, silent_since) = (self.layout.log.length(), Instant::now());
            } else if silent_since.elapsed() > SILENCE {
                return Err(Error::NotReady {
                    seconds: SILENCE.as_secs(),
                    log: self.layout.log.tail(log_start),
                });
            }
        }
        tracing::info!(pid = postmaster.pid(), "PostgreSQL accepts connections");
        Ok(postmaster)
    }
}

/// How pages in the log are compressed: with LZ4, if this Postgres was built with it. With its own
/// method users are written a fifth slower or more, and the log is about as large.
fn wal_compression(layout: &Layout, programs: &Programs, account: &Account) -> &'static str {
    let asked = account
        .command(&programs.postgres())
        .args(["-C", "wal_compression", "-c", "wal_compression=lz4", "-D"])
        .arg(&layout.data)
        .current_dir(&layout.directory)
        .output();
    if asked.is_ok_and(|answer| answer.status.success()) {
        "lz4"
    } else {
        tracing::debug!("this PostgreSQL does not compress its log with LZ4");
        "on"
    }
}

/// What keeps the cluster private, and us informed; no caller may change it.
fn private_settings(layout: &Layout) -> Vec<(String, String)> {
    // The value is a list; quotes keep commas and blanks in the path.
    let socket = layout.socket.display().to_string().replace('"', "\"\"");
    [
        ("listen_addresses", String::new()),
        ("port", "5432".into()),
        ("unix_socket_directories", format!("\"{socket}\"")),
        ("unix_socket_permissions", "0700".into()),
        ("cluster_name", layout.name.clone()),
        ("log_destination", "stderr".into()),
        ("logging_collector", "off".into()),
        // Progress of a recovery is how a slow start is told from a stuck one.
        ("log_startup_progress_interval", "10s".into()),
    ]
    .map(|(name, value)| (name.into(), value))
    .into()
}

/// Whether the postmaster `pid` has written that it accepts connections, as `pg_ctl`
/// finds out. In a container a stale file may well bear the same `pid`, hence its time.
fn is_ready(lock_file: &Path, pid: u32, stale: Option<SystemTime>) -> bool {
    if modified(lock_file) == stale {
        return false;
    }
    let content = fs::read_to_string(lock_file).unwrap_or_default();
    let mut lines = content.lines();
    let is_own = lines
        .next()
        .is_some_and(|line| line.trim() == pid.to_string());
    is_own && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}
