//! Audience streams that break, or (in [`changes`]) that the world changes under: what came out, in
//! however many pieces, is the resolution as it was pinned.

mod changes;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::future::join_all;
use muster_client::{Refusal, upload::Outcome};
use muster_domain::{
    identifier::{Identifier, IdentifierKind},
    import::{Effect, Mode, Summary},
};
use muster_proto::segments::v1::{
    self as pb, resolve_segment_request::Audience, resolve_segment_response::Message,
};
use muster_storage::WorkspaceId;
use muster_testbed::number;
use muster_tests::{PARTNER, WORKSPACE, text};
use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tonic::{
    Request, Streaming,
    transport::{Channel, Endpoint},
};

pub(crate) use changes::audience_while_all_changes;

use crate::{
    node::{Deployment, Node},
    oracle,
    suite::{Plan, Tally},
};

/// Users of each kind, identified and anonymous.
const HALF: u32 = 20_000;

/// Smaller than a batch.
const WINDOW: u32 = 16 * 1024;

/// Longest time that an audience may take to go on elsewhere.
const RECOVERY: Duration = Duration::from_secs(10);

/// A client that has no more in its hands than it has asked for.
fn client(node: &str) -> pb::segment_service_client::SegmentServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(node.to_owned()).unwrap();
    let channel = endpoint
        .connect_timeout(Duration::from_secs(5))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(8 * WINDOW)
        .connect_lazy();
    pb::segment_service_client::SegmentServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
}

/// The people, and who asks for them.
struct Story {
    muster: Deployment,
    token: String,
}

impl Story {
    async fn begin(words: &[&str]) -> Self {
        let muster = Deployment::start(words).await;
        let mut conn = muster.store.connection().await.unwrap();
        let workspace = number(&mut conn, "SELECT workspace_id FROM workspace").await;
        let workspace = WorkspaceId(workspace);
        muster_testbed::seed_users(&mut conn, workspace, HALF).await;
        drop(conn);
        let token = oracle::service_token(&muster.shop).await;
        Self { muster, token }
    }

    /// Publishes these users, and nobody else, as a cohort.
    async fn publish(&self, rng: &mut StdRng, cohort: &str, members: &BTreeSet<u32>) {
        let adds = members.iter().map(|user| (Effect::Add, name(*user)));
        let summary = self.import(rng, cohort, Mode::Replace, adds).await;
        assert_eq!(summary.members_after, members.len() as u64);
    }

    async fn import(
        &self,
        rng: &mut StdRng,
        cohort: &str,
        mode: Mode,
        changes: impl Iterator<Item = (Effect, Identifier)>,
    ) -> Summary {
        let mut changes: Vec<_> = changes.collect();
        changes.shuffle(rng);
        let upload = oracle::upload(cohort, mode, &oracle::import_id(rng));
        let source = move || {
            let rows = changes.clone().into_iter().map(Ok);
            Ok(rows.collect::<Vec<_>>().into_iter())
        };
        let partner = self.muster.shop.partner();
        let published = upload.run(&partner, source, &mut |_| {}).await.unwrap();
        let Outcome::Committed { summary, .. } = published else {
            panic!("not committed: {published:?}");
        };
        oracle::check_accounted(&summary);
        summary
    }

    fn request(&self, body: pb::ResolveSegmentRequest) -> Request<pb::ResolveSegmentRequest> {
        oracle::signed(&self.token, body)
    }
}

/// The identifier by which a source names a user: of the identified ones the external id, of the
/// others an alias.
fn name(user: u32) -> Identifier {
    match user < HALF {
        true => oracle::external_id(&format!("u-{user}")),
        false => Identifier {
            kind: IdentifierKind::Alias,
            label: "mail".to_owned(),
            id: format!("b-{}", user - HALF),
        },
    }
}

/// Some of all users, in order.
fn draw(rng: &mut StdRng, live: &[u32], count: usize) -> BTreeSet<u32> {
    let mut some = live.to_vec();
    some.shuffle(rng);
    some.into_iter().take(count).collect()
}

