//! Whatever breaks while a directory is loaded or followed, answers stay right.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, Instant};

use muster_domain::identifier::{Identifier, IdentifierKind};
use muster_identity::{Identities, Settings};
use muster_launcher::{Cluster, Config};
use muster_storage::{
    Store, WorkspaceId,
    directory::{self, Likely, Merge, UserRecord, feed},
    workspaces,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::{Connection as _, PgConnection};

/// Enough for a load that can be interrupted.
const USERS: u32 = 20_000;

struct Bench {
    cluster: Cluster,
    _directory: tempfile::TempDir,
    store: Store,
    identities: Identities,
    workspace: WorkspaceId,
    changes: u32,
}

impl Bench {
    async fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("muster-identity")
            .tempdir()
            .unwrap();
        std::fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o711),
        )
        .unwrap();
        let cluster = Cluster::start(Config {
            durable: false,
            ..Config::new(directory.path().join("data"))
        });
        let cluster = cluster.await.unwrap();
        let mut administrator = PgConnection::connect(&cluster.url("postgres"))
            .await
            .unwrap();
        muster_testbed::execute(&mut administrator, "CREATE DATABASE muster").await;
        let store = Store::connect(&muster_storage::Settings::new(cluster.url("muster"))).unwrap();
        store.migrate().await.unwrap();
        let mut conn = store.connection().await.unwrap();
        let workspace = workspaces::insert(&mut conn, "shop", "").await.unwrap().id;
        muster_testbed::seed_users(&mut conn, workspace, USERS).await;
        drop(conn);
        let settings = Settings {
            least_users: 0,
            retry_pause: Duration::from_millis(20),
            ..Settings::default()
        };
        Self {
            identities: Identities::new(store.clone(), settings),
            cluster,
            _directory: directory,
            store,
            workspace,
            changes: 0,
        }
    }

    /// Changes the directory in every way.
    async fn change(&mut self) {
        let n = self.changes;
        self.changes += 1;
        let (new, device) = (format!("new-{n}"), format!("new-device-{n}"));
        let (from, into, gone) = (
            format!("u-{n}"),
            format!("u-{}", n + 1_000),
            format!("u-{}", n + 2_000),
        );
        let id = |text| muster_domain::identifier::IdentifierRef::external_id(text);
        let mut tx = self.store.begin("change").await.unwrap();
        let record = UserRecord {
            external_id: Some(&new),
            device_ids: vec![&device],
            ..UserRecord::default()
        };
        directory::upsert(&mut tx, self.workspace, &[record], Likely::New)
            .await
            .unwrap();
        let merge = Merge {
            from: id(&from),
            into: id(&into),
        };
        directory::merge(&mut tx, self.workspace, &[merge])
            .await
            .unwrap();
        directory::delete(&mut tx, self.workspace, &[id(&gone)])
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    fn sample(&self) -> Vec<Identifier> {
        let names = (0..USERS).step_by(97).chain(0..self.changes);
        let names = names.flat_map(|n| [n, n + 1_000, n + 2_000].map(|n| format!("u-{n}")));
        let external_ids = names.chain((0..=self.changes).map(|n| format!("new-{n}")));
        let devices = (0..USERS)
            .step_by(89)
            .flat_map(|n| [format!("i-{n}"), format!("d-{n}")]);
        let of = |kind| {
            move |id| Identifier {
                kind,
                label: String::new(),
                id,
            }
        };
        external_ids
            .map(of(IdentifierKind::ExternalId))
            .chain(devices.map(of(IdentifierKind::DeviceId)))
            .collect()
    }

    /// Asks, as a server does for a batch. Returns whether the database answered, and then whether
    /// the index did; whoever answers says what SQL says.
    async fn ask(&self) -> Option<bool> {
        let sample = self.sample();
        let sample: Vec<_> = sample.iter().map(Identifier::as_ref).collect();
        let mut conn = self.store.connection().await.ok()?;
        let position = feed::position(&mut conn, self.workspace).await.ok()?;
        let look = |snapshot: &muster_identity::Snapshot<'_>| snapshot.matches(&sample);
        let held = self
            .identities
            .look(&mut conn, self.workspace, position, look)
            .await
            .ok()?;
        let (_, matches) = self
            .identities
            .match_identifiers(&mut conn, self.workspace, &sample)
            .await
            .ok()?;
        let expected = directory::match_identifiers(&mut conn, self.workspace, &sample)
            .await
            .ok()?;
        assert_eq!(matches, expected);
        if let Some(held) = &held {
            assert_eq!(held, &expected);
        }
        Some(held.is_some())
    }

    /// Asks until the answer is this.
    async fn until(&self, answer: bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.ask().await != Some(answer) {
            assert!(Instant::now() < deadline, "the index stays as it is");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills the database server, and waits for the next one: until then connections that are open
    /// may go on working.
    async fn kill_server(&self) {
        let before = self.cluster.postmaster_pid().unwrap();
        kill(
            Pid::from_raw(i32::try_from(before).unwrap()),
            Signal::SIGKILL,
        )
        .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while self
            .cluster
            .postmaster_pid()
            .is_none_or(|pid| pid == before)
        {
            assert!(Instant::now() < deadline, "no server is started");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Cuts the connections that are reading the directory; returns how many there were.
    async fn cut_loads(&self) -> i64 {
        let mut administrator = PgConnection::connect(&self.cluster.url("muster"))
            .await
            .unwrap();
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE query LIKE 'COPY%' AND state = 'active'";
        muster_testbed::number(&mut administrator, cut).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_cut_is_begun_again_and_answers_stay_right() {
    let mut bench = Bench::start().await;
    let mut cut = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    while cut < 3 && Instant::now() < deadline {
        cut += bench.cut_loads().await;
        if bench.ask().await == Some(true) {
            // It was quicker than the knife: let go of it, and try again.
            bench.identities = Identities::new(
                bench.store.clone(),
                Settings {
                    least_users: 0,
                    retry_pause: Duration::from_millis(20),
                    ..Settings::default()
                },
            );
        }
        bench.change().await;
    }
    assert!(cut >= 3, "no load was cut");
    bench.until(true).await;

    // The server dies and comes back: the index is of another history, and is loaded anew.
    bench.kill_server().await;
    bench.until(false).await;
    bench.change().await;
    bench.until(true).await;

    // Also in the middle of a load.
    bench.identities = Identities::new(bench.store.clone(), Settings::default());
    bench.ask().await;
    bench.kill_server().await;
    bench.until(true).await;
    bench.change().await;
    bench.until(true).await;

    // A database that is put back to an older state and then changed further, so that its epoch is
    // beyond that of the index again.
    let mut administrator = PgConnection::connect(&bench.cluster.url("postgres"))
        .await
        .unwrap();
    let cut_all =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'muster'";
    let clone = "CREATE DATABASE copy TEMPLATE muster";
    let swap = "ALTER DATABASE muster RENAME TO former; ALTER DATABASE copy RENAME TO muster";
    let deadline = Instant::now() + Duration::from_secs(30);
    for statement in [clone, swap] {
        if statement == swap {
            bench.until(true).await;
            bench.change().await;
            bench.until(true).await;
        }
        loop {
            muster_testbed::number(&mut administrator, cut_all).await;
            match sqlx::raw_sql(statement).execute(&mut administrator).await {
                Ok(_) => break,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }
    bench.changes += 10;
    for _ in 0..3 {
        bench.change().await;
    }
    bench.until(true).await;
    bench.cluster.stop().await.unwrap();
}
