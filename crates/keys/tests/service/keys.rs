//! Data import keys.

use muster_proto::keys::v1 as pb;
use muster_storage::{Timestamp, credentials};
use tonic::Code;

use crate::support::{
    ACTIVE, EXPIRED, Muster, REVOKED, fields, new_key, reason, revoke_key, rotate_key, seen,
};

#[tokio::test]
async fn a_secret_is_shown_once() {
    let muster = Muster::with_integration().await;
    let (key, secret) = muster.key("acme").await;
    assert!(secret.starts_with("mst_dik_"), "{secret}");
    assert_eq!((key.state, key.label.as_str()), (ACTIVE, "etl"));
    // Neither a later answer nor the database holds more of it than its ends.
    assert!(key.hint.starts_with("mst_dik_…"), "{}", key.hint);
    let found = muster.get_key(&key).await;
    assert!(!format!("{found:?}").contains(&secret));
    let mut sql = muster.store.connection().await.unwrap();
    let kept: Vec<String> = sqlx::query_scalar(
        "SELECT credential::text FROM credential UNION ALL SELECT request_log::text FROM request_log
         UNION ALL SELECT audit_event::text FROM audit_event",
    )
    .fetch_all(&mut *sql)
    .await
    .unwrap();
    assert!(kept.iter().all(|row| !row.contains(&secret[8..40])));
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once() {
    let muster = Muster::with_integration().await;
    let (key, secret) = muster.key("acme").await;
    assert_eq!(muster.admits(&secret).await, Ok(()));
    assert!(muster.get_key(&key).await.last_used_time.is_some());
    let mut keys = muster.operator.keys();
    let revoked = keys.revoke_key(revoke_key(&key)).await.unwrap();
    let revoked = revoked.into_inner().key.unwrap();
    assert_eq!(revoked.state, REVOKED);
    assert_eq!(
        muster.admits(&secret).await,
        Err("CREDENTIAL_INVALID".to_owned())
    );
    // Revoking it again succeeds and changes nothing.
    let again = keys.revoke_key(revoke_key(&key)).await.unwrap();
    assert_eq!(again.into_inner().key.unwrap(), revoked);
    let refused = keys.rotate_key(rotate_key(&key, None)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused), "KEY_NOT_ACTIVE");
}

#[tokio::test]
async fn a_revocation_waits_for_what_is_being_published_with_the_key() {
    let muster = Muster::with_integration().await;
    let (key, secret) = muster.key("acme").await;
    let id = key.key_id.parse().unwrap();
    let mut publishing = muster.store.begin("publish").await.unwrap();
    assert!(credentials::hold(&mut publishing, id, None).await.unwrap());
    // Meanwhile others may use the key, although that would be noted on it.
    assert_eq!(muster.admits(&secret).await, Ok(()));
    let mut keys = muster.operator.keys();
    let revocation = tokio::spawn(async move { keys.revoke_key(revoke_key(&key)).await });
    muster.somebody_waits().await;
    assert!(!revocation.is_finished());
    publishing.commit().await.unwrap();
    revocation.await.unwrap().unwrap();
    let mut publishing = muster.store.begin("publish").await.unwrap();
    assert!(!credentials::hold(&mut publishing, id, None).await.unwrap());
}

#[tokio::test]
async fn several_keys_live_at_once_and_rotation_overlaps() {
    let muster = Muster::with_integration().await;
    let mut keys = muster.operator.keys();
    let (one, one_secret) = muster.key("acme").await;
    let (_, other_secret) = muster.key("acme").await;
    let rotated = keys.rotate_key(rotate_key(&one, None)).await.unwrap();
    let rotated = rotated.into_inner();
    let (new, old) = (rotated.key.unwrap(), rotated.replaced_key.unwrap());
    for secret in [&one_secret, &other_secret, &rotated.secret] {
        assert_eq!(muster.admits(secret).await, Ok(()));
    }
    assert_eq!(old.key_id, one.key_id);
    assert_eq!(old.replaced_by_key_id, new.key_id);
    assert_eq!((old.state, new.state), (ACTIVE, ACTIVE));
    assert_eq!(new.label, one.label);
    assert_eq!(new.expire_time, None);
    let overlap = old.expire_time.unwrap().seconds - new.create_time.unwrap().seconds;
    assert!((86_399..86_460).contains(&overlap), "{overlap}");

    // A key has one successor, so it is that one to rotate next; here without any overlap.
    let refused = keys.rotate_key(rotate_key(&one, None)).await.unwrap_err();
    assert_eq!(reason(&refused), "KEY_ALREADY_ROTATED");
    assert!(refused.message().contains(&new.key_id));
    let next = keys.rotate_key(rotate_key(&new, Some(0))).await.unwrap();
    let next = next.into_inner();
    assert_eq!(next.replaced_key.unwrap().state, EXPIRED);
    assert!(muster.admits(&rotated.secret).await.is_err());
    assert_eq!(muster.admits(&next.secret).await, Ok(()));
}

