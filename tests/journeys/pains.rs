//! What users of other systems suffer from, and must not happen here.

use muster_bridge::export::{self, Delivery, ExportError, Options, RestTarget, Target};
use muster_domain::import::{Mode, Summary};
use muster_proto::{
    ingest::v1 as ingest,
    segments::v1::{self as segments, count_segment_request},
    users::v1::{self as users, identifier::Kind},
};
use muster_tests::{Muster, PARTNER, WORKSPACE, identified, text};
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;

use crate::story::{grpc, ids, send, shop_of, write_file, write_ids};

fn rest(muster: &Muster) -> Target {
    Target::Rest(RestTarget {
        base_url: muster.rest.clone(),
        partner: PARTNER.into(),
        partner_api_key: muster.partner_api_key.clone(),
        client_secret: muster.client_secret.clone(),
    })
}

/// The summary of an export over gRPC.
async fn publish(muster: &Muster, file: &std::path::Path, mode: Mode) -> Summary {
    match send(file, &grpc(muster), mode).await.delivery {
        Delivery::Committed { summary, .. } => summary,
        other => panic!("not published: {other:?}"),
    }
}

async fn members(muster: &Muster, cohort_id: &str) -> Vec<String> {
    muster
        .audience_ids(&format!("{PARTNER}:id(\"{cohort_id}\")"))
        .await
}

async fn count(muster: &Muster, filter: &str) -> Result<u64, tonic::Status> {
    let request = segments::CountSegmentRequest {
        workspace: WORKSPACE.into(),
        audience: Some(count_segment_request::Audience::Filter(text(filter))),
        consistency_token: String::new(),
    };
    let counted = muster.operator.segments().count_segment(request).await?;
    Ok(counted.into_inner().user_count)
}

fn external(id: &str) -> users::Identifier {
    users::Identifier {
        kind: Some(Kind::ExternalId(id.into())),
    }
}

#[tokio::test]
async fn the_same_file_twice_is_the_same_list() {
    let muster = shop_of(1_700).await;
    let folder = TempDir::new().unwrap();
    // Some are unknown, and some stand there twice.
    let people = [ids(0..1_500), vec!["stranger".into()], ids(100..300)].concat();
    let file = write_ids(&folder, "list.csv", &people);
    let first = publish(&muster, &file, Mode::Delta).await;
    assert_eq!((first.outcomes.added, first.members_after), (1_500, 1_500));
    for mode in [Mode::Delta, Mode::Replace, Mode::Delta] {
        let again = publish(&muster, &file, mode).await;
        assert_eq!(again.received, first.received);
        let outcomes = again.outcomes;
        assert_eq!(
            (
                outcomes.already_member,
                outcomes.duplicate,
                outcomes.unknown
            ),
            (1_500, 200, 1)
        );
        assert_eq!((again.members_added, again.members_removed), (0, 0));
        assert_eq!(again.members_after, 1_500);
    }
    let report = send(&file, &rest(&muster), Mode::Delta).await;
    assert!(
        matches!(report.delivery, Delivery::Calls { calls: 2, .. }),
        "{report:?}"
    );
    assert_eq!(muster.cohort("list").await.member_count, Some(1_500));
    assert_eq!(members(&muster, "list").await, ids(0..1_500));
    muster.stop().await;
}

