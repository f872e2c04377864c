//! A deployment with one workspace, `shop`, and what tests do to it.

use std::{sync::Arc, time::Duration};

use muster_client::{Client, Connection, Credential};
use muster_domain::{
    credential::{Kind, Secret},
    identifier::IdentifierRef,
    import::{Effect, Mode, Run, Tally},
    user_set::UserSet,
};
use muster_identity::Identities;
use muster_proto::segments::v1::{
    self as pb, AudienceBatch, AudienceEnd, AudienceHeader, resolve_segment_response::Message,
    segment_service_client::SegmentServiceClient,
};
use muster_segments::Settings;
use muster_service::server::{self, Services};
use muster_storage::{
    Store, WorkspaceId, cohorts,
    credentials::{self, NewCredential},
    rejected,
    versions::{self, NewVersion},
    workspaces,
};
use sqlx::AssertSqlSafe;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

/// A server, its database, and the workspace `shop`.
pub(crate) struct Deployment {
    pub(crate) store: Store,
    pub(crate) shop: WorkspaceId,
    pub(crate) shutdown: CancellationToken,
    /// The service token that [`client`](Self::client) calls with.
    pub(crate) token: Uuid,
    anonymous: Connection,
    connection: Connection,
}

impl Drop for Deployment {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Deployment {
    pub(crate) async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    pub(crate) async fn start_with(settings: Settings) -> Self {
        let store = muster_testbed::store().await;
        let mut conn = store.connection().await.unwrap();
        let shop = workspaces::insert(&mut conn, "shop", "Shop").await.unwrap();
        drop(conn);
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut services = Services::default();
        let identities = Identities::new(store.clone(), Default::default());
        muster_segments::register(&mut services, identities, settings, shutdown.clone());
        let (serving, stop) = (store.clone(), shutdown.clone());
        tokio::spawn(async move {
            let settings = server::Settings::default();
            let serve = services.serve(listener, serving, &settings, &[], stop);
            serve.await;
        });
        let anonymous = Connection::new(&endpoint, None).unwrap();
        let (token, credential) = token(&store, Some(shop.id)).await;
        Self {
            store,
            shop: shop.id,
            shutdown,
            token,
            connection: anonymous.with_credential(credential),
            anonymous,
        }
    }

    pub(crate) fn client(&self) -> SegmentServiceClient<Client> {
        self.connection.segments()
    }

    /// A client of another workspace, which is created.
    pub(crate) async fn stranger(&self) -> (WorkspaceId, SegmentServiceClient<Client>) {
        let mut conn = self.store.connection().await.unwrap();
        let other = workspaces::insert(&mut conn, "other", "Other")
            .await
            .unwrap();
        let (_, credential) = token(&self.store, Some(other.id)).await;
        let client = self.anonymous.with_credential(credential).segments();
        (other.id, client)
    }

    /// Runs statements in one transaction; `$ws` stands for the workspace.
    pub(crate) async fn sql(&self, statements: &str) {
        let statements = statements.replace("$ws", &self.shop.0.to_string());
        let mut conn = self.store.connection().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(statements))
            .execute(&mut *conn)
            .await
            .unwrap();
    }

    /// A number from the database; `$ws` stands for the workspace.
    pub(crate) async fn number(&self, query: &str) -> i64 {
        let query = query.replace("$ws", &self.shop.0.to_string());
        let mut conn = self.store.connection().await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_one(&mut *conn)
            .await
            .unwrap()
    }

    /// Users 0 to `count`, exclusive, with external ids `u-0`, `u-1` and so on.
    pub(crate) async fn users(&self, count: u32) {
        self.users_with_padding(count, 0).await;
    }

