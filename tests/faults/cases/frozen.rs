//! Two writers on one import, one of which is frozen: it is fenced.

use std::time::{Duration, Instant};

use muster_domain::import::Mode;
use muster_testbed::process;
use muster_tests::{
    connect,
    proxy::{Fault, Proxy, Trouble, Way},
};
use nix::sys::signal::Signal;
use rand::{RngExt as _, rngs::StdRng};

use super::commit;
use crate::{
    dawdle::{self, What},
    exporter::{Exporter, Exporting},
    node::{Deployment, Node},
    oracle::{self, List},
    suite::{Plan, Tally},
    wire::Call,
};

const USERS: usize = 2_000;

/// How long a server that is frozen inside a transaction may keep its locks: the database ends the
/// transaction after 10 s.
const LOCK_LEFT_BEHIND: Duration = Duration::from_secs(20);

/// How long the long freeze is.
const FREEZE: Duration = Duration::from_secs(30);

/// A writer's process freezes in mid-stream, another one takes its import over and finishes it; the
/// first one thaws, is fenced, writes nothing and says so.
///
/// One freeze takes 30 s. In the meantime the others are short: until the second writer is done.
pub(crate) async fn client_frozen(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let mut tally = Tally::default();
    let rng = &mut plan.rng;

    // What takes long goes on beside the short rounds.
    let long = Takeover::begin(&muster, rng, "long").await;
    let frozen_at = Instant::now();
    long.finish_as_another(&muster).await;
    let list = List::draw(rng, USERS, 400);
    let import_id = oracle::import_id(rng);
    let silent = tokio::spawn({
        let (shop, upload) = (
            muster.shop.clone(),
            oracle::upload("silent", Mode::Replace, &import_id),
        );
        async move { commit::blackholed(&shop, &list, &upload).await }
    });

    // The server takes 40 s, which is worth it in a long run only.
    let abandoned = (plan.rounds > 20).then(|| {
        let shop = muster.shop.clone();
        tokio::spawn(async move { commit::abandoned(&shop).await })
    });

    for round in 0..plan.rounds.saturating_sub(1) {
        let takeover = Takeover::begin_short(&muster, rng, &format!("short-{round}")).await;
        let thawed = match rng.random_range(0..2) {
            0 => {
                takeover.finish_as_another(&muster).await;
                takeover.thaw_and_check(&muster).await
            }
            _ => takeover.thaw_in_between(&muster).await,
        };
        tally.recovered(thawed);
        tally.faults += 1;
        tally.rounds += 1;
    }

    tokio::time::sleep(FREEZE.saturating_sub(frozen_at.elapsed())).await;
    tally.recovered(long.thaw_and_check(&muster).await);
    let noticed = silent.await.unwrap();
    // 20 s between two pings of the client and 10 s for the answer.
    assert!(noticed < Duration::from_secs(40), "{noticed:?}");
    if let Some(abandoned) = abandoned {
        let noticed = abandoned.await.unwrap();
        assert!(noticed < Duration::from_secs(50), "{noticed:?}");
        tally.faults += 1;
    }
    tally.faults += 2;
    tally.rounds += 1;
    oracle::check_versions(&muster.store).await;
    tally.note = format!(
        "one freeze of 30 s; a silent network was noticed after {:.0} s",
        noticed.as_secs_f64()
    );
    tally
}

/// An import whose writer is frozen.
struct Takeover {
    cohort: String,
    import_id: String,
    list: List,
    exporter: Exporter,
    frozen: Exporting,
    /// Through which the frozen one writes, so that little of it is enough: what it sends from some
    /// point on arrives only once it thaws.
    network: Option<Proxy>,
}

impl Takeover {
    /// Starts an export and freezes it in mid-stream.
    async fn begin(muster: &Deployment, rng: &mut StdRng, cohort: &str) -> Self {
        // More than what a client sends ahead of acknowledgements, which is 8 batches of 2,000: the
        // server goes on with those while the client is frozen.
        let list = List::draw_long(rng, USERS, USERS / 2, 26_000);
        let import_id = oracle::import_id(rng);
        let exporter = Exporter::new(&muster.shop, cohort, &import_id, &list);
        let frozen = exporter.start();
        let moment = rng.random_range(1..list.ids.len() as u64 / 6);
        oracle::reached(&muster.store, &import_id, moment).await;
        frozen.signal(Signal::SIGSTOP);
        Self {
            cohort: cohort.to_owned(),
            import_id,
            list,
            exporter,
            frozen,
            network: None,
        }
    }

