//! Batches that arrive together: they are matched on several threads, and still apply in order.

use crate::harness::*;
use muster_proto::ingest::v1::{self as pb, ingest_cohort_request as req};

/// Batches that add everyone, one after the other, and take those with an odd number out again. Each
/// has identifiers that nobody has, one more than the batch before.
fn batches() -> Vec<Vec<pb::CohortChange>> {
    let batches = (0..20).map(|number: u32| {
        let user = format!("u-{}", number / 2);
        let user = [user.as_str()];
        let is_removal = number % 4 == 3;
        let known = if is_removal {
            remove(&user)
        } else {
            add(&user)
        };
        let unknown: Vec<String> = (0..=number)
            .map(|n| format!("nobody-{number}-{n}"))
            .collect();
        let unknown: Vec<&str> = unknown.iter().map(String::as_str).collect();
        vec![known, add(&unknown)]
    });
    batches.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn batches_that_arrive_together_apply_in_order_and_keep_their_positions() {
    let muster = start().await;
    muster.seed_users(10).await;
    // The first finds no directory in memory; the others nearly always do.
    for import_id in ["i-1", "i-2", "i-3"] {
        let open = pb::OpenImport {
            cohort_id: import_id.to_owned(),
            ..delta(import_id)
        };
        let mut messages = vec![req::Message::Open(open)];
        let mut digest = Default::default();
        let (mut offset, mut unknown) = (0, Vec::new());
        for changes in batches() {
            let end = offset + digest_of(&mut digest, &changes);
            unknown.extend(offset + 1..end);
            messages.push(req::Message::Batch(pb::IdentifierBatch { offset, changes }));
            offset = end;
        }
        messages.push(req::Message::Commit(pb::CommitImport {
            total: offset,
            digest: digest.finish().to_vec().into(),
        }));
        let mut upload = Upload::send_only(&muster.partner, messages).await;
        let committed = loop {
            match upload.answer().await.unwrap() {
                Answer::Committed(committed) => break committed,
                Answer::Opened(_) | Answer::Acked(_) => {}
                other => panic!("{other:?}"),
            }
        };
        let outcomes = outcomes(&committed);
        assert_eq!(outcomes.unknown, unknown.len() as u64);
        assert_eq!(muster.members(import_id).await, [0, 2, 4, 6, 8]);
        let page = pb::ListRejectedIdentifiersRequest {
            import_id: import_id.to_owned(),
            page_size: 1_000,
            ..Default::default()
        };
        let mut client = muster.partner.ingest();
        let page = client.list_rejected_identifiers(page).await.unwrap();
        let found = page.into_inner().identifiers;
        let found: Vec<u64> = found.iter().map(|rejected| rejected.position).collect();
        assert_eq!(found, unknown);
    }
}
