//! Every rpc that changes something leaves an event, and those that only look at it do not; who is
//! refused for what they are is on record, too.

use muster_tests::{PARTNER, WORKSPACE};
use serde_json::json;
use tonic::Code;

use crate::{
    requests::ROWS,
    world::{Deployment, World},
};

/// What rpcs leave in the trail; one of them, if an rpc is here twice.
const EVENTS: &[(&str, &str)] = &[
    ("CreateKey", "data_import_key.create"),
    ("RestrictKey", "data_import_key.restrict"),
    ("RevokeKey", "data_import_key.revoke"),
    ("RotateKey", "data_import_key.rotate"),
    ("CreateWorkspace", "workspace.create"),
    ("CreatePartner", "partner.create"),
    ("EnablePartner", "partner.enable"),
    ("DisablePartner", "partner.disable"),
    ("CreatePartnerApiKey", "partner_api_key.create"),
    ("RevokePartnerApiKey", "partner_api_key.revoke"),
    ("CreateServiceToken", "service_token.create"),
    ("RestrictServiceToken", "service_token.restrict"),
    ("RevokeServiceToken", "service_token.revoke"),
    ("DeleteUsers", "users.erase"),
    ("UpsertCohort", "cohort.rename"),
    ("ArchiveCohort", "cohort.archive"),
    ("ConfirmImport", "import.confirm"),
    ("AbortImport", "import.abort"),
    ("CreateSegment", "segment.create"),
    ("UpdateSegment", "segment.update"),
    ("ArchiveSegment", "segment.archive"),
    ("ResolveSegment", "segment.resolve"),
    // Resumed.
    ("ResolveSegment", "resolution.read"),
    ("DiffResolutions", "resolution.read"),
];

/// Rpcs that change the directory, whose changes are its own record, or that open an import, whose
/// event is its publication.
const NO_EVENT: &[&str] = &[
    "ImportUsers",
    "UpsertUsers",
    "IdentifyUsers",
    "MergeUsers",
    "IngestCohort",
];

#[tokio::test]
async fn every_rpc_that_changes_something_leaves_its_event() {
    let on = Deployment::start().await;
    let shop = World::make(&on, WORKSPACE, PARTNER).await;
    // To enable what is enabled would change nothing.
    let disable = "muster.keys.v1.IntegrationService/DisablePartner";
    let spare = json!({ "workspace": WORKSPACE, "partner": shop.get("spare_partner") });
    on.operator(disable, spare).await;
    let mut wrong = Vec::new();
    for row in ROWS {
        let method = row.rpc.rsplit('/').next().unwrap();
        let looks = ["Get", "List", "Find", "Count", "Check"]
            .iter()
            .any(|verb| method.starts_with(verb));
        let expected = EVENTS.iter().filter(|(of, _)| *of == method);
        let expected: Vec<_> = expected.map(|(_, action)| *action).collect();
        let is_known = looks || NO_EVENT.contains(&method) || !expected.is_empty();
        assert!(is_known, "{method}: say here which event it leaves");
        let before = events(&on).await;
        let answer = on
            .call(row.rpc, &row.request(&shop, &[]), &on.muster.operator_token)
            .await;
        assert_eq!(answer.code, Code::Ok, "{method}: {answer:?}");
        let after = events(&on).await;
        let left = &after[before.len()..];
        let is_right = match expected.as_slice() {
            [] => left.is_empty(),
            expected => left
                .iter()
                .any(|action| expected.contains(&action.as_str())),
        };
        if !is_right {
            wrong.push(format!("{method} leaves {left:?}, not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    on.muster.stop().await;
}

#[tokio::test]
async fn who_grants_more_than_they_hold_is_on_record() {
    let on = Deployment::start().await;
    let bound = on
        .token(WORKSPACE, &["integrations:write", "keys:read"])
        .await;
    let create = "muster.keys.v1.IntegrationService/CreateServiceToken";
    let more = json!({ "workspace": WORKSPACE, "label": "more", "scopes": ["users:write"] });
    let everywhere = json!({ "label": "everywhere", "scopes": ["keys:read"] });
    for (request, reason) in [(more, "SCOPE_NOT_HELD"), (everywhere, "WORKSPACE_BOUND")] {
        let refused = on.call(create, &request, &bound.secret).await;
        assert_eq!(refused.reason, reason);
        let told = sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM audit_event WHERE action = 'call.refuse' AND refusal = $1
               AND actor = $2",
        )
        .bind(reason)
        .bind(format!("service_token:{}", bound.id))
        .fetch_one(&mut *on.muster.store.connection().await.unwrap())
        .await
        .unwrap();
        assert_eq!(told, 1, "{reason}");
    }
    on.muster.stop().await;
}

#[tokio::test]
async fn a_change_whose_caller_is_revoked_meanwhile_is_not_made() {
    let on = Deployment::start().await;
    let token = on.token(WORKSPACE, &["users:write"]).await;
    let mut sql = on.muster.store.begin("hold").await.unwrap();
    sqlx::query("SELECT FROM directory FOR UPDATE")
        .fetch_all(&mut *sql)
        .await
        .unwrap();
    let upsert = "muster.users.v1.UserService/UpsertUsers";
    let request = json!({ "users": [{ "external_id": "late" }], "request_id": "r" });
    let revoke = async {
        // By then the change waits for the directory.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let request = json!({ "token_id": token.id });
        let rpc = "muster.keys.v1.IntegrationService/RevokeServiceToken";
        on.operator(rpc, request).await;
        drop(sql);
    };
    let (answer, ()) = tokio::join!(on.call(upsert, &request, &token.secret), revoke);
    assert_eq!(answer.reason, "CREDENTIAL_INVALID", "{answer:?}");
    let find = json!({ "workspace": WORKSPACE, "identifier": { "external_id": "late" } });
    let rpc = "muster.users.v1.UserService/FindUser";
    let found = on.call(rpc, &find, &on.muster.operator_token).await;
    assert_eq!(found.code, Code::NotFound, "{found:?}");
    on.muster.stop().await;
}

/// The actions on record, oldest first.
async fn events(on: &Deployment) -> Vec<String> {
    let mut connection = on.muster.store.connection().await.unwrap();
    sqlx::query_scalar("SELECT action FROM audit_event ORDER BY event_id")
        .fetch_all(&mut *connection)
        .await
        .unwrap()
}
