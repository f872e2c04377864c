//! Programs of ours as processes: servers that end with the test process, commands that end in time.

#![expect(clippy::unwrap_used, reason = "the testbed belongs to tests")]

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{Read, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that is no measurement of its own.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for the end of its input, which is the end of the test process, however it ends; then ends
/// the Muster `$1` and the postmaster of the data directory `$2`, each only while its command line
/// names that directory, and removes `$3`.
const CLEAN_UP: &str = r#"
read -r _
names() {
    [ -n "$1" ] && tr '\0' '\n' <"/proc/$1/cmdline" 2>/dev/null | grep -qF -e "$2"
}
end() {
    for signal in $3; do
        names "$1" "$2" && kill -s "$signal" "$1"
        polls=0
        while names "$1" "$2" && [ "$polls" -lt 100 ]; do
            sleep 0.05
            polls=$((polls + 1))
        done
    done
}
end "$1" "$2" "TERM KILL"
end "$(head -n 1 "$2/postgres/postmaster.pid" 2>/dev/null)" "$2" "QUIT KILL"
rm -rf -- "$3"
"#;

/// Once this process ends, or the input of the one returned is closed, a Muster of this process id,
/// if any, is ended, with the Postgres of its data directory, and `directory` is removed.
pub fn clean_up(pid: &str, data_dir: &Path, directory: &Path) -> Child {
    Command::new("sh")
        .args(["-c", CLEAN_UP, "muster-clean-up", pid])
        .args([data_dir, directory])
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A directory that Postgres' account may pass through.
pub fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("muster-cli-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in("/tmp")
        .unwrap()
}

/// Polls until `condition` holds, for at most [`PATIENCE`].
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the process runs; a zombie does not.
pub fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

/// The `muster` that was built beside the test.
///
/// # Panics
/// If there is none.
pub fn muster() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("muster");
    assert!(
        program.exists(),
        "build it first: cargo build --package muster-cli"
    );
    program
}

/// A command line with nothing of our environment that a `muster` would take for its own.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars() {
        if name.starts_with("MUSTER_") || ["DATABASE_URL", "RUST_LOG"].contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it said on standard error.
    pub stderr: String,
}

impl Done {
    /// Standard output as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// That it ended with this code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(
            self.status.code(),
            Some(code),
            "stdout: {}\nstderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }

    /// That standard error has all of these in it.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "no {part:?} in: {}",
                self.stderr
            );
        }
        self
    }
}

/// Runs a command to its end with `input`, for at most [`PATIENCE`].
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> Done {
    run_within(PATIENCE, command, input)
}

/// Runs a command to its end with `input`, for at most `patience`.
#[track_caller]
pub fn run_within(patience: Duration, command: &mut Command, input: &[u8]) -> Done {
    let stdin = if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stdin, input) = (child.stdin.take(), input.to_vec());
    let feed = thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            // A command may well end without having read it all.
            let _ = stdin.write_all(&input);
        }
    });
    let stdout = slurp(child.stdout.take().unwrap());
    let stderr = slurp(child.stderr.take().unwrap());
    let status = wait(&mut child, patience);
    feed.join().unwrap();
    Done {
        status,
        stdout: stdout.join().unwrap(),
        stderr: String::from_utf8(stderr.join().unwrap()).unwrap(),
    }
}

fn slurp(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for the end of a child, and kills it if that takes too long.
#[track_caller]
pub fn wait(child: &mut Child, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it still ran after {patience:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A `muster up` or `muster serve`. It ends, and its directory goes away, when this is dropped or
/// when the test process ends in whatever way.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub child: Child,
    output: PathBuf,
    /// What it printed when it was ready.
    pub ready: String,
    clean_up: Child,
}

impl Server {
    /// Starts one that keeps its output in `directory`, which is removed in the end, and its data in
    /// `data_dir`; waits until it is ready.
    #[track_caller]
    pub fn start(command: &mut Command, directory: &Path, data_dir: &Path) -> Self {
        let mut server = Self::spawn(command, directory, data_dir);
        until("a server is ready", || {
            assert!(runs(server.pid()), "it ended: {}", server.stderr());
            server.ready = fs::read_to_string(server.output.with_extension("out")).unwrap();
            server.ready.ends_with('\n')
        });
        server
    }

    /// Starts one as [`start`](Self::start) does, and does not wait.
    pub fn spawn(command: &mut Command, directory: &Path, data_dir: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let output = directory.join(format!("output-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(output.with_extension("out")).unwrap())
            .stderr(File::create(output.with_extension("err")).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let clean_up = clean_up(&child.id().to_string(), data_dir, directory);
        Self {
            child,
            output,
            ready: String::new(),
            clean_up,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said on standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.output.with_extension("err")).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill_9(&mut self) {
        self.signal(Signal::SIGKILL);
        wait(&mut self.child, PATIENCE);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Closes its input, upon which it ends the server.
        drop(self.clean_up.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && !matches!(self.clean_up.try_wait(), Ok(Some(_))) {
            // Takes the zombie away.
            let _ = self.child.try_wait();
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.try_wait();
    }
}
