//! Postgres goes down under those who use it, or runs out of space.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use muster_client::{Refusal, Retry, upload::Progress};
use muster_domain::import::Mode;
use muster_tests::{PARTNER, Shop};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use sqlx::PgConnection;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    calls::{self, Audience, Call, Caller},
    node::Deployment,
    oracle::{self, List},
    postgres::{Disk, Postgres},
    suite::{Plan, Tally},
};

/// Longest time from a fault, or its end, until every kind of call works again.
const RECOVERY: Duration = Duration::from_secs(10);

const USERS: usize = 2_000;

/// The whole of it, in no workload's way.
const BASE: &str = "base";

/// Postgres is stopped, killed and restarted under imports and resolutions.
pub(crate) async fn postgres_killed(mut plan: Plan) -> Tally {
    let mut postgres = Postgres::start().await;
    let mut muster = Deployment::start_on(postgres.url(), &[]).await;
    oracle::fill(&muster.shop, USERS).await;
    // Fifty in the long run; in the short one no more than two processors bear.
    let workers = if plan.rounds < 50 { 8 } else { 50 };
    let workload = Workload::start(&mut plan, &muster.shop, USERS, workers).await;
    let mut tally = Tally::default();
    for _ in 0..plan.rounds.div_ceil(4) {
        let pause = if plan.rounds < 50 { 0..200 } else { 500..4_000 };
        let pause = Duration::from_millis(plan.rng.random_range(pause));
        tokio::time::sleep(pause).await;
        let mut witness = postgres.session().await;
        let began = Instant::now();
        match plan.rng.random_range(0..4) {
            0 => kill_backend(&mut witness).await,
            1 => assert!(postgres.signal_postmaster(Signal::SIGKILL)),
            2 => assert!(postgres.signal_postmaster(Signal::SIGQUIT)),
            _ => postgres.restart().await,
        }
        until_gone(&mut witness).await;
        tally.faults += 1;
        calls::check_healthy(&muster.shop).await;
        tally.recovered(until_all_works(&muster.shop, began).await);
        assert!(muster.node.runs(), "{}", muster.node.process().stderr());
        tally.rounds += 1;
    }
    let counts = workload.finish(&muster.shop).await;
    oracle::check_versions(&muster.store).await;
    tally.note = counts.told();
    tally
}

