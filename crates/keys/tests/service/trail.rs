//! The audit trail, and lists by the page.

use muster_proto::keys::v1 as pb;
use prost_types::Timestamp;

use crate::support::{Muster, new_token, revoke_key, rotate_key};

#[tokio::test]
async fn every_credential_change_leaves_an_audit_event() {
    let muster = Muster::with_integration().await;
    let (mut keys, mut integrations) = (muster.operator.keys(), muster.operator.integrations());
    let (key, _) = muster.key("acme").await;
    let rotated = keys.rotate_key(rotate_key(&key, None)).await.unwrap();
    let successor = rotated.into_inner().key.unwrap();
    let (token, _) = muster.token("acme", &["keys:read"]).await;
    let api_key = integrations
        .create_partner_api_key(pb::CreatePartnerApiKeyRequest {
            partner: "tinyclues".to_owned(),
            ..Default::default()
        })
        .await
        .unwrap();
    let api_key = api_key.into_inner().key.unwrap();
    // Each twice: what changes nothing leaves no event.
    for _ in 0..2 {
        keys.revoke_key(revoke_key(&key)).await.unwrap();
        integrations
            .revoke_service_token(pb::RevokeServiceTokenRequest {
                token_id: token.token_id.clone(),
                ..Default::default()
            })
            .await
            .unwrap();
        integrations
            .revoke_partner_api_key(pb::RevokePartnerApiKeyRequest {
                partner: "tinyclues".to_owned(),
                key_id: api_key.key_id.clone(),
                ..Default::default()
            })
            .await
            .unwrap();
        muster.enable("acme", "tinyclues").await;
    }
    for _ in 0..2 {
        integrations
            .disable_partner(pb::DisablePartnerRequest {
                workspace: "acme".to_owned(),
                partner: "tinyclues".to_owned(),
                ..Default::default()
            })
            .await
            .unwrap();
    }
    let trail = muster.trail().await;
    let (key, successor) = (
        format!("data_import_key:{}", key.key_id),
        format!("data_import_key:{}", successor.key_id),
    );
    let (api_key, token) = (
        format!("partner_api_key:{}", api_key.key_id),
        format!("service_token:{}", token.token_id),
    );
    let told: Vec<(&str, &str, &str)> = trail[1..]
        .iter()
        .map(|event| {
            (
                event.action.as_str(),
                event.resource.as_str(),
                event.workspace.as_str(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("workspace.create", "workspace:acme", "acme"),
            ("partner.create", "partner:tinyclues", ""),
            ("partner.enable", "partner:tinyclues", "acme"),
            ("data_import_key.create", &key, "acme"),
            ("data_import_key.create", &successor, "acme"),
            ("data_import_key.rotate", &key, "acme"),
            ("service_token.create", &token, "acme"),
            ("partner_api_key.create", &api_key, ""),
            ("data_import_key.revoke", &key, "acme"),
            ("service_token.revoke", &token, "acme"),
            ("partner_api_key.revoke", &api_key, ""),
            ("partner.disable", "partner:tinyclues", "acme"),
        ]
    );
    assert!(
        trail[1..]
            .iter()
            .all(|event| event.actor == trail[0].resource)
    );
}

#[tokio::test]
async fn a_refused_change_leaves_no_event() {
    let muster = Muster::start().await;
    let mut operator = muster.operator.integrations();
    let before = muster.trail().await;
    for _ in 0..2 {
        let request = pb::EnablePartnerRequest {
            workspace: "acme".to_owned(),
            partner: "nobody".to_owned(),
            ..Default::default()
        };
        operator.enable_partner(request).await.unwrap_err();
        operator
            .create_service_token(new_token("acme", &["*"]))
            .await
            .unwrap_err();
    }
    assert_eq!(muster.trail().await, before);
}

#[tokio::test]
async fn a_call_with_a_revoked_credential_is_on_record_once() {
    let muster = Muster::with_integration().await;
    let (token, secret) = muster.token("acme", &["*"]).await;
    let revoke = pb::RevokeServiceTokenRequest {
        token_id: token.token_id.clone(),
        ..Default::default()
    };
    let mut operator = muster.operator.integrations();
    operator.revoke_service_token(revoke).await.unwrap();
    let before = muster.trail().await.len();
    let mut revoked = muster.with(&secret).integrations();
    for _ in 0..3 {
        let request = pb::ListWorkspacesRequest::default();
        revoked.list_workspaces(request).await.unwrap_err();
    }
    let trail = muster.trail().await;
    let [told] = &trail[before..] else {
        panic!("one event: {trail:?}");
    };
    let actor = format!("service_token:{}", token.token_id);
    assert_eq!((&*told.actor, &*told.resource), (&*actor, &*actor));
    assert_eq!(told.action, "service_token.use");
    assert_eq!(told.refusal, "CREDENTIAL_REVOKED");
    assert_eq!(told.workspace, "acme");
}

#[tokio::test]
async fn the_trail_is_cut_by_time_and_workspace() {
    let muster = Muster::with_integration().await;
    muster.workspace("umbrella").await;
    let all = muster.trail().await;
    let times: Vec<Timestamp> = all.iter().map(|event| event.event_time.unwrap()).collect();
    let mut operator = muster.operator.integrations();
    let mut list = async |workspace: &str, start, end| {
        let request = pb::ListAuditEventsRequest {
            workspace: workspace.to_owned(),
            start_time: start,
            end_time: end,
            ..Default::default()
        };
        let mut events = operator
            .list_audit_events(request)
            .await
            .unwrap()
            .into_inner()
            .events;
        events.reverse();
        events
    };
    assert_eq!(list("", Some(times[1]), Some(times[3])).await, all[1..3]);
    assert_eq!(list("", Some(times[4]), None).await, all[4..]);
    assert_eq!(list("", None, Some(times[0])).await, []);
    assert_eq!(list("umbrella", None, None).await, all[4..]);
}

#[tokio::test]
async fn lists_page_without_gaps() {
    let muster = Muster::with_integration().await;
    let (mut keys, mut operator) = (muster.operator.keys(), muster.operator.integrations());
    for slug in ["b", "c", "d", "e"] {
        muster.workspace(slug).await;
        muster.partner(slug).await;
        muster.key("acme").await;
        muster.token("acme", &["keys:read"]).await;
        operator
            .create_partner_api_key(pb::CreatePartnerApiKeyRequest {
                partner: "tinyclues".to_owned(),
                ..Default::default()
            })
            .await
            .unwrap();
    }
    let (workspace, partner) = ("acme".to_owned(), "tinyclues".to_owned());

    /// Reads a list in one page and by pages of two, and holds the one against the other.
    macro_rules! check {
        ($client:ident . $list:ident ( $request:expr ) . $items:ident, $count:expr) => {
            let request = $request;
            let whole = $client.$list(request.clone()).await.unwrap().into_inner();
            assert_eq!(whole.$items.len(), $count);
            assert_eq!(whole.next_page_token, "");
            let (mut pages, mut token) = (Vec::new(), String::new());
            loop {
                let mut request = request.clone();
                request.page_size = 2;
                request.page_token = token;
                let page = $client.$list(request).await.unwrap().into_inner();
                assert!(page.$items.len() <= 2);
                pages.extend(page.$items);
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(pages, whole.$items);
        };
    }
    check!(
        operator
            .list_workspaces(pb::ListWorkspacesRequest::default())
            .workspaces,
        5
    );
    check!(
        operator
            .list_partners(pb::ListPartnersRequest::default())
            .partners,
        5
    );
    check!(
        operator
            .list_service_tokens(pb::ListServiceTokensRequest::default())
            .tokens,
        5
    );
    check!(
        operator
            .list_audit_events(pb::ListAuditEventsRequest::default())
            .events,
        24
    );
    let request = pb::ListPartnerApiKeysRequest {
        partner: partner.clone(),
        ..Default::default()
    };
    check!(operator.list_partner_api_keys(request).keys, 4);
    let request = pb::ListKeysRequest {
        workspace,
        ..Default::default()
    };
    check!(keys.list_keys(request.clone()).keys, 4);
    let of_partner = pb::ListKeysRequest { partner, ..request };
    check!(keys.list_keys(of_partner.clone()).keys, 4);
    let of_another = pb::ListKeysRequest {
        partner: "b".to_owned(),
        ..of_partner
    };
    check!(keys.list_keys(of_another).keys, 0);
}
