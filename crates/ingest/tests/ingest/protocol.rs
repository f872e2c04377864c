//! The import protocol as its clients meet it: each test is a promise.

use std::time::Duration;

use crate::harness::*;
use muster_proto::ingest::v1::{self as pb, ingest_cohort_request as req};
use muster_storage::credentials;
use tonic::Code;

#[tokio::test]
async fn every_identifier_has_exactly_one_outcome() {
    let muster = start().await;
    muster.seed_users(10).await;
    let long = "x".repeat(513);
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    upload
        .batch(vec![
            add(&["u-0", "u-1", "u-2", "nobody", ""]),
            change(
                pb::ChangeEffect::Add,
                &[],
                &[("mail", "b-3"), ("mail", "zz")],
                &["d-4", "i-5", "d-99"],
            ),
            remove(&["u-1", "u-9"]),
        ])
        .await
        .unwrap();
    upload
        .batch(vec![add(&["u-0", "u-7", &long, "a\0b"]), remove(&["u-9"])])
        .await
        .unwrap();
    let committed = upload.publish().await;
    assert_eq!(committed.version, 1);
    let expected = pb::OutcomeCounts {
        added: 5,
        already_member: 0,
        removed: 0,
        not_member: 2,
        unknown: 3,
        device_of_identified_user: 1,
        duplicate: 2,
        superseded: 1,
        invalid: 3,
    };
    assert_eq!(outcomes(&committed), expected);
    assert_eq!(muster.members("spring").await, [0, 2, 7, 13, 14]);

    let again = import(
        &muster.partner,
        delta("i-2"),
        vec![add(&["u-0", "u-1"]), remove(&["u-2"])],
    )
    .await;
    let outcomes = outcomes(&again);
    assert_eq!(
        (outcomes.added, outcomes.already_member, outcomes.removed),
        (1, 1, 1)
    );
    assert_eq!(again.version, 2);
    assert_eq!(muster.members("spring").await, [0, 1, 7, 13, 14]);
}

#[tokio::test]
async fn rejected_identifiers_are_listed_with_their_position_without_a_cap() {
    let muster = start().await;
    muster.seed_users(10).await;
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    let mut expected = Vec::new();
    for batch in 0..3u64 {
        let ids: Vec<String> = (0..4_000).map(|n| format!("nobody-{batch}-{n}")).collect();
        expected.extend((0..4_000).map(|n| batch * 4_001 + n));
        let mut ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        ids.push("u-1");
        upload.batch(vec![add(&ids)]).await.unwrap();
    }
    upload.publish().await;
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let page = pb::ListRejectedIdentifiersRequest {
            import_id: "i-1".into(),
            page_size: 999,
            page_token: token,
            ..Default::default()
        };
        let page = muster
            .partner
            .ingest()
            .list_rejected_identifiers(page)
            .await;
        let page = page.unwrap().into_inner();
        found.extend(page.identifiers.iter().map(|rejected| rejected.position));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, expected);
}

#[tokio::test]
async fn only_a_commit_publishes_and_everything_else_can_be_resumed() {
    let muster = start().await;
    muster.seed_users(10).await;
    // Half-close.
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    upload.batch(vec![add(&["u-0"])]).await.unwrap();
    let digest = upload.digest.clone();
    assert!(upload.half_close().await.unwrap().is_none());
    // Cancel.
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    assert_eq!(upload.offset, 1);
    upload.digest = digest;
    upload.batch(vec![add(&["u-1"])]).await.unwrap();
    let digest = upload.digest.clone();
    drop(upload);
    assert_eq!(
        muster.number("SELECT count(*) FROM cohort_version").await,
        0
    );
    // Resume.
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    assert_eq!(upload.offset, 2);
    upload.digest = digest;
    upload.batch(vec![add(&["u-2"])]).await.unwrap();
    upload.publish().await;
    assert_eq!(muster.members("spring").await, [0, 1, 2]);
}

#[tokio::test]
async fn a_repeated_batch_has_no_effect_and_a_different_one_is_refused() {
    let muster = start().await;
    muster.seed_users(10).await;
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    for ids in [["u-0", "u-1"], ["u-2", "u-3"]] {
        upload.batch(vec![add(&ids)]).await.unwrap();
    }
    let batch = |offset, ids: &[&str]| {
        req::Message::Batch(pb::IdentifierBatch {
            offset,
            changes: vec![add(ids)],
        })
    };
    for (offset, ids) in [
        (0, ["u-0", "u-1"]),
        (2, ["u-2", "u-3"]),
        (0, ["u-0", "u-1"]),
    ] {
        match upload.send(batch(offset, &ids)).await.unwrap() {
            Answer::Acked(acked) => assert_eq!(acked.next_offset, 4),
            other => panic!("{other:?}"),
        }
    }
    let differs = upload.send(batch(2, &["u-2", "u-4"])).await;
    assert_refused(differs, Code::FailedPrecondition, "BATCH_MISMATCH");
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    let straddles = upload.send(batch(1, &["u-1", "u-2"])).await;
    assert_refused(straddles, Code::FailedPrecondition, "BATCH_MISMATCH");
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    let gap = upload.send(batch(5, &["u-5"])).await;
    assert_refused(gap.clone(), Code::OutOfRange, "OFFSET_GAP");
    use tonic_types::StatusExt as _;
    let details = gap.unwrap_err().get_error_details();
    assert_eq!(
        details.error_info().unwrap().metadata["expected_offset"],
        "4"
    );
}

