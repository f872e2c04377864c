//! The trail, beyond changes: who read again, who agreed, who was refused.

use std::time::{Duration, Instant};

use muster_bridge::export::{self, Delivery, Options};
use muster_domain::import::Mode;
use muster_proto::{ingest::v1 as ingest, keys::v1 as keys, segments::v1 as segments};
use muster_tests::{Muster, PARTNER, WORKSPACE, connect, read_audience};
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;

use crate::story::{grpc, ids, shop_of, write_ids};

/// How long an event may take that is written beside the call.
const PATIENCE: Duration = Duration::from_secs(30);

/// The events whose action begins so, oldest first.
async fn trail(muster: &Muster, action_prefix: &str) -> Vec<keys::AuditEvent> {
    let filter = keys::ListAuditEventsRequest {
        action_prefix: action_prefix.into(),
        ..Default::default()
    };
    let mut integrations = muster.operator.integrations();
    let listed = integrations.list_audit_events(filter).await.unwrap();
    let mut events = listed.into_inner().events;
    events.reverse();
    events
}

fn actions_and_resources(events: &[keys::AuditEvent]) -> Vec<(&str, &str)> {
    events
        .iter()
        .map(|event| (event.action.as_str(), event.resource.as_str()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_an_audience_again_is_an_event_each_time() {
    let muster = shop_of(3).await;
    let rest = muster.rest();
    rest.change("list", json!([{ "user_ids": ids(0..3) }]))
        .await
        .succeeded();
    let filter = format!("{PARTNER}:id(\"list\")");
    muster.audience(&filter).await;
    let mut client = muster.operator.segments();
    let request = segments::ListResolutionsRequest {
        workspace: WORKSPACE.into(),
        ..Default::default()
    };
    let kept = client.list_resolutions(request).await.unwrap().into_inner();
    let id = kept.resolutions[0].resolution_id.clone();
    let again = segments::ResolveSegmentRequest {
        workspace: WORKSPACE.into(),
        audience: Some(segments::resolve_segment_request::Audience::ResolutionId(
            id.clone(),
        )),
        ..Default::default()
    };
    let stream = client.resolve_segment(again).await.unwrap();
    assert_eq!(read_audience(stream.into_inner()).await.len(), 3);
    let compare = segments::DiffResolutionsRequest {
        workspace: WORKSPACE.into(),
        base_resolution_id: id.clone(),
        target_resolution_id: id.clone(),
        ..Default::default()
    };
    client.diff_resolutions(compare).await.unwrap();
    // Looking at what there is tells nothing of who is in it.
    let look = segments::GetResolutionRequest {
        workspace: WORKSPACE.into(),
        resolution_id: id.clone(),
    };
    client.get_resolution(look).await.unwrap();

    let resource = format!("resolution:{id}");
    let events = trail(&muster, "resolution.").await;
    let expected = [("resolution.read", &*resource); 3];
    assert_eq!(actions_and_resources(&events), expected);
    let first = trail(&muster, "segment.resolve").await;
    assert_eq!(first[0].resource, resource);
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_confirms_or_aborts_an_import_is_in_the_trail() {
    let muster = shop_of(10).await;
    let folder = TempDir::new().unwrap();
    let replace = async |range, limit| {
        let file = write_ids(&folder, "list.csv", &ids(range));
        let mut options = Options::new(Mode::Replace);
        options.max_removed_fraction = limit;
        let sent = export::export(&file, &grpc(&muster), &options, &mut |_| {}).await;
        match sent.unwrap().delivery {
            Delivery::AwaitingConfirmation { import_id, .. } => import_id,
            _ => String::new(),
        }
    };
    replace(0..10, None).await;
    let asked = replace(0..2, Some(0.5)).await;
    let mut client = muster.operator.ingest();
    for _ in 0..2 {
        let confirm = ingest::ConfirmImportRequest {
            workspace: WORKSPACE.into(),
            import_id: asked.clone(),
            ..Default::default()
        };
        client.confirm_import(confirm).await.unwrap();
    }
    replace(0..10, None).await;
    let unwanted = replace(0..1, Some(0.5)).await;
    let abort = ingest::AbortImportRequest {
        workspace: WORKSPACE.into(),
        import_id: unwanted.clone(),
        ..Default::default()
    };
    client.abort_import(abort).await.unwrap();

    let events = trail(&muster, "import.").await;
    let expected = [
        ("import.confirm", format!("import:{asked}")),
        ("import.abort", format!("import:{unwanted}")),
    ];
    let expected: Vec<_> = expected.iter().map(|(a, r)| (*a, &**r)).collect();
    // To confirm again changes nothing, and is no event.
    assert_eq!(actions_and_resources(&events), expected);
    assert!(events.iter().all(|e| e.actor.starts_with("service_token:")));
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_credential_may_not_do_is_in_the_trail_once() {
    let muster = Muster::start().await;
    let mut integrations = muster.operator.integrations();
    let token = keys::CreateServiceTokenRequest {
        label: "reader".into(),
        workspace: WORKSPACE.into(),
        scopes: vec!["users:read".into(), "cohorts:read".into()],
        ..Default::default()
    };
    let made = integrations.create_service_token(token).await.unwrap();
    let made = made.into_inner();
    let actor = format!("service_token:{}", made.token.unwrap().token_id);
    let reader = connect(&muster.grpc, &made.secret);
    for _ in 0..5 {
        let key = keys::CreateKeyRequest {
            workspace: WORKSPACE.into(),
            partner: PARTNER.into(),
            ..Default::default()
        };
        let refused = reader.keys().create_key(key).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        // There or not: the trail has that it was another one.
        for elsewhere in ["elsewhere", "nowhere"] {
            let cohorts = ingest::ListCohortsRequest {
                workspace: elsewhere.into(),
                ..Default::default()
            };
            let refused = reader.ingest().list_cohorts(cohorts).await.unwrap_err();
            assert_eq!(refused.code(), Code::NotFound);
        }
    }
    let partner = muster.partner();
    let users = segments::ListResolutionsRequest::default();
    let refused = partner.segments().list_resolutions(users).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);

    let deadline = Instant::now() + PATIENCE;
    let events = loop {
        let events = trail(&muster, "call.refuse").await;
        if events.len() >= 3 {
            break events;
        }
        assert!(Instant::now() < deadline, "{events:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut told: Vec<_> = events
        .iter()
        .map(|event| {
            let theirs = event.actor == actor;
            (theirs, &*event.resource, &*event.refusal)
        })
        .collect();
    told.sort_unstable();
    let expected = [
        (
            false,
            "rpc:muster.segments.v1.SegmentService/ListResolutions",
            "CREDENTIAL_KIND",
        ),
        (
            true,
            "rpc:muster.ingest.v1.IngestService/ListCohorts",
            "OTHER_WORKSPACE",
        ),
        (
            true,
            "rpc:muster.keys.v1.KeyService/CreateKey",
            "SCOPE_MISSING",
        ),
    ];
    assert_eq!(told, expected);
    for event in &events {
        assert_eq!(
            (&*event.workspace, &*event.peer),
            (WORKSPACE, "127.0.0.1"),
            "{event:?}"
        );
    }
    muster.stop().await;
}
