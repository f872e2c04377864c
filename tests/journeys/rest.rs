//! The partner-facing HTTP contract, as real clients use it.

use std::collections::BTreeSet;

use muster_proto::{ingest::v1 as ingest, users::v1 as users};
use muster_tests::{Muster, PARTNER, WORKSPACE, identified};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// A deployment whose directory has `u-0` to `u-N`.
async fn shop_of(users: usize) -> Muster {
    let muster = Muster::start().await;
    let records = (0..users).map(|n| identified(&format!("u-{n}"))).collect();
    muster.upsert_users(records).await;
    muster
}

fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("u-{n}")).collect()
}

async fn members(muster: &Muster, cohort_id: &str) -> Vec<String> {
    muster
        .audience_ids(&format!("{PARTNER}:id(\"{cohort_id}\")"))
        .await
}

async fn all_cohorts(muster: &Muster) -> Vec<ingest::Cohort> {
    let request = ingest::ListCohortsRequest {
        workspace: WORKSPACE.into(),
        include_archived: true,
        ..Default::default()
    };
    let answer = muster
        .operator
        .ingest()
        .list_cohorts(request)
        .await
        .unwrap();
    answer.into_inner().cohorts
}

#[tokio::test]
async fn a_201_means_published_durable_and_accounted() {
    let muster = shop_of(3).await;
    let rest = muster.rest();
    let answer = rest.name("c-1", "Spring sale 2026.csv").await.succeeded();
    assert_eq!(answer.body["cohort_id"], "c-1");

    let add = json!([{ "user_ids": ["u-0", "u-1", "nobody"] }]);
    let answer = rest.change("c-1", add).await.succeeded();
    let answer = answer.counted(json!({ "added": 2, "unknown": 1 }));
    assert_eq!(
        (&answer.body["cohort_id"], &answer.body["version"]),
        (&json!("c-1"), &json!(1))
    );
    assert!(
        answer.body.get("errors").is_none(),
        "an unknown person is no mistake: {answer:?}"
    );

    let cohort = muster.cohort("c-1").await;
    assert_eq!(cohort.name, "Spring sale 2026.csv");
    assert_eq!((cohort.version, cohort.member_count), (1, Some(2)));
    assert_eq!(members(&muster, "c-1").await, ["u-0", "u-1"]);

    let import_id = answer.body["import_id"].as_str().unwrap();
    let request = ingest::ListRejectedIdentifiersRequest {
        workspace: WORKSPACE.into(),
        import_id: import_id.into(),
        ..Default::default()
    };
    let listed = muster
        .operator
        .ingest()
        .list_rejected_identifiers(request)
        .await;
    let listed = listed.unwrap().into_inner().identifiers;
    assert_eq!((listed.len(), listed[0].position), (1, 2), "{listed:?}");

    let remove = json!([{ "user_ids": ["u-1", "u-2"], "should_remove": true }]);
    let answer = rest.change("c-1", remove).await.succeeded();
    answer.counted(json!({ "removed": 1, "not_member": 1 }));
    assert_eq!(members(&muster, "c-1").await, ["u-0"]);
    muster.stop().await;
}

#[tokio::test]
async fn trying_the_keys_creates_nothing() {
    let muster = shop_of(1).await;
    let rest = muster.rest();
    for _ in 0..2 {
        let answer = rest.change("credential-check", json!([])).await.succeeded();
        assert!(
            answer.body.get("version").is_none(),
            "nothing was published: {answer:?}"
        );
    }
    rest.change("x", json!("[]")).await.succeeded();
    rest.change(
        "x",
        json!([{ "user_ids": [], "device_ids": [], "aliases": [] }]),
    )
    .await
    .succeeded();
    let unknown = muster.rest().with_client_secret("mst_dik_guess");
    unknown
        .change("credential-check", json!([]))
        .await
        .says(401, "Invalid client secret");
    assert_eq!(all_cohorts(&muster).await, []);

    // Nor does it change a cohort that exists.
    rest.change("real", json!([{ "user_ids": ["u-0"] }]))
        .await
        .succeeded();
    rest.change("real", json!([])).await.succeeded();
    let cohort = muster.cohort("real").await;
    assert_eq!((cohort.version, cohort.member_count), (1, Some(1)));
    muster.stop().await;
}

