//! What a cluster is not started in, and what the operator is told.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use muster_launcher::{Cluster, Config, Error};
use support::{directory, is_root, kill_9, skipped, until};

async fn refused(directory: &Path) -> Error {
    Cluster::start(Config::new(directory)).await.unwrap_err()
}

#[tokio::test]
async fn another_versions_cluster_is_not_touched() {
    let directory = directory();
    let cluster = Cluster::start(Config::new(directory.path())).await.unwrap();
    cluster.stop().await.unwrap();
    let version = directory.path().join("postgres/PG_VERSION");
    let own = fs::read_to_string(&version).unwrap();
    fs::write(&version, "12\n").unwrap();
    let control = directory.path().join("postgres/global/pg_control");
    let before = fs::read(&control).unwrap();

    let error = refused(directory.path()).await;
    assert!(
        matches!(error, Error::VersionMismatch { cluster: 12, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("postgresql-12"), "{error}");
    assert_eq!(fs::read(&control).unwrap(), before);

    fs::write(&version, own).unwrap();
    let cluster = Cluster::start(Config::new(directory.path())).await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn the_directory_that_blocks_the_way_is_named() {
    if !is_root() {
        return;
    }
    let directory = directory();
    let blocking = directory.path().join("closed");
    fs::create_dir(&blocking).unwrap();
    fs::set_permissions(&blocking, Permissions::from_mode(0o700)).unwrap();
    let error = refused(&blocking.join("a/b")).await;
    let named = matches!(&error, Error::Unsearchable { blocking: named, .. } if *named == blocking);
    assert!(named, "{error}");
    assert!(
        error.to_string().contains(blocking.to_str().unwrap()),
        "{error}"
    );
}

#[tokio::test]
async fn a_cluster_of_another_user_is_refused() {
    if !is_root() {
        return;
    }
    let directory = directory();
    let data = directory.path().join("postgres");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("PG_VERSION"), "15\n").unwrap();
    lchown(&data, Some(12345), None).unwrap();
    let error = refused(directory.path()).await;
    assert!(
        matches!(error, Error::ForeignOwner { owner: 12345, .. }),
        "{error}"
    );
    assert_eq!(data.metadata().unwrap().uid(), 12345);
}

#[tokio::test]
async fn without_programs_the_package_is_named() {
    let (directory, empty) = (directory(), directory());
    let error = Cluster::start(Config {
        pg_bin: Some(empty.path().to_owned()),
        ..Config::new(directory.path())
    })
    .await
    .unwrap_err();
    assert!(matches!(error, Error::NotInstalled { .. }), "{error}");
    assert!(
        error.to_string().contains("apt-get install postgresql"),
        "{error}"
    );
    assert!(
        error.to_string().contains(empty.path().to_str().unwrap()),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_setting_is_told_with_the_log() {
    let directory = directory();
    let error = Cluster::start(Config {
        settings: vec![("shared_buffers".into(), "many".into())],
        ..Config::new(directory.path())
    })
    .await
    .unwrap_err();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    assert!(error.to_string().contains("shared_buffers"), "{error}");
}

/// A small disk, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None`, and a line that says so, where mounting is not allowed.
    fn mount(size: &str) -> Option<Self> {
        let directory = directory();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=0711"),
                "tmpfs",
            ])
            .arg(directory.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            skipped("cannot mount a small disk, so nothing fills it");
        }
        mounted.then(|| Self(directory))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().unwrap();
    }
}

#[tokio::test]
async fn a_disk_too_small_for_a_new_cluster_is_told_and_nothing_is_left() {
    let Some(disk) = Disk::mount("10m") else {
        return;
    };
    let error = refused(disk.0.path()).await;
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    let left: Vec<_> = fs::read_dir(disk.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["muster.lock"]);
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_cluster_starts_once_there_is_room() {
    let Some(disk) = Disk::mount("120m") else {
        return;
    };
    let cluster = Cluster::start(Config::new(disk.0.path())).await.unwrap();
    cluster.stop().await.unwrap();
    let filler = disk.0.path().join("filler");
    // Writing ends with an error: the disk is full.
    let full = std::io::copy(
        &mut std::io::repeat(0),
        &mut fs::File::create(&filler).unwrap(),
    );
    assert!(full.is_err());

    let error = refused(disk.0.path()).await;
    assert!(
        matches!(error, Error::NoSpace { free_bytes: 0, .. }),
        "{error}"
    );

    fs::remove_file(&filler).unwrap();
    let cluster = Cluster::start(Config::new(disk.0.path())).await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_postmaster_that_finds_no_space_is_started_again_until_there_is_room() {
    let Some(disk) = Disk::mount("120m") else {
        return;
    };
    let cluster = Cluster::start(Config::new(disk.0.path())).await.unwrap();
    let filler = disk.0.path().join("filler");
    let full = std::io::copy(
        &mut std::io::repeat(0),
        &mut fs::File::create(&filler).unwrap(),
    );
    assert!(full.is_err());
    kill_9(cluster.postmaster_pid().unwrap());
    // Postgres itself recovers over and over, or is started again.
    let tried = Instant::now();
    until("it is still tried", || {
        tried.elapsed() > Duration::from_secs(10)
    });
    assert_eq!(cluster.postmaster_pid(), None);

    fs::remove_file(&filler).unwrap();
    let freed = Instant::now();
    until("it runs again", || cluster.postmaster_pid().is_some());
    assert!(freed.elapsed() < Duration::from_secs(10));
    cluster.stop().await.unwrap();
}