    /// As [`users`](Self::users), with so many more characters in each external id.
    pub(crate) async fn users_with_padding(&self, count: u32, padding: usize) {
        self.sql(&format!(
            "UPDATE directory SET epoch = epoch + 1, next_user_no = {count} WHERE workspace_id = $ws;
             INSERT INTO directory_user (workspace_id, user_no, external_id, epoch, identified_epoch)
             SELECT $ws, n, 'u-' || n || repeat('x', {padding}), 1, 1
             FROM generate_series(0, {count}::bigint - 1) n;
             INSERT INTO user_identifier (workspace_id, key, user_no)
             SELECT $ws, identifier_key('1u-' || n || repeat('x', {padding})), n
             FROM generate_series(0, {count}::bigint - 1) n;"
        ))
        .await;
    }

    /// Another anonymous user, with a device.
    pub(crate) async fn anonymous_user(&self, user: u32, device: &str) {
        self.sql(&format!(
            "UPDATE directory SET epoch = epoch + 1, next_user_no = {user} + 1 WHERE workspace_id = $ws;
             INSERT INTO directory_user (workspace_id, user_no, epoch)
             SELECT $ws, {user}, epoch FROM directory WHERE workspace_id = $ws;"
        ))
        .await;
        self.identifier(user, &format!("3{device}")).await;
    }

    /// Another identifier of a user, given by its line.
    pub(crate) async fn identifier(&self, user: u32, line: &str) {
        self.sql(&format!(
            "UPDATE directory_user SET identifiers = concat_ws(E'\\n', identifiers, '{line}')
             WHERE workspace_id = $ws AND user_no = {user};
             INSERT INTO user_identifier (workspace_id, key, user_no)
             VALUES ($ws, identifier_key('{line}'), {user});"
        ))
        .await;
    }

    pub(crate) async fn merge(&self, user: u32, into: u32) {
        self.sql(&format!(
            "UPDATE directory SET epoch = epoch + 1 WHERE workspace_id = $ws;
             UPDATE directory_user into_user
             SET identifiers = concat_ws(E'\\n', into_user.identifiers, '1' || ended.external_id,
                                         ended.identifiers)
             FROM directory_user ended
             WHERE into_user.workspace_id = $ws AND into_user.user_no = {into}
               AND ended.workspace_id = $ws AND ended.user_no = {user};
             UPDATE directory_user SET state = 2, merged_into = {into}, external_id = NULL,
                    identifiers = NULL,
                    epoch = (SELECT epoch FROM directory WHERE workspace_id = $ws)
             WHERE workspace_id = $ws AND user_no = {user};
             UPDATE user_identifier SET user_no = {into}
             WHERE workspace_id = $ws AND user_no = {user};"
        ))
        .await;
    }

    pub(crate) async fn erase(&self, user: u32) {
        self.sql(&format!(
            "UPDATE directory SET epoch = epoch + 1 WHERE workspace_id = $ws;
             UPDATE directory_user SET state = 3, merged_into = NULL, external_id = NULL,
                    identifiers = NULL,
                    epoch = (SELECT epoch FROM directory WHERE workspace_id = $ws)
             WHERE workspace_id = $ws AND user_no = {user};
             DELETE FROM user_identifier WHERE workspace_id = $ws AND user_no = {user};"
        ))
        .await;
    }

    /// A cohort of `tinyclues` that holds these users.
    pub(crate) async fn cohort(
        &self,
        id: &str,
        name: &str,
        users: impl IntoIterator<Item = u32>,
    ) -> Uuid {
        let mut tx = self.store.begin("test").await.unwrap();
        let key = cohorts::CohortKey {
            partner: "tinyclues",
            partner_cohort_id: id,
        };
        cohorts::ensure(&mut tx, self.shop, key).await.unwrap();
        let found = cohorts::find(&mut tx, self.shop, key).await.unwrap();
        let cohort = found.unwrap().id;
        cohorts::rename(&mut tx, self.shop, cohort, name)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let users: Vec<u32> = users.into_iter().collect();
        if !users.is_empty() {
            self.import(cohort, users, []).await;
        }
        cohort
    }