#[tokio::test]
async fn of_two_rotations_at_once_one_is_done() {
    let muster = Muster::with_integration().await;
    let (key, _) = muster.key("acme").await;
    let (mut one, mut other) = (muster.operator.keys(), muster.operator.keys());
    let done = tokio::join!(
        one.rotate_key(rotate_key(&key, None)),
        other.rotate_key(rotate_key(&key, None)),
    );
    let ((Ok(_), Err(refused)) | (Err(refused), Ok(_))) = done else {
        panic!("{done:?}");
    };
    assert_eq!(reason(&refused), "KEY_ALREADY_ROTATED");
}

#[tokio::test]
async fn an_overlap_never_outlives_the_key_and_a_successor_lives_as_long() {
    let muster = Muster::with_integration().await;
    let mut keys = muster.operator.keys();
    let expiry = Timestamp::now_utc().unix_timestamp() + 3_600;
    let request = pb::CreateKeyRequest {
        expire_time: Some(prost_types::Timestamp {
            seconds: expiry,
            nanos: 0,
        }),
        ..new_key("acme", "")
    };
    let created = keys.create_key(request).await.unwrap();
    let key = created.into_inner().key.unwrap();
    let rotated = keys.rotate_key(rotate_key(&key, None)).await.unwrap();
    let rotated = rotated.into_inner();
    assert_eq!(rotated.replaced_key.unwrap().expire_time, key.expire_time);
    let new = rotated.key.unwrap();
    let lives = new.expire_time.unwrap().seconds - new.create_time.unwrap().seconds;
    assert!((3_590..=3_601).contains(&lives), "{lives}");
}

#[tokio::test]
async fn an_expired_key_is_refused_and_cannot_be_rotated() {
    let muster = Muster::with_integration().await;
    let mut keys = muster.operator.keys();
    let (key, secret) = muster.key("acme").await;
    let mut sql = muster.store.connection().await.unwrap();
    sqlx::query("UPDATE credential SET expires_at = now() WHERE kind = 2")
        .execute(&mut *sql)
        .await
        .unwrap();
    assert!(muster.admits(&secret).await.is_err());
    assert_eq!(muster.get_key(&key).await.state, EXPIRED);
    let refused = keys.rotate_key(rotate_key(&key, None)).await.unwrap_err();
    assert_eq!(reason(&refused), "KEY_NOT_ACTIVE");
    // It can still be revoked, to say that it was not only time.
    let revoked = keys.revoke_key(revoke_key(&key)).await.unwrap();
    assert_eq!(revoked.into_inner().key.unwrap().state, REVOKED);
}

#[tokio::test]
async fn a_key_needs_an_enabled_partner() {
    let muster = Muster::start().await;
    muster.workspace("acme").await;
    let mut keys = muster.operator.keys();
    let refused = keys.create_key(new_key("acme", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    muster.partner("tinyclues").await;
    let refused = keys.create_key(new_key("acme", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused), "PARTNER_NOT_ENABLED");
    muster.enable("acme", "tinyclues").await;
    keys.create_key(new_key("acme", "")).await.unwrap();
    let refused = keys.create_key(new_key("nobody", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = keys.create_key(new_key("", "")).await.unwrap_err();
    assert_eq!(fields(&refused), ["workspace"]);
}

#[tokio::test]
async fn a_key_of_another_workspace_or_kind_does_not_exist() {
    let muster = Muster::with_integration().await;
    muster.workspace("umbrella").await;
    muster.enable("umbrella", "tinyclues").await;
    let (foreign, _) = muster.key("umbrella").await;
    let (token, _) = muster.token("acme", &["keys:read"]).await;
    let unknown = "0195f7a0-0000-7000-8000-000000000000";
    let mut keys = muster.operator.keys();
    for key_id in [&foreign.key_id, &token.token_id, unknown, "", "no uuid\0"] {
        let key = pb::DataImportKey {
            workspace: "acme".to_owned(),
            key_id: key_id.to_owned(),
            ..Default::default()
        };
        let request = pb::GetKeyRequest {
            workspace: "acme".to_owned(),
            key_id: key_id.to_owned(),
        };
        let got = keys.get_key(request).await.unwrap_err();
        assert_eq!(got.code(), Code::NotFound);
        assert_eq!(
            got.message(),
            format!("data_import_key {key_id:?} does not exist")
        );
        let revoked = keys.revoke_key(revoke_key(&key)).await.unwrap_err();
        let rotated = keys.rotate_key(rotate_key(&key, None)).await.unwrap_err();
        assert_eq!(seen(&got), seen(&revoked));
        assert_eq!(seen(&got), seen(&rotated));
    }
    assert_eq!(muster.get_key(&foreign).await.state, ACTIVE);
}