#[tokio::test]
async fn every_shape_that_clients_send_is_understood() {
    let muster = Muster::start().await;
    let person = users::UserRecord {
        external_id: "ann".into(),
        aliases: vec![users::Alias {
            label: "newsletter".into(),
            name: "ann@example.org".into(),
        }],
        ..Default::default()
    };
    let device = users::UserRecord {
        device_ids: vec!["phone".into()],
        ..Default::default()
    };
    muster.upsert_users(vec![person, device]).await;
    let rest = muster.rest();
    let alias = json!({ "alias_name": "ann@example.org", "alias_label": "newsletter" });
    let shapes = [
        // All three arrays, some empty; should_remove omitted.
        json!([{ "user_ids": ["ann"], "device_ids": [], "aliases": [] }]),
        json!([{ "user_ids": [], "device_ids": [], "aliases": [alias] }]),
        json!([{ "user_ids": [], "device_ids": ["phone"], "aliases": [] }]),
        json!([{ "user_ids": ["ann"], "device_ids": null, "should_remove": null }]),
        json!([{ "aliases": [alias], "should_remove": false }]),
        // A single alias without the brackets.
        json!([{ "aliases": alias }]),
        json!([{ "user_ids": ["ann"], "aliases": {} }]),
        // The array as text.
        json!("[{\"user_ids\": [\"ann\"]}]"),
        // Fields that nobody knows.
        json!([{ "user_ids": ["ann"], "note": { "deep": [1] }, "email": "x" }]),
    ];
    for (n, shape) in shapes.into_iter().enumerate() {
        let cohort_id = format!("c-{n}");
        let fields = json!({
            "cohort_id": cohort_id,
            "cohort_changes": shape,
            "created_at": 7,
            "request": { "id": null },
        });
        let answer = rest.call("cohorts/users", fields).await.succeeded();
        answer.counted(json!({ "added": 1 }));
        assert_eq!(
            muster.cohort(&cohort_id).await.member_count,
            Some(1),
            "{shape}",
            shape = n
        );
    }
    muster.stop().await;
}

#[tokio::test]
async fn people_come_before_the_name_and_wait_under_the_id() {
    let muster = shop_of(2).await;
    let rest = muster.rest();
    rest.change("c-7", json!([{ "user_ids": ["u-0"] }]))
        .await
        .succeeded();
    assert_eq!(muster.cohort("c-7").await.name, "c-7");
    rest.name("c-7", "Churned").await.succeeded();
    rest.change("c-7", json!([{ "user_ids": ["u-1"] }]))
        .await
        .succeeded();
    let cohort = muster.cohort("c-7").await;
    assert_eq!(
        (cohort.name.as_str(), cohort.member_count),
        ("Churned", Some(2))
    );
    assert_eq!(all_cohorts(&muster).await.len(), 1);
    muster.stop().await;
}

#[tokio::test]
async fn naming_before_every_batch_is_one_cohort_and_a_rename_is_remembered() {
    let muster = shop_of(3).await;
    let rest = muster.rest();
    for n in 0..3 {
        let fields = json!({
            "cohort_id": "c-1",
            "name": "Spring",
            "created_at": format!("2026-05-01T10:00:0{n}.000+0000"),
        });
        rest.call("cohorts", fields).await.succeeded();
        rest.change("c-1", json!([{ "user_ids": ids(n..n + 1) }]))
            .await
            .succeeded();
    }
    let cohort = muster.cohort("c-1").await;
    assert_eq!((cohort.version, cohort.member_count), (3, Some(3)));
    assert_eq!(cohort.former_names, Vec::<String>::new());
    rest.name("c-1", "Summer").await.succeeded();
    let cohort = muster.cohort("c-1").await;
    assert_eq!(
        (cohort.name.as_str(), cohort.former_names),
        ("Summer", vec!["Spring".into()])
    );
    assert_eq!(cohort.member_count, Some(3), "a rename changes nobody");
    muster.stop().await;
}

