//! Runs the real `muster`: servers that end with the test process, commands that end in time.

use std::{
    fs::{self, File, Permissions},
    io::{Read, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
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
const PATIENCE: Duration = Duration::from_secs(120);

/// Slug of the partner that every workspace of the shared Muster has enabled.
pub(crate) const PARTNER: &str = "acme";

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

/// A directory that Postgres' account may pass through.
pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("muster-cli-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in("/tmp")
        .unwrap()
}

/// Polls until `condition` holds, for at most [`PATIENCE`].
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the process runs; a zombie does not.
pub(crate) fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

/// A `muster` with nothing of our environment that it would take for its own.
pub(crate) fn muster() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
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
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Done {
    /// Standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// That it ended with this code.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
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
    pub(crate) fn says(self, parts: &[&str]) -> Self {
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
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Done {
    run_within(PATIENCE, command, input)
}

/// Runs a command to its end with `input`, for at most `patience`.
#[track_caller]
pub(crate) fn run_within(patience: Duration, command: &mut Command, input: &[u8]) -> Done {
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
pub(crate) fn wait(child: &mut Child, patience: Duration) -> ExitStatus {
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
pub(crate) struct Server {
    pub(crate) child: Child,
    output: PathBuf,
    /// What it printed when it was ready.
    pub(crate) ready: String,
    clean_up: Child,
}

impl Server {
    /// Starts one that keeps its output in `directory`, which is removed in the end, and its data in
    /// `data_dir`; waits until it is ready.
    #[track_caller]
    pub(crate) fn start(command: &mut Command, directory: &Path, data_dir: &Path) -> Self {
        let mut server = Self::spawn(command, directory, data_dir);
        until("a server is ready", || {
            assert!(runs(server.pid()), "it ended: {}", server.stderr());
            server.ready = fs::read_to_string(server.output.with_extension("out")).unwrap();
            server.ready.ends_with('\n')
        });
        server
    }

    /// Starts one as [`start`](Self::start) does, and does not wait.
    pub(crate) fn spawn(command: &mut Command, directory: &Path, data_dir: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let output = directory.join(format!("output-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(output.with_extension("out")).unwrap())
            .stderr(File::create(output.with_extension("err")).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let clean_up = Command::new("sh")
            .args(["-c", CLEAN_UP, "muster-clean-up", &child.id().to_string()])
            .args([data_dir, directory])
            .process_group(0)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            output,
            ready: String::new(),
            clean_up,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said on standard error so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.output.with_extension("err")).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().unwrap()), signal).unwrap();
    }

    /// Kills it with SIGKILL and waits for its end.
    pub(crate) fn kill_9(&mut self) {
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

/// Commands about one data directory, and perhaps one workspace.
#[derive(Debug, Clone)]
pub(crate) struct Muster {
    pub(crate) data_dir: PathBuf,
    pub(crate) workspace: String,
}

impl Muster {
    /// A command line of it, with the global flags after the words.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = muster();
        command.args(words).arg("--data-dir").arg(&self.data_dir);
        if !self.workspace.is_empty() {
            command.args(["--workspace", &self.workspace]);
        }
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) -> Done {
        run(&mut self.command(words), b"")
    }

    /// Runs one that succeeds, and returns its standard output.
    #[track_caller]
    pub(crate) fn table(&self, words: &[&str]) -> String {
        self.run(words).code(0).text().to_owned()
    }

    /// Runs one that succeeds with `--output json`.
    #[track_caller]
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let words = [&["--output", "json"], words].concat();
        self.run(&words).code(0).json()
    }

    /// Runs one that fails with 1 and `--output json`, and returns the error.
    #[track_caller]
    pub(crate) fn error(&self, words: &[&str]) -> Value {
        let words = [&["--output", "json"], words].concat();
        let done = self.run(&words).code(1);
        let error: Value =
            serde_json::from_str(&done.stderr).unwrap_or_else(|_| panic!("{done:?}"));
        error["error"].clone()
    }

    /// Imports users `u0` to `u{count-1}`.
    #[track_caller]
    pub(crate) fn import_users(&self, count: usize) {
        let mut text = "external_id\n".to_owned();
        (0..count).for_each(|n| text.push_str(&format!("u{n}\n")));
        run(
            &mut self.command(&["users", "import", "-"]),
            text.as_bytes(),
        )
        .code(0);
    }
}

/// A `muster up` on a private Postgres in a temporary directory.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) server: Server,
    pub(crate) muster: Muster,
    pub(crate) directory: TempDir,
}

/// The command line of a `muster up` on free ports.
pub(crate) fn up_command(data_dir: &Path) -> Command {
    let mut command = muster();
    let listen = [
        "--grpc-listen",
        "127.0.0.1:0",
        "--rest-listen",
        "127.0.0.1:0",
    ];
    command
        .arg("up")
        .args(listen)
        .arg("--data-dir")
        .arg(data_dir);
    command
}

impl Up {
    /// Starts one with these further words on its command line.
    #[track_caller]
    pub(crate) fn start(words: &[&str]) -> Self {
        let directory = directory();
        let data_dir = directory.path().join("data");
        let mut command = up_command(&data_dir);
        let server = Server::start(command.args(words), directory.path(), &data_dir);
        let muster = Muster {
            data_dir,
            workspace: String::new(),
        };
        Self {
            server,
            muster,
            directory,
        }
    }

    /// `endpoints.json`.
    pub(crate) fn endpoints(&self) -> Value {
        let file = self.muster.data_dir.join("endpoints.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    /// Process id of its postmaster.
    pub(crate) fn postmaster(&self) -> u32 {
        let file = self.muster.data_dir.join("postgres/postmaster.pid");
        let text = fs::read_to_string(file).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// URL of a database in its Postgres.
    pub(crate) fn database_url(&self, database: &str) -> String {
        let socket = self.muster.data_dir.join("run");
        format!(
            "postgres:///{database}?host={}&user=muster",
            socket.display()
        )
    }

    /// A new workspace with the partner enabled.
    #[track_caller]
    pub(crate) fn workspace(&self, slug: &str) -> Muster {
        let muster = Muster {
            workspace: slug.to_owned(),
            ..self.muster.clone()
        };
        muster.json(&["workspace", "create", slug]);
        // It may be there already.
        muster.run(&["partner", "create", PARTNER]);
        muster.json(&["partner", "enable", PARTNER]);
        muster
    }
}

/// The Muster that tests share unless they stop, kill or overload it.
pub(crate) fn shared() -> &'static Up {
    static SHARED: OnceLock<Up> = OnceLock::new();
    SHARED.get_or_init(|| Up::start(&[]))
}

/// A workspace of the shared Muster.
#[track_caller]
pub(crate) fn workspace(slug: &str) -> Muster {
    shared().workspace(slug)
}

/// Writes a file into a directory of its own.
pub(crate) fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

/// A workspace of 100,000 users `u0` to `u99999`, all of them in the cohort `everyone`.
#[derive(Debug)]
pub(crate) struct Big {
    pub(crate) muster: Muster,
    /// What the import of the users told.
    pub(crate) imported: Value,
}

pub(crate) fn big() -> &'static Big {
    static BIG: OnceLock<Big> = OnceLock::new();
    BIG.get_or_init(|| Big::fill(shared().workspace("big")))
}

impl Big {
    /// Fills an empty workspace.
    pub(crate) fn fill(muster: Muster) -> Self {
        let mut text = "external_id\n".to_owned();
        (0..100_000).for_each(|n| text.push_str(&format!("u{n}\n")));
        let (_directory, everyone) = file("everyone.csv", text);
        let imported = muster.json(&["users", "import", &everyone]);
        let sent = muster.json(&["export", "--partner", PARTNER, &everyone]);
        assert_eq!(sent[0]["members_after"], 100_000, "{sent}");
        Self { muster, imported }
    }
}

/// The text of a field.
#[track_caller]
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no {name} in {value}"))
}
