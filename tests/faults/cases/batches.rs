//! Batches that come again, out of order, with a gap or changed.

use muster_client::Refusal;
use muster_domain::import::Mode;
use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use tonic::Code;

use crate::{
    node::Deployment,
    oracle::{self, List},
    suite::{Plan, Tally},
    wire::Call,
};

const USERS: usize = 2_000;

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
        list.check_answer(&committed, u64::from(round) + 1);
        oracle::check_published(&muster.shop, "replayed", &list.known).await;
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
