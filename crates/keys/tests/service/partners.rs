//! Partners, their API keys, and the integration page.

use muster_client::{Connection, Credential};
use muster_proto::keys::v1 as pb;
use tonic::Code;

use crate::support::{ACTIVE, Muster, REVOKED, admitted, new_key, reason, revoke_key, rotate_key};

fn new_api_key(partner: &str) -> pb::CreatePartnerApiKeyRequest {
    pb::CreatePartnerApiKeyRequest {
        partner: partner.to_owned(),
        label: "production".to_owned(),
        ..Default::default()
    }
}

async fn integration(muster: &Muster, partner: &str) -> Result<pb::GetIntegrationResponse, Code> {
    let request = pb::GetIntegrationRequest {
        workspace: "acme".to_owned(),
        partner: partner.to_owned(),
    };
    let found = muster
        .operator
        .integrations()
        .get_integration(request)
        .await;
    found
        .map(tonic::Response::into_inner)
        .map_err(|status| status.code())
}

#[tokio::test]
async fn the_integration_page_has_all_that_a_partner_needs() {
    let muster = Muster::start().await;
    muster.workspace("acme").await;
    assert_eq!(integration(&muster, "tinyclues").await, Err(Code::NotFound));
    muster.partner("tinyclues").await;
    let before = integration(&muster, "tinyclues").await.unwrap();
    assert!(!before.enabled && before.keys.is_empty());
    assert_eq!(
        before.rest_endpoint,
        "https://muster.example.com/partners/tinyclues"
    );
    muster.enable("acme", "tinyclues").await;
    let (old, _) = muster.key("acme").await;
    let (new, _) = muster.key("acme").await;
    let after = integration(&muster, "tinyclues").await.unwrap();
    assert!(after.enabled);
    assert_eq!(after.partner.unwrap().display_name, "tinyclues");
    assert_eq!(after.keys, [new, old]);
}

#[tokio::test]
async fn a_disabled_partner_is_refused_until_it_is_enabled_again() {
    let muster = Muster::with_integration().await;
    let (key, secret) = muster.key("acme").await;
    let request = pb::DisablePartnerRequest {
        workspace: "acme".to_owned(),
        partner: "tinyclues".to_owned(),
        ..Default::default()
    };
    let mut integrations = muster.operator.integrations();
    for _ in 0..2 {
        let done = integrations.disable_partner(request.clone()).await;
        done.unwrap();
        let refused = muster.admits(&secret).await;
        assert_eq!(refused, Err("PARTNER_NOT_ENABLED".to_owned()));
    }
    let mut keys = muster.operator.keys();
    let created = keys.create_key(new_key("acme", "")).await.unwrap_err();
    let rotated = keys.rotate_key(rotate_key(&key, None)).await.unwrap_err();
    assert_eq!(reason(&created), "PARTNER_NOT_ENABLED");
    assert_eq!(reason(&rotated), "PARTNER_NOT_ENABLED");
    muster.enable("acme", "tinyclues").await;
    assert_eq!(muster.admits(&secret).await, Ok(()));
    keys.revoke_key(revoke_key(&key)).await.unwrap();
}

#[tokio::test]
async fn a_partner_api_key_lives_and_dies_like_the_others() {
    let muster = Muster::with_integration().await;
    muster.partner("amplitude").await;
    let (_, data_import_key) = muster.key("acme").await;
    let mut integrations = muster.operator.integrations();
    let created = integrations.create_partner_api_key(new_api_key("tinyclues"));
    let created = created.await.unwrap().into_inner();
    let key = created.key.unwrap();
    assert!(created.secret.starts_with("mst_pak_"));
    assert_eq!((key.state, key.label.as_str()), (ACTIVE, "production"));

    let both = Credential::partner(&data_import_key, &created.secret).unwrap();
    let caller = Connection::new(&muster.endpoint, Some(both)).unwrap();
    assert_eq!(admitted(&caller).await, Ok(()));

    // Under another partner's name it does not exist.
    let revocation = |partner: &str, key_id: &str| pb::RevokePartnerApiKeyRequest {
        partner: partner.to_owned(),
        key_id: key_id.to_owned(),
        ..Default::default()
    };
    for (partner, key_id) in [
        ("amplitude", key.key_id.as_str()),
        ("nobody", &key.key_id),
        ("tinyclues", "x"),
    ] {
        let refused = integrations.revoke_partner_api_key(revocation(partner, key_id));
        assert_eq!(refused.await.unwrap_err().code(), Code::NotFound);
    }
    for _ in 0..2 {
        let revoked = integrations.revoke_partner_api_key(revocation("tinyclues", &key.key_id));
        let revoked = revoked.await.unwrap().into_inner().key.unwrap();
        assert_eq!(revoked.state, REVOKED);
    }
    let refused = admitted(&caller).await;
    assert_eq!(refused, Err("PARTNER_API_KEY_INVALID".to_owned()));
    let list = |partner: &str| pb::ListPartnerApiKeysRequest {
        partner: partner.to_owned(),
        ..Default::default()
    };
    let listed = integrations.list_partner_api_keys(list("tinyclues")).await;
    assert_eq!(listed.unwrap().into_inner().keys.len(), 1);
    let other = integrations.list_partner_api_keys(list("amplitude")).await;
    assert!(other.unwrap().into_inner().keys.is_empty());
    let nobody = integrations.list_partner_api_keys(list("nobody")).await;
    assert_eq!(nobody.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_partner_api_key_goes_only_with_its_own_partners_keys() {
    let muster = Muster::with_integration().await;
    muster.partner("amplitude").await;
    let (_, data_import_key) = muster.key("acme").await;
    let mut integrations = muster.operator.integrations();
    let created = integrations.create_partner_api_key(new_api_key("amplitude"));
    let created = created.await.unwrap().into_inner();
    let both = Credential::partner(&data_import_key, &created.secret).unwrap();
    let caller = Connection::new(&muster.endpoint, Some(both)).unwrap();
    let refused = admitted(&caller).await;
    assert_eq!(refused, Err("CREDENTIAL_INVALID".to_owned()));
}

#[tokio::test]
async fn a_slug_is_taken_once() {
    let muster = Muster::with_integration().await;
    let mut integrations = muster.operator.integrations();
    let workspace = pb::CreateWorkspaceRequest {
        workspace: "acme".to_owned(),
        ..Default::default()
    };
    let refused = integrations.create_workspace(workspace).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(reason(&refused), "WORKSPACE_EXISTS");
    let partner = pb::CreatePartnerRequest {
        partner: "tinyclues".to_owned(),
        ..Default::default()
    };
    let refused = integrations.create_partner(partner).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(reason(&refused), "PARTNER_EXISTS");
}