    /// The same with a short list.
    async fn begin_short(muster: &Deployment, rng: &mut StdRng, cohort: &str) -> Self {
        let list = List::draw_long(rng, USERS, USERS / 2, 3_000);
        let import_id = oracle::import_id(rng);
        let mut exporter = Exporter::new(&muster.shop, cohort, &import_id, &list);
        let hold = Fault {
            way: Way::ToServer,
            // The list has 1.5 MB, and its opening less than 1 KB.
            after_bytes: rng.random_range(1_000..1_400_000),
            trouble: Trouble::Delay(process::PATIENCE),
        };
        let network = Proxy::with_faults(&muster.shop.grpc, [hold]).await;
        exporter.endpoint.clone_from(&network.url);
        let frozen = exporter.start();
        exporter.endpoint.clone_from(&muster.shop.grpc);
        oracle::reached(&muster.store, &import_id, 0).await;
        let held = async {
            while network.struck() == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let held = tokio::time::timeout(process::PATIENCE, held).await;
        held.expect("the file is long enough");
        frozen.signal(Signal::SIGSTOP);
        Self {
            cohort: cohort.to_owned(),
            import_id,
            list,
            exporter,
            frozen,
            network: Some(network),
        }
    }

    /// A second process with the same import id finishes it.
    async fn finish_as_another(&self, muster: &Deployment) {
        let before = oracle::standing(&muster.store, &self.import_id)
            .await
            .unwrap();
        assert_eq!(before.version, None, "frozen in mid-stream");
        let (done, report) = self.exporter.run();
        assert_eq!(done.code(0).status.code(), Some(0));
        assert_eq!(report["version"], 1, "{report}");
        assert_eq!(report["received"], self.list.ids.len(), "{report}");
        oracle::check_published(&muster.shop, &self.cohort, &self.list.known).await;
    }

    /// Another one takes the import over; the first process thaws before that one has finished.
    async fn thaw_in_between(self, muster: &Deployment) -> Duration {
        let (cohort, id) = (self.cohort.clone(), self.import_id.clone());
        let ids = self.list.ids.clone();
        let partner = muster.shop.partner();
        let call = Call::open(&partner, &cohort, Mode::Replace, &id).await;
        let mut call = call.unwrap();
        let from = call.next_offset as usize;
        let end = ids.len().min(from + 500);
        assert_eq!(call.batch(from, &ids[from..end]).await, Ok(end as u64));
        let list = self.list.clone();
        let took = self
            .thaw(muster, &["WRITER_FENCED", "BATCH_MISMATCH"])
            .await;
        // A batch has 1 MiB at most.
        for (n, batch) in ids[end..].chunks(1_000).enumerate() {
            let offset = end + n * 1_000;
            let next = (offset + batch.len()) as u64;
            assert_eq!(call.batch(offset, batch).await, Ok(next));
        }
        let committed = call.commit(&ids).await.unwrap();
        list.check_answer(&committed, 1);
        oracle::check_published(&muster.shop, &cohort, &list.known).await;
        took
    }

    /// The first process goes on, and fails without having changed anything.
    async fn thaw_and_check(self, muster: &Deployment) -> Duration {
        let (cohort, known) = (self.cohort.clone(), self.list.known.clone());
        let fenced = ["WRITER_FENCED", "IMPORT_FINISHED"];
        let took = self.thaw(muster, &fenced).await;
        oracle::check_published(&muster.shop, &cohort, &known).await;
        took
    }

    /// Lets the first process go on, which must end with one of these reasons and change nothing;
    /// returns how long that took.
    async fn thaw(mut self, muster: &Deployment, reasons: &[&str]) -> Duration {
        let (cohort, id) = (&self.cohort, &self.import_id);
        let before = muster.shop.cohort(cohort).await;
        let standing = oracle::standing(&muster.store, id).await;
        assert!(self.frozen.runs(), "it is frozen");
        let thawed = Instant::now();
        if let Some(network) = &self.network {
            network.strike(Way::ToServer, Trouble::Delay(Duration::ZERO));
        }
        self.frozen.signal(Signal::SIGCONT);
        let (code, report) = self.frozen.end();
        let took = thawed.elapsed();
        assert_eq!(code, Some(1), "{report}");
        let error = report["error"].as_str().unwrap();
        let named = reasons.iter().any(|reason| error.contains(reason));
        assert!(named, "{error}");
        assert_eq!(muster.shop.cohort(cohort).await, before);
        assert_eq!(oracle::standing(&muster.store, id).await, standing);
        took
    }
}

/// What a server is at when it freezes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// It waits for the next batch.
    Nothing,
    /// It has taken a batch, or a commit; how far it is is left to chance.
    Something,
    /// It is inside a transaction, which holds the import.
    Transaction,
}

