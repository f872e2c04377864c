//! Temporary clusters: shared by many tests, and never left behind.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use muster_launcher::TemporaryCluster;
use support::{in_own_process, query, runs, until};

static SHARED: OnceLock<TemporaryCluster> = OnceLock::new();

fn shared() -> &'static TemporaryCluster {
    SHARED.get_or_init(|| TemporaryCluster::start().unwrap())
}

fn postmaster_pid(directory: &Path) -> u32 {
    let file = std::fs::read_to_string(directory.join("postgres/postmaster.pid")).unwrap();
    file.lines().next().unwrap().parse().unwrap()
}

#[test]
fn it_outlives_the_runtime_that_started_it() {
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let answer = runtime.block_on(async { query(&shared().url("postgres"), "select 1") });
        assert_eq!(answer.unwrap(), "1");
    }
}

#[test]
fn two_are_apart_and_each_goes_when_dropped() {
    let (one, two) = (
        TemporaryCluster::start().unwrap(),
        TemporaryCluster::start().unwrap(),
    );
    query(&one.url("postgres"), "create table only_here ()").unwrap();
    assert!(query(&two.url("postgres"), "table only_here").is_err());
    let directory = one.directory().to_owned();
    let pid = postmaster_pid(&directory);
    drop(one);
    assert!(!runs(pid));
    assert!(!directory.exists());
    assert_eq!(query(&two.url("postgres"), "select 1").unwrap(), "1");
}

const HOLD: &str = "MUSTER_LAUNCHER_TEST_HOLD_TEMPORARY";

/// Not a test by itself: the process that the next ones end.
#[test]
fn holds_a_cluster_until_its_input_ends() {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    println!("ready {}", shared().directory().display());
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

fn nothing_is_left_after(end: impl FnOnce(&mut std::process::Child)) {
    let variable = (HOLD, Path::new("yes"));
    let (mut process, words) = in_own_process("holds_a_cluster_until_its_input_ends", variable);
    let directory = PathBuf::from(&words[0]);
    let postmaster = postmaster_pid(&directory);
    assert!(runs(postmaster));
    end(&mut process);
    process.wait().unwrap();
    until("the postmaster ends", || !runs(postmaster));
    until("the directory is removed", || !directory.exists());
}

#[test]
fn nothing_is_left_when_the_process_is_killed() {
    nothing_is_left_after(|process| process.kill().unwrap());
}

#[test]
fn nothing_is_left_when_the_process_ends_with_the_cluster_in_a_static() {
    nothing_is_left_after(|process| drop(process.stdin.take()));
}