#[tokio::test]
async fn a_newer_writer_fences_the_older_one() {
    let muster = start().await;
    muster.seed_users(10).await;
    let mut older = Upload::open(&muster.partner, delta("i-1")).await;
    older.batch(vec![add(&["u-0"])]).await.unwrap();
    let mut newer = Upload::open(&muster.partner, delta("i-1")).await;
    newer.digest = older.digest.clone();
    assert_refused(
        older.batch(vec![add(&["u-1"])]).await,
        Code::Aborted,
        "WRITER_FENCED",
    );
    newer.batch(vec![add(&["u-2"])]).await.unwrap();
    newer.publish().await;
    assert_eq!(muster.members("spring").await, [0, 2]);
}

#[tokio::test]
async fn a_commit_of_something_else_is_refused_and_the_import_stays_open() {
    let muster = start().await;
    muster.seed_users(10).await;
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    upload.batch(vec![add(&["u-0"])]).await.unwrap();
    let digest = upload.digest.clone();
    upload.offset = 2;
    assert_refused(
        upload.commit().await,
        Code::FailedPrecondition,
        "TOTAL_MISMATCH",
    );
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    assert_refused(
        upload.commit().await,
        Code::FailedPrecondition,
        "DIGEST_MISMATCH",
    );
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    upload.digest = digest;
    let first = upload.publish().await;
    // The reply may have been lost: the same commit gives the same answer.
    let mut repeated = Upload::open(&muster.partner, delta("i-1")).await;
    repeated.digest = upload.digest.clone();
    assert_eq!(repeated.publish().await.summary, first.summary);
    let mut other = Upload::open(&muster.partner, delta("i-1")).await;
    assert_refused(
        other.commit().await,
        Code::FailedPrecondition,
        "DIGEST_MISMATCH",
    );
    assert_eq!(
        muster.number("SELECT count(*) FROM cohort_version").await,
        1
    );
    assert_eq!(muster.number("SELECT count(*) FROM import_batch").await, 0);
}

#[tokio::test]
async fn an_import_is_not_resumed_as_another_one() {
    let muster = start().await;
    Upload::open(&muster.partner, delta("i-1")).await;
    let (_, answer) = Upload::start(&muster.partner, replace("i-1")).await;
    assert_refused(answer, Code::FailedPrecondition, "IMPORT_MISMATCH");
    let other = pb::OpenImport {
        cohort_id: "summer".into(),
        ..delta("i-1")
    };
    let (_, answer) = Upload::start(&muster.partner, other).await;
    assert_refused(answer, Code::FailedPrecondition, "IMPORT_MISMATCH");
}

#[tokio::test]
async fn a_replacement_swaps_the_whole_list() {
    let muster = start().await;
    muster.seed_users(10).await;
    import(
        &muster.partner,
        delta("i-1"),
        vec![add(&["u-0", "u-1", "u-2"])],
    )
    .await;
    let replaced = import(
        &muster.partner,
        replace("i-2"),
        vec![add(&["u-2", "u-3", "zz"])],
    )
    .await;
    let summary = replaced.summary.as_ref().unwrap();
    assert_eq!((summary.members_before, summary.members_after), (3, 2));
    assert_eq!((summary.members_added, summary.members_removed), (1, 2));
    assert_eq!(outcomes(&replaced).already_member, 1);
    assert_eq!(muster.members("spring").await, [2, 3]);
    let mut upload = Upload::open(&muster.partner, replace("i-3")).await;
    let removal = upload.batch(vec![remove(&["u-2"])]).await;
    assert_refused(removal, Code::InvalidArgument, "INVALID_FIELD");
    let mut empty = Upload::open(&muster.partner, replace("i-4")).await;
    empty.publish().await;
    assert_eq!(muster.members("spring").await, [0; 0]);
}

