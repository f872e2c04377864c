//! Service tokens: what they grant, and what a workspace-bound one may see.

use muster_domain::credential::Kind;
use muster_proto::keys::v1 as pb;
use muster_storage::credentials;
use tonic::Code;

use crate::support::{Muster, REVOKED, fields, new_key, new_token, reason, revoke_key};

#[tokio::test]
async fn a_bound_token_cannot_see_another_workspace() {
    let muster = Muster::with_integration().await;
    muster.workspace("umbrella").await;
    muster.enable("umbrella", "tinyclues").await;
    let (foreign_key, _) = muster.key("umbrella").await;
    let (foreign_token, _) = muster.token("umbrella", &["keys:read"]).await;
    let (own_token, secret) = muster.token("acme", &["*"]).await;
    let bound = muster.with(&secret);
    let (mut keys, mut integrations) = (bound.keys(), bound.integrations());

    // Another workspace answers exactly like one that does not exist.
    for workspace in ["umbrella", "nobody"] {
        let expected = format!("workspace {workspace:?} does not exist");
        let integration = pb::GetIntegrationRequest {
            workspace: workspace.to_owned(),
            partner: "tinyclues".to_owned(),
        };
        let tokens = pb::ListServiceTokensRequest {
            workspace: workspace.to_owned(),
            ..Default::default()
        };
        let events = pb::ListAuditEventsRequest {
            workspace: workspace.to_owned(),
            ..Default::default()
        };
        let disable = pb::DisablePartnerRequest {
            workspace: workspace.to_owned(),
            partner: "tinyclues".to_owned(),
            ..Default::default()
        };
        let revoke = pb::RevokeKeyRequest {
            workspace: workspace.to_owned(),
            ..revoke_key(&foreign_key)
        };
        let refusals = [
            keys.create_key(new_key(workspace, "")).await.unwrap_err(),
            keys.revoke_key(revoke).await.unwrap_err(),
            integrations.get_integration(integration).await.unwrap_err(),
            integrations.list_service_tokens(tokens).await.unwrap_err(),
            integrations.list_audit_events(events).await.unwrap_err(),
            integrations.disable_partner(disable).await.unwrap_err(),
            integrations
                .create_service_token(new_token(workspace, &["keys:read"]))
                .await
                .unwrap_err(),
        ];
        for refused in refusals {
            assert_eq!(refused.code(), Code::NotFound);
            assert_eq!(refused.message(), expected);
            assert_eq!(reason(&refused), "NOT_FOUND");
        }
    }
    for token_id in [&foreign_token.token_id, "nothing"] {
        let request = pb::RevokeServiceTokenRequest {
            token_id: token_id.to_owned(),
            ..Default::default()
        };
        let refused = integrations
            .revoke_service_token(request)
            .await
            .unwrap_err();
        assert_eq!(
            refused.message(),
            format!("service_token {token_id:?} does not exist")
        );
    }

    // Lists without a filter hold only its own.
    let workspaces = integrations.list_workspaces(pb::ListWorkspacesRequest::default());
    let workspaces = workspaces.await.unwrap().into_inner().workspaces;
    let workspaces: Vec<_> = workspaces.iter().map(|one| &one.workspace).collect();
    assert_eq!(workspaces, ["acme"]);
    let tokens = integrations.list_service_tokens(pb::ListServiceTokensRequest::default());
    let tokens = tokens.await.unwrap().into_inner().tokens;
    let tokens: Vec<_> = tokens.iter().map(|one| &one.token_id).collect();
    assert_eq!(tokens, [&own_token.token_id]);
    let events = integrations.list_audit_events(pb::ListAuditEventsRequest::default());
    let mut events = events.await.unwrap().into_inner().events;
    assert!(events.iter().all(|event| event.workspace == "acme"));
    // Its refusals above may be told already or not.
    events.retain(|event| event.action != "call.refuse");
    assert_eq!(events.len(), 3);

    // Its own workspace needs no name.
    let created = keys.create_key(new_key("", "")).await.unwrap().into_inner();
    assert_eq!(created.key.unwrap().workspace, "acme");
}

#[tokio::test]
async fn a_bound_token_cannot_change_the_deployment() {
    let muster = Muster::with_integration().await;
    let (_, secret) = muster.token("acme", &["*"]).await;
    let mut bound = muster.with(&secret).integrations();
    let partner = || "tinyclues".to_owned();
    let refusals = [
        bound
            .create_workspace(pb::CreateWorkspaceRequest::default())
            .await
            .unwrap_err(),
        bound
            .create_partner(pb::CreatePartnerRequest::default())
            .await
            .unwrap_err(),
        bound
            .create_partner_api_key(pb::CreatePartnerApiKeyRequest {
                partner: partner(),
                ..Default::default()
            })
            .await
            .unwrap_err(),
        bound
            .list_partner_api_keys(pb::ListPartnerApiKeysRequest {
                partner: partner(),
                ..Default::default()
            })
            .await
            .unwrap_err(),
        bound
            .revoke_partner_api_key(pb::RevokePartnerApiKeyRequest {
                partner: partner(),
                ..Default::default()
            })
            .await
            .unwrap_err(),
        bound
            .create_service_token(new_token("", &["keys:read"]))
            .await
            .unwrap_err(),
    ];
    for refused in refusals {
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(reason(&refused), "WORKSPACE_BOUND");
    }
    // It sees the partners, to enable one.
    let listed = bound
        .list_partners(pb::ListPartnersRequest::default())
        .await;
    assert_eq!(listed.unwrap().into_inner().partners.len(), 1);
}

