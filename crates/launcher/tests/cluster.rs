//! A cluster through its life: started, killed, replaced, stopped.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use muster_launcher::{Cluster, Config, Error};
use support::{directory, in_own_process, kill_9, query, runs, until};

async fn start(directory: &Path) -> Cluster {
    Cluster::start(config(directory)).await.unwrap()
}

/// Durable as in production; only smaller.
fn config(directory: &Path) -> Config {
    Config {
        settings: vec![("shared_buffers".into(), "16MB".into())],
        ..Config::new(directory)
    }
}

#[tokio::test]
async fn data_survives_stop_and_start() {
    let directory = directory();
    let cluster = start(directory.path()).await;
    let pid = cluster.postmaster_pid().unwrap();
    query(
        &cluster.url("postgres"),
        "create table kept as select 7 as n",
    )
    .unwrap();
    cluster.stop().await.unwrap();
    assert!(!runs(pid));
    assert!(!directory.path().join("postgres/postmaster.pid").exists());

    let cluster = start(directory.path()).await;
    let url = cluster.url("postgres");
    assert_eq!(query(&url, "select n from kept").unwrap(), "7");
    let log = fs::read_to_string(directory.path().join("postgres.log")).unwrap();
    assert!(!log.contains("recovery in progress"), "{log}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn the_cluster_is_private_and_set_up_for_muster() {
    let directory = directory();
    let cluster = Cluster::start(Config {
        settings: vec![
            ("work_mem".into(), "7MB".into()),
            ("listen_addresses".into(), "*".into()),
        ],
        ..Config::new(directory.path())
    })
    .await
    .unwrap();
    let show = |name: &str| query(&cluster.url("postgres"), &format!("show {name}")).unwrap();
    assert_eq!(show("listen_addresses"), "");
    assert_eq!(show("server_encoding"), "UTF8");
    assert_eq!(show("lc_collate"), "C");
    assert_eq!(show("data_checksums"), "on");
    assert_eq!(show("work_mem"), "7MB");
    assert_eq!(show("fsync"), "on");
    let lz4 = "select 'lz4' = any (enumvals) from pg_settings where name = 'wal_compression'";
    let has_lz4 = query(&cluster.url("postgres"), lz4).unwrap() == "t";
    let compression = show("wal_compression");
    assert_eq!(compression == "lz4", has_lz4, "{compression}");
    assert_ne!(compression, "off");
    assert_eq!(
        query(&cluster.url("postgres"), "select current_user").unwrap(),
        "muster"
    );
    use std::os::unix::fs::PermissionsExt;
    let mode = |name: &str| {
        directory
            .path()
            .join(name)
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode("run"), mode("postgres"), mode("postgres.log")),
        (0o700, 0o700, 0o600)
    );
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_second_start_is_refused_with_the_holders_pid() {
    let directory = directory();
    let cluster = start(directory.path()).await;
    let error = Cluster::start(config(directory.path())).await.unwrap_err();
    let own = Some(std::process::id());
    assert!(
        matches!(&error, Error::InUse { pid, .. } if *pid == own),
        "{error}"
    );
    // And the first is none the worse for it.
    assert_eq!(query(&cluster.url("postgres"), "select 1").unwrap(), "1");
    cluster.stop().await.unwrap();
}

const HOLD: &str = "MUSTER_LAUNCHER_TEST_HOLD";

/// Not a test by itself: the process that the next one kills.
#[tokio::test]
async fn holds_a_cluster_until_killed() {
    let Some(directory) = std::env::var_os(HOLD) else {
        return;
    };
    let cluster = start(directory.as_ref()).await;
    query(
        &cluster.url("postgres"),
        "create table kept as select 7 as n",
    )
    .unwrap();
    println!("ready {}", cluster.postmaster_pid().unwrap());
    std::future::pending().await
}

#[tokio::test]
async fn the_postmaster_of_a_killed_launcher_is_replaced() {
    let directory = directory();
    let holder = (HOLD, directory.path());
    let (mut launcher, words) = in_own_process("holds_a_cluster_until_killed", holder);
    let orphan: u32 = words[0].parse().unwrap();
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    assert!(runs(orphan));

    let cluster = start(directory.path()).await;
    assert!(!runs(orphan));
    assert_ne!(cluster.postmaster_pid(), Some(orphan));
    assert_eq!(
        query(&cluster.url("postgres"), "select n from kept").unwrap(),
        "7"
    );
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_stale_pid_file_does_not_matter_whoever_has_the_number_now() {
    let directory = directory();
    start(directory.path()).await.stop().await.unwrap();
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    for pid in [gone.id(), other.id()] {
        let path = directory.path().join("postgres/postmaster.pid");
        let data = directory.path().join("postgres");
        let content = format!(
            "{pid}\n{}\n1700000000\n5432\n\n\n\nready   \n",
            data.display()
        );
        fs::write(&path, content).unwrap();
        start(directory.path()).await.stop().await.unwrap();
    }
    assert!(other.try_wait().unwrap().is_none(), "a bystander was ended");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn a_killed_postmaster_is_restarted() {
    let directory = directory();
    let cluster = start(directory.path()).await;
    let url = cluster.url("postgres");
    let killed = cluster.postmaster_pid().unwrap();
    query(&url, "create table kept as select 7 as n").unwrap();
    // A backend that does not look up: it would hold the shared memory.
    let mut client = Command::new("psql")
        .args(["-c", "select count(*) from generate_series(1, 1e10)", &url])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let active = "select count(*) from pg_stat_activity where query like '%1e10%'";
    until("the backend is busy", || {
        query(&url, active).unwrap() == "2"
    });

    let since = Instant::now();
    kill_9(killed);
    until("another postmaster runs", || {
        cluster.postmaster_pid().is_some_and(|pid| pid != killed)
    });
    assert!(since.elapsed() < Duration::from_secs(10));
    assert_eq!(query(&url, "select n from kept").unwrap(), "7");
    assert!(!client.wait().unwrap().success());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn one_that_starts_is_not_given_up_however_often_it_dies() {
    let directory = directory();
    let cluster = start(directory.path()).await;
    for _ in 0..6 {
        let killed = cluster.postmaster_pid().unwrap();
        kill_9(killed);
        until("another postmaster runs", || {
            cluster.postmaster_pid().is_some_and(|pid| pid != killed)
        });
    }
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn failure_is_told_with_the_log_once_restarts_are_in_vain() {
    let directory = directory();
    let mut cluster = start(directory.path()).await;
    let conf = directory.path().join("postgres/postgresql.auto.conf");
    fs::write(conf, "no_such_setting = 1\n").unwrap();
    kill_9(cluster.postmaster_pid().unwrap());
    let error = tokio::time::timeout(Duration::from_secs(60), cluster.failed())
        .await
        .unwrap();
    assert!(
        matches!(error, Error::GaveUp { restarts: 5, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("no_such_setting"), "{error}");
    assert_eq!(cluster.postmaster_pid(), None);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn dropping_stops_it_and_releases_the_directory() {
    let directory = directory();
    let cluster = start(directory.path()).await;
    let pid = cluster.postmaster_pid().unwrap();
    drop(cluster);
    assert!(!runs(pid));
    start(directory.path()).await.stop().await.unwrap();
}

#[tokio::test]
async fn an_orderly_stop_that_hangs_can_be_cut_short() {
    let directory = directory();
    let cluster = start(directory.path()).await;
    let pid = cluster.postmaster_pid().unwrap();
    let checkpointer = "select pid from pg_stat_activity where backend_type = 'checkpointer'";
    let checkpointer = query(&cluster.url("postgres"), checkpointer).unwrap();
    // Without its checkpoint Postgres does not end in order.
    let stopped = Command::new("kill").args(["-STOP", &checkpointer]).status();
    assert!(stopped.unwrap().success());
    let begun = Instant::now();
    let orderly = tokio::time::timeout(Duration::from_millis(300), cluster.stop()).await;
    assert!(orderly.is_err(), "it hangs until the future is dropped");
    assert!(!runs(pid));
    // Postgres itself gives what it cannot end 5 s.
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn dropping_the_start_leaves_nothing_running() {
    let directory = directory();
    start(directory.path()).await.stop().await.unwrap();
    let begun = tokio::time::timeout(
        Duration::from_millis(20),
        Cluster::start(config(directory.path())),
    );
    drop(begun.await);
    let lock = directory.path().join("muster.lock");
    until("the directory is released", || {
        fs::File::open(&lock).unwrap().try_lock().is_ok()
    });
    // One that is killed before it heeds signals leaves its file behind; the next start replaces it.
    let left = fs::read_to_string(directory.path().join("postgres/postmaster.pid"));
    if let Ok(left) = left {
        assert!(!runs(left.lines().next().unwrap().parse().unwrap()));
    }
    start(directory.path()).await.stop().await.unwrap();
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_works() {
    let directory = directory();
    let long = directory.path().join("x".repeat(100));
    let cluster = start(&long).await;
    assert_eq!(query(&cluster.url("postgres"), "select 1").unwrap(), "1");
    let socket = query(&cluster.url("postgres"), "show unix_socket_directories").unwrap();
    cluster.stop().await.unwrap();
    let socket = Path::new(socket.trim_matches('"'));
    assert_eq!(socket.parent(), Some(Path::new("/tmp")));
    fs::remove_dir(socket).unwrap();
}
