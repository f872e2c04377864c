//! Every rpc, called as everybody.

use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use muster_cli::deployment::Settings;
use muster_domain::credential::{Kind, Secret};
use muster_proto::keys::v1 as keys;
use muster_service::{attempts, authorization::Scope};
use muster_tests::{PARTNER, WORKSPACE, connect};
use serde_json::json;
use tonic::Code;

use crate::{
    requests::{About, ROWS, Row, complaints},
    world::{Deployment, OTHER_PARTNER, RIVAL, World},
};

const MISSING: (Code, &str) = (Code::Unauthenticated, "CREDENTIAL_MISSING");
const INVALID: (Code, &str) = (Code::Unauthenticated, "CREDENTIAL_INVALID");
const NO_SCOPE: (Code, &str) = (Code::PermissionDenied, "SCOPE_MISSING");
const WRONG_KIND: (Code, &str) = (Code::PermissionDenied, "CREDENTIAL_KIND");
const BOUND: (Code, &str) = (Code::PermissionDenied, "WORKSPACE_BOUND");
const NOT_ENABLED: (Code, &str) = (Code::PermissionDenied, "PARTNER_NOT_ENABLED");
const NOT_FOUND: (Code, &str) = (Code::NotFound, "NOT_FOUND");

#[test]
pub(crate) fn every_rpc_has_a_row() {
    let complaints = complaints();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Somebody who calls.
struct Somebody {
    who: String,
    headers: Vec<(&'static str, String)>,
    kind: Who,
}

/// What decides how somebody is answered.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    /// Nobody that is known.
    Refused(Code, &'static str),
    /// A token for every workspace with this scope; `None` for all.
    Token(Option<&'static str>),
    /// A token with all scopes that is bound to the shop.
    Bound,
    /// A token with all scopes that is bound to the rival.
    BoundElsewhere,
    /// A data import key of the shop and the partner whose things are named.
    Key,
    /// A data import key of the rival.
    KeyElsewhere,
    /// A data import key of the shop and another partner.
    KeyOfOther,
    /// A data import key of a partner that is not enabled.
    KeyNotEnabled,
    /// A data import key beside the API key of another partner.
    KeyMismatched,
}

impl Who {
    /// How a row must answer; `None` if it is to be carried out.
    fn expected(self, row: &Row) -> Option<(Code, &'static str)> {
        let bound_elsewhere = match row.about {
            About::Deployment => Some(BOUND),
            About::Workspace | About::Thing => Some(NOT_FOUND),
            About::Visible => None,
        };
        match self {
            Self::Refused(code, reason) => Some((code, reason)),
            Self::Token(None) => None,
            Self::Token(Some(scope)) => (scope != row.scope).then_some(NO_SCOPE),
            Self::Bound if row.about == About::Deployment => Some(BOUND),
            Self::Bound => None,
            Self::BoundElsewhere => bound_elsewhere,
            _ if !row.key => Some(WRONG_KIND),
            Self::Key => None,
            Self::KeyElsewhere => Some(NOT_FOUND),
            // It may not even say another partner's name.
            Self::KeyOfOther if row.names().contains("partner") => Some(INVALID),
            Self::KeyOfOther => Some(NOT_FOUND),
            Self::KeyNotEnabled => Some(NOT_ENABLED),
            Self::KeyMismatched => Some(INVALID),
        }
    }
}

impl Somebody {
    fn new(who: impl Into<String>, kind: Who, bearer: &str) -> Self {
        Self {
            who: who.into(),
            headers: vec![("authorization", format!("Bearer {bearer}"))],
            kind,
        }
    }

    fn with(mut self, header: &'static str, value: &str) -> Self {
        self.headers.retain(|(name, _)| *name != header);
        self.headers.push((header, value.to_owned()));
        self
    }
}

/// Everybody, the operator first.
async fn everybody(on: &Deployment) -> Vec<Somebody> {
    let refused = |who: &str, bearer: &str| {
        let (code, reason) = INVALID;
        Somebody::new(who, Who::Refused(code, reason), bearer)
    };
    let mut everybody = vec![Somebody::new(
        "the operator",
        Who::Token(None),
        &on.muster.operator_token,
    )];
    for scope in Scope::ALL {
        let token = on.token("", &[scope.as_str()]).await;
        let who = format!("a token with {scope}");
        everybody.push(Somebody::new(
            who,
            Who::Token(Some(scope.as_str())),
            &token.secret,
        ));
    }
    let bound = on.token(WORKSPACE, &["*"]).await.secret;
    let elsewhere = on.token(RIVAL, &["*"]).await.secret;
    let key = on.key(WORKSPACE, PARTNER).await.secret;
    let partner_key = on.partner_key(PARTNER).await.secret;
    let other_partner_key = on.partner_key(OTHER_PARTNER).await.secret;
    everybody.extend([
        Somebody::new("a token of the workspace", Who::Bound, &bound),
        Somebody::new(
            "a token of another workspace",
            Who::BoundElsewhere,
            &elsewhere,
        ),
        Somebody::new("a data import key", Who::Key, &key),
        Somebody::new("a data import key with its partner's", Who::Key, &key)
            .with("muster-partner-api-key", &partner_key),
        Somebody::new(
            "a data import key of another workspace",
            Who::KeyElsewhere,
            &on.key(RIVAL, PARTNER).await.secret,
        ),
        Somebody::new(
            "a data import key of another partner",
            Who::KeyOfOther,
            &on.key(WORKSPACE, OTHER_PARTNER).await.secret,
        ),
        Somebody::new(
            "a data import key of a partner not enabled",
            Who::KeyNotEnabled,
            &key_not_enabled(on).await,
        ),
        refused("a partner API key", &partner_key),
        refused("a malformed token", "mst_svc_0123456789"),
        refused("a mistyped token", &mistyped(&bound)),
        refused(
            "an unknown token",
            Secret::generate(Kind::ServiceToken).unwrap().expose(),
        ),
        refused(
            "an unknown key",
            Secret::generate(Kind::DataImportKey).unwrap().expose(),
        ),
        refused("a revoked token", &revoked_token(on).await),
        refused("a revoked key", &revoked_key(on).await),
        refused("an expired token", &expired_token(on).await),
        refused("an expired key", &expired_key(on).await),
    ]);
    let (code, reason) = MISSING;
    let missing = Who::Refused(code, reason);
    everybody.extend([
        Somebody {
            who: "nobody".into(),
            headers: Vec::new(),
            kind: missing,
        },
        Somebody::new("another scheme", missing, "").with("authorization", "Basic b3A6b3A="),
    ]);
    let badly = |who: &str, partner_key: &str, (code, reason): (Code, &'static str)| {
        Somebody::new(who, Who::Refused(code, reason), &key)
            .with("muster-partner-api-key", partner_key)
    };
    let bad_partner = (Code::Unauthenticated, "PARTNER_API_KEY_INVALID");
    let unknown = Secret::generate(Kind::PartnerApiKey).unwrap();
    everybody.extend([
        badly(
            "a key with a malformed partner API key",
            "mst_pak_",
            bad_partner,
        ),
        badly(
            "a key with an unknown partner API key",
            unknown.expose(),
            bad_partner,
        ),
        badly("a key with a key as partner API key", &key, bad_partner),
    ]);
    everybody.push(
        Somebody::new(
            "a key with another partner's API key",
            Who::KeyMismatched,
            &key,
        )
        .with("muster-partner-api-key", &other_partner_key),
    );
    everybody
}

/// A token of which one character is another.
fn mistyped(token: &str) -> String {
    let (start, last) = token.split_at(token.len() - 1);
    format!("{start}{}", if last == "0" { "1" } else { "0" })
}

async fn key_not_enabled(on: &Deployment) -> String {
    let partner = "former-partner";
    let create = "muster.keys.v1.IntegrationService/CreatePartner";
    on.operator(create, json!({ "partner": partner })).await;
    let here = json!({ "workspace": WORKSPACE, "partner": partner });
    let enable = "muster.keys.v1.IntegrationService/EnablePartner";
    on.operator(enable, here.clone()).await;
    let key = on.key(WORKSPACE, partner).await;
    on.operator("muster.keys.v1.IntegrationService/DisablePartner", here)
        .await;
    key.secret
}

async fn revoked_token(on: &Deployment) -> String {
    let token = on.token(WORKSPACE, &["*"]).await;
    let revoke = "muster.keys.v1.IntegrationService/RevokeServiceToken";
    on.operator(revoke, json!({ "token_id": token.id })).await;
    token.secret
}

async fn revoked_key(on: &Deployment) -> String {
    let key = on.key(WORKSPACE, PARTNER).await;
    on.muster.revoke_key(&key.id).await;
    key.secret
}

async fn expired_token(on: &Deployment) -> String {
    let request = keys::CreateServiceTokenRequest {
        workspace: WORKSPACE.into(),
        label: "short".into(),
        scopes: vec!["*".into()],
        expire_time: Some(soon()),
        ..Default::default()
    };
    let made = on
        .muster
        .operator
        .integrations()
        .create_service_token(request)
        .await;
    expired(on, made.unwrap().into_inner().secret).await
}

async fn expired_key(on: &Deployment) -> String {
    let request = keys::CreateKeyRequest {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        expire_time: Some(soon()),
        ..Default::default()
    };
    let made = on.muster.operator.keys().create_key(request).await;
    expired(on, made.unwrap().into_inner().secret).await
}

fn soon() -> prost_types::Timestamp {
    (SystemTime::now() + Duration::from_secs(2)).into()
}

/// Waits until a credential that expires soon is refused.
async fn expired(on: &Deployment, secret: String) -> String {
    let client = connect(&on.muster.grpc, &secret);
    let accepted = async || {
        let request = muster_proto::ingest::v1::ListCohortsRequest::default();
        client.ingest().list_cohorts(request).await.is_ok()
    };
    while accepted().await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    secret
}

#[tokio::test]
async fn every_rpc_answers_everybody_as_the_table_says() {
    // Here nearly everything is refused.
    let on = Deployment::start_with(Settings {
        attempts: attempts::Settings {
            per_minute: NonZeroU32::MAX,
            ..Default::default()
        },
        ..Settings::default()
    })
    .await;
    let shop = World::make(&on, WORKSPACE, PARTNER).await;
    let everybody = everybody(&on).await;
    let mut calls = 0;
    let mut wrong = Vec::new();
    for row in ROWS {
        // All who are not to know why are told the same.
        let mut told = None;
        for somebody in &everybody {
            let headers: Vec<(&str, &str)> = somebody
                .headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let answer = on
                .call_with(row.rpc, &row.request(&shop, &[]), &headers)
                .await;
            calls += 1;
            let got = (answer.code, answer.reason.as_str());
            let right = match somebody.kind.expected(row) {
                Some(refused) => got == refused && answer.messages.is_empty(),
                // The operator comes first and is served. After that the thing may be used up:
                // archived, rotated, in use.
                None if somebody.kind == Who::Token(None) => got == (Code::Ok, ""),
                None => matches!(answer.code, Code::Ok | Code::FailedPrecondition),
            };
            let same = match somebody.kind {
                Who::Refused(code, reason) if (code, reason) == INVALID => {
                    *told.get_or_insert_with(|| answer.message.clone()) == answer.message
                }
                _ => true,
            };
            if !right || !same {
                wrong.push(format!("{} by {}: {answer:?}", row.rpc, somebody.who));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "{calls} calls: {} requests by {} callers",
        ROWS.len(),
        everybody.len()
    );
    on.muster.stop().await;
}