/// SHA-256 over the numbers, as the contract has it.
fn digest(users: &[u32]) -> Vec<u8> {
    let mut digest = Sha256::new();
    for user in users {
        digest.update(user.to_be_bytes());
    }
    digest.finalize().to_vec()
}

/// What a client has of an audience, or of a part of it.
#[derive(Default, Clone)]
struct Received {
    resolution: String,
    total: Option<u64>,
    token: String,
    members: Vec<pb::AudienceMember>,
    end: Option<pb::AudienceEnd>,
}

impl Received {
    /// Takes the next message, if there is one.
    async fn take(
        &mut self,
        stream: &mut Streaming<pb::ResolveSegmentResponse>,
    ) -> Result<(), tonic::Status> {
        let message = timeout(RECOVERY, stream.message()).await;
        let Some(message) = message.expect("a message comes in time")? else {
            panic!("the stream ended without an end and without an error");
        };
        match message.message.unwrap() {
            Message::Header(header) => {
                let resolution = header.resolution.unwrap().resolution_id;
                assert!(self.resolution.is_empty() || self.resolution == resolution);
                let total = Some(header.partition_user_count);
                assert!(self.total.is_none() || self.total == total);
                (self.resolution, self.total) = (resolution, total);
            }
            Message::Batch(batch) => {
                self.members.extend(batch.users);
                self.token = batch.resume_token;
            }
            Message::End(end) => self.end = Some(end),
        }
        Ok(())
    }

    fn users(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.user_no).collect()
    }

    /// That these are the users, once each, in order, and that the end says so.
    #[track_caller]
    fn check_complete(&self, expected: &[u32]) {
        let users = self.users();
        let ascending = users.windows(2).all(|two| two[0] < two[1]);
        assert!(ascending, "in order by user_no, nobody twice");
        assert!(
            users == expected,
            "{} users came out, not the {} expected",
            users.len(),
            expected.len()
        );
        let end = self.end.as_ref().expect("the audience has an end");
        assert_eq!(Some(end.user_count), self.total);
        assert_eq!(end.user_count, users.len() as u64);
        assert_eq!(end.digest, digest(expected));
    }
}

/// An audience, or a part of one, that a client wants completely.
struct Part {
    wanted: pb::ResolveSegmentRequest,
    received: Received,
    stream: Option<Streaming<pb::ResolveSegmentResponse>>,
}

impl Part {
    /// What to ask for next.
    fn next(&self) -> pb::ResolveSegmentRequest {
        let mut wanted = self.wanted.clone();
        if !self.received.resolution.is_empty() {
            let resolution = self.received.resolution.clone();
            wanted.audience = Some(Audience::ResolutionId(resolution));
            wanted.resume_token.clone_from(&self.received.token);
            wanted.request_id.clear();
        }
        wanted
    }

    /// Opens its stream, or goes on with it, on a node.
    async fn open(&mut self, story: &Story, node: &str) {
        let request = story.request(self.next());
        let answer = client(node).resolve_segment(request).await;
        self.stream = match answer {
            Ok(stream) => Some(stream.into_inner()),
            Err(status) => {
                check_broken(status);
                None
            }
        };
    }

    /// Takes so many messages, unless the stream ends or breaks first.
    async fn take(&mut self, messages: usize) {
        for _ in 0..messages {
            if self.received.end.is_some() {
                self.stream = None;
            }
            let Some(stream) = &mut self.stream else {
                return;
            };
            if let Err(status) = self.received.take(stream).await {
                check_broken(status);
                self.stream = None;
            }
        }
    }

    fn is_broken(&self) -> bool {
        self.stream.is_none() && self.received.end.is_none()
    }
}

/// That a call failed because its server is gone, so that it is worth another try.
#[track_caller]
fn check_broken(status: tonic::Status) {
    let refusal = Refusal::from(status);
    assert!(refusal.is_transient(), "{refusal:?}");
}

