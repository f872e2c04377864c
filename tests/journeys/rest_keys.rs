//! The partner-facing HTTP contract: who may call, and what all others are told.

use std::time::Duration;

use muster_proto::keys::v1 as keys;
use muster_tests::{Muster, PARTNER, WORKSPACE, identified, rest::Rest};
use prost_types::Timestamp;
use reqwest::Method;
use serde_json::json;

use crate::rest_errors::{change, naming, no_cohort_exists, with};

const NO_PARTNER: &str = "Invalid Partner API key";
const NO_CLIENT: &str = "Invalid client secret";

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
