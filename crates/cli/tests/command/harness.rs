//! Runs the real `muster`, alone or against a deployment.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use muster_testbed::process;
pub(crate) use muster_testbed::process::{
    Done, Server, directory, run, run_within, runs, until, wait,
};
use serde_json::Value;
use tempfile::TempDir;

/// Slug of the partner that every workspace of the shared Muster has enabled.
pub(crate) const PARTNER: &str = "acme";

/// A `muster` with nothing of our environment that it would take for its own.
pub(crate) fn muster() -> Command {
    process::command(env!("CARGO_BIN_EXE_muster"))
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
        "--console-listen",
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