    /// Imports a delta into a cohort, as the ingest server does. Returns the version.
    pub(crate) async fn import(
        &self,
        cohort: Uuid,
        adds: impl IntoIterator<Item = u32>,
        removes: impl IntoIterator<Item = u32>,
    ) -> i64 {
        let import_id = Uuid::now_v7().to_string();
        self.import_as(&import_id, cohort, adds, removes).await
    }

    pub(crate) async fn import_as(
        &self,
        import_id: &str,
        cohort: Uuid,
        adds: impl IntoIterator<Item = u32>,
        removes: impl IntoIterator<Item = u32>,
    ) -> i64 {
        let mut tx = self.store.begin("test").await.unwrap();
        let locked = cohorts::lock(&mut tx, self.shop, cohort).await.unwrap();
        let directory = self.store.directory(&mut tx, self.shop).await.unwrap();
        let mut tally = Tally::default();
        let changes = [
            (Effect::Add, adds.into_iter().collect::<UserSet>()),
            (Effect::Remove, removes.into_iter().collect()),
        ];
        for (effect, users) in changes {
            let run = Run {
                effect,
                by_device: false,
                matched: users.len(),
                users,
            };
            tally.apply([&run], &directory.tombstones, &UserSet::new());
        }
        let stored = versions::stored(&mut tx, self.shop, cohort, locked.version);
        let mut members = Arc::new(stored.await.unwrap());
        let publication = tally.publish(Mode::Delta, &mut members, &directory.tombstones);
        let new = NewVersion {
            // There is none.
            import: "",
            import_id,
            source_time: None,
            digest: &[],
            publication: &publication,
        };
        let version = versions::publish(&mut tx, self.shop, cohort, &[new], &members).await;
        tx.commit().await.unwrap();
        version.unwrap()
    }

    /// An import that names one identifier, at position 17, which matches nobody.
    pub(crate) async fn import_rejecting(
        &self,
        import_id: &str,
        cohort: Uuid,
        identifier: IdentifierRef<'_>,
    ) {
        let version = self.import_as(import_id, cohort, [], []).await;
        self.sql(&format!(
            "INSERT INTO cohort_import (workspace_id, import_id, cohort_id, mode, state, digest_state,
                                        refuse_if_older, created_by, digest, summary, version,
                                        partner, partner_import_id)
             VALUES ($ws, '{import_id}', '{cohort}', 1, 3, '', false, 'test', '', '{{}}', {version},
                     'p', '{import_id}')"
        ))
        .await;
        let mut conn = self.store.connection().await.unwrap();
        let rejection = rejected::Rejection {
            position: 17,
            reason: rejected::Reason::Unknown,
            effect: Effect::Add,
            identifier,
        };
        rejected::insert(&mut conn, self.shop, import_id, 0, &[rejection])
            .await
            .unwrap();
    }

    /// Saves a filter.
    pub(crate) async fn segment(&self, name: &str, filter: &str) -> pb::Segment {
        self.try_segment(name, filter).await.unwrap()
    }

    pub(crate) async fn try_segment(
        &self,
        name: &str,
        filter: &str,
    ) -> Result<pb::Segment, Status> {
        let created = self
            .client()
            .create_segment(pb::CreateSegmentRequest {
                name: name.to_owned(),
                filter: Some(text(filter)),
                ..Default::default()
            })
            .await?;
        Ok(created.into_inner().segment.unwrap())
    }

    /// Counts the users of a filter.
    pub(crate) async fn count(&self, filter: &str) -> u64 {
        let counted = self
            .client()
            .count_segment(pb::CountSegmentRequest {
                audience: Some(pb::count_segment_request::Audience::Filter(text(filter))),
                ..Default::default()
            })
            .await;
        counted.unwrap().into_inner().user_count
    }

    /// Streams the audience of a filter.
    pub(crate) async fn resolve(&self, filter: &str) -> Audience {
        self.stream(inline(filter)).await.unwrap()
    }

    pub(crate) async fn stream(
        &self,
        request: pb::ResolveSegmentRequest,
    ) -> Result<Audience, Status> {
        let mut stream = self.client().resolve_segment(request).await?.into_inner();
        let (mut header, mut batches, mut end) = (None, Vec::new(), None);
        while let Some(message) = stream.message().await? {
            assert!(end.is_none(), "nothing comes after the end");
            match message.message.unwrap() {
                Message::Header(it) => assert!(header.replace(it).is_none()),
                Message::Batch(it) => {
                    assert!(header.is_some(), "the header comes first");
                    batches.push(it);
                }
                Message::End(it) => end = Some(it),
            }
        }
        Ok(Audience {
            header: header.unwrap(),
            batches,
            end: end.expect("the stream is complete"),
        })
    }
}