/// An ingest server freezes with an open stream, another one on the same database takes the import
/// over and publishes it; the first one thaws, writes nothing and says so to its client.
pub(crate) async fn server_frozen(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    dawdle::install(&muster.store).await;
    let mut other = Node::start(&["ingest"], &muster.database_url, &[]);
    let mut tally = Tally::default();
    let mut worst_idle = Duration::ZERO;
    for round in 0..plan.rounds {
        let rng = &mut plan.rng;
        // Those that may hold a lock cost the 10 s until the database takes it from them.
        let doing = match round % 40 {
            0 => Doing::Transaction,
            20 => Doing::Something,
            _ => Doing::Nothing,
        };
        let list = List::draw(rng, USERS, 400);
        let ids = &list.ids;
        let mut import_id = oracle::import_id(rng);
        if doing == Doing::Transaction {
            import_id = dawdle::slow(What::Batch, 300, &import_id);
        }
        let cohort = format!("cohort-{round}");
        let open = async |endpoint: &str| {
            let connection = connect(endpoint, &muster.shop.client_secret);
            Call::open(&connection, &cohort, Mode::Replace, &import_id).await
        };
        let mut first = open(&other.grpc()).await.unwrap();
        let middle = rng.random_range(1..ids.len());
        let mut acknowledged = 0;
        if doing == Doing::Nothing || rng.random_range(0..2) == 0 {
            acknowledged = first.batch(0, &ids[..middle]).await.unwrap();
        }
        let rest = acknowledged as usize;
        if doing != Doing::Nothing {
            first.send(rest, &ids[rest..]);
            first.send_commit(ids);
            match doing {
                Doing::Transaction => dawdle::under_way(&muster.store).await,
                _ => tokio::time::sleep(Duration::from_millis(rng.random_range(0..30))).await,
            }
        }
        other.process().signal(Signal::SIGSTOP);
        tally.faults += 1;
        let mut thawed = false;

        let frozen = Instant::now();
        let mut second = loop {
            match open(&muster.shop.grpc).await {
                Ok(call) => break call,
                Err(refusal) => assert!(refusal.is_transient(), "{refusal:?}"),
            }
            assert!(
                frozen.elapsed() < LOCK_LEFT_BEHIND,
                "the import stays locked"
            );
        };
        let recovery = frozen.elapsed();
        tally.recovered(recovery);
        if doing == Doing::Nothing {
            worst_idle = worst_idle.max(recovery);
        }
        assert!(
            second.next_offset >= acknowledged,
            "an acknowledged batch is gone"
        );
        let mut from = second.next_offset as usize;
        if doing == Doing::Nothing && rng.random_range(0..2) == 0 {
            // It thaws while the other one is at work.
            let end = match rng.random_range(0..2) {
                // Which has done nothing yet but to take the import over.
                0 => from,
                _ => rng.random_range(from..ids.len()),
            };
            if end > from {
                assert_eq!(second.batch(from, &ids[from..end]).await, Ok(end as u64));
                from = end;
            }
            let standing = oracle::standing(&muster.store, &import_id).await;
            other.process().signal(Signal::SIGCONT);
            first.send(rest, &ids[rest..]);
            first.send_commit(ids);
            let refusal = first.end().await.expect_err("it is fenced");
            assert_eq!(refusal.reason, "WRITER_FENCED", "{refusal:?}");
            assert_eq!(oracle::standing(&muster.store, &import_id).await, standing);
            thawed = true;
        }
        if from < ids.len() {
            assert!(!second.complete);
            assert_eq!(second.batch(from, &ids[from..]).await, Ok(ids.len() as u64));
        }
        let committed = second.commit(ids).await.unwrap();
        list.check_answer(&committed, 1);
        oracle::check_published(&muster.shop, &cohort, &list.known).await;
        if thawed {
            tally.rounds += 1;
            continue;
        }
        let standing = oracle::standing(&muster.store, &import_id).await;

        other.process().signal(Signal::SIGCONT);
        if doing == Doing::Nothing {
            first.send(rest, &ids[rest..]);
            first.send_commit(ids);
        }
        match first.end().await {
            // It had published it before it froze, and the other one told the same.
            Ok(told) => {
                assert_ne!(doing, Doing::Nothing, "not fenced");
                assert_eq!((told.version, told.summary), (1, committed.summary));
            }
            Err(refusal) => {
                // Where the database ended its transaction it only knows that, and asks its client to
                // come again.
                let fenced =
                    ["WRITER_FENCED", "IMPORT_FINISHED"].contains(&refusal.reason.as_str());
                let ended = doing != Doing::Nothing && refusal.is_transient();
                assert!(fenced || ended, "{refusal:?}");
            }
        }
        assert_eq!(oracle::standing(&muster.store, &import_id).await, standing);
        assert_eq!(oracle::version(&muster.store, &cohort).await, 1);
        oracle::check_published(&muster.shop, &cohort, &list.known).await;
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally.note = format!(
        "the longest recovery from one frozen inside a transaction; from an idle one {:.2} s",
        worst_idle.as_secs_f64()
    );
    tally
}
