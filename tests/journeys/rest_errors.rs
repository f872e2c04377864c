//! The partner-facing HTTP contract: every answer that is not a 201.

use std::{num::NonZeroU32, time::Duration};

use muster_cli::deployment::Settings;
use muster_client::Connection;
use muster_proto::ingest::v1 as ingest;
use muster_storage::{
    Role, Tx,
    cohorts::{self, CohortKey},
    workspaces,
};
use muster_tests::{Muster, PARTNER, WORKSPACE, identified};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const COHORT_ID: &str = "`cohort_id` must be a valid string";
const COHORT_CHANGES: &str = "`cohort_changes` must be an array of objects each with key \
    `user_ids` and/or `device_ids` mapping to an array of strings, or an `aliases` object";
const NAME: &str = "`name` must be a non-empty string";
const CREATED_AT: &str = "`created_at` must be a valid time as an ISO-8601 string";

/// The cohort of [`naming`] and [`change`].
const C: CohortKey<'_> = CohortKey {
    partner: PARTNER,
    partner_cohort_id: "c",
};

/// How long real clients wait for an answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// What names a cohort without a mistake.
pub(crate) fn naming() -> Value {
    json!({ "cohort_id": "c", "name": "Spring", "created_at": "2026-05-01T10:00:00Z" })
}

/// What changes a cohort without a mistake.
pub(crate) fn change() -> Value {
    json!({ "cohort_id": "c", "cohort_changes": [{ "user_ids": ["u-0"] }] })
}

/// The same fields with one set, or, if it is null, left out.
pub(crate) fn with(mut fields: Value, field: &str, value: Value) -> Value {
    match value {
        Value::Null => drop(fields.as_object_mut().unwrap().remove(field)),
        value => fields[field] = value,
    }
    fields
}

pub(crate) async fn no_cohort_exists(muster: &Muster) {
    let request = ingest::ListCohortsRequest {
        workspace: WORKSPACE.into(),
        include_archived: true,
        ..Default::default()
    };
    let listed = muster
        .operator
        .ingest()
        .list_cohorts(request)
        .await
        .unwrap();
    assert_eq!(listed.into_inner().cohorts, [], "nothing was applied");
}

#[tokio::test]
async fn every_mistake_in_a_field_has_its_message() {
    let muster = Muster::start().await;
    let rest = muster.rest();
    let long = "x".repeat(256);
    let ids = [
        json!(null),
        json!(""),
        json!(7),
        json!(["c"]),
        json!({}),
        json!("a\0b"),
        json!(long),
    ];
    for id in ids {
        rest.call("cohorts", with(naming(), "cohort_id", id.clone()))
            .await
            .says(400, COHORT_ID);
        rest.call("cohorts/users", with(change(), "cohort_id", id))
            .await
            .says(400, COHORT_ID);
    }
    for name in [
        json!(null),
        json!(""),
        json!("  "),
        json!(7),
        json!(["Spring"]),
        json!(true),
    ] {
        rest.call("cohorts", with(naming(), "name", name))
            .await
            .says(400, NAME);
    }
    for time in [
        json!(null),
        json!(""),
        json!(1_714_557_600),
        json!("yesterday"),
        json!("01/05/2026"),
    ] {
        rest.call("cohorts", with(naming(), "created_at", time))
            .await
            .says(400, CREATED_AT);
    }
    for name in ["two\nlines", &"n".repeat(256)] {
        let answer = rest
            .call("cohorts", with(naming(), "name", json!(name)))
            .await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.message().starts_with("`name` "), "{answer:?}");
    }
    let alias = |name: Value, label: Value| json!([{ "aliases": [{ "alias_name": name, "alias_label": label }] }]);
    for changes in [
        json!(null),
        json!(7),
        json!({}),
        json!({ "user_ids": ["u-0"] }),
        json!("no json"),
        json!("{}"),
        json!(["u-0"]),
        json!([["u-0"]]),
        json!([null]),
        json!([{}]),
        json!([{ "should_remove": true }]),
        json!([{ "user_id": ["u-0"] }]),
        json!([{ "user_ids": "u-0" }]),
        json!([{ "user_ids": [7] }]),
        json!([{ "user_ids": [null] }]),
        json!([{ "user_ids": ["u-0"], "device_ids": {} }]),
        json!([{ "user_ids": ["u-0"], "should_remove": "true" }]),
        json!([{ "user_ids": ["u-0"] }, { "user_ids": [{}] }]),
        json!([{ "aliases": ["a"] }]),
        json!([{ "aliases": "a" }]),
        json!([{ "aliases": { "alias_name": "a" } }]),
        alias(json!("a"), json!(null)),
        alias(json!(7), json!("l")),
    ] {
        let answer = rest
            .call("cohorts/users", with(change(), "cohort_changes", changes))
            .await;
        answer.says(400, COHORT_CHANGES);
    }
    no_cohort_exists(&muster).await;
    muster.stop().await;
}

