//! What the tests of the launcher share.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A directory that Postgres' account may pass through.
pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o711))
        .tempdir()
        .unwrap()
}

/// The answer to one statement; connects anew, over libpq.
pub(crate) fn query(url: &str, sql: &str) -> Result<String, String> {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--tuples-only", "--no-align", "-c", sql, url])
        .output()
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Polls until `condition` holds, for at most 20 s.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn kill_9(pid: u32) {
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
}

/// Whether the process runs; a zombie does not.
pub(crate) fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

/// Runs one test of this binary in a process of its own, given `variable`, and returns
/// the words it prints after `ready`.
pub(crate) fn in_own_process(test: &str, variable: (&str, &Path)) -> (Child, Vec<String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(variable.0, variable.1)
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let words = (&mut output)
        .lines()
        .map(Result::unwrap)
        .find_map(|line| Some(line.split_once("ready ")?.1.to_owned()))
        .expect("the other process tells that it is ready");
    // Kept open: the process has more to print.
    child.stdout = Some(output.into_inner());
    (child, words.split(' ').map(str::to_owned).collect())
}

/// Says what a test leaves out.
#[expect(
    clippy::explicit_write,
    reason = "the test runner hides what eprintln! prints"
)]
pub(crate) fn skipped(why: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {why}").unwrap();
}

/// Whether the tests run as root; says so if not.
pub(crate) fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        skipped("not root, so Postgres runs as the user who made the directory");
    }
    is_root
}
