//! An import whose stream breaks: nothing is published by it, and it can be resumed.

use std::time::{Duration, Instant};

use muster_client::upload::Progress;
use muster_domain::import::Mode;
use muster_tests::{
    connect,
    proxy::{Proxy, Trouble, Way},
};
use rand::{RngExt as _, rngs::StdRng};
use tokio::sync::mpsc;

use crate::{
    exporter::Exporter,
    node::Deployment,
    oracle::{self, List},
    suite::{Plan, Tally},
    wire::Call,
};

const USERS: usize = 2_000;

/// Ids of nobody in a list: with them it has 3 batches.
const NOBODIES: usize = 4_000;

/// The server dies by SIGKILL at a random point of the stream, the commit included; the client
/// resumes by itself.
pub(crate) async fn ingest_server_killed(mut plan: Plan) -> Tally {
    let mut muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let mut tally = Tally::default();
    let (mut middle, mut commits) = (0, 0);
    for round in 0..plan.rounds {
        let list = List::draw_long(&mut plan.rng, USERS, USERS / 2, NOBODIES);
        let import_id = oracle::import_id(&mut plan.rng);
        let mut upload = oracle::upload("killed", Mode::Replace, &import_id);
        upload.retry.first_wait = Duration::from_millis(20);
        upload.retry.longest_wait = Duration::from_millis(100);
        // A busy machine takes seconds to start a server.
        upload.retry.failures = 400;
        let (partner, source) = (muster.shop.partner(), list.source());
        let (tell, mut told) = mpsc::unbounded_channel();
        let running = tokio::spawn(async move {
            let mut progress = move |event| {
                let _ = tell.send((event, Instant::now()));
            };
            upload.run(&partner, source, &mut progress).await
        });
        let total = list.ids.len() as u64;
        // As often as not somewhere after the last acknowledgement: the commit is under way.
        let moment = plan.rng.random_range(0..2 * total).min(total);
        loop {
            match told.recv().await.expect("it is not over").0 {
                Progress::Opened { durable } | Progress::Acknowledged { durable }
                    if durable >= moment =>
                {
                    break;
                }
                _ => {}
            }
        }
        match moment < total {
            true => middle += 1,
            false => commits += 1,
        }
        tokio::time::sleep(Duration::from_millis(plan.rng.random_range(0..30))).await;
        let killed = Instant::now();
        muster.node.kill_9();
        muster.node.start_again();
        let outcome = running.await.unwrap().unwrap();
        let version = list.check_committed(&outcome);
        assert_eq!(version, u64::from(round) + 1, "published once");
        while let Ok((event, at)) = told.try_recv() {
            if matches!(event, Progress::Opened { .. }) && at > killed {
                tally.recovered(at - killed);
                break;
            }
        }
        oracle::check_published(&muster.shop, "killed", &list.known).await;
        tally.faults += 1;
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally.note = format!("{middle} in mid-stream, {commits} at the commit");
    tally
}

/// The client, a process of its own, dies by SIGKILL several times in the middle of an import; run
/// again with the same import id it goes on where it was.
pub(crate) async fn client_killed(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let mut tally = Tally::default();
    for round in 0..plan.rounds {
        let list = List::draw_long(&mut plan.rng, USERS, USERS / 2, NOBODIES);
        let total = list.ids.len() as u64;
        let import_id = oracle::import_id(&mut plan.rng);
        let exporter = Exporter::new(&muster.shop, "exported", &import_id, &list);
        let before = u64::from(round);
        let mut durable = 0;
        for _ in 0..plan.rng.random_range(1..=3) {
            let exporting = exporter.start();
            // At the latest when all is there but the commit.
            let moment = plan.rng.random_range(durable + 1..=total.max(durable + 1));
            oracle::reached(&muster.store, &import_id, moment).await;
            tally.faults += u32::from(exporting.kill_9());
            let now = oracle::standing(&muster.store, &import_id).await.unwrap();
            assert!(
                now.next_offset >= durable,
                "what was durable is still there"
            );
            durable = now.next_offset;
            let version = oracle::version(&muster.store, "exported").await;
            assert_eq!(
                version,
                before + u64::from(durable == total && version > before)
            );
        }
        let again = Instant::now();
        let (done, report) = exporter.run();
        tally.recovered(again.elapsed());
        let done = done.code(0);
        assert_eq!(report["state"], "committed", "{done:?}");
        assert_eq!(report["version"], before + 1, "published once: {report}");
        assert_eq!(report["received"], total, "{report}");
        let nobodies = list.ids.len() - list.known.len();
        assert_eq!(report["outcomes"]["unknown"], nobodies, "{report}");
        assert_eq!(report["members_after"], list.known.len(), "{report}");
        oracle::check_published(&muster.shop, "exported", &list.known).await;
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally
}

/// How a stream breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// The client cancels the call: `RST_STREAM(CANCEL)`, which looks to the server like a clean end.
    Cancelled,
    /// The client ends its half without a commit.
    HalfClosed,
    /// The connection ends.
    Dropped,
    /// The client's half of the connection ends.
    Halved,
}

const BREAKS: [Break; 4] = [
    Break::Cancelled,
    Break::HalfClosed,
    Break::Dropped,
    Break::Halved,
];

/// A stream ends in every way but a commit, several times within an import: that publishes nothing,
/// loses no batch that was acknowledged, and leaves the import to be resumed.
pub(crate) async fn stream_broken(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let proxy = Proxy::start(&muster.shop.grpc, Vec::new()).await;
    let mut tally = Tally::default();
    for round in 0..plan.rounds {
        let list = List::draw(&mut plan.rng, USERS, USERS / 4);
        let ids = &list.ids;
        let import_id = oracle::import_id(&mut plan.rng);
        let before = u64::from(round);
        let mut acknowledged = 0;
        let mut breaks: Vec<Break> = Vec::new();
        for _ in 0..plan.rng.random_range(2..=5) {
            breaks.push(BREAKS[plan.rng.random_range(0..BREAKS.len())]);
        }
        for how in breaks {
            let begun = Instant::now();
            let connection = connect(&proxy.url, &muster.shop.client_secret);
            let mut call = Call::open(&connection, "broken", Mode::Replace, &import_id)
                .await
                .unwrap();
            if tally.faults > 0 {
                tally.recovered(begun.elapsed());
            }
            let mut sent = check_opened(&call, acknowledged, ids.len());
            acknowledged = sent;
            for _ in 0..plan.rng.random_range(0..6) {
                let batch = next_batch(&mut plan.rng, ids, sent);
                if batch.is_empty() {
                    break;
                }
                call.send(sent, batch);
                sent += batch.len();
            }
            // Some acknowledgements are waited for, others are on their way.
            while acknowledged < sent && plan.rng.random_range(0..4) > 0 {
                acknowledged = call.acknowledged().await.unwrap() as usize;
            }
            match how {
                Break::Cancelled => drop(call),
                // Acknowledgements that are still to come belong to the stream.
                Break::HalfClosed => {
                    while acknowledged < sent {
                        acknowledged = call.acknowledged().await.unwrap() as usize;
                    }
                    call.half_close().await;
                }
                Break::Dropped => assert!(proxy.strike(Way::ToServer, Trouble::Cut) > 0),
                Break::Halved => assert!(proxy.strike(Way::ToServer, Trouble::Halve) > 0),
            }
            tally.faults += 1;
            let version = oracle::version(&muster.store, "broken").await;
            assert_eq!(version, before, "{how:?} published something");
        }
        finish(&muster, &list, &import_id, acknowledged, before + 1).await;
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally
}

fn check_opened(call: &Call, acknowledged: usize, total: usize) -> usize {
    let next_offset = call.next_offset as usize;
    assert!(!call.complete, "it was never committed");
    assert!(next_offset >= acknowledged, "an acknowledged batch is gone");
    assert!(next_offset <= total);
    next_offset
}

/// Up to 200 of the ids from a position on.
fn next_batch<'a>(rng: &mut StdRng, ids: &'a [String], from: usize) -> &'a [String] {
    let most = ids.len() - from;
    // One is kept back, so that there is always something to resume with.
    let count = rng.random_range(1..=200).min(most.saturating_sub(1));
    &ids[from..from + count]
}

/// Sends the rest and commits.
async fn finish(
    muster: &Deployment,
    list: &List,
    import_id: &str,
    acknowledged: usize,
    version: u64,
) {
    let ids = &list.ids;
    let partner = muster.shop.partner();
    let mut call = Call::open(&partner, "broken", Mode::Replace, import_id)
        .await
        .unwrap();
    let from = check_opened(&call, acknowledged, ids.len());
    assert_eq!(call.batch(from, &ids[from..]).await, Ok(ids.len() as u64));
    let committed = call.commit(ids).await.unwrap();
    list.check_answer(&committed, version);
    oracle::check_published(&muster.shop, "broken", &list.known).await;
}