/// The server is killed in mid-stream, as often as it likes; another one goes on.
pub(crate) async fn segment_server_killed(mut plan: Plan) -> Tally {
    let rng = &mut plan.rng;
    let story = Story::begin(&[]).await;
    let database = story.muster.database_url.as_str();
    let mut nodes = [(); 2].map(|()| Node::start(&["segments"], database, &[]));
    let everybody: Vec<u32> = (0..2 * HALF).collect();
    let members = draw(rng, &everybody, 34_000);
    story.publish(rng, "killed", &members).await;
    let members: Vec<u32> = members.into_iter().collect();
    let mut tally = Tally::default();
    let mut at = 0;
    for _ in 0..plan.rounds {
        let count = [1, 1, 2, 3][rng.random_range(0..4)];
        let view = match rng.random_bool(0.2) {
            true => pb::AudienceView::Full,
            false => pb::AudienceView::ExternalId,
        };
        let request_id = oracle::import_id(rng);
        let part = |index| Part {
            wanted: pb::ResolveSegmentRequest {
                workspace: WORKSPACE.into(),
                audience: Some(Audience::Filter(text(&filter("killed")))),
                view: view.into(),
                partition: Some(pb::Partition { index, count }),
                request_id: request_id.clone(),
                ..Default::default()
            },
            received: Received::default(),
            stream: None,
        };
        let mut parts: Vec<Part> = (0..count).map(part).collect();
        let mut killed: Option<Instant> = None;
        for _ in 0..rng.random_range(1..=2) {
            let node = nodes[at].grpc();
            let opened = join_all(parts.iter_mut().map(|part| part.open(&story, &node)));
            if rng.random_bool(0.25) {
                // While it evaluates, or before the header has gone out.
                let wait = Duration::from_millis(rng.random_range(0..30));
                tokio::join!(opened, async {
                    tokio::time::sleep(wait).await;
                    nodes[at].kill_9();
                });
            } else {
                opened.await;
                let messages = rng.random_range(0..4);
                join_all(parts.iter_mut().map(|part| part.take(messages))).await;
                went_on(&mut tally, &parts, killed);
                if !nodes[1 - at].runs() {
                    nodes[1 - at].start_again();
                }
                nodes[at].kill_9();
            }
            killed = Some(Instant::now());
            join_all(parts.iter_mut().map(|part| part.take(usize::MAX))).await;
            tally.faults += u32::from(parts.iter().any(Part::is_broken));
            at = 1 - at;
            if !nodes[at].runs() {
                nodes[at].start_again();
                killed = Some(Instant::now());
            }
        }
        let node = nodes[at].grpc();
        for part in parts.iter_mut().filter(|part| part.is_broken()) {
            part.open(&story, &node).await;
            part.take(1).await;
            assert!(!part.is_broken(), "it does not go on elsewhere");
        }
        went_on(&mut tally, &parts, killed);
        nodes[1 - at].start_again();
        join_all(parts.iter_mut().map(|part| part.take(usize::MAX))).await;
        let mut all = Vec::new();
        for Part { received, .. } in &parts {
            assert_eq!(received.resolution, parts[0].received.resolution);
            received.check_complete(&received.users());
            all.extend(received.users());
        }
        assert!(all == members, "the parts together are not the audience");
        tally.rounds += 1;
    }
    oracle::check_versions(&story.muster.store).await;
    tally
}

/// Counts the recovery, once parts flow again after the kill.
fn went_on(tally: &mut Tally, parts: &[Part], killed: Option<Instant>) {
    if let Some(killed) = killed
        && parts.iter().all(|part| !part.is_broken())
    {
        assert!(killed.elapsed() < RECOVERY, "it took too long to go on");
        tally.recovered(killed.elapsed());
    }
}

/// The whole of a cohort.
fn filter(cohort: &str) -> String {
    format!("{PARTNER}:id(\"{cohort}\")")
}
