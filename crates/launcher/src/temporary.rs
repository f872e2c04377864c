//! A throw-away cluster for tests.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::launch::Launch;
use crate::layout::Layout;
use crate::postmaster::Postmaster;
use crate::stop::{StopRequest, StopRequests};
use crate::{Config, Error};

/// Waits for the end of its input, which is the end of our process, then ends the
/// cluster in `$1/postgres` and removes all its arguments. The number in
/// `postmaster.pid` is only believed while its command line names the directory.
const CLEAN_UP: &str = r#"
read -r _
pid=$(head -n 1 "$1/postgres/postmaster.pid" 2>/dev/null)
is_ours() {
    [ -n "$pid" ] && tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF -e "$1/postgres"
}
for signal in QUIT KILL; do
    is_ours "$1" && kill -s "$signal" "$pid"
    polls=0
    while is_ours "$1" && [ "$polls" -lt 100 ]; do
        sleep 0.05
        polls=$((polls + 1))
    done
done
rm -rf -- "$@"
"#;

/// A Postgres cluster in a temporary directory, for tests: fast, not durable.
///
/// It ends and its directory goes away when this is dropped, or when the process ends in
/// whatever way: it may be kept in a `static`. It is bound to no async runtime, and not
/// restarted when it dies.
#[derive(Debug)]
pub struct TemporaryCluster {
    // Dropped in this order: first the cluster, then its directory.
    _postmaster: Postmaster,
    launch: Launch,
    _clean_up: CleanUp,
}

impl TemporaryCluster {
    /// Makes a cluster and waits until it accepts connections; blocks for about a second.
    ///
    /// # Errors
    /// Most of [`Error`]; nothing is left behind.
    pub fn start() -> Result<Self, Error> {
        let directory = unique_directory()?;
        // Before anything can run that it would have to end.
        let clean_up = CleanUp::start(&directory)?;
        // Nobody asks: it ends by being dropped.
        let (_request, stop): (StopRequest, _) = StopRequests::channel();
        let config = Config {
            settings: vec![
                ("shared_buffers".into(), "64MB".into()),
                // Each test brings its own pool.
                ("max_connections".into(), "200".into()),
            ],
            durable: false,
            ..Config::new(directory)
        };
        let launch = Launch::prepare(config, &stop)?;
        Ok(Self {
            _postmaster: launch.start(&stop)?,
            launch,
            _clean_up: clean_up,
        })
    }

    /// A URL to connect to `database` with, as the superuser `muster`; sqlx and libpq read it.
    ///
    /// A new cluster has a database `postgres`.
    pub fn url(&self, database: &str) -> String {
        self.launch.layout.url(database)
    }

    /// Where the cluster and its log are, while it runs.
    pub fn directory(&self) -> &Path {
        &self.launch.layout.directory
    }
}

/// A directory that did not exist before, and that Postgres' account may pass through.
fn unique_directory() -> Result<PathBuf, Error> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let nanoseconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.subsec_nanos());
    let path = std::env::temp_dir().join(format!(
        "muster-test-{}-{}-{nanoseconds:x}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed),
    ));
    DirBuilder::new()
        .mode(0o711)
        .create(&path)
        .map_err(Error::io("create", &path))?;
    path.canonicalize().map_err(Error::io("resolve", &path))
}

/// A process that outlives us, however we end, to clean up.
#[derive(Debug)]
struct CleanUp {
    shell: Child,
}

impl CleanUp {
    fn start(directory: &Path) -> Result<Self, Error> {
        let socket = Layout::create(directory)?.socket;
        let shell = Command::new("sh")
            .args(["-c", CLEAN_UP, "muster-clean-up"])
            .arg(directory)
            .arg(socket)
            // Neither our terminal nor a test runner that kills our group may end it.
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io("run", Path::new("sh")))?;
        Ok(Self { shell })
    }
}

impl Drop for CleanUp {
    fn drop(&mut self) {
        // Waiting closes its input first.
        if let Err(error) = self.shell.wait() {
            tracing::warn!(%error, "cannot wait for the clean-up of a temporary cluster");
        }
    }
}
