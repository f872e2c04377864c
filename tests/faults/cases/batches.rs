//! Batches that come again, out of order, with a gap or changed; two writers on one import.

use std::time::{Duration, Instant};

use muster_client::Refusal;
use muster_domain::import::Mode;
use muster_testbed::process;
use muster_tests::{
    connect,
    proxy::{Fault, Proxy, Trouble, Way},
};
use nix::sys::signal::Signal;
use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use tonic::Code;

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

/// How long the long freeze is.
const FREEZE: Duration = Duration::from_secs(30);

/// Each batch comes 1 to 5 times, in any order, sometimes with a gap or with other bytes; the import
/// is what it would have been.
pub(crate) async fn batches_replayed(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let partner = muster.shop.partner();
    let mut tally = Tally::default();
    for round in 0..plan.rounds {
        let rng = &mut plan.rng;
        let list = List::draw(rng, USERS, 400);
        let import_id = oracle::import_id(rng);
        let batches = cut(rng, &list.ids);
        let open = || Call::open(&partner, "replayed", Mode::Replace, &import_id);
        let mut call = open().await.unwrap();
        // Where the next batch belongs.
        let mut next = 0;
        while next < batches.len() {
            let (offset, batch) = &batches[next];
            let durable = *offset as u64;
            match rng.random_range(0..6) {
                // Any that were acknowledged, again, in any order.
                0 if next > 0 => {
                    let mut again: Vec<_> = batches[..next].to_vec();
                    again.shuffle(rng);
                    for (offset, batch) in &again {
                        assert_eq!(call.batch(*offset, batch).await, Ok(durable));
                    }
                }
                // One that comes later.
                1 if next + 1 < batches.len() => {
                    let (later, batch) = &batches[rng.random_range(next + 1..batches.len())];
                    let refused = call.batch(*later, batch).await.unwrap_err();
                    check_refused(&refused, Code::OutOfRange, "OFFSET_GAP", durable);
                    call = open().await.unwrap();
                    assert_eq!(call.next_offset, durable);
                }
                // One that was acknowledged, with one byte changed, cut short, or grown.
                2 if next > 0 => {
                    let (offset, batch) = &batches[rng.random_range(0..next)];
                    let refused = call.batch(*offset, &spoilt(rng, batch)).await.unwrap_err();
                    check_refused(
                        &refused,
                        Code::FailedPrecondition,
                        "BATCH_MISMATCH",
                        durable,
                    );
                    call = open().await.unwrap();
                    assert_eq!(call.next_offset, durable, "it changed nothing");
                }
                // The next one, 1 to 5 times, all on their way at once.
                _ => {
                    let times = rng.random_range(1..=5);
                    (0..times).for_each(|_| call.send(*offset, batch));
                    for _ in 0..times {
                        let end = durable + batch.len() as u64;
                        assert_eq!(call.acknowledged().await, Ok(end));
                    }
                    next += 1;
                    if times == 1 {
                        continue;
                    }
                }
            }
            tally.faults += 1;
        }
        let committed = call.commit(&list.ids).await.unwrap();
        check(&muster, "replayed", &list, &committed, u64::from(round) + 1).await;
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally
}

/// Batches of 1 to 100 identifiers with their offsets.
fn cut(rng: &mut StdRng, ids: &[String]) -> Vec<(usize, Vec<String>)> {
    let mut batches = Vec::new();
    let mut offset = 0;
    while offset < ids.len() {
        let end = ids.len().min(offset + rng.random_range(1..=100));
        batches.push((offset, ids[offset..end].to_vec()));
        offset = end;
    }
    batches
}

fn spoilt(rng: &mut StdRng, batch: &[String]) -> Vec<String> {
    let mut batch = batch.to_vec();
    let place = rng.random_range(0..batch.len());
    match rng.random_range(0..3) {
        0 if batch.len() > 1 => drop(batch.pop()),
        1 => batch.push("user-0000001".to_owned()),
        _ => batch[place].push('x'),
    }
    batch
}

#[track_caller]
fn check_refused(refused: &Refusal, code: Code, reason: &str, expected_offset: u64) {
    assert_eq!((refused.code, refused.reason.as_str()), (code, reason));
    assert_eq!(
        refused.metadata["expected_offset"],
        expected_offset.to_string()
    );
}

async fn check(
    muster: &Deployment,
    cohort: &str,
    list: &List,
    committed: &muster_proto::ingest::v1::Committed,
    version: u64,
) {
    assert_eq!(committed.version, version, "published once");
    let summary = committed.summary.as_ref().unwrap();
    assert_eq!(summary.received, list.ids.len() as u64);
    assert_eq!(summary.members_after, list.known.len() as u64);
    oracle::check_published(&muster.shop, cohort, &list.known).await;
}

/// A writer's process freezes in mid-stream, another one takes its import over and finishes it; the
/// first one thaws, is fenced, writes nothing and says so.
///
/// One freeze takes 30 s. In the meantime the others are short: until the second writer is done.
pub(crate) async fn writer_frozen(mut plan: Plan) -> Tally {
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

    for round in 0..plan.rounds.saturating_sub(1) {
        let takeover = Takeover::begin_short(&muster, rng, &format!("short-{round}")).await;
        takeover.finish_as_another(&muster).await;
        let thawed = Instant::now();
        takeover.thaw_and_check(&muster).await;
        tally.recovered(thawed.elapsed());
        tally.faults += 1;
        tally.rounds += 1;
    }

    tokio::time::sleep(FREEZE.saturating_sub(frozen_at.elapsed())).await;
    let thawed = Instant::now();
    long.thaw_and_check(&muster).await;
    tally.recovered(thawed.elapsed());
    let noticed = silent.await.unwrap();
    // 20 s between two pings of the client and 10 s for the answer.
    assert!(noticed < Duration::from_secs(40), "{noticed:?}");
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

    /// The first process goes on, and fails without having changed anything.
    async fn thaw_and_check(mut self, muster: &Deployment) {
        let (cohort, id) = (&self.cohort, &self.import_id);
        let before = muster.shop.cohort(cohort).await;
        let standing = oracle::standing(&muster.store, id).await;
        assert!(self.frozen.runs(), "it is frozen");
        if let Some(network) = &self.network {
            network.strike(Way::ToServer, Trouble::Delay(Duration::ZERO));
        }
        self.frozen.signal(Signal::SIGCONT);
        let (code, report) = self.frozen.end();
        assert_eq!(code, Some(1), "{report}");
        let error = report["error"].as_str().unwrap();
        let fenced = ["WRITER_FENCED", "IMPORT_FINISHED"];
        assert!(
            fenced.iter().any(|reason| error.contains(reason)),
            "{error}"
        );
        assert_eq!(muster.shop.cohort(cohort).await, before);
        assert_eq!(oracle::standing(&muster.store, id).await, standing);
        oracle::check_published(&muster.shop, cohort, &self.list.known).await;
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
        let doing = match (round % 20, rng.random_range(0..4)) {
            (0, _) => Doing::Transaction,
            (_, 0) => Doing::Something,
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

        let frozen = Instant::now();
        let mut second = loop {
            match open(&muster.shop.grpc).await {
                Ok(call) => break call,
                Err(refusal) => assert!(refusal.is_transient(), "{refusal:?}"),
            }
            assert!(
                frozen.elapsed() < Duration::from_secs(60),
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
        let from = second.next_offset as usize;
        if from < ids.len() {
            assert!(!second.complete);
            assert_eq!(second.batch(from, &ids[from..]).await, Ok(ids.len() as u64));
        }
        let committed = second.commit(ids).await.unwrap();
        check(&muster, &cohort, &list, &committed, 1).await;
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
                let fenced = ["WRITER_FENCED", "IMPORT_FINISHED", "DATABASE_UNAVAILABLE"];
                assert!(fenced.contains(&refusal.reason.as_str()), "{refusal:?}");
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