async fn token(store: &Store, workspace: Option<WorkspaceId>) -> (Uuid, Credential) {
    let secret = Secret::generate(Kind::ServiceToken).unwrap();
    let new = NewCredential {
        secret: &secret,
        workspace,
        partner: None,
        scopes: &["*".to_owned()],
        allowed_addresses: &[],
        label: "test",
        created_by: "test",
        expires_at: None,
    };
    let mut conn = store.connection().await.unwrap();
    let created = credentials::insert(&mut conn, &new).await.unwrap();
    (created.id, Credential::bearer(secret.expose()).unwrap())
}

/// A filter as text.
pub(crate) fn text(filter: &str) -> pb::FilterExpression {
    pb::FilterExpression {
        form: Some(pb::filter_expression::Form::Text(filter.to_owned())),
    }
}

/// A segment by name.
pub(crate) fn named(name: &str) -> pb::SegmentReference {
    pb::SegmentReference {
        segment: Some(pb::segment_reference::Segment::Name(name.to_owned())),
    }
}

/// A segment by id.
pub(crate) fn by_id(id: &str) -> pb::SegmentReference {
    pb::SegmentReference {
        segment: Some(pb::segment_reference::Segment::SegmentId(id.to_owned())),
    }
}

/// Asks for the audience of a filter.
pub(crate) fn inline(filter: &str) -> pb::ResolveSegmentRequest {
    pb::ResolveSegmentRequest {
        audience: Some(pb::resolve_segment_request::Audience::Filter(text(filter))),
        ..Default::default()
    }
}

/// Asks for a kept resolution.
pub(crate) fn kept(resolution_id: &str) -> pb::ResolveSegmentRequest {
    pb::ResolveSegmentRequest {
        audience: Some(pb::resolve_segment_request::Audience::ResolutionId(
            resolution_id.to_owned(),
        )),
        ..Default::default()
    }
}

/// A complete audience stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Audience {
    pub(crate) header: AudienceHeader,
    pub(crate) batches: Vec<AudienceBatch>,
    pub(crate) end: AudienceEnd,
}

impl Audience {
    pub(crate) fn members(&self) -> Vec<pb::AudienceMember> {
        let batches = self.batches.iter();
        batches.flat_map(|batch| batch.users.clone()).collect()
    }

    pub(crate) fn user_nos(&self) -> Vec<u32> {
        self.members().iter().map(|user| user.user_no).collect()
    }

    pub(crate) fn resolution_id(&self) -> String {
        self.header.resolution.clone().unwrap().resolution_id
    }
}

/// What a refusal says: code, reason, and the field that is wrong if there is one.
pub(crate) fn refusal(status: &Status) -> (Code, String, String) {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    let field = details.bad_request().and_then(|bad| {
        let first = bad.field_violations.first();
        first.map(|violation| violation.field.clone())
    });
    (
        status.code(),
        reason.unwrap_or_default(),
        field.unwrap_or_default(),
    )
}

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
    waited.expect("the condition holds in the end");
}

/// Shares a deployment between tasks.
pub(crate) fn shared(deployment: Deployment) -> Arc<Deployment> {
    Arc::new(deployment)
}
