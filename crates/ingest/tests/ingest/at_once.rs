//! Small imports that arrive whole, and wait for each other.

use muster_domain::credential::Kind;
use muster_storage::{Tx, credentials};

use crate::harness::*;
use muster_proto::ingest::v1::{self as pb, ingest_cohort_request as req};
use tonic::Code;

/// The messages of a whole import that adds people to `spring`.
fn whole(import_id: &str, external_ids: &[&str]) -> Vec<req::Message> {
    let changes = vec![add(external_ids)];
    let mut digest = Default::default();
    let total = digest_of(&mut digest, &changes);
    let open = pb::OpenImport {
        pipelined: true,
        ..delta(import_id)
    };
    let digest = digest.finish().to_vec().into();
    vec![
        req::Message::Open(open),
        req::Message::Batch(pb::IdentifierBatch { offset: 0, changes }),
        req::Message::Commit(pb::CommitImport { total, digest }),
    ]
}

/// Has imports into `spring` wait until it ends.
async fn hold_cohort(muster: &Harness) -> Tx {
    let mut tx = muster
        .store
        .begin_in("test", muster.workspace)
        .await
        .unwrap();
    let lock = "SELECT version FROM cohort WHERE partner_cohort_id = 'spring' FOR UPDATE";
    muster_testbed::number(&mut tx, lock).await;
    tx
}

fn committed(answer: Answer) -> pb::Committed {
    match answer {
        Answer::Committed(committed) => committed,
        other => panic!("not published: {other:?}"),
    }
}

#[tokio::test]
async fn those_that_wait_for_each_other_share_transactions_and_are_versions_of_their_own() {
    const WAITING: usize = 12;
    let muster = start().await;
    muster.seed_users(100).await;
    import(&muster.partner, delta("first"), vec![add(&["u-0"])]).await;
    let held = hold_cohort(&muster).await;
    let mut uploads = Vec::new();
    for n in 0..WAITING {
        let (id, own) = (format!("i-{n}"), format!("u-{}", n + 1));
        // Somebody new, somebody who is in it by then, and nobody.
        let messages = whole(&id, &[&own, &format!("u-{n}"), "zz"]);
        uploads.push(Upload::send_only(&muster.partner, messages).await);
    }
    held.commit().await.unwrap();
    let mut versions = Vec::new();
    for upload in &mut uploads {
        let committed = committed(upload.answer().await.unwrap());
        let outcomes = outcomes(&committed);
        assert_eq!((outcomes.added, outcomes.unknown), (1, 1));
        assert_eq!(outcomes.already_member, 1);
        let summary = committed.summary.unwrap();
        assert_eq!(summary.members_after, summary.members_before + 1);
        assert_eq!(summary.members_after, committed.version);
        versions.push(committed.version);
    }
    let expected: Vec<u64> = (2..).take(WAITING).collect();
    assert_eq!(versions, expected, "in the order in which they came");
    let members: Vec<u32> = (0..=12).collect();
    assert_eq!(muster.members("spring").await, members);
    let transactions = "SELECT count(DISTINCT xmin::text) FROM cohort_version WHERE version > 1";
    let transactions = muster.number(transactions).await;
    assert!(transactions < 12, "{transactions}");
    let events = "SELECT count(*) FROM audit_event WHERE action = 'cohort.publish'";
    assert_eq!(muster.number(events).await, 13);
    // What is remembered of the cohort is what is stored.
    let counted = "SELECT count(*) FROM cohort_version v JOIN cohort_import i
                   ON i.version = v.version AND i.partner_import_id = v.import_id
                   WHERE v.received_count = (i.summary ->> 'received')::bigint AND i.state = 3";
    assert_eq!(muster.number(counted).await, 13);
}

#[tokio::test]
async fn one_that_is_refused_spoils_nothing_for_the_others() {
    let muster = start().await;
    muster.seed_users(10).await;
    import(&muster.partner, delta("first"), vec![add(&["u-0"])]).await;
    let (stolen, thief) = muster.another_key().await;
    let held = hold_cohort(&muster).await;
    let mut uploads = Vec::new();
    for (connection, id, user) in [
        (&muster.partner, "i-1", "u-1"),
        (&muster.partner, "i-2", "u-2"),
        (&thief, "i-3", "u-3"),
        (&muster.partner, "i-4", "u-4"),
    ] {
        uploads.push(Upload::send_only(connection, whole(id, &[user])).await);
    }
    let mut connection = muster.store.connection().await.unwrap();
    let revoked = credentials::revoke(&mut connection, Kind::DataImportKey, stolen);
    assert!(revoked.await.unwrap());
    held.commit().await.unwrap();
    for (upload, allowed) in uploads.iter_mut().zip([true, true, false, true]) {
        let answer = upload.answer().await;
        if allowed {
            committed(answer.unwrap());
        } else {
            assert_refused(answer, Code::Unauthenticated, "CREDENTIAL_INVALID");
        }
    }
    assert_eq!(muster.members("spring").await, [0, 1, 2, 4]);
    assert_eq!(muster.number("SELECT version FROM cohort").await, 4);
}

#[tokio::test]
async fn two_with_one_id_are_done_once() {
    let muster = start().await;
    muster.seed_users(10).await;
    import(&muster.partner, delta("first"), vec![add(&["u-0"])]).await;
    let held = hold_cohort(&muster).await;
    let mut uploads = Vec::new();
    for _ in 0..3 {
        uploads.push(Upload::send_only(&muster.partner, whole("i-1", &["u-1"])).await);
    }
    held.commit().await.unwrap();
    let mut published = 0;
    for upload in &mut uploads {
        match upload.answer().await.unwrap() {
            Answer::Committed(_) => published += 1,
            Answer::Opened(opened) => assert!(opened.complete),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(published, 1);
    assert_eq!(muster.number("SELECT version FROM cohort").await, 2);
}
