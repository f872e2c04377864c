//! Repeated requests.

use muster_keys::housekeeping;
use muster_proto::keys::v1 as pb;
use muster_storage::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::support::{Muster, fields, new_key, new_token, reason, revoke_key, rotate_key, soon};

#[tokio::test]
async fn a_repeated_request_changes_nothing() {
    let muster = Muster::with_integration().await;
    let (mut keys, mut operator) = (muster.operator.keys(), muster.operator.integrations());

    let create = new_key("acme", "r1");
    let first = keys.create_key(create.clone()).await.unwrap().into_inner();
    let again = keys.create_key(create).await.unwrap().into_inner();
    assert!(!first.secret.is_empty());
    assert_eq!(
        (again.key, again.secret),
        (first.key.clone(), String::new())
    );

    let rotate = pb::RotateKeyRequest {
        request_id: "r1".to_owned(),
        ..rotate_key(&first.key.clone().unwrap(), None)
    };
    let rotated = keys.rotate_key(rotate.clone()).await.unwrap().into_inner();
    let again = keys.rotate_key(rotate).await.unwrap().into_inner();
    assert!(!rotated.secret.is_empty() && again.secret.is_empty());
    assert_eq!(
        (again.key, again.replaced_key),
        (rotated.key, rotated.replaced_key)
    );

    let revoke = pb::RevokeKeyRequest {
        request_id: "r1".to_owned(),
        ..revoke_key(&first.key.unwrap())
    };
    let revoked = keys.revoke_key(revoke.clone()).await.unwrap().into_inner();
    let again = keys.revoke_key(revoke).await.unwrap().into_inner();
    assert_eq!(again, revoked);

    let create = pb::CreateServiceTokenRequest {
        request_id: "r1".to_owned(),
        ..new_token("acme", &["keys:read"])
    };
    let first = operator
        .create_service_token(create.clone())
        .await
        .unwrap()
        .into_inner();
    let again = operator
        .create_service_token(create)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((again.token, again.secret), (first.token, String::new()));

    let create = pb::CreatePartnerApiKeyRequest {
        partner: "tinyclues".to_owned(),
        request_id: "r1".to_owned(),
        ..Default::default()
    };
    let first = operator
        .create_partner_api_key(create.clone())
        .await
        .unwrap()
        .into_inner();
    let again = operator
        .create_partner_api_key(create)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((again.key, again.secret), (first.key, String::new()));

    // Without a request id these would be ALREADY_EXISTS.
    for _ in 0..2 {
        let workspace = pb::CreateWorkspaceRequest {
            workspace: "umbrella".to_owned(),
            display_name: "Umbrella Corp.".to_owned(),
            request_id: "r1".to_owned(),
        };
        let created = operator
            .create_workspace(workspace)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(created.workspace.unwrap().display_name, "Umbrella Corp.");
        let partner = pb::CreatePartnerRequest {
            partner: "amplitude".to_owned(),
            request_id: "r1".to_owned(),
            ..Default::default()
        };
        operator.create_partner(partner).await.unwrap();
    }
    // One each, and a second for the rotation; four before that.
    assert_eq!(muster.trail().await.len(), 4 + 7 + 1);
}

#[tokio::test]
async fn a_request_id_means_one_request() {
    let muster = Muster::with_integration().await;
    let mut keys = muster.operator.keys();
    keys.create_key(new_key("acme", "r1")).await.unwrap();
    let other = pb::CreateKeyRequest {
        label: "other".to_owned(),
        ..new_key("acme", "r1")
    };
    let refused = keys.create_key(other).await.unwrap_err();
    assert_eq!(fields(&refused), ["request_id"]);
    // But a refused request was none, and may be tried again when the reason is gone.
    let revoked = pb::RotateKeyRequest {
        workspace: "acme".to_owned(),
        key_id: "nothing".to_owned(),
        request_id: "r2".to_owned(),
        ..Default::default()
    };
    for _ in 0..2 {
        let refused = keys.rotate_key(revoked.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), "NOT_FOUND");
    }
}

#[tokio::test]
async fn one_request_sent_twice_at_once_is_done_once() {
    let muster = Muster::with_integration().await;
    let (mut one, mut other) = (muster.operator.keys(), muster.operator.keys());
    let (one, other) = tokio::join!(
        one.create_key(new_key("acme", "r1")),
        other.create_key(new_key("acme", "r1")),
    );
    let (one, other) = (one.unwrap().into_inner(), other.unwrap().into_inner());
    assert_eq!(one.key, other.key);
    assert!(one.secret.is_empty() != other.secret.is_empty());
}

#[tokio::test]
async fn a_key_made_to_expire_soon_is_still_repeated_afterwards() {
    let muster = Muster::with_integration().await;
    let mut keys = muster.operator.keys();
    let moment = Timestamp::now_utc().unix_timestamp_nanos() + 1_000_000_000;
    let request = pb::CreateKeyRequest {
        expire_time: Some(prost_types::Timestamp {
            seconds: i64::try_from(moment / 1_000_000_000).unwrap(),
            nanos: i32::try_from(moment % 1_000_000_000).unwrap(),
        }),
        ..new_key("acme", "r1")
    };
    let created = keys.create_key(request.clone()).await.unwrap().into_inner();
    soon(async || muster.admits(&created.secret).await.is_err()).await;
    let again = keys.create_key(request).await.unwrap().into_inner();
    assert_eq!(again.key, created.key);
}

#[tokio::test]
async fn old_answers_are_forgotten_and_housekeeping_ends_when_told() {
    let muster = Muster::with_integration().await;
    let mut keys = muster.operator.keys();
    for request_id in ["old", "young"] {
        keys.create_key(new_key("acme", request_id)).await.unwrap();
    }
    let mut sql = muster.store.connection().await.unwrap();
    sqlx::query(
        "UPDATE request_log SET created_at = created_at - interval '25 hours' WHERE request_id = 'old'",
    )
    .execute(&mut *sql)
    .await
    .unwrap();
    let shutdown = CancellationToken::new();
    let work = tokio::spawn(housekeeping(muster.store.clone(), shutdown.clone()));
    soon(async || {
        let kept: Vec<String> = sqlx::query_scalar("SELECT request_id FROM request_log")
            .fetch_all(&mut *sql)
            .await
            .unwrap();
        kept == ["young"]
    })
    .await;
    shutdown.cancel();
    work.await.unwrap();
}
