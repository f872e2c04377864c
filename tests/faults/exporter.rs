//! A partner's bridge as a process of its own: `muster export` of a file, over gRPC.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use muster_testbed::process::{self, Done};
use muster_tests::{PARTNER, Shop, WORKSPACE};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{node::program, oracle::List};

/// A file to export, into one cohort under one import id.
pub(crate) struct Exporter {
    directory: TempDir,
    /// Where it exports to.
    pub(crate) endpoint: String,
    token: String,
    cohort: String,
    import_id: String,
}

impl Exporter {
    /// Writes the file, with the ids of a list in their order.
    pub(crate) fn new(shop: &Shop, cohort: &str, import_id: &str, list: &List) -> Self {
        let exporter = Self {
            directory: process::directory(),
            endpoint: shop.grpc.clone(),
            token: shop.client_secret.clone(),
            cohort: cohort.to_owned(),
            import_id: import_id.to_owned(),
        };
        let file = format!("external_id\n{}\n", list.ids.join("\n"));
        fs::write(exporter.file(), file).unwrap();
        exporter
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("list.csv")
    }

    fn command(&self) -> Command {
        let mut command = process::command(program());
        command
            .args(["export", "--partner", PARTNER, "--workspace", WORKSPACE])
            .args(["--endpoint", &self.endpoint, "--output", "json"])
            .args(["--cohort-id", &self.cohort, "--name", &self.cohort])
            .args(["--import-id", &self.import_id])
            .arg(self.file())
            .env("MUSTER_TOKEN", &self.token);
        command
    }

    /// Runs it to its end; returns how it ended and what it says of the file.
    pub(crate) fn run(&self) -> (Done, Value) {
        let done = tokio::task::block_in_place(|| process::run(&mut self.command(), &[]));
        let mut report = done.json();
        (done, report[0].take())
    }

    /// Starts it.
    pub(crate) fn start(&self) -> Exporting {
        let output = |name| fs::File::create(self.directory.path().join(name)).unwrap();
        let child = self
            .command()
            .stdout(output("out"))
            .stderr(output("err"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Exporting {
            child,
            output: self.directory.path().join("out"),
        }
    }
}

/// A running export; killed when it is dropped.
pub(crate) struct Exporting {
    child: Child,
    output: PathBuf,
}

impl Exporting {
    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends it a signal, which it must still be there to get.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Kills it; returns whether it still ran.
    pub(crate) fn kill_9(mut self) -> bool {
        let ran = self.runs();
        let _ = self.child.kill();
        self.child.wait().unwrap();
        ran
    }

    /// Waits for its end; returns its exit code and what it says of the file.
    pub(crate) fn end(mut self) -> (Option<i32>, Value) {
        let wait = || process::wait(&mut self.child, process::PATIENCE);
        let status = tokio::task::block_in_place(wait);
        let text = fs::read(&self.output).unwrap();
        let mut report: Value = serde_json::from_slice(&text).unwrap();
        (status.code(), report[0].take())
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
