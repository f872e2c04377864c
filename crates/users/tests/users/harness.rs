//! A running server, and short names for what every story needs.

use muster_client::{Client, Connection, Credential};
use muster_domain::credential::{Kind, Secret};
use muster_proto::users::v1::{
    self as pb, Alias, Identifier, UserOutcome, UserRecord, UserResult, identifier,
    user_service_client::UserServiceClient,
};
use muster_service::{
    ConsistencyToken,
    server::{self, Services},
};
use muster_storage::{
    Settings, Store, WorkspaceId,
    credentials::{self, NewCredential},
    workspaces,
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A server on a loopback port with a database of its own and the workspace `shop`.
pub(crate) struct Muster {
    pub(crate) store: Store,
    /// May do everything.
    pub(crate) users: UserServiceClient<Client>,
    pub(crate) shutdown: CancellationToken,
    endpoint: String,
    _ended: DropGuard,
}

impl Muster {
    pub(crate) async fn start() -> Self {
        Self::with(20, muster_users::Settings::default()).await
    }

    /// Starts it with so many connections to the database.
    pub(crate) async fn with_connections(max_connections: u32) -> Self {
        Self::with(max_connections, muster_users::Settings::default()).await
    }

    pub(crate) async fn with(max_connections: u32, settings: muster_users::Settings) -> Self {
        let store = Store::connect(&Settings {
            max_connections,
            ..Settings::new(muster_testbed::database().await)
        });
        let store = store.unwrap();
        let shutdown = CancellationToken::new();
        let mut services = Services::default();
        muster_users::register(&mut services, store.clone(), settings, shutdown.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (serving, ended) = (store.clone(), shutdown.clone());
        tokio::spawn(async move {
            let settings = server::Settings::default();
            let contract = muster_proto::FILE_DESCRIPTOR_SET;
            let served = services.serve(listener, serving, &settings, contract, ended);
            served.await;
        });
        workspace(&store, "shop").await;
        let (_, operator) = token(&store, &endpoint, None, "*").await;
        Self {
            users: operator.users(),
            store,
            endpoint,
            _ended: shutdown.clone().drop_guard(),
            shutdown,
        }
    }

    /// A service token with one scope, and a caller with it.
    pub(crate) async fn token(
        &self,
        workspace: Option<WorkspaceId>,
        scope: &str,
    ) -> (uuid::Uuid, UserServiceClient<Client>) {
        let (id, caller) = token(&self.store, &self.endpoint, workspace, scope).await;
        (id, caller.users())
    }

    pub(crate) async fn workspace(&self, slug: &str) -> WorkspaceId {
        workspace(&self.store, slug).await
    }

    pub(crate) async fn upsert(&self, users: Vec<UserRecord>) -> Vec<UserResult> {
        let request = pb::UpsertUsersRequest {
            workspace: "shop".to_owned(),
            users,
            ..Default::default()
        };
        let answer = self.users.clone().upsert_users(request).await.unwrap();
        answer.into_inner().results
    }

    pub(crate) async fn identify(&self, entries: Vec<(Identifier, &str)>) -> Vec<UserResult> {
        let entry = |(user, external_id): (_, &str)| pb::identify_users_request::Entry {
            user: Some(user),
            external_id: external_id.to_owned(),
        };
        let request = pb::IdentifyUsersRequest {
            workspace: "shop".to_owned(),
            entries: entries.into_iter().map(entry).collect(),
            ..Default::default()
        };
        let answer = self.users.clone().identify_users(request).await.unwrap();
        answer.into_inner().results
    }

    pub(crate) async fn merge(&self, entries: Vec<(Identifier, Identifier)>) -> Vec<UserResult> {
        let entry = |(from, into)| pb::merge_users_request::Entry {
            from: Some(from),
            into: Some(into),
        };
        let request = pb::MergeUsersRequest {
            workspace: "shop".to_owned(),
            entries: entries.into_iter().map(entry).collect(),
            ..Default::default()
        };
        let answer = self.users.clone().merge_users(request).await.unwrap();
        answer.into_inner().results
    }

    pub(crate) async fn delete(&self, users: Vec<Identifier>) -> Vec<UserResult> {
        let request = pb::DeleteUsersRequest {
            workspace: "shop".to_owned(),
            users,
            request_id: "erasure".to_owned(),
        };
        let answer = self.users.clone().delete_users(request).await.unwrap();
        answer.into_inner().results
    }

    pub(crate) async fn find(&self, user: impl Into<Name>) -> Result<pb::FindUserResponse, Status> {
        let request = pb::FindUserRequest {
            workspace: "shop".to_owned(),
            user: Some(user.into().0),
        };
        let found = self.users.clone().find_user(request).await?;
        Ok(found.into_inner())
    }
}

async fn workspace(store: &Store, slug: &str) -> WorkspaceId {
    let mut tx = store.begin("workspace").await.unwrap();
    let workspace = workspaces::insert(&mut tx, slug, "").await.unwrap();
    tx.commit().await.unwrap();
    workspace.id
}

async fn token(
    store: &Store,
    endpoint: &str,
    workspace: Option<WorkspaceId>,
    scope: &str,
) -> (uuid::Uuid, Connection) {
    let secret = Secret::generate(Kind::ServiceToken).unwrap();
    let mut connection = store.connection().await.unwrap();
    let token = NewCredential {
        secret: &secret,
        workspace,
        partner: None,
        scopes: &[scope.to_owned()],
        allowed_addresses: &[],
        label: "",
        created_by: "test",
        expires_at: None,
    };
    let token = credentials::insert(&mut connection, &token).await.unwrap();
    let credential = Credential::bearer(secret.expose()).unwrap();
    let caller = Connection::new(endpoint, Some(credential)).unwrap();
    (token.id, caller)
}

/// What `FindUser` takes.
pub(crate) struct Name(pb::find_user_request::User);

impl From<Identifier> for Name {
    fn from(identifier: Identifier) -> Self {
        Self(pb::find_user_request::User::Identifier(identifier))
    }
}

impl From<u32> for Name {
    fn from(number: u32) -> Self {
        Self(pb::find_user_request::User::UserNo(number))
    }
}

pub(crate) fn external_id(id: &str) -> Identifier {
    Identifier {
        kind: Some(identifier::Kind::ExternalId(id.to_owned())),
    }
}

pub(crate) fn alias(label: &str, name: &str) -> Identifier {
    let (label, name) = (label.to_owned(), name.to_owned());
    Identifier {
        kind: Some(identifier::Kind::Alias(Alias { label, name })),
    }
}

pub(crate) fn device(id: &str) -> Identifier {
    Identifier {
        kind: Some(identifier::Kind::DeviceId(id.to_owned())),
    }
}

/// Reads `ext=a newsletter=b dev=c`; what is neither `ext` nor `dev` is the label of an alias.
pub(crate) fn record(text: &str) -> UserRecord {
    let mut record = UserRecord::default();
    for part in text.split(' ').filter(|part| !part.is_empty()) {
        match part.split_once('=').unwrap() {
            ("ext", id) => record.external_id = id.to_owned(),
            ("dev", id) => record.device_ids.push(id.to_owned()),
            (label, name) => record.aliases.push(Alias {
                label: label.to_owned(),
                name: name.to_owned(),
            }),
        }
    }
    record
}

pub(crate) fn records(texts: &[&str]) -> Vec<UserRecord> {
    texts.iter().map(|text| record(text)).collect()
}

/// Outcome and user of each result, having checked that they are in order.
pub(crate) fn outcomes(results: &[UserResult]) -> Vec<(UserOutcome, Option<u32>)> {
    for (index, result) in (0..).zip(results) {
        assert_eq!(result.index, index);
    }
    let outcome = |result: &UserResult| (result.outcome(), result.user_no);
    results.iter().map(outcome).collect()
}

pub(crate) fn epoch(consistency_token: &str) -> i64 {
    let token = ConsistencyToken::decode(consistency_token);
    token.unwrap().directory_epoch
}

/// The status, its reason, and the first field that is wrong, if any.
pub(crate) fn refusal(status: &Status) -> (Code, String, String) {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    let field = details.bad_request().map(|bad| {
        let violation = bad.field_violations.first();
        violation.unwrap().field.clone()
    });
    (
        status.code(),
        reason.unwrap_or_default(),
        field.unwrap_or_default(),
    )
}

pub(crate) fn refused_as(status: &Status, code: Code, reason: &str, field: &str) {
    let expected = (code, reason.to_owned(), field.to_owned());
    assert_eq!(refusal(status), expected, "{status:?}");
}
