//! A whole deployment for a journey: every server on loopback ports, on a database of its own, and
//! clients with the credentials of the people in the story.

#![expect(clippy::unwrap_used, reason = "the harness belongs to tests")]

use std::ops::Deref;

use muster_cli::deployment::{self, Listeners, Settings};
use muster_client::{Connection, Credential, Tls};
use muster_proto::{
    ingest::v1 as ingest, keys::v1 as keys, segments::v1 as segments, users::v1 as users,
};
use muster_storage::Store;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

pub mod proxy;
pub mod rest;

use rest::Rest;

/// Slug of the workspace of every journey.
pub const WORKSPACE: &str = "shop";

/// Slug of the partner of every journey.
pub const PARTNER: &str = "tinyclues";

/// The workspace `shop` with the partner `tinyclues`, enabled, as its people see it over the wire,
/// wherever its servers run.
#[derive(Debug, Clone)]
pub struct Shop {
    /// URL of the gRPC services.
    pub grpc: String,
    /// URL of the REST contract.
    pub rest: String,
    /// The operator's connection.
    pub operator: Connection,
    /// The operator's service token.
    pub operator_token: String,
    /// The partner's API key.
    pub partner_api_key: String,
    /// A data import key of the workspace and partner.
    pub client_secret: String,
    /// How `https` endpoints are trusted, and what they are shown.
    pub tls: Tls,
}

/// A deployment of every server in this process, with the shop in it.
pub struct Muster {
    shop: Shop,
    /// URL of the console.
    pub console: String,
    /// The database, to look behind the scenes.
    pub store: Store,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), deployment::Failure>>,
}

impl Deref for Muster {
    type Target = Shop;

    fn deref(&self) -> &Shop {
        &self.shop
    }
}

impl Muster {
    /// Starts everything.
    pub async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    /// Starts everything with settings of its own.
    pub async fn start_with(mut settings: Settings) -> Self {
        // However small the directories of tests are: the database answers until they are loaded.
        settings.identity.least_users = 0;
        let store = muster_testbed::store().await;
        let operator = muster_keys::bootstrap_operator(&store).await.unwrap();
        let listeners = Listeners {
            grpc: Some(TcpListener::bind("127.0.0.1:0").await.unwrap().into()),
            rest: Some(TcpListener::bind("127.0.0.1:0").await.unwrap().into()),
            console: Some(TcpListener::bind("127.0.0.1:0").await.unwrap().into()),
        };
        let console = listeners.console_url().unwrap();
        let grpc = listeners.grpc_url().unwrap();
        let rest = listeners.rest_url().unwrap();
        let shutdown = CancellationToken::new();
        let running = deployment::run(settings, Some(store.clone()), listeners, shutdown.clone());
        let running = tokio::spawn(running);
        let shop = Shop::open(&grpc, &rest, operator.expose()).await;
        Self {
            shop,
            console,
            store,
            shutdown,
            running,
        }
    }

    /// Stops everything in an orderly way.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

impl Shop {
    /// Creates it in a deployment that listens at these URLs.
    pub async fn open(grpc: &str, rest: &str, operator_token: &str) -> Self {
        Self::open_with(&Tls::default(), grpc, rest, operator_token).await
    }

    /// Creates it in a deployment that listens, with TLS, at these URLs.
    pub async fn open_with(tls: &Tls, grpc: &str, rest: &str, operator_token: &str) -> Self {
        let mut shop = Self {
            grpc: grpc.to_owned(),
            rest: rest.to_owned(),
            operator: connect_with(tls, grpc, operator_token),
            operator_token: operator_token.to_owned(),
            partner_api_key: String::new(),
            client_secret: String::new(),
            tls: tls.clone(),
        };
        shop.set_up().await;
        shop
    }

    async fn set_up(&mut self) {
        let mut integrations = self.operator.integrations();
        let workspace = keys::CreateWorkspaceRequest {
            workspace: WORKSPACE.into(),
            ..Default::default()
        };
        integrations.create_workspace(workspace).await.unwrap();
        let partner = keys::CreatePartnerRequest {
            partner: PARTNER.into(),
            ..Default::default()
        };
        integrations.create_partner(partner).await.unwrap();
        let enable = keys::EnablePartnerRequest {
            workspace: WORKSPACE.into(),
            partner: PARTNER.into(),
            request_id: String::new(),
        };
        integrations.enable_partner(enable).await.unwrap();
        let key = keys::CreatePartnerApiKeyRequest {
            partner: PARTNER.into(),
            ..Default::default()
        };
        let key = integrations.create_partner_api_key(key).await.unwrap();
        self.partner_api_key = key.into_inner().secret;
        self.client_secret = self.create_key().await.secret;
    }