#[tokio::test]
async fn nobody_can_grant_what_they_do_not_hold() {
    let muster = Muster::with_integration().await;
    let held = ["integrations:write", "keys:read"];
    for workspace in ["", "acme"] {
        let (_, secret) = muster.token(workspace, &held).await;
        let mut caller = muster.with(&secret).integrations();
        for scopes in [&["*"][..], &["keys:write"], &["keys:read", "audit:read"]] {
            let request = new_token("acme", scopes);
            let refused = caller.create_service_token(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied);
            assert_eq!(reason(&refused), "SCOPE_NOT_HELD");
        }
        let request = new_token("acme", &["keys:read", "keys:read"]);
        let granted = caller.create_service_token(request).await.unwrap();
        let granted = granted.into_inner();
        let token = granted.token.unwrap();
        assert_eq!(token.scopes, ["keys:read"]);
        assert_eq!(token.workspace, "acme");
        // And what was granted is what it can do.
        let mut granted = muster.with(&granted.secret).keys();
        granted
            .list_keys(pb::ListKeysRequest::default())
            .await
            .unwrap();
        let refused = granted.create_key(new_key("acme", "")).await.unwrap_err();
        assert_eq!(reason(&refused), "SCOPE_MISSING");
    }
}

#[tokio::test]
async fn a_token_says_what_it_is_for() {
    let muster = Muster::with_integration().await;
    let mut integrations = muster.operator.integrations();
    let mut refused = async |request| {
        let refused = integrations.create_service_token(request).await;
        fields(&refused.unwrap_err())
    };
    assert_eq!(refused(new_token("acme", &[])).await, ["scopes"]);
    assert_eq!(refused(new_token("acme", &["keys"])).await, ["scopes"]);
    let unlabelled = pb::CreateServiceTokenRequest {
        label: String::new(),
        ..new_token("acme", &["keys:read"])
    };
    assert_eq!(refused(unlabelled).await, ["label"]);
    let past = pb::CreateServiceTokenRequest {
        expire_time: Some(prost_types::Timestamp::default()),
        ..new_token("acme", &["keys:read"])
    };
    assert_eq!(refused(past).await, ["expire_time"]);
}

#[tokio::test]
async fn a_revoked_token_is_refused_at_once_even_by_its_own_hand() {
    let muster = Muster::with_integration().await;
    let (token, secret) = muster.token("acme", &["*"]).await;
    let mut own = muster.with(&secret).integrations();
    let request = pb::RevokeServiceTokenRequest {
        token_id: token.token_id,
        ..Default::default()
    };
    let revoked = own.revoke_service_token(request.clone()).await.unwrap();
    assert_eq!(revoked.into_inner().token.unwrap().state, REVOKED);
    let refused = own.revoke_service_token(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut operator = muster.operator.integrations();
    let again = operator.revoke_service_token(request).await.unwrap();
    assert_eq!(again.into_inner().token.unwrap().state, REVOKED);
}

#[tokio::test]
async fn nobody_makes_a_credential_while_theirs_is_being_revoked() {
    let muster = Muster::with_integration().await;
    let (token, secret) = muster.token("acme", &["*"]).await;
    let id = token.token_id.parse().unwrap();
    let mut revoking = muster.store.begin("revoke").await.unwrap();
    let changed = credentials::revoke(&mut revoking, Kind::ServiceToken, id).await;
    assert!(changed.unwrap());
    let mut keys = muster.with(&secret).keys();
    let creation = tokio::spawn(async move { keys.create_key(new_key("acme", "")).await });
    muster.somebody_waits().await;
    assert!(!creation.is_finished());
    revoking.commit().await.unwrap();
    let refused = creation.await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(reason(&refused), "CREDENTIAL_INVALID");
}

#[tokio::test]
async fn the_operator_may_do_everything() {
    let muster = Muster::start().await;
    assert!(muster.operator_secret.expose().starts_with("mst_svc_"));
    let mut operator = muster.operator.integrations();
    let listed = operator.list_service_tokens(pb::ListServiceTokensRequest::default());
    let tokens = listed.await.unwrap().into_inner().tokens;
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].scopes, ["*"]);
    assert_eq!(
        (tokens[0].label.as_str(), tokens[0].workspace.as_str()),
        ("operator", "")
    );
    let trail = muster.trail().await;
    assert_eq!(trail[0].actor, "muster up");
    assert_eq!(trail[0].action, "service_token.create");
    assert_eq!(
        trail[0].resource,
        format!("service_token:{}", tokens[0].token_id)
    );
}