#[tokio::test]
async fn what_is_no_call_of_the_contract_is_told_in_plain_words() {
    let muster = Muster::start().await;
    let rest = muster.rest();
    let json_type = "application/json";
    for (method, path, media_type, body, status) in [
        (Method::POST, "/", json_type, "{}", 404),
        (Method::POST, "/partners", json_type, "{}", 404),
        (
            Method::POST,
            "/partners/tinyclues/cohorts/users/x",
            json_type,
            "{}",
            404,
        ),
        (
            Method::GET,
            "/partners/tinyclues/cohorts",
            json_type,
            "",
            405,
        ),
        (
            Method::DELETE,
            "/partners/tinyclues/cohorts/users",
            json_type,
            "",
            405,
        ),
        (
            Method::POST,
            "/partners/tinyclues/cohorts",
            "text/plain",
            "{}",
            415,
        ),
        (
            Method::POST,
            "/partners/tinyclues/cohorts/users",
            "multipart/form-data",
            "{}",
            415,
        ),
        (
            Method::POST,
            "/partners/tinyclues/cohorts",
            json_type,
            "{\"a\":",
            400,
        ),
        (
            Method::POST,
            "/partners/tinyclues/cohorts",
            json_type,
            "",
            400,
        ),
        (
            Method::POST,
            "/partners/tinyclues/cohorts/users",
            json_type,
            "[]",
            400,
        ),
    ] {
        let answer = rest.send(method, path, media_type, body.to_owned()).await;
        assert_eq!(answer.status, status, "{path} {answer:?}");
        assert!(answer.message().contains(' '), "plain words: {answer:?}");
    }
    let padding = json!("x".repeat(3 * 1024 * 1024));
    let answer = rest
        .call("cohorts/users", with(change(), "padding", padding))
        .await;
    assert_eq!(answer.status, 413, "{answer:?}");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let path = "/partners/tinyclues/cohorts";
    assert_eq!(
        rest.send(Method::POST, path, json_type, deep).await.status,
        400
    );
    no_cohort_exists(&muster).await;
    muster.stop().await;
}

#[tokio::test]
async fn an_archived_cohort_takes_no_more_changes() {
    let muster = Muster::start().await;
    let rest = muster.rest();
    rest.call("cohorts", naming()).await.succeeded();
    let request = ingest::ArchiveCohortRequest {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        cohort_id: "c".into(),
        ..Default::default()
    };
    muster
        .operator
        .ingest()
        .archive_cohort(request)
        .await
        .unwrap();
    let message = "The cohort is archived and takes no more changes";
    rest.call("cohorts/users", change())
        .await
        .says(400, message);
    rest.call("cohorts", with(naming(), "name", json!("Autumn")))
        .await
        .says(400, message);
    muster.stop().await;
}

/// Holds the cohort `c` as a running import would.
async fn hold(muster: &Muster) -> Tx {
    let mut holder = muster.store.begin("hold").await.unwrap();
    let workspace = workspaces::find(&mut holder, WORKSPACE)
        .await
        .unwrap()
        .unwrap()
        .id;
    let cohort = cohorts::find(&mut holder, workspace, C)
        .await
        .unwrap()
        .unwrap();
    cohorts::lock(&mut holder, workspace, cohort.id)
        .await
        .unwrap();
    holder
}