    /// Creates another data import key.
    pub async fn create_key(&self) -> keys::CreateKeyResponse {
        let request = keys::CreateKeyRequest {
            workspace: WORKSPACE.into(),
            partner: PARTNER.into(),
            ..Default::default()
        };
        self.operator
            .keys()
            .create_key(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// Revokes a data import key.
    pub async fn revoke_key(&self, key_id: &str) {
        let request = keys::RevokeKeyRequest {
            workspace: WORKSPACE.into(),
            key_id: key_id.into(),
            request_id: String::new(),
        };
        self.operator.keys().revoke_key(request).await.unwrap();
    }

    /// The partner's own connection, with its data import key.
    pub fn partner(&self) -> Connection {
        connect_with(&self.tls, &self.grpc, &self.client_secret)
    }

    /// The operator's connection to another endpoint of the deployment.
    pub fn operator_at(&self, grpc: &str) -> Connection {
        connect_with(&self.tls, grpc, &self.operator_token)
    }

    /// The partner's HTTP client, with its keys.
    pub fn rest(&self) -> Rest {
        Rest::new(
            &self.rest,
            PARTNER,
            &self.partner_api_key,
            &self.client_secret,
        )
        .trusting(self.tls.ca.as_deref())
    }

    /// Writes users; every one must be accepted.
    pub async fn upsert_users(&self, records: Vec<users::UserRecord>) {
        for records in records.chunks(1_000) {
            let request = users::UpsertUsersRequest {
                workspace: WORKSPACE.into(),
                users: records.to_vec(),
                request_id: String::new(),
            };
            let answer = self.operator.users().upsert_users(request).await.unwrap();
            for result in answer.into_inner().results {
                let refused = [users::UserOutcome::Conflict, users::UserOutcome::Invalid];
                assert!(!refused.contains(&result.outcome()), "{result:?}");
            }
        }
    }

    /// A cohort as the operator sees it.
    pub async fn cohort(&self, cohort_id: &str) -> ingest::Cohort {
        let request = ingest::GetCohortRequest {
            workspace: WORKSPACE.into(),
            partner: PARTNER.into(),
            cohort_id: cohort_id.into(),
        };
        let answer = self.operator.ingest().get_cohort(request).await.unwrap();
        answer.into_inner().cohort.unwrap()
    }

    /// The whole audience of a filter in its text form.
    pub async fn audience(&self, filter: &str) -> Vec<segments::AudienceMember> {
        let request = segments::ResolveSegmentRequest {
            workspace: WORKSPACE.into(),
            audience: Some(segments::resolve_segment_request::Audience::Filter(text(
                filter,
            ))),
            view: segments::AudienceView::Full.into(),
            ..Default::default()
        };
        let stream = self
            .operator
            .segments()
            .resolve_segment(request)
            .await
            .unwrap();
        read_audience(stream.into_inner()).await
    }

    /// The external ids, sorted, of the whole audience of a filter in its text form.
    pub async fn audience_ids(&self, filter: &str) -> Vec<String> {
        let members = self.audience(filter).await.into_iter();
        let mut ids: Vec<String> = members.map(|member| member.external_id).collect();
        ids.sort();
        ids
    }
}

/// A connection with a bearer credential.
pub fn connect(endpoint: &str, secret: &str) -> Connection {
    connect_with(&Tls::default(), endpoint, secret)
}

/// The same, with TLS.
pub fn connect_with(tls: &Tls, endpoint: &str, secret: &str) -> Connection {
    let credential = Credential::bearer(secret).unwrap();
    Connection::with_tls(endpoint, tls, Some(credential)).unwrap()
}

/// An identified user without anything else.
pub fn identified(external_id: &str) -> users::UserRecord {
    users::UserRecord {
        external_id: external_id.into(),
        ..Default::default()
    }
}

/// A filter in its text form.
pub fn text(filter: &str) -> segments::FilterExpression {
    segments::FilterExpression {
        form: Some(segments::filter_expression::Form::Text(filter.into())),
    }
}

/// Reads an audience to its end and checks that it is complete.
pub async fn read_audience(
    mut stream: Streaming<segments::ResolveSegmentResponse>,
) -> Vec<segments::AudienceMember> {
    use segments::resolve_segment_response::Message;

    let mut members = Vec::new();
    let mut expected = None;
    while let Some(answer) = stream.message().await.unwrap() {
        match answer.message.unwrap() {
            Message::Header(header) => expected = Some(header.partition_user_count),
            Message::Batch(batch) => members.extend(batch.users),
            Message::End(end) => {
                assert_eq!(
                    Some(end.user_count),
                    expected,
                    "the end agrees with the header"
                );
                assert_eq!(end.user_count, members.len() as u64, "nobody is missing");
                let ascending = members
                    .windows(2)
                    .all(|two| two[0].user_no < two[1].user_no);
                assert!(ascending, "order is by user_no");
                return members;
            }
        }
    }
    panic!("the stream has no end");
}