#[tokio::test]
async fn identifiers_that_cannot_match_are_accounted_and_named_by_index() {
    let muster = shop_of(2).await;
    let long = "x".repeat(513);
    let changes = json!([
        { "user_ids": ["u-0", "", "nul\0"] },
        { "user_ids": ["u-1"], "device_ids": ["line\nfeed", long], "should_remove": false },
        { "aliases": [{ "alias_label": "", "alias_name": "a" },
                      { "alias_label": "l", "alias_name": "\u{85}" }], "should_remove": true },
    ]);
    let answer = muster.rest().change("c", changes).await.succeeded();
    let answer = answer.counted(json!({ "added": 2, "invalid": 6 }));
    let errors = answer.body["errors"].as_array().unwrap();
    let places: Vec<_> = errors
        .iter()
        .map(|error| {
            (
                error["index"].as_u64().unwrap(),
                error["field"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        (0, "user_ids[1]"),
        (0, "user_ids[2]"),
        (1, "device_ids[0]"),
        (1, "device_ids[1]"),
        (2, "aliases[0].alias_label"),
        (2, "aliases[1].alias_name"),
    ];
    assert_eq!(places, expected);
    assert!(
        errors.iter().all(|error| error["message"].is_string()),
        "{errors:?}"
    );

    let request = ingest::ListRejectedIdentifiersRequest {
        workspace: WORKSPACE.into(),
        import_id: answer.body["import_id"].as_str().unwrap().into(),
        ..Default::default()
    };
    let listed = muster
        .operator
        .ingest()
        .list_rejected_identifiers(request)
        .await;
    let listed = listed.unwrap().into_inner().identifiers;
    let invalid = ingest::RejectionReason::Invalid;
    assert!(
        listed.iter().all(|rejected| rejected.reason() == invalid),
        "{listed:?}"
    );
    let positions: Vec<u64> = listed.iter().map(|rejected| rejected.position).collect();
    assert_eq!(positions, [1, 2, 4, 5, 6, 7]);
    muster.stop().await;
}

#[tokio::test]
async fn a_thousand_identifiers_pass_and_one_more_applies_nothing() {
    const MESSAGE: &str =
        "Only 1,000 `user_ids`, `device_ids`, and `aliases` are allowed per request";
    let muster = shop_of(1_001).await;
    let rest = muster.rest();
    let answer = rest
        .change("c", json!([{ "user_ids": ids(0..1_000) }]))
        .await
        .succeeded();
    answer.counted(json!({ "added": 1_000 }));

    // All arrays of all objects count together, whoever is in them.
    let alias = json!({ "alias_label": "l", "alias_name": "n" });
    for too_many in [
        json!([{ "user_ids": ids(0..1_001), "should_remove": true }]),
        json!([{ "user_ids": ids(0..1_000), "should_remove": true }, { "user_ids": ["u-1000"] }]),
        json!([{ "user_ids": ids(0..999), "device_ids": ["d"], "aliases": [alias] }]),
        json!([{ "user_ids": vec!["same"; 1_001] }]),
    ] {
        rest.change("c", too_many).await.says(400, MESSAGE);
    }
    let cohort = muster.cohort("c").await;
    assert_eq!((cohort.version, cohort.member_count), (1, Some(1_000)));
    muster.stop().await;
}

#[tokio::test]
async fn the_largest_identifiers_pass_a_thousand_at_a_time() {
    let muster = Muster::start().await;
    let rest = muster.rest();
    let ids: Vec<String> = (0..1_000)
        .map(|n| format!("{n:04}{}", "😀".repeat(127)))
        .collect();
    assert!(ids.iter().all(|id| id.len() == 512));
    let answer = rest
        .change("c", json!([{ "user_ids": ids }]))
        .await
        .succeeded();
    answer.counted(json!({ "unknown": 1_000 }));
    let label = "l".repeat(512);
    let aliases: Vec<Value> = ids
        .iter()
        .map(|id| json!({ "alias_label": label, "alias_name": id }))
        .collect();
    let answer = rest
        .change("c", json!([{ "aliases": aliases }]))
        .await
        .succeeded();
    answer.counted(json!({ "unknown": 1_000 }));
    muster.stop().await;
}

#[tokio::test]
async fn adds_and_removes_of_one_call_apply_in_the_order_sent() {
    let muster = shop_of(3).await;
    let rest = muster.rest();
    rest.change("c", json!([{ "user_ids": ["u-2"] }]))
        .await
        .succeeded();
    let changes = json!([
        { "user_ids": ["u-0", "u-1"] },
        { "user_ids": ["u-0", "u-2"], "should_remove": true },
        { "user_ids": ["u-2"] },
    ]);
    let answer = rest.change("c", changes).await.succeeded();
    answer.counted(json!({ "added": 1, "not_member": 1, "already_member": 1, "superseded": 2 }));
    assert_eq!(members(&muster, "c").await, ["u-1", "u-2"]);
    assert_eq!(
        muster.cohort("c").await.version,
        2,
        "one call is one version"
    );
    muster.stop().await;
}

#[tokio::test]
async fn a_call_repeated_after_a_lost_answer_does_no_harm() {
    let muster = shop_of(5).await;
    let rest = muster.rest();
    let changes =
        json!([{ "user_ids": ids(0..5) }, { "user_ids": ["u-4"], "should_remove": true }]);
    rest.change("c", changes.clone()).await.succeeded();
    let answer = rest.change("c", changes).await.succeeded();
    answer.counted(json!({ "already_member": 4, "not_member": 1, "superseded": 1 }));
    assert_eq!(members(&muster, "c").await, ids(0..4));
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_calls_to_one_new_cohort_all_take_effect() {
    const CALLS: usize = 32;
    let muster = shop_of(CALLS * 10).await;
    let mut calls = JoinSet::new();
    for call in 0..CALLS {
        let rest = muster.rest();
        calls.spawn(async move {
            // Each adds ten people and takes two of them out again.
            let (first, end) = (call * 10, call * 10 + 10);
            let changes = json!([
                { "user_ids": ids(first..end) },
                { "user_ids": ids(first..first + 2), "should_remove": true },
            ]);
            let mut refusals = 0;
            loop {
                let answer = rest.change("busy", changes.clone()).await;
                assert!(
                    answer.took.as_secs() < 10,
                    "clients give up after 10 s: {answer:?}"
                );
                match answer.status {
                    201 => return,
                    423 | 429 | 503 => refusals += 1,
                    _ => panic!("clients would drop the call: {answer:?}"),
                }
                assert!(refusals < 20, "it never gets through");
            }
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    let expected: BTreeSet<String> = (0..CALLS)
        .flat_map(|call| ids(call * 10 + 2..call * 10 + 10))
        .collect();
    let found: BTreeSet<String> = members(&muster, "busy").await.into_iter().collect();
    assert_eq!(found, expected);
    let cohort = muster.cohort("busy").await;
    assert_eq!(cohort.member_count, Some(expected.len() as u64));
    assert_eq!(cohort.version, CALLS as u64, "each call was published once");
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_people_that_come_in_parallel_all_arrive() {
    let muster = shop_of(16).await;
    let mut calls = JoinSet::new();
    for n in 0..16 {
        let rest = muster.rest();
        calls.spawn(async move {
            // As real clients do: the name before each batch, here and there a new one.
            let cohort_id = format!("c-{}", n % 2);
            let name = format!("name {}", n % 3);
            rest.name(&cohort_id, &name).await.succeeded();
            rest.change(&cohort_id, json!([{ "user_ids": ids(n..n + 1) }]))
                .await
                .succeeded();
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    for cohort_id in ["c-0", "c-1"] {
        let cohort = muster.cohort(cohort_id).await;
        assert_eq!((cohort.version, cohort.member_count), (8, Some(8)));
        assert!(cohort.name.starts_with("name "), "{cohort:?}");
        assert!(!cohort.former_names.contains(&cohort.name), "{cohort:?}");
    }
    muster.stop().await;
}
