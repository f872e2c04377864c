//! A real server on a loopback port, a real Postgres, real clients.

use std::time::Duration;

use muster_client::{Connection, Credential};
use muster_domain::{
    credential::{Kind, Secret},
    identifier::IdentifierRef,
    import::{Effect, ImportDigest},
};
use muster_identity::Identities;
use muster_ingest::Settings;
use muster_proto::{
    ingest::v1::{self as pb, ingest_cohort_request as req, ingest_cohort_response as res},
    users::v1::Alias,
};
use muster_service::server::{Services, Settings as ServerSettings};
use muster_storage::{
    Store, WorkspaceId,
    credentials::{self, NewCredential},
    partners, workspaces,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

/// A workspace `shop` with the partner `tinyclues`, and a server.
pub(crate) struct Harness {
    pub(crate) store: Store,
    pub(crate) workspace: WorkspaceId,
    pub(crate) operator: Connection,
    pub(crate) partner: Connection,
    pub(crate) key: uuid::Uuid,
    endpoint: String,
    _server: DropGuard,
}

pub(crate) async fn start() -> Harness {
    start_with(Settings::default()).await
}

pub(crate) async fn start_with(settings: Settings) -> Harness {
    let store = muster_testbed::store().await;
    let mut tx = store.begin("seed").await.unwrap();
    let workspace = workspaces::insert(&mut tx, "shop", "Shop")
        .await
        .unwrap()
        .id;
    for partner in ["tinyclues", "amplitude"] {
        partners::insert(&mut tx, partner, partner).await.unwrap();
        partners::enable(&mut tx, workspace, partner).await.unwrap();
    }
    tx.commit().await.unwrap();
    let shutdown = CancellationToken::new();
    let mut services = Services::default();
    let identities = Identities::new(
        store.clone(),
        muster_identity::Settings {
            // However small the directories of tests are.
            least_users: 0,
            ..Default::default()
        },
    );
    muster_ingest::register(
        &mut services,
        store.clone(),
        identities,
        settings,
        shutdown.clone(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (serving_store, stop) = (store.clone(), shutdown.clone());
    tokio::spawn(async move {
        let settings = ServerSettings::default();
        services
            .serve(
                listener,
                serving_store,
                &settings,
                muster_proto::FILE_DESCRIPTOR_SET,
                stop,
            )
            .await;
    });
    let operator = token(&store, &endpoint).await;
    let (key, partner) = key(&store, &endpoint, workspace, "tinyclues").await;
    Harness {
        store,
        workspace,
        operator,
        partner,
        key,
        endpoint,
        _server: shutdown.drop_guard(),
    }
}

async fn token(store: &Store, endpoint: &str) -> Connection {
    let secret = Secret::generate(Kind::ServiceToken).unwrap();
    let scopes = ["*".to_owned()];
    let new = NewCredential {
        secret: &secret,
        workspace: None,
        partner: None,
        scopes: &scopes,
        allowed_addresses: &[],
        label: "test",
        created_by: "test",
        expires_at: None,
    };
    let mut connection = store.connection().await.unwrap();
    credentials::insert(&mut connection, &new).await.unwrap();
    connect(endpoint, &secret)
}

async fn key(
    store: &Store,
    endpoint: &str,
    workspace: WorkspaceId,
    partner: &str,
) -> (uuid::Uuid, Connection) {
    let secret = Secret::generate(Kind::DataImportKey).unwrap();
    let new = NewCredential {
        secret: &secret,
        workspace: Some(workspace),
        partner: Some(partner),
        scopes: &[],
        allowed_addresses: &[],
        label: "test",
        created_by: "test",
        expires_at: None,
    };
    let mut connection = store.connection().await.unwrap();
    let created = credentials::insert(&mut connection, &new).await.unwrap();
    (created.id, connect(endpoint, &secret))
}

fn connect(endpoint: &str, secret: &Secret) -> Connection {
    let credential = Credential::bearer(secret.expose()).unwrap();
    Connection::new(endpoint, Some(credential)).unwrap()
}

impl Harness {
    /// Another key of the partner.
    pub(crate) async fn another_key(&self) -> (uuid::Uuid, Connection) {
        key(&self.store, &self.endpoint, self.workspace, "tinyclues").await
    }

    /// A key of another partner of the same workspace.
    pub(crate) async fn other_partner(&self) -> Connection {
        key(&self.store, &self.endpoint, self.workspace, "amplitude")
            .await
            .1
    }

    /// Runs plain SQL, as an administrator would.
    pub(crate) async fn sql(&self, statement: &'static str) {
        let mut connection = self.store.connection().await.unwrap();
        muster_testbed::execute(&mut connection, statement).await;
    }

    /// Runs plain SQL that answers one number.
    pub(crate) async fn number(&self, query: &'static str) -> i64 {
        let mut connection = self.store.connection().await.unwrap();
        muster_testbed::number(&mut connection, query).await
    }

    /// Users 0..count, identified as `u-N`; then as many anonymous ones, with device `d-N`.
    pub(crate) async fn seed_users(&self, count: u32) {
        let mut connection = self.store.connection().await.unwrap();
        muster_testbed::seed_users(&mut connection, self.workspace, count).await;
    }

    /// The exact live members of a cohort.
    pub(crate) async fn members(&self, cohort_id: &str) -> Vec<u32> {
        let mut ingest = self.operator.ingest();
        let request = pb::GetCohortRequest {
            workspace: "shop".into(),
            partner: "tinyclues".into(),
            cohort_id: cohort_id.into(),
        };
        let cohort = ingest
            .get_cohort(request)
            .await
            .unwrap()
            .into_inner()
            .cohort
            .unwrap();
        let snapshot = self.store.directory_snapshot("test", self.workspace);
        let (mut tx, directory) = snapshot.await.unwrap();
        let key = muster_storage::cohorts::CohortKey {
            partner: "tinyclues",
            partner_cohort_id: cohort_id,
        };
        let found = muster_storage::cohorts::find(&mut tx, self.workspace, key).await;
        let found = found.unwrap().unwrap();
        let stored =
            muster_storage::versions::stored(&mut tx, self.workspace, found.id, found.version);
        let members = directory.tombstones.normalise(stored.await.unwrap());
        assert_eq!(
            cohort.member_count,
            Some(members.len()),
            "the size is exact"
        );
        members.iter().collect()
    }
}

/// An import as a client drives it, message by message.
pub(crate) struct Upload {
    requests: Option<mpsc::Sender<pb::IngestCohortRequest>>,
    answers: Streaming<pb::IngestCohortResponse>,
    pub(crate) offset: u64,
    pub(crate) digest: ImportDigest,
}

pub(crate) fn open(import_id: &str, mode: pb::ImportMode) -> pb::OpenImport {
    pb::OpenImport {
        workspace: "shop".into(),
        partner: "tinyclues".into(),
        cohort_id: "spring".into(),
        mode: mode.into(),
        import_id: import_id.into(),
        ..Default::default()
    }
}

pub(crate) fn delta(import_id: &str) -> pb::OpenImport {
    open(import_id, pb::ImportMode::Delta)
}

pub(crate) fn replace(import_id: &str) -> pb::OpenImport {
    open(import_id, pb::ImportMode::Replace)
}

pub(crate) fn add(external_ids: &[&str]) -> pb::CohortChange {
    change(pb::ChangeEffect::Add, external_ids, &[], &[])
}

pub(crate) fn remove(external_ids: &[&str]) -> pb::CohortChange {
    change(pb::ChangeEffect::Remove, external_ids, &[], &[])
}

pub(crate) fn change(
    effect: pb::ChangeEffect,
    external_ids: &[&str],
    aliases: &[(&str, &str)],
    device_ids: &[&str],
) -> pb::CohortChange {
    let aliases = aliases.iter().map(|(label, name)| Alias {
        label: (*label).into(),
        name: (*name).into(),
    });
    pb::CohortChange {
        effect: effect.into(),
        external_ids: external_ids.iter().collect(),
        aliases: aliases.collect(),
        device_ids: device_ids.iter().collect(),
    }
}

/// Goes on with a digest as the contract describes it.
pub(crate) fn digest_of(digest: &mut ImportDigest, changes: &[pb::CohortChange]) -> u64 {
    let mut count = 0;
    for change in changes {
        let effect = match change.effect() {
            pb::ChangeEffect::Remove => Effect::Remove,
            _ => Effect::Add,
        };
        let ids = change.external_ids.iter().map(IdentifierRef::external_id);
        let aliases = change.aliases.iter();
        let aliases = aliases.map(|alias| IdentifierRef::alias(&alias.label, &alias.name));
        let devices = change.device_ids.iter().map(IdentifierRef::device_id);
        for identifier in ids.chain(aliases).chain(devices) {
            digest.update(effect, identifier);
            count += 1;
        }
    }
    count
}

pub(crate) type Answer = res::Message;

impl Upload {
    /// Opens an import and expects it to be opened.
    pub(crate) async fn open(connection: &Connection, open: pb::OpenImport) -> Self {
        let (mut upload, first) = Self::start(connection, open).await;
        match first {
            Ok(Answer::Opened(opened)) => upload.offset = opened.next_offset,
            other => panic!("not opened: {other:?}"),
        }
        upload
    }

    /// Opens an import; returns the first answer.
    pub(crate) async fn start(
        connection: &Connection,
        open: pb::OpenImport,
    ) -> (Self, Result<Answer, Status>) {
        let mut upload = Self::send_only(connection, vec![req::Message::Open(open)]).await;
        let first = upload.answer().await;
        (upload, first)
    }

    /// Sends messages without waiting for answers.
    pub(crate) async fn send_only(connection: &Connection, messages: Vec<req::Message>) -> Self {
        let (requests, stream) = mpsc::channel(64);
        for message in messages {
            let message = Some(message);
            requests
                .send(pb::IngestCohortRequest { message })
                .await
                .unwrap();
        }
        let answers = connection
            .ingest()
            .ingest_cohort(ReceiverStream::new(stream))
            .await;
        Self {
            requests: Some(requests),
            answers: answers.unwrap().into_inner(),
            offset: 0,
            digest: ImportDigest::default(),
        }
    }

    pub(crate) async fn send(&mut self, message: req::Message) -> Result<Answer, Status> {
        let message = Some(message);
        let requests = self.requests.as_ref().unwrap();
        // A server that has ended the stream has said why.
        let _ = requests.send(pb::IngestCohortRequest { message }).await;
        self.answer().await
    }

    /// The next answer; the end of the stream is an error here.
    pub(crate) async fn answer(&mut self) -> Result<Answer, Status> {
        let limit = Duration::from_secs(30);
        let answer = tokio::time::timeout(limit, self.answers.message())
            .await
            .unwrap()?;
        let answer = answer.ok_or_else(|| Status::cancelled("end of stream"))?;
        Ok(answer.message.unwrap())
    }

    /// Sends a batch at the current offset.
    pub(crate) async fn batch(&mut self, changes: Vec<pb::CohortChange>) -> Result<Answer, Status> {
        let offset = self.offset;
        self.offset += digest_of(&mut self.digest, &changes);
        let batch = pb::IdentifierBatch { offset, changes };
        self.send(req::Message::Batch(batch)).await
    }

    /// Commits what was sent.
    pub(crate) async fn commit(&mut self) -> Result<Answer, Status> {
        let commit = self.commit_message();
        self.send(commit).await
    }

    pub(crate) fn commit_message(&self) -> req::Message {
        req::Message::Commit(pb::CommitImport {
            total: self.offset,
            digest: self.digest.finish().to_vec().into(),
        })
    }

    /// Commits and expects it to be published.
    pub(crate) async fn publish(&mut self) -> pb::Committed {
        match self.commit().await {
            Ok(Answer::Committed(committed)) => committed,
            other => panic!("not published: {other:?}"),
        }
    }

    /// Ends the client's half of the stream; waits for the server to end its own.
    pub(crate) async fn half_close(mut self) -> Result<Option<pb::IngestCohortResponse>, Status> {
        self.requests = None;
        self.answers.message().await
    }
}

/// Publishes a whole import.
pub(crate) async fn import(
    connection: &Connection,
    open: pb::OpenImport,
    changes: Vec<pb::CohortChange>,
) -> pb::Committed {
    let mut upload = Upload::open(connection, open).await;
    upload.batch(changes).await.unwrap();
    upload.publish().await
}

pub(crate) fn outcomes(committed: &pb::Committed) -> pb::OutcomeCounts {
    let summary = committed.summary.as_ref().unwrap();
    let outcomes = *summary.outcomes.as_ref().unwrap();
    let sum = outcomes.added
        + outcomes.already_member
        + outcomes.removed
        + outcomes.not_member
        + outcomes.unknown
        + outcomes.device_of_identified_user
        + outcomes.duplicate
        + outcomes.superseded
        + outcomes.invalid;
    assert_eq!(summary.received, sum, "received is the sum of the outcomes");
    outcomes
}

#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: &str,
) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has a reason");
    assert_eq!(info.reason, reason, "{status:?}");
    assert_eq!(info.domain, "muster");
}
