//! The partner-facing HTTP contract: every answer that is not a 201.

use std::{num::NonZeroU32, time::Duration};

use muster_cli::deployment::Settings;
use muster_proto::{ingest::v1 as ingest, keys::v1 as keys};
use muster_storage::{cohorts, workspaces};
use muster_tests::{Muster, PARTNER, WORKSPACE, identified, rest::Rest};
use prost_types::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const COHORT_ID: &str = "`cohort_id` must be a valid string";
const COHORT_CHANGES: &str = "`cohort_changes` must be an array of objects each with key \
    `user_ids` and/or `device_ids` mapping to an array of strings, or an `aliases` object";
const NAME: &str = "`name` must be a non-empty string";
const CREATED_AT: &str = "`created_at` must be a valid time as an ISO-8601 string";
const NO_PARTNER: &str = "Invalid Partner API key";
const NO_CLIENT: &str = "Invalid client secret";

/// How long real clients wait for an answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// What names a cohort without a mistake.
fn naming() -> Value {
    json!({ "cohort_id": "c", "name": "Spring", "created_at": "2026-05-01T10:00:00Z" })
}

/// What changes a cohort without a mistake.
fn change() -> Value {
    json!({ "cohort_id": "c", "cohort_changes": [{ "user_ids": ["u-0"] }] })
}

/// The same fields with one set, or, if it is null, left out.
fn with(mut fields: Value, field: &str, value: Value) -> Value {
    match value {
        Value::Null => drop(fields.as_object_mut().unwrap().remove(field)),
        value => fields[field] = value,
    }
    fields
}