/// The disk of Postgres is filled, so that writes fail or Postgres goes down, and given room again.
pub(crate) async fn disk_full(mut plan: Plan) -> Tally {
    const MEBIBYTES: u32 = 160;
    let mut tally = Tally::default();
    let Some(disk) = Disk::mount(MEBIBYTES) else {
        tally.note = "NOT RUN: mounting a small disk is not allowed here".to_owned();
        return tally;
    };
    let settings = [
        ("max_wal_size", "32MB"),
        ("min_wal_size", "32MB"),
        ("autovacuum", "off"),
    ];
    let postgres = Postgres::start_in(disk.path(), &settings).await;
    let mut muster = Deployment::start_on(postgres.url(), &[]).await;
    oracle::fill(&muster.shop, 1_000).await;
    let (mut errors, mut crashes) = (0, 0);
    for round in 0..plan.rounds.div_ceil(7) {
        let workload = Workload::start(&mut plan, &muster.shop, 1_000, 3).await;
        let mut witness = postgres.session().await;
        disk.fill();
        // Every other time there is no room for the log either, which takes Postgres down.
        if round % 2 == 1 {
            until_log_is_full(&mut witness).await;
            crashes += 1;
        } else {
            let refused = async {
                while workload.counts.met("DATABASE_FULL") == 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let refused = tokio::time::timeout(Duration::from_secs(30), refused).await;
            refused.expect("somebody is told that the disk is full");
            errors += 1;
        }
        tally.faults += 1;
        calls::check_healthy(&muster.shop).await;
        tokio::time::sleep(Duration::from_millis(plan.rng.random_range(0..1_500))).await;
        match plan.rng.random_bool(0.5) {
            true => disk.free(),
            false => disk.resize(2 * MEBIBYTES),
        }
        tally.recovered(until_all_works(&muster.shop, Instant::now()).await);
        assert!(muster.node.runs(), "{}", muster.node.process().stderr());
        workload.finish(&muster.shop).await;
        // As it was, for the next round.
        disk.free();
        disk.resize(MEBIBYTES);
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally.note = format!("{errors} times full for data, {crashes} for the log, too");
    tally
}

/// Kills the session of some call with SIGKILL, upon which Postgres ends all others.
async fn kill_backend(session: &mut PgConnection) {
    let query = "SELECT pid FROM pg_stat_activity
                 WHERE application_name = 'muster' ORDER BY random() LIMIT 1";
    let pid: i32 = sqlx::query_scalar(query).fetch_one(session).await.unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// Takes new pieces of the write-ahead log until there are none.
async fn until_log_is_full(session: &mut PgConnection) {
    let full = async {
        let next = "SELECT pg_switch_wal(), pg_logical_emit_message(false, '', repeat('x', 9000))";
        while sqlx::raw_sql(next).execute(&mut *session).await.is_ok() {}
    };
    let full = tokio::time::timeout(Duration::from_secs(30), full).await;
    full.expect("the log finds no space");
    until_gone(session).await;
}

/// Waits until a session has noticed that Postgres went down.
async fn until_gone(session: &mut PgConnection) {
    let gone = async {
        while sqlx::raw_sql("SELECT 1")
            .execute(&mut *session)
            .await
            .is_ok()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(5), gone).await;
    gone.expect("the fault ends every session");
}

/// Waits until every kind of call works; returns how long that was since the beginning.
async fn until_all_works(shop: &Shop, began: Instant) -> Duration {
    let (caller, user) = (Caller::new(shop), oracle::user(0));
    let until_it_works = async |call: Call| {
        while let Err(refusal) = call.once(&caller, BASE, &user).await {
            calls::check_come_back(&refusal, &[Code::Unavailable]);
            let elapsed = began.elapsed();
            assert!(
                elapsed < RECOVERY,
                "{call:?} after {elapsed:?}: {refusal:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    futures::future::join_all(Call::ALL.map(until_it_works)).await;
    let took = began.elapsed();
    assert!(took < RECOVERY, "recovery took {took:?}");
    took
}

/// Imports, resolutions and single calls that go on whatever happens.
struct Workload {
    stop: CancellationToken,
    counts: Arc<Counts>,
    workers: JoinSet<Worked>,
}

#[derive(Debug, Default)]
struct Counts {
    imports: AtomicU32,
    resolutions: AtomicU32,
    /// Single calls that were done.
    calls: AtomicU32,
    /// Refusals that were met, by reason; REST has none.
    refusals: Mutex<BTreeMap<String, u32>>,
}

impl Counts {
    /// Counts a refusal while Postgres is away: to come back, and nothing else.
    fn meet(&self, refusal: &Refusal) {
        calls::check_come_back(refusal, &[Code::Unavailable]);
        let mut refusals = self.refusals.lock().unwrap();
        *refusals.entry(refusal.reason.clone()).or_default() += 1;
    }

    fn met(&self, reason: &str) -> u32 {
        let refusals = self.refusals.lock().unwrap();
        refusals.get(reason).copied().unwrap_or_default()
    }

    fn told(&self) -> String {
        let count = |count: &AtomicU32| count.load(Ordering::Relaxed);
        format!(
            "{} imports, {} resolutions, {} single calls; refused {:?}",
            count(&self.imports),
            count(&self.resolutions),
            count(&self.calls),
            self.refusals.lock().unwrap(),
        )
    }
}

/// What must be so once a worker has ended.
enum Worked {
    /// This cohort holds exactly these.
    Exactly(String, BTreeSet<String>),
    /// It holds the first, and at most also the second.
    AtLeast(String, BTreeSet<String>, BTreeSet<String>),
    /// Nothing.
    Read,
}

impl Workload {
    /// Starts so many importers and as many readers.
    async fn start(plan: &mut Plan, shop: &Shop, users: usize, workers: u32) -> Self {
        let base = List::draw(&mut plan.rng, users, users);
        let upload = oracle::upload(BASE, Mode::Replace, &oracle::import_id(&mut plan.rng));
        let outcome = upload
            .run(&shop.partner(), base.source(), &mut |_| {})
            .await;
        base.check_committed(&outcome.unwrap());
        let mut workload = Self {
            stop: CancellationToken::new(),
            counts: Arc::default(),
            workers: JoinSet::new(),
        };
        for n in 0..workers {
            let worker = || Worker {
                shop: shop.clone(),
                stop: workload.stop.clone(),
                counts: Arc::clone(&workload.counts),
            };
            let (importer, reader, caller) = (worker(), worker(), worker());
            let mut seed = || StdRng::seed_from_u64(plan.rng.next_u64());
            let (rng, other_rng, another_rng) = (seed(), seed(), seed());
            workload.workers.spawn(importer.import(n, users, rng));
            workload
                .workers
                .spawn(reader.read(base.known.clone(), other_rng));
            if n < 2 {
                workload.workers.spawn(caller.call(n, users, another_rng));
            }
        }
        workload
    }

    /// Lets everybody end what they have begun, and checks what came of it.
    async fn finish(mut self, shop: &Shop) -> Arc<Counts> {
        self.stop.cancel();
        let worked = async {
            let mut worked = Vec::new();
            while let Some(ended) = self.workers.join_next().await {
                worked.push(ended.unwrap());
            }
            worked
        };
        let worked = tokio::time::timeout(Duration::from_secs(60), worked).await;
        for worked in worked.expect("what was begun is completed") {
            match worked {
                Worked::Exactly(cohort, users) => {
                    oracle::check_published(shop, &cohort, &users).await;
                }
                Worked::AtLeast(cohort, done, tried) => {
                    let held = shop
                        .audience_ids(&format!("{PARTNER}:id(\"{cohort}\")"))
                        .await;
                    let held: BTreeSet<String> = held.into_iter().collect();
                    let lost: Vec<_> = done.difference(&held).collect();
                    assert!(lost.is_empty(), "{cohort} has lost {lost:?}");
                    assert!(held.is_subset(&tried), "{cohort} holds what nobody sent");
                }
                Worked::Read => {}
            }
        }
        self.counts
    }
}

struct Worker {
    shop: Shop,
    stop: CancellationToken,
    counts: Arc<Counts>,
}

impl Worker {
    /// Replaces a cohort over and over.
    async fn import(self, n: u32, users: usize, mut rng: StdRng) -> Worked {
        let cohort = format!("import-{n}");
        loop {
            let count = rng.random_range(1..=users);
            let mut list = List::draw(&mut rng, users, count);
            if rng.random_bool(0.2) {
                // A batch of a MiB, and more.
                let long = |n: usize| format!("{:x}-{}", rng.next_u64(), "x".repeat(n % 490));
                list.ids.extend((2_000..6_000).map(long));
                list.ids.shuffle(&mut rng);
            }
            let mut upload = oracle::upload(&cohort, Mode::Replace, &oracle::import_id(&mut rng));
            upload.retry = Retry {
                failures: 60,
                longest_wait: Duration::from_millis(500),
                ..Retry::default()
            };
            let counts = &self.counts;
            let mut progress = |event| {
                if let Progress::Retrying { cause, .. } = event {
                    counts.meet(&cause);
                }
            };
            let partner = self.shop.partner();
            let outcome = upload.run(&partner, list.source(), &mut progress).await;
            list.check_committed(&outcome.unwrap());
            self.counts.imports.fetch_add(1, Ordering::Relaxed);
            if self.rested(&mut rng).await {
                return Worked::Exactly(cohort, list.known);
            }
        }
    }

    /// Resolves the base over and over, and resumes where a stream breaks.
    async fn read(self, expected: BTreeSet<String>, mut rng: StdRng) -> Worked {
        loop {
            let mut audience = Audience::default();
            let filter = format!("{PARTNER}:id(\"{BASE}\")");
            while let Err(refusal) = audience.read(&self.shop, &filter).await {
                self.counts.meet(&refusal);
                tokio::time::sleep(Duration::from_millis(rng.random_range(50..500))).await;
            }
            assert_eq!(
                oracle::fingerprint(&audience.ids),
                oracle::fingerprint(&expected),
                "an audience is not the one expected"
            );
            self.counts.resolutions.fetch_add(1, Ordering::Relaxed);
            if self.rested(&mut rng).await {
                return Worked::Read;
            }
        }
    }

    /// Makes single calls over and over, without trying again.
    async fn call(self, n: u32, users: usize, mut rng: StdRng) -> Worked {
        let cohort = format!("call-{n}-{:x}", rng.next_u32());
        let (mut done, mut tried) = (BTreeSet::new(), BTreeSet::new());
        let caller = Caller::new(&self.shop);
        for (turn, call) in (0_usize..).zip(Call::ALL.into_iter().cycle()) {
            // Named, and with a member, before anybody reads it.
            let call = if done.is_empty() { Call::Import } else { call };
            let user = oracle::user(turn % users);
            let began = Instant::now();
            tried.extend(call.adds().then(|| user.clone()));
            match call.once(&caller, &cohort, &user).await {
                Ok(()) => {
                    done.extend(call.adds().then_some(user));
                    self.counts.calls.fetch_add(1, Ordering::Relaxed);
                }
                Err(refusal) => self.counts.meet(&refusal),
            }
            let took = began.elapsed();
            assert!(took < calls::PATIENCE, "{call:?} took {took:?}");
            if self.stop.is_cancelled() && !done.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Worked::AtLeast(cohort, done, tried)
    }

    /// Rests a little; returns whether to end.
    async fn rested(&self, rng: &mut StdRng) -> bool {
        let pause = Duration::from_millis(rng.random_range(200..1_500));
        let stopped = tokio::time::timeout(pause, self.stop.cancelled()).await;
        stopped.is_ok()
    }
}
