//! Identifying, merging and erasing people.

use muster_proto::users::v1::{UserOutcome::*, UserState};
use sqlx::AssertSqlSafe;

use crate::harness::{Muster, alias, device, external_id, outcomes, records};

fn details(results: &[muster_proto::users::v1::UserResult]) -> Vec<&str> {
    results
        .iter()
        .map(|result| result.detail.as_str())
        .collect()
}

#[tokio::test]
async fn an_identified_user_is_found_by_all_it_had() {
    let muster = Muster::start().await;
    muster
        .upsert(records(&["ext=ann dev=a1", "news=b@x dev=b1", "dev=c1"]))
        .await;
    let results = muster
        .identify(vec![
            (device("b1"), "bob"),
            (alias("news", "b@x"), "bob"),
            (external_id("bob"), "bob"),
            (device("b1"), "robert"),
            (device("c1"), "ann"),
            (device("nobody's"), "cid"),
            (device(""), "cid"),
            (Default::default(), "cid"),
            (device("c1"), ""),
        ])
        .await;
    let expected = [
        (Identified, Some(1)),
        (Unchanged, Some(1)),
        (Unchanged, Some(1)),
        (Conflict, None),
        (Conflict, None),
        (NotFound, None),
        (Invalid, None),
        (Invalid, None),
        (Invalid, None),
    ];
    assert_eq!(outcomes(&results), expected);
    let details = details(&results);
    let expected = [
        "external_id: the user has another one already",
        "external_id: belongs to another user; use MergeUsers if they are one person",
        "user: no user has this identifier",
        "user.device_id: must not be empty",
        "user: needs one of external_id, alias and device_id",
        "external_id: must not be empty",
    ];
    assert_eq!(details[3..], expected);
    for (name, matched) in [
        (external_id("bob"), true),
        (alias("news", "b@x"), true),
        (device("b1"), false),
    ] {
        let found = muster.find(name).await.unwrap();
        assert_eq!(found.user.unwrap().user_no, 1);
        assert_eq!(found.matched_by_imports, matched);
    }
}

#[tokio::test]
async fn a_merged_user_lives_on_as_the_other() {
    let muster = Muster::start().await;
    muster
        .upsert(records(&["dev=a1", "ext=bob dev=b1", "ext=cid", "ext=dan"]))
        .await;
    let results = muster
        .merge(vec![
            (external_id("bob"), device("a1")),
            (external_id("cid"), external_id("bob")),
            (device("b1"), external_id("cid")),
            (external_id("nobody"), device("a1")),
            (device("a1"), external_id("nobody")),
            (device("a1"), external_id("\u{7f}")),
        ])
        .await;
    let expected = [
        (Merged, Some(0)),
        (Merged, Some(0)),
        (Unchanged, Some(0)),
        (NotFound, None),
        (NotFound, None),
        (Invalid, None),
    ];
    assert_eq!(outcomes(&results), expected);
    let expected = [
        "from: no user has this identifier",
        "into: no user has this identifier",
        "into.external_id: must not contain control characters",
    ];
    assert_eq!(details(&results)[3..], expected);
    let survivor = muster.find(external_id("cid")).await.unwrap().user.unwrap();
    assert_eq!(survivor.user_no, 0);
    assert_eq!(survivor.external_id, "bob");
    assert_eq!(survivor.merged_external_ids, ["cid"]);
    assert_eq!(survivor.device_ids, ["a1", "b1"]);
    assert_eq!(survivor.state(), UserState::Live);
    let merged = muster.find(2).await.unwrap().user.unwrap();
    assert_eq!(merged.state(), UserState::Merged);
    assert_eq!(merged.merged_into_user_no, Some(0));
    // The further external id is the survivor to every later write, too.
    let later = muster.upsert(records(&["ext=cid dev=c9"])).await;
    assert_eq!(outcomes(&later), [(Updated, Some(0))]);
}

#[tokio::test]
async fn a_chain_of_merges_leads_to_its_end() {
    let muster = Muster::start().await;
    muster.upsert(records(&["dev=a", "dev=b", "dev=c"])).await;
    muster
        .merge(vec![(device("a"), device("b")), (device("b"), device("c"))])
        .await;
    let first = muster.find(0).await.unwrap().user.unwrap();
    assert_eq!(first.merged_into_user_no, Some(2));
    muster.delete(vec![device("a")]).await;
    let first = muster.find(0).await.unwrap().user.unwrap();
    assert_eq!(first.state(), UserState::Deleted);
    assert_eq!(first.merged_into_user_no, None);
}

#[tokio::test]
async fn an_erased_person_is_in_no_table_and_in_no_answer() {
    let muster = Muster::start().await;
    let write = muster_proto::users::v1::UpsertUsersRequest {
        workspace: "shop".to_owned(),
        users: records(&[
            "ext=needle-1 news=needle-2 dev=needle-3",
            "dev=bystander",
            "ext=needle-4",
            "ext=needle-1 dev=bystander",
        ]),
        request_id: "write".to_owned(),
    };
    muster.users.clone().upsert_users(write).await.unwrap();
    muster
        .merge(vec![(external_id("needle-4"), external_id("needle-1"))])
        .await;
    let results = muster
        .delete(vec![
            device("needle-3"),
            external_id("needle-4"),
            alias("news", "unknown"),
            device("\n"),
        ])
        .await;
    let expected = [
        (Deleted, Some(0)),
        (Deleted, Some(0)),
        (NotFound, None),
        (Invalid, None),
    ];
    assert_eq!(outcomes(&results), expected);
    let expected = [
        "",
        "",
        "alias: no user has this identifier",
        "device_id: must not contain control characters",
    ];
    assert_eq!(details(&results), expected);
    let mut sql = muster.store.connection().await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class
         WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
    )
    .fetch_all(&mut *sql)
    .await
    .unwrap();
    // Bytes are printed in hexadecimal.
    let hex: String = b"needle".iter().map(|byte| format!("{byte:02x}")).collect();
    let mut bystanders = 0;
    for table in tables {
        let rows = format!("SELECT row::text FROM {table} AS row");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(rows))
            .fetch_all(&mut *sql)
            .await
            .unwrap();
        for row in rows {
            assert!(
                !row.contains("needle") && !row.contains(&hex),
                "{table}: {row}"
            );
            bystanders += usize::from(row.contains("bystander"));
        }
    }
    assert_eq!(bystanders, 1, "the tables are read as they are");
    for gone in [0, 2] {
        let user = muster.find(gone).await.unwrap().user.unwrap();
        assert_eq!(user.state(), UserState::Deleted);
        assert_eq!(user.external_id, "");
    }
    let new = muster.upsert(records(&["ext=needle-1"])).await;
    assert_eq!(outcomes(&new), [(Created, Some(3))]);
}