/// Waits until some transaction waits for a lock.
async fn somebody_waits(muster: &Muster) {
    let mut connection = muster.store.connection().await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while muster_testbed::number(&mut connection, waiting).await == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cohort_that_is_held_answers_423_before_clients_give_up() {
    let muster = Muster::start().await;
    muster.upsert_users(vec![identified("u-0")]).await;
    let rest = muster.rest();
    rest.call("cohorts", naming()).await.succeeded();

    let holder = hold(&muster).await;
    let renaming = with(naming(), "name", json!("Autumn"));
    let (changed, renamed, other, tried) = tokio::join!(
        rest.call("cohorts/users", change()),
        rest.call("cohorts", renaming.clone()),
        rest.change("another", json!([{ "user_ids": ["u-0"] }])),
        rest.change("c", json!([])),
    );
    let unhurried = [other.succeeded(), tried.succeeded()];
    for answer in [changed, renamed] {
        let answer = answer.says(423, "Resource locked");
        assert!(
            answer.took < CLIENT_PATIENCE - Duration::from_secs(2),
            "{answer:?}"
        );
        assert!(
            unhurried.iter().all(|free| free.took < answer.took),
            "others do not wait"
        );
    }
    drop(holder);
    assert_eq!(muster.cohort("c").await.version, 0, "nothing was applied");
    rest.call("cohorts/users", change())
        .await
        .succeeded()
        .counted(json!({ "added": 1 }));
    rest.call("cohorts", renaming).await.succeeded();
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_revoked_while_its_call_waits_publishes_nothing() {
    let muster = Muster::start().await;
    muster.upsert_users(vec![identified("u-0")]).await;
    let key = muster.create_key().await;
    let rest = muster.rest().with_client_secret(&key.secret);
    rest.call("cohorts", naming()).await.succeeded();
    let holder = hold(&muster).await;
    let waiting = tokio::spawn(async move { rest.call("cohorts/users", change()).await });
    somebody_waits(&muster).await;
    muster.revoke_key(&key.key.unwrap().key_id).await;
    drop(holder);
    waiting.await.unwrap().says(401, "Invalid client secret");
    assert_eq!(muster.cohort("c").await.version, 0);
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cohort_that_another_call_is_creating_is_worth_another_try() {
    let muster = Muster::start().await;
    muster.upsert_users(vec![identified("u-0")]).await;
    let rest = muster.rest();
    let mut creator = muster.store.begin("create").await.unwrap();
    let workspace = workspaces::find(&mut creator, WORKSPACE)
        .await
        .unwrap()
        .unwrap()
        .id;
    cohorts::ensure(&mut creator, workspace, C).await.unwrap();
    let (changed, named) = tokio::join!(
        rest.call("cohorts/users", change()),
        rest.call("cohorts", naming())
    );
    for answer in [changed, named] {
        assert!([423, 503].contains(&answer.status), "{answer:?}");
        assert!(
            answer.took < CLIENT_PATIENCE - Duration::from_secs(1),
            "{answer:?}"
        );
    }
    drop(creator);
    rest.call("cohorts/users", change()).await.succeeded();
    muster.stop().await;
}

#[tokio::test]
async fn a_database_without_a_free_connection_is_a_503_in_time() {
    let muster = Muster::start().await;
    let rest = muster.rest();
    rest.call("cohorts", naming()).await.succeeded();
    let mut all = Vec::new();
    let ingest = muster.store.acting_as(Role::Ingest);
    while let Ok(connection) = ingest.connection().await {
        all.push(connection);
    }
    for answer in [
        rest.call("cohorts/users", change()).await,
        rest.call("cohorts", naming()).await,
    ] {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.took < CLIENT_PATIENCE / 2, "{answer:?}");
    }
    drop(all);
    rest.call("cohorts/users", change()).await.succeeded();
    muster.stop().await;
}

#[tokio::test]
async fn a_key_that_calls_too_often_is_told_when_to_come_back() {
    let settings = Settings {
        rest_requests_per_hour: NonZeroU32::new(4).unwrap(),
        ..Settings::default()
    };
    let muster = Muster::start_with(settings).await;
    let rest = muster.rest();
    let began = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    for (left, fields) in [
        (3, change()),
        (2, json!({ "cohort_id": 7 })),
        (1, change()),
        (0, change()),
    ] {
        let answer = rest.call("cohorts/users", fields).await;
        assert_eq!(answer.number("x-ratelimit-limit"), 4, "{answer:?}");
        assert_eq!(
            answer.number("x-ratelimit-remaining"),
            left,
            "mistakes count: {answer:?}"
        );
        assert!(answer.number("x-ratelimit-reset") >= began, "{answer:?}");
    }
    let answer = rest.call("cohorts", naming()).await;
    assert_eq!(answer.status, 429, "{answer:?}");
    assert_eq!(answer.number("x-ratelimit-remaining"), 0);
    assert!(
        (800..=900).contains(&answer.number("retry-after")),
        "{answer:?}"
    );
    assert_eq!(muster.cohort("c").await.name, "c", "nothing was applied");
    // Another key of the same partner has calls of its own.
    let other = rest.with_client_secret(&muster.create_key().await.secret);
    other.call("cohorts", naming()).await.succeeded();
    muster.stop().await;
}

#[tokio::test]
async fn without_its_database_it_answers_503_and_says_when_to_come_back() {
    let muster = Muster::start().await;
    let rest = muster.rest();
    rest.call("cohorts", naming()).await.succeeded();
    muster.store.close().await;
    for answer in [
        rest.call("cohorts", naming()).await,
        rest.call("cohorts/users", change()).await,
        rest.change("c", json!([])).await,
        rest.call("cohorts/users", json!({ "cohort_id": 7 })).await,
    ] {
        let answer = answer.says(503, "The service is not available: try again later");
        assert!(answer.took < CLIENT_PATIENCE, "{answer:?}");
    }
}

#[tokio::test]
async fn without_its_servers_it_answers_503_and_says_when_to_come_back() {
    // A port that was free a moment ago, and that nobody listens on.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let settings = Settings {
        upstream: Some(Connection::new(&upstream, None).unwrap()),
        ..Settings::default()
    };
    let muster = Muster::start_with(settings).await;
    for answer in [
        muster.rest().call("cohorts", naming()).await,
        muster.rest().call("cohorts/users", change()).await,
    ] {
        let answer = answer.says(503, "The service is not available: try again later");
        assert!(answer.took < CLIENT_PATIENCE, "{answer:?}");
    }
    no_cohort_exists(&muster).await;
    muster.stop().await;
}
