//! A durable Postgres that a case may kill, and a disk that it may fill.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use muster_launcher::{Cluster, Config};
use muster_storage::{Settings, Store, schema};
use muster_testbed::process;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

/// A supervised cluster, as `muster up` has one, with a migrated database.
pub(crate) struct Postgres {
    // Dropped in this order.
    cluster: Option<Cluster>,
    config: Config,
    _clean_up: Child,
    _directory: Option<TempDir>,
}

impl Postgres {
    /// Starts one in a directory of its own.
    pub(crate) async fn start() -> Self {
        let directory = process::directory();
        let path = directory.path().to_owned();
        let mut postgres = Self::start_in(&path, &[]).await;
        postgres._directory = Some(directory);
        postgres
    }

    /// Starts one in this directory, with further settings.
    pub(crate) async fn start_in(directory: &Path, settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| (*name, *value));
        let config = Config {
            settings: [("shared_buffers", "32MB"), ("max_connections", "200")]
                .into_iter()
                .chain(settings)
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            ..Config::new(directory)
        };
        let clean_up = process::clean_up("", directory, &directory.join("postgres"));
        let cluster = Cluster::start(config.clone()).await.unwrap();
        let postgres = Self {
            cluster: Some(cluster),
            config,
            _clean_up: clean_up,
            _directory: None,
        };
        schema::create_database(&postgres.cluster().url("postgres"))
            .await
            .unwrap();
        let store = Store::connect(&Settings::new(postgres.url())).unwrap();
        store.migrate().await.unwrap();
        store.close().await;
        postgres
    }

    fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().unwrap()
    }

    /// URL of the database; it stays.
    pub(crate) fn url(&self) -> String {
        self.cluster().url(schema::DATABASE)
    }

    /// A session beside Muster's.
    pub(crate) async fn session(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    /// Sends the postmaster a signal, if there is one.
    pub(crate) fn signal_postmaster(&self, signal: Signal) -> bool {
        let pid = self.cluster().postmaster_pid();
        pid.is_some_and(|pid| kill(Pid::from_raw(pid.try_into().unwrap()), signal).is_ok())
    }

    /// Stops it in order and starts it anew, by hand.
    pub(crate) async fn restart(&mut self) {
        self.cluster.take().unwrap().stop().await.unwrap();
        let again = Cluster::start(self.config.clone()).await.unwrap();
        self.cluster = Some(again);
    }
}

/// A small disk, unmounted when dropped.
pub(crate) struct Disk(TempDir);

impl Disk {
    /// Mounts one of so many MiB; `None` where that is not allowed.
    pub(crate) fn mount(mebibytes: u32) -> Option<Self> {
        let directory = process::directory();
        let options = format!("size={mebibytes}m,mode=0711");
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        let mounted = mount
            .arg(directory.path())
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then(|| Self(directory))
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes all the space that is left.
    pub(crate) fn fill(&self) {
        let mut filler = fs::OpenOptions::new();
        let filler = filler.create(true).append(true).open(self.filler());
        let full = io::copy(&mut io::repeat(0), &mut filler.unwrap()).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }

    /// Gives back what was taken, if anything.
    pub(crate) fn free(&self) {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.unwrap(),
        }
    }

    /// Makes it so many MiB large.
    pub(crate) fn resize(&self, mebibytes: u32) {
        let options = format!("remount,size={mebibytes}m");
        let mut mount = Command::new("mount");
        let done = mount.args(["-o", &options]).arg(self.path()).status();
        assert!(done.unwrap().success(), "the disk is not {mebibytes} MiB");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending must not keep it.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