#[tokio::test]
async fn a_replacement_that_removes_too_many_waits_for_a_person() {
    let muster = start().await;
    muster.seed_users(10).await;
    import(
        &muster.partner,
        delta("i-1"),
        vec![add(&["u-0", "u-1", "u-2", "u-3"])],
    )
    .await;
    let careful = |id: &str| pb::OpenImport {
        max_removed_fraction: Some(0.5),
        ..replace(id)
    };
    import(&muster.partner, careful("i-2"), vec![add(&["u-0", "u-1"])]).await;
    let mut upload = Upload::open(&muster.partner, careful("i-3")).await;
    upload.batch(vec![add(&["u-9"])]).await.unwrap();
    let preview = match upload.commit().await.unwrap() {
        Answer::AwaitingConfirmation(waiting) => waiting.preview.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!((preview.members_added, preview.members_removed), (1, 2));
    assert_eq!(muster.members("spring").await, [0, 1]);

    // The cohort changes after the preview: the person must look again.
    import(&muster.partner, delta("i-4"), vec![add(&["u-5"])]).await;
    let confirm = || pb::ConfirmImportRequest {
        workspace: "shop".into(),
        import_id: "i-3".into(),
        ..Default::default()
    };
    let refused = muster.partner.ingest().confirm_import(confirm()).await;
    assert_refused(refused, Code::PermissionDenied, "CREDENTIAL_KIND");
    let mut operator = muster.operator.ingest();
    let outdated = operator.confirm_import(confirm()).await;
    assert_refused(outdated, Code::FailedPrecondition, "PREVIEW_OUTDATED");
    let import_now = pb::GetImportRequest {
        workspace: "shop".into(),
        import_id: "i-3".into(),
        ..Default::default()
    };
    let waiting = operator
        .get_import(import_now.clone())
        .await
        .unwrap()
        .into_inner();
    let waiting = waiting.import.unwrap();
    assert_eq!(waiting.state(), pb::ImportState::AwaitingConfirmation);
    assert_eq!(waiting.summary.unwrap().members_removed, 3);
    let confirmed = operator
        .confirm_import(confirm())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(confirmed.committed.unwrap().version, 4);
    assert_eq!(muster.members("spring").await, [9]);
    // The answer may have been lost: asked again, it is the same.
    let twice = operator
        .confirm_import(confirm())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(twice.committed.unwrap().version, 4);
    assert_eq!(muster.members("spring").await, [9]);

    let mut upload = Upload::open(&muster.partner, careful("i-5")).await;
    upload.commit().await.unwrap();
    let abort = pb::AbortImportRequest {
        workspace: "shop".into(),
        import_id: "i-5".into(),
        ..Default::default()
    };
    operator.abort_import(abort).await.unwrap();
    assert_eq!(muster.members("spring").await, [9]);
    let (_, reopened) = Upload::start(&muster.partner, careful("i-5")).await;
    assert_refused(reopened, Code::FailedPrecondition, "IMPORT_FINISHED");
}

#[tokio::test]
async fn a_small_pipelined_import_is_one_transaction() {
    let muster = start().await;
    muster.seed_users(10).await;
    let changes = vec![add(&["u-0", "zz"])];
    let open = pb::OpenImport {
        pipelined: true,
        ..delta("i-1")
    };
    let mut digest = Default::default();
    let total = digest_of(&mut digest, &changes);
    let messages = || {
        vec![
            req::Message::Open(open.clone()),
            req::Message::Batch(pb::IdentifierBatch {
                offset: 0,
                changes: changes.clone(),
            }),
            req::Message::Commit(pb::CommitImport {
                total,
                digest: digest.finish().to_vec().into(),
            }),
        ]
    };
    let mut upload = Upload::send_only(&muster.partner, messages()).await;
    match upload.answer().await.unwrap() {
        Answer::Committed(committed) => assert_eq!(outcomes(&committed).unknown, 1),
        other => panic!("{other:?}"),
    }
    let transactions = "SELECT count(DISTINCT xmin::text) FROM (
        SELECT xmin FROM cohort UNION ALL SELECT xmin FROM cohort_version
        UNION ALL SELECT xmin FROM cohort_import UNION ALL SELECT xmin FROM import_rejected) t";
    assert_eq!(muster.number(transactions).await, 1);
    // Sent again, it is found to be done.
    let mut again = Upload::send_only(&muster.partner, messages()).await;
    assert!(matches!(again.answer().await.unwrap(), Answer::Opened(o) if o.complete));
}

