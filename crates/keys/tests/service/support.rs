//! A running server, and short names for what every story needs.

use std::time::Duration;

use muster_client::{Connection, Credential};
use muster_domain::credential::Secret;
use muster_keys::{Settings, bootstrap_operator, register};
use muster_proto::{
    ingest::v1::GetCohortRequest,
    keys::v1::{self as pb, KeyState},
};
use muster_service::server::{self, Services};
use muster_storage::Store;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A server on a loopback port with a database of its own, which ends with this value.
pub(crate) struct Muster {
    pub(crate) store: Store,
    pub(crate) endpoint: String,
    /// May do everything.
    pub(crate) operator: Connection,
    pub(crate) operator_secret: Secret,
    _shutdown: DropGuard,
}

impl Muster {
    pub(crate) async fn start() -> Self {
        let store = muster_testbed::store().await;
        let operator_secret = bootstrap_operator(&store).await.unwrap();
        let mut services = Services::default();
        let settings = Settings {
            rest_public_url: "https://muster.example.com/".to_owned(),
        };
        register(&mut services, store.clone(), settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let (serving, ended) = (store.clone(), shutdown.clone());
        tokio::spawn(async move {
            let (settings, contract) = (
                server::Settings::default(),
                muster_proto::FILE_DESCRIPTOR_SET,
            );
            let served = services.serve(listener, serving, &settings, contract, ended);
            served.await;
        });
        Self {
            operator: connect(&endpoint, operator_secret.expose()),
            operator_secret,
            store,
            endpoint,
            _shutdown: shutdown.drop_guard(),
        }
    }

    /// A caller with a secret.
    pub(crate) fn with(&self, secret: &str) -> Connection {
        connect(&self.endpoint, secret)
    }

    pub(crate) async fn workspace(&self, workspace: &str) {
        let request = pb::CreateWorkspaceRequest {
            workspace: workspace.to_owned(),
            ..Default::default()
        };
        let mut operator = self.operator.integrations();
        operator.create_workspace(request).await.unwrap();
    }

    pub(crate) async fn partner(&self, partner: &str) {
        let request = pb::CreatePartnerRequest {
            partner: partner.to_owned(),
            ..Default::default()
        };
        let mut operator = self.operator.integrations();
        operator.create_partner(request).await.unwrap();
    }

    pub(crate) async fn enable(&self, workspace: &str, partner: &str) {
        let request = pb::EnablePartnerRequest {
            workspace: workspace.to_owned(),
            partner: partner.to_owned(),
            ..Default::default()
        };
        let mut operator = self.operator.integrations();
        operator.enable_partner(request).await.unwrap();
    }

    /// Workspace `acme` with the partner `tinyclues` enabled.
    pub(crate) async fn with_integration() -> Self {
        let muster = Self::start().await;
        muster.workspace("acme").await;
        muster.partner("tinyclues").await;
        muster.enable("acme", "tinyclues").await;
        muster
    }

    /// A new data import key of `tinyclues`.
    pub(crate) async fn key(&self, workspace: &str) -> (pb::DataImportKey, String) {
        let request = new_key(workspace, "");
        let created = self.operator.keys().create_key(request).await.unwrap();
        let created = created.into_inner();
        (created.key.unwrap(), created.secret)
    }

    pub(crate) async fn get_key(&self, key: &pb::DataImportKey) -> pb::DataImportKey {
        let request = pb::GetKeyRequest {
            workspace: key.workspace.clone(),
            key_id: key.key_id.clone(),
        };
        let found = self.operator.keys().get_key(request).await.unwrap();
        found.into_inner().key.unwrap()
    }

    /// A new service token; workspace and label are the same.
    pub(crate) async fn token(
        &self,
        workspace: &str,
        scopes: &[&str],
    ) -> (pb::ServiceToken, String) {
        let request = new_token(workspace, scopes);
        let mut operator = self.operator.integrations();
        let created = operator.create_service_token(request).await.unwrap();
        let created = created.into_inner();
        (created.token.unwrap(), created.secret)
    }

    /// Whether a data import key would get as far as the ingest service, which is not served here;
    /// the reason if not.
    pub(crate) async fn admits(&self, data_import_key: &str) -> Result<(), String> {
        admitted(&self.with(data_import_key)).await
    }

    /// Returns once a call waits for something that a transaction holds.
    pub(crate) async fn somebody_waits(&self) {
        let mut sql = self.store.connection().await.unwrap();
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE wait_event_type = 'Lock' AND datname = current_database()";
        soon(async || {
            let count: i64 = sqlx::query_scalar(waiting)
                .fetch_one(&mut *sql)
                .await
                .unwrap();
            count > 0
        })
        .await;
    }

    /// All audit events, oldest first.
    pub(crate) async fn trail(&self) -> Vec<pb::AuditEvent> {
        let request = pb::ListAuditEventsRequest {
            page_size: 1_000,
            ..Default::default()
        };
        let mut operator = self.operator.integrations();
        let listed = operator.list_audit_events(request).await.unwrap();
        let mut events = listed.into_inner().events;
        events.reverse();
        events
    }
}

pub(crate) async fn admitted(caller: &Connection) -> Result<(), String> {
    let answer = caller
        .ingest()
        .get_cohort(GetCohortRequest::default())
        .await;
    let status = answer.unwrap_err();
    match status.code() {
        Code::Unimplemented => Ok(()),
        _ => Err(reason(&status)),
    }
}

/// Asks until the answer is yes.
pub(crate) async fn soon(mut holds: impl AsyncFnMut() -> bool) {
    let asked = async { while !holds().await {} };
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, asked)
        .await
        .expect("it comes true within 10 s");
}

fn connect(endpoint: &str, secret: &str) -> Connection {
    Connection::new(endpoint, Some(Credential::bearer(secret).unwrap())).unwrap()
}

pub(crate) fn new_key(workspace: &str, request_id: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest {
        workspace: workspace.to_owned(),
        partner: "tinyclues".to_owned(),
        label: "etl".to_owned(),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn new_token(workspace: &str, scopes: &[&str]) -> pb::CreateServiceTokenRequest {
    pb::CreateServiceTokenRequest {
        workspace: workspace.to_owned(),
        label: "campaigns".to_owned(),
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        ..Default::default()
    }
}

pub(crate) fn revoke_key(key: &pb::DataImportKey) -> pb::RevokeKeyRequest {
    pb::RevokeKeyRequest {
        workspace: key.workspace.clone(),
        key_id: key.key_id.clone(),
        ..Default::default()
    }
}

pub(crate) fn rotate_key(key: &pb::DataImportKey, overlap_s: Option<i64>) -> pb::RotateKeyRequest {
    pb::RotateKeyRequest {
        workspace: key.workspace.clone(),
        key_id: key.key_id.clone(),
        overlap: overlap_s.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    }
}

/// The stable reason of a refusal.
pub(crate) fn reason(status: &Status) -> String {
    match status.get_details_error_info() {
        Some(info) => info.reason,
        None => panic!("no reason in {status:?}"),
    }
}

/// The fields that a refusal names.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    violations.into_iter().map(|one| one.field).collect()
}

/// All that a caller can tell from a refusal.
pub(crate) fn seen(status: &Status) -> (Code, String, Vec<u8>) {
    let text = status.message().to_owned();
    (status.code(), text, status.details().to_vec())
}

pub(crate) const ACTIVE: i32 = KeyState::Active as i32;
pub(crate) const EXPIRED: i32 = KeyState::Expired as i32;
pub(crate) const REVOKED: i32 = KeyState::Revoked as i32;