async fn no_cohort_exists(muster: &Muster) {
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

async fn partner_key(muster: &Muster, partner: &str) -> keys::CreatePartnerApiKeyResponse {
    let request = keys::CreatePartnerApiKeyRequest {
        partner: partner.into(),
        ..Default::default()
    };
    let made = muster
        .operator
        .integrations()
        .create_partner_api_key(request)
        .await;
    made.unwrap().into_inner()
}

async fn import_key(muster: &Muster, workspace: &str, partner: &str) -> String {
    let request = keys::CreateKeyRequest {
        workspace: workspace.into(),
        partner: partner.into(),
        ..Default::default()
    };
    muster
        .operator
        .keys()
        .create_key(request)
        .await
        .unwrap()
        .into_inner()
        .secret
}

async fn enable(muster: &Muster, workspace: &str, partner: &str) {
    let request = keys::EnablePartnerRequest {
        workspace: workspace.into(),
        partner: partner.into(),
        ..Default::default()
    };
    muster
        .operator
        .integrations()
        .enable_partner(request)
        .await
        .unwrap();
}

async fn create_partner(muster: &Muster, partner: &str) {
    let request = keys::CreatePartnerRequest {
        partner: partner.into(),
        ..Default::default()
    };
    muster
        .operator
        .integrations()
        .create_partner(request)
        .await
        .unwrap();
    enable(muster, WORKSPACE, partner).await;
}

/// Both calls, with and without mistakes in other fields, say 401 and the same.
async fn refused(rest: &Rest, message: &str) {
    rest.call("cohorts", naming()).await.says(401, message);
    rest.call("cohorts/users", change())
        .await
        .says(401, message);
    rest.change("c", json!([])).await.says(401, message);
    rest.call("cohorts", json!({})).await.says(401, message);
    rest.call("cohorts/users", json!({ "cohort_changes": 7 }))
        .await
        .says(401, message);
}

#[tokio::test]
async fn bad_credentials_learn_only_which_one_is_bad() {
    let muster = Muster::start().await;
    let good = muster.rest();
    create_partner(&muster, "amplitude").await;
    let amplitude = partner_key(&muster, "amplitude").await.secret;
    let of_amplitude = import_key(&muster, WORKSPACE, "amplitude").await;

    for nonsense in [
        "",
        "hunter2",
        &muster.client_secret,
        &format!("{}x", muster.partner_api_key),
    ] {
        refused(&good.with_partner_api_key(nonsense), NO_PARTNER).await;
    }
    let revoked = partner_key(&muster, PARTNER).await;
    let request = keys::RevokePartnerApiKeyRequest {
        partner: PARTNER.into(),
        key_id: revoked.key.unwrap().key_id,
        ..Default::default()
    };
    good.with_partner_api_key(&revoked.secret)
        .change("c", json!([]))
        .await
        .succeeded();
    muster
        .operator
        .integrations()
        .revoke_partner_api_key(request)
        .await
        .unwrap();
    refused(&good.with_partner_api_key(&revoked.secret), NO_PARTNER).await;

    for nonsense in [
        "",
        "hunter2",
        &muster.partner_api_key,
        &format!("{}x", muster.client_secret),
    ] {
        refused(&good.with_client_secret(nonsense), NO_CLIENT).await;
    }
    let revoked = muster.create_key().await;
    good.with_client_secret(&revoked.secret)
        .change("c", json!([]))
        .await
        .succeeded();
    muster.revoke_key(&revoked.key.unwrap().key_id).await;
    refused(&good.with_client_secret(&revoked.secret), NO_CLIENT).await;

    // Another partner's key, in every combination with this partner's path and API key.
    refused(&good.with_client_secret(&of_amplitude), NO_CLIENT).await;
    refused(&good.with_partner_api_key(&amplitude), NO_CLIENT).await;
    let mut other_path = good.clone();
    other_path.partner = "amplitude".into();
    refused(&other_path, NO_CLIENT).await;
    refused(&other_path.with_partner_api_key(&amplitude), NO_CLIENT).await;
    let mut no_path = good.clone();
    no_path.partner = "nobody".into();
    refused(&no_path, NO_CLIENT).await;
    no_cohort_exists(&muster).await;

    // Keys that are not strings, and keys that are missing.
    for (field, message) in [
        ("partner_api_key", NO_PARTNER),
        ("client_secret", NO_CLIENT),
    ] {
        for value in [json!(null), json!(7), json!([])] {
            let fields = json!({
                "partner_api_key": good.partner_api_key,
                "client_secret": good.client_secret,
            });
            let body = with(fields, field, value).to_string();
            let path = "/partners/tinyclues/cohorts/users";
            let answer = good
                .send(Method::POST, path, "application/json", body)
                .await;
            answer.says(401, message);
        }
    }
    muster.stop().await;
}

#[tokio::test]
async fn an_expired_key_is_refused_from_then_on() {
    let muster = Muster::start().await;
    let expiry = std::time::SystemTime::now() + Duration::from_millis(1_500);
    let request = keys::CreateKeyRequest {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        expire_time: Some(Timestamp::from(expiry)),
        ..Default::default()
    };
    let key = muster
        .operator
        .keys()
        .create_key(request)
        .await
        .unwrap()
        .into_inner();
    let rest = muster.rest().with_client_secret(&key.secret);
    while std::time::SystemTime::now() < expiry {
        let answer = rest.change("c", json!([])).await;
        if answer.status != 201 {
            assert!(
                std::time::SystemTime::now() >= expiry,
                "too early: {answer:?}"
            );
        }
    }
    refused(&rest, NO_CLIENT).await;
    no_cohort_exists(&muster).await;
    muster.stop().await;
}

#[tokio::test]
async fn a_partner_that_was_disabled_is_told_so_without_its_secret() {
    let muster = Muster::start().await;
    let rest = muster.rest();
    rest.change("c", json!([])).await.succeeded();
    let request = keys::DisablePartnerRequest {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        ..Default::default()
    };
    muster
        .operator
        .integrations()
        .disable_partner(request)
        .await
        .unwrap();
    refused(&rest, "Partner not enabled for client").await;
    no_cohort_exists(&muster).await;
    enable(&muster, WORKSPACE, PARTNER).await;
    rest.change("c", json!([])).await.succeeded();
    muster.stop().await;
}

#[tokio::test]
async fn a_key_of_another_workspace_reaches_that_workspace_alone() {
    let muster = Muster::start().await;
    let bank = keys::CreateWorkspaceRequest {
        workspace: "bank".into(),
        ..Default::default()
    };
    muster
        .operator
        .integrations()
        .create_workspace(bank)
        .await
        .unwrap();
    enable(&muster, "bank", PARTNER).await;
    muster.upsert_users(vec![identified("u-0")]).await;
    let rest = muster
        .rest()
        .with_client_secret(&import_key(&muster, "bank", PARTNER).await);
    let answer = rest.call("cohorts/users", change()).await.succeeded();
    answer.counted(json!({ "unknown": 1 }));
    no_cohort_exists(&muster).await;
    let answer = muster
        .rest()
        .call("cohorts/users", change())
        .await
        .succeeded();
    answer.counted(json!({ "added": 1 }));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_cohort_that_is_held_answers_423_before_clients_give_up() {
    let muster = Muster::start().await;
    muster.upsert_users(vec![identified("u-0")]).await;
    let rest = muster.rest();
    rest.call("cohorts", naming()).await.succeeded();

    let mut holder = muster.store.begin("hold").await.unwrap();
    let workspace = workspaces::find(&mut holder, WORKSPACE)
        .await
        .unwrap()
        .unwrap()
        .id;
    let key = cohorts::CohortKey {
        partner: PARTNER,
        partner_cohort_id: "c",
    };
    let cohort = cohorts::find(&mut holder, workspace, key)
        .await
        .unwrap()
        .unwrap();
    cohorts::lock(&mut holder, workspace, cohort.id)
        .await
        .unwrap();

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
        bridge_upstream: Some(upstream),
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