#[tokio::test]
async fn a_revoked_key_never_publishes_and_its_streams_end() {
    let muster = start().await;
    muster.seed_users(10).await;
    let mut idle = Upload::open(&muster.partner, delta("i-1")).await;
    idle.batch(vec![add(&["u-0"])]).await.unwrap();
    let mut busy = Upload::open(&muster.partner, delta("i-2")).await;
    busy.batch(vec![add(&["u-1"])]).await.unwrap();
    let mut connection = muster.store.connection().await.unwrap();
    let kind = muster_domain::credential::Kind::DataImportKey;
    credentials::revoke(&mut connection, kind, muster.key)
        .await
        .unwrap();
    let revoked = std::time::Instant::now();
    assert_refused(
        busy.commit().await,
        Code::Unauthenticated,
        "CREDENTIAL_INVALID",
    );
    assert_refused(
        idle.answer().await,
        Code::Unauthenticated,
        "CREDENTIAL_INVALID",
    );
    assert!(revoked.elapsed() < Duration::from_secs(1));
    assert_eq!(
        muster.number("SELECT count(*) FROM cohort_version").await,
        0
    );
}

#[tokio::test]
async fn an_abandoned_import_expires_and_is_cleaned_up() {
    let muster = start().await;
    muster.seed_users(10).await;
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    upload.batch(vec![add(&["u-0", "zz"])]).await.unwrap();
    assert_eq!(
        muster
            .store
            .expire_imports(muster_storage::Timestamp::now_utc())
            .await
            .unwrap(),
        0
    );
    muster
        .sql("UPDATE cohort_import SET expires_at = now() - interval '1 s'")
        .await;
    assert_eq!(
        muster
            .store
            .expire_imports(muster_storage::Timestamp::now_utc())
            .await
            .unwrap(),
        1
    );
    assert_refused(
        upload.batch(vec![add(&["u-1"])]).await,
        Code::FailedPrecondition,
        "IMPORT_FINISHED",
    );
    assert_eq!(muster.number("SELECT count(*) FROM import_batch").await, 0);
    assert_eq!(
        muster.number("SELECT count(*) FROM import_rejected").await,
        0
    );
}

#[tokio::test]
async fn a_late_delta_is_refused_when_the_caller_asked_for_order() {
    let muster = start().await;
    muster.seed_users(10).await;
    let at = |id: &str, seconds| pb::OpenImport {
        source_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        refuse_if_older: true,
        ..delta(id)
    };
    import(&muster.partner, at("i-1", 2_000), vec![add(&["u-0"])]).await;
    let mut late = Upload::open(&muster.partner, at("i-2", 1_000)).await;
    late.batch(vec![add(&["u-1"])]).await.unwrap();
    assert_refused(
        late.commit().await,
        Code::FailedPrecondition,
        "OUT_OF_ORDER",
    );
    import(&muster.partner, at("i-3", 2_000), vec![add(&["u-2"])]).await;
    assert_eq!(muster.members("spring").await, [0, 2]);
}

#[tokio::test]
async fn bad_input_names_the_field() {
    let muster = start().await;
    let many = vec!["u"; 10_001];
    let cases = [
        (
            pb::OpenImport {
                cohort_id: String::new(),
                ..delta("i")
            },
            "open.cohort_id",
        ),
        (
            pb::OpenImport {
                cohort_id: "c".repeat(256),
                ..delta("i")
            },
            "open.cohort_id",
        ),
        (
            pb::OpenImport {
                name: "a\0".into(),
                ..delta("i")
            },
            "open.name",
        ),
        (delta(""), "open.import_id"),
        (
            pb::OpenImport {
                mode: 9,
                ..delta("i")
            },
            "open.mode",
        ),
        (
            pb::OpenImport {
                refuse_if_older: true,
                ..delta("i")
            },
            "open.source_time",
        ),
        (
            pb::OpenImport {
                max_removed_fraction: Some(1.5),
                ..replace("i")
            },
            "open.max_removed_fraction",
        ),
    ];
    use tonic_types::StatusExt as _;
    for (open, field) in cases {
        let (_, answer) = Upload::start(&muster.partner, open).await;
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        let details = status.get_error_details();
        assert_eq!(
            details.bad_request().unwrap().field_violations[0].field,
            field
        );
    }
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    assert_refused(
        upload.batch(vec![add(&many)]).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    let mut upload = Upload::open(&muster.partner, delta("i-1")).await;
    let huge = "x".repeat(500);
    let huge = vec![huge.as_str(); 3_000];
    let too_large = upload.batch(vec![add(&huge)]).await;
    assert_refused(too_large, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let (_, answer) = Upload::start(
        &muster.operator,
        pb::OpenImport {
            workspace: "nowhere".into(),
            ..delta("i")
        },
    )
    .await;
    assert_refused(answer, Code::NotFound, "NOT_FOUND");
    let (_, answer) = Upload::start(
        &muster.operator,
        pb::OpenImport {
            partner: "nobody".into(),
            ..delta("i")
        },
    )
    .await;
    assert_refused(answer, Code::NotFound, "NOT_FOUND");
}