#[tokio::test]
async fn counts_stay_exact_when_people_are_deleted_and_merged() {
    let muster = shop_of(40).await;
    let rest = muster.rest();
    rest.change("a", json!([{ "user_ids": ids(0..20) }]))
        .await
        .succeeded();
    rest.change("b", json!([{ "user_ids": ids(10..30) }]))
        .await
        .succeeded();
    let delete = users::DeleteUsersRequest {
        workspace: WORKSPACE.into(),
        users: [0, 10, 20, 39]
            .map(|n| external(&ids(n..n + 1)[0]))
            .to_vec(),
        request_id: String::new(),
    };
    muster.operator.users().delete_users(delete).await.unwrap();
    // 1 and 2 are both in a; 21 in b alone becomes 3 of a alone; 38 of none becomes 37 of none.
    let entries =
        [(1, 2), (21, 3), (38, 37)].map(|(from, into)| users::merge_users_request::Entry {
            from: Some(external(&ids(from..from + 1)[0])),
            into: Some(external(&ids(into..into + 1)[0])),
        });
    let merge = users::MergeUsersRequest {
        workspace: WORKSPACE.into(),
        entries: entries.to_vec(),
        request_id: String::new(),
    };
    muster.operator.users().merge_users(merge).await.unwrap();
    for (filter, expected) in [
        // 20, less 0 and 10, less 1 who is 2 now.
        (r#"tinyclues:"a""#, 17),
        // 20, less 10 and 20; 21 is 3 now.
        (r#"tinyclues:"b""#, 18),
        // 11 to 19, and 3.
        (r#"tinyclues:"a" and tinyclues:"b""#, 10),
        (r#"tinyclues:"a" or tinyclues:"b""#, 25),
        // 40, less 4 deleted and 3 merged, less those in a or b.
        (r#"not (tinyclues:"a" or tinyclues:"b")"#, 8),
    ] {
        assert_eq!(count(&muster, filter).await.unwrap(), expected, "{filter}");
        assert_eq!(
            muster.audience(filter).await.len() as u64,
            expected,
            "{filter}"
        );
    }
    assert_eq!(muster.cohort("a").await.member_count, Some(17));
    assert_eq!(muster.cohort("b").await.member_count, Some(18));
    muster.stop().await;
}

#[tokio::test]
async fn a_replacement_replaces_and_a_suspicious_one_asks_first() {
    let muster = shop_of(100).await;
    let folder = TempDir::new().unwrap();
    let replace = async |range: std::ops::Range<usize>, limit| {
        let file = write_ids(&folder, "list.csv", &ids(range));
        let mut options = Options::new(Mode::Replace);
        options.max_removed_fraction = limit;
        options.allow_empty = true;
        let sent = export::export(&file, &grpc(&muster), &options, &mut |_| {}).await;
        sent.unwrap().delivery
    };
    replace(0..50, None).await;
    let Delivery::Committed { summary, .. } = replace(25..80, Some(0.5)).await else {
        panic!("half of them may go");
    };
    assert_eq!((summary.members_before, summary.members_after), (50, 55));
    assert_eq!((summary.members_added, summary.members_removed), (30, 25));
    assert_eq!(members(&muster, "list").await, ids(25..80));

    // An export that names nobody is most likely a mistake, also where it is allowed.
    let asked = replace(0..0, Some(0.5)).await;
    let Delivery::AwaitingConfirmation { import_id, preview } = asked else {
        panic!("everybody would go: {asked:?}");
    };
    assert_eq!((preview.members_after, preview.members_removed), (0, 55));
    assert_eq!(members(&muster, "list").await, ids(25..80));
    let confirm = ingest::ConfirmImportRequest {
        workspace: WORKSPACE.into(),
        import_id,
        ..Default::default()
    };
    muster
        .operator
        .ingest()
        .confirm_import(confirm)
        .await
        .unwrap();
    assert_eq!(muster.cohort("list").await.member_count, Some(0));

    // REST has no replacement, and does not pretend.
    let file = write_ids(&folder, "list.csv", &ids(0..1));
    let options = Options::new(Mode::Replace);
    let refused = export::export(&file, &rest(&muster), &options, &mut |_| {}).await;
    assert!(
        matches!(refused, Err(ExportError::ReplaceOverRest)),
        "{refused:?}"
    );
    muster.stop().await;
}

#[tokio::test]
async fn an_audience_exported_and_imported_again_matches_everybody() {
    let muster = Muster::start().await;
    let folder = TempDir::new().unwrap();
    let names = [
        "plain",
        "a,b",
        "say \"hi\"",
        " lead",
        "trail ",
        "=1+1",
        "'x",
        "é😀",
        "a;b",
        "007",
        "\"",
        "u\u{2028}v",
    ];
    muster.upsert_users(names.map(identified).to_vec()).await;
    muster.rest().name("none", "empty").await.succeeded();
    let everybody = muster.audience("not tinyclues:id(\"none\")").await;
    assert_eq!(everybody.len(), names.len());
    // As `muster segment resolve` writes it.
    let mut lines = vec!["user_no,external_id".to_owned()];
    lines.extend(everybody.iter().map(|member| {
        format!(
            "{},\"{}\"",
            member.user_no,
            member.external_id.replace('"', "\"\"")
        )
    }));
    for (file, target) in [
        ("by grpc.csv.gz", grpc(&muster)),
        ("by rest.csv", rest(&muster)),
    ] {
        let report = send(&write_file(&folder, file, &lines), &target, Mode::Delta).await;
        assert_eq!(report.tally.malformed, [], "{file}");
        let filter = format!("{PARTNER}:\"{}\"", report.name);
        assert_eq!(muster.audience(&filter).await, everybody, "{file}");
    }
    muster.stop().await;
}

#[tokio::test]
async fn a_count_that_cannot_be_made_is_an_error_and_not_zero() {
    let muster = shop_of(3).await;
    muster
        .rest()
        .change("list", json!([{ "user_ids": ids(0..3) }]))
        .await
        .succeeded();
    assert_eq!(count(&muster, r#"tinyclues:"list""#).await.unwrap(), 3);
    for unknown in [
        r#"tinyclues:"lost""#,
        r#"tinyclues:id("lost")"#,
        r#"nobody:"list""#,
    ] {
        let refused = count(&muster, unknown).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Code::InvalidArgument,
            "{unknown}: {refused}"
        );
    }
    muster.store.close().await;
    let refused = count(&muster, r#"tinyclues:"list""#).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn adds_and_removes_of_one_person_that_race_end_as_the_last_version_says() {
    let muster = shop_of(1).await;
    let rest = muster.rest();
    rest.change("list", json!([{ "user_ids": ids(0..1) }]))
        .await
        .succeeded();
    for _ in 0..10 {
        let add = json!([{ "user_ids": ids(0..1) }]);
        let remove = json!([{ "user_ids": ids(0..1), "should_remove": true }]);
        let (added, removed) = tokio::join!(rest.change("list", add), rest.change("list", remove));
        let (added, removed) = (added.succeeded(), removed.succeeded());
        let [added, removed] = [added, removed].map(|a| a.body["version"].as_u64().unwrap());
        assert_ne!(added, removed, "one after the other");
        let member = u64::from(added > removed);
        assert_eq!(muster.cohort("list").await.member_count, Some(member));
    }
    muster.stop().await;
}
