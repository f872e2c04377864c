//! Audience streams that break or that the world changes under: what came out, in however many
//! pieces, is the resolution as it was pinned.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::future::join_all;
use muster_client::{Refusal, upload::Outcome};
use muster_domain::{
    identifier::{Identifier, IdentifierKind},
    import::{Effect, Mode, Summary},
};
use muster_proto::{
    segments::v1::{
        self as pb, Withheld, resolve_segment_request::Audience, resolve_segment_response::Message,
    },
    users::v1 as users,
};
use muster_storage::WorkspaceId;
use muster_testbed::number;
use muster_tests::{PARTNER, WORKSPACE, text};
use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tonic::{
    Code, Request, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    node::{Deployment, Node},
    oracle,
    suite::{Plan, Tally},
};

/// Users of each kind, identified and anonymous.
const HALF: u32 = 20_000;

/// Most records in a batch.
const BATCH: usize = 4_096;

/// The batches that may be under way when a client has read one: what the client's window of
/// [`WINDOW`] bytes and the socket hold, and what the server makes ahead.
const UNDER_WAY: usize = 5;

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

    /// Exchanges some members of a cohort for others.
    async fn exchange(&self, rng: &mut StdRng, cohort: &mut BTreeSet<u32>, live: &[u32]) {
        let members: Vec<u32> = cohort.iter().copied().collect();
        let others: Vec<u32> = live
            .iter()
            .copied()
            .filter(|user| !cohort.contains(user))
            .collect();
        let (removed, added) = (draw(rng, &members, 300), draw(rng, &others, 310));
        let removals = removed.iter().map(|user| (Effect::Remove, name(*user)));
        let adds = added.iter().map(|user| (Effect::Add, name(*user)));
        let changes = removals.chain(adds);
        let summary = self.import(rng, "changing", Mode::Delta, changes).await;
        cohort.retain(|user| !removed.contains(user));
        cohort.extend(added);
        assert_eq!(summary.members_after, cohort.len() as u64);
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

/// People who are erased, merged and published while an audience is read, and what must come of it.
struct Changes {
    /// Users who are live.
    live: Vec<u32>,
    /// Who a merged user is now.
    merged: BTreeMap<u32, u32>,
    erased: BTreeSet<u32>,
}

impl Changes {
    /// Who a user is now; `None` if nobody.
    fn person(&self, mut user: u32) -> Option<u32> {
        while let Some(survivor) = self.merged.get(&user) {
            user = *survivor;
        }
        (!self.erased.contains(&user)).then_some(user)
    }

    /// The people that a cohort stands for now.
    fn people(&self, cohort: &BTreeSet<u32>) -> BTreeSet<u32> {
        let people = cohort.iter().filter_map(|user| self.person(*user));
        people.collect()
    }

    /// Erases and merges some users: those read already, those to come, and those of no audience.
    /// Returns who is erased.
    async fn make(&mut self, rng: &mut StdRng, story: &Story, read: &[u32], far: &[u32]) {
        let is_live = |user: &u32| self.person(*user) == Some(*user);
        let pick = |rng: &mut StdRng, from: &[u32], count| {
            let live: Vec<u32> = from.iter().copied().filter(is_live).collect();
            draw(rng, &live, count).into_iter().collect::<Vec<u32>>()
        };
        let (read, mut far) = (pick(rng, read, 6), pick(rng, far, 12));
        let audience: BTreeSet<u32> = read.iter().chain(&far).copied().collect();
        let others = self.live.iter().filter(|user| !audience.contains(user));
        let mut away = pick(rng, &others.copied().collect::<Vec<_>>(), 2);
        far.shuffle(rng);
        let (mut read, mut far) = (read.into_iter(), far.into_iter());
        let mut erased: Vec<u32> = read.by_ref().take(2).chain(far.by_ref().take(3)).collect();
        let mut merges: Vec<(u32, u32)> = Vec::new();
        // Who came out lives on as somebody who is to come, or the other way round.
        merges.extend(read.by_ref().take(2).zip(far.by_ref()));
        merges.extend(far.by_ref().take(2).zip(read.by_ref()));
        // Two who are to come are one, or both are somebody else.
        merges.extend(far.next().zip(far.next()));
        merges.extend(far.by_ref().zip(away.iter().copied().cycle()));
        erased.extend(away.pop());
        let entry = |&(from, into): &(u32, u32)| users::merge_users_request::Entry {
            from: Some(wire(from)),
            into: Some(wire(into)),
        };
        let request = users::MergeUsersRequest {
            workspace: WORKSPACE.into(),
            entries: merges.iter().map(entry).collect(),
            request_id: String::new(),
        };
        let operator = &story.muster.shop.operator;
        let answer = operator.users().merge_users(request).await.unwrap();
        check_applied(&answer.into_inner().results);
        let request = users::DeleteUsersRequest {
            workspace: WORKSPACE.into(),
            users: erased.iter().map(|user| wire(*user)).collect(),
            request_id: String::new(),
        };
        let answer = operator.users().delete_users(request).await.unwrap();
        check_applied(&answer.into_inner().results);
        self.merged.extend(merges);
        self.erased.extend(erased);
        let gone = |user: &u32| self.merged.contains_key(user) || self.erased.contains(user);
        self.live.retain(|user| !gone(user));
    }

    /// That in a stream nobody comes out twice and nothing is told of those withheld, and, from the
    /// record at `from` on, of nobody who is gone.
    fn check_stream(&self, members: &[pb::AudienceMember], from: usize) {
        let mut people = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (place, member) in members.iter().enumerate() {
            let person = self.person(member.user_no);
            if member.withheld() == Withheld::Unspecified {
                assert!(place < from || person.is_some(), "erased, but: {member:?}");
                let id = &member.external_id;
                assert!(id.is_empty() || ids.insert(id), "{id} comes out twice");
                // Whoever was erased after coming out was nobody else.
                let again = person.is_some_and(|person| !people.insert(person));
                assert!(!again, "user {person:?} comes out twice: {member:?}");
            } else {
                let nothing = member.external_id.is_empty()
                    && member.aliases.is_empty()
                    && member.device_ids.is_empty();
                assert!(nothing, "a withheld record has identifiers: {member:?}");
            }
            let erased = member.withheld() == Withheld::Erased;
            assert!(!erased || person.is_none(), "not erased, but: {member:?}");
        }
    }

    /// That everybody who is not erased comes out somewhere.
    fn check_nobody_lost(&self, members: &[pb::AudienceMember]) {
        let person = |member: &pb::AudienceMember| self.person(member.user_no);
        let told = |member: &&pb::AudienceMember| member.withheld() == Withheld::Unspecified;
        let people: BTreeSet<u32> = members.iter().filter(told).filter_map(person).collect();
        let expected: BTreeSet<u32> = members.iter().filter_map(person).collect();
        assert_eq!(people, expected, "somebody does not come out at all");
    }
}

fn wire(user: u32) -> users::Identifier {
    use users::identifier::Kind;

    let identifier = name(user);
    let kind = match identifier.kind {
        IdentifierKind::ExternalId => Kind::ExternalId(identifier.id),
        IdentifierKind::Alias => Kind::Alias(users::Alias {
            label: identifier.label,
            name: identifier.id,
        }),
        IdentifierKind::DeviceId => Kind::DeviceId(identifier.id),
    };
    users::Identifier { kind: Some(kind) }
}

#[track_caller]
fn check_applied(results: &[users::UserResult]) {
    for result in results {
        let applied =
            [users::UserOutcome::Merged, users::UserOutcome::Deleted].contains(&result.outcome());
        assert!(applied, "{result:?}");
    }
}

/// Publishes, erases, merges and cleans up while audiences are read.
pub(crate) async fn audience_while_all_changes(mut plan: Plan) -> Tally {
    let rng = &mut plan.rng;
    let story = Story::begin(&[]).await;
    let database = story.muster.database_url.as_str();
    let brief = ["--resolution-retention", "1s"];
    let forgetful = Node::start(&["segments"], database, &brief);
    let brief = ["--history-retention", "1s"];
    let mut cleaner = Node::start(&["ingest", "segments"], database, &brief);
    let mut changes = Changes {
        live: (0..2 * HALF).collect(),
        merged: BTreeMap::new(),
        erased: BTreeSet::new(),
    };
    let mut cohort = draw(rng, &changes.live, 27_000);
    story.publish(rng, "changing", &cohort).await;
    let mut tally = Tally::default();
    for round in 0..plan.rounds {
        let expires = round % 5 == 4;
        let node = match expires {
            true => forgetful.grpc(),
            false => story.muster.node.grpc(),
        };
        let expected: Vec<u32> = changes.people(&cohort).into_iter().collect();
        let mut whole = Part {
            wanted: pb::ResolveSegmentRequest {
                workspace: WORKSPACE.into(),
                audience: Some(Audience::Filter(text(&filter("changing")))),
                view: pb::AudienceView::ExternalId.into(),
                ..Default::default()
            },
            received: Received::default(),
            stream: None,
        };
        whole.open(&story, &node).await;
        whole.take(1 + rng.random_range(0..=1)).await;
        let read = whole.received.users();
        let far = expected.len().min(read.len() + UNDER_WAY * BATCH);
        changes.make(rng, &story, &read, &expected[far..]).await;
        let mut resumed = Part {
            wanted: whole.wanted.clone(),
            received: whole.received.clone(),
            stream: None,
        };
        cohort = changes.people(&cohort);
        story.exchange(rng, &mut cohort, &changes.live).await;
        if expires {
            story.wait_for_end_of(&whole.received.resolution).await;
        }
        // Cleaning up is the first thing that a server does.
        let (code, _) = cleaner.terminate();
        assert_eq!(code, Some(0), "it did not end well");
        cleaner.start_again();
        if expires {
            story.wait_for_removal_of(&whole.received.resolution).await;
        }
        // Erasure, merge, publication, clean-up.
        tally.faults += 4;
        whole.take(usize::MAX).await;
        whole.received.check_complete(&expected);
        changes.check_stream(&whole.received.members, far);
        changes.check_nobody_lost(&whole.received.members);
        if expires {
            let refused = story.refused(resumed.next()).await;
            assert_eq!(refused.code, Code::NotFound, "{refused:?}");
            let refused = story.refused(whole.next()).await;
            assert_eq!(refused.code, Code::NotFound, "{refused:?}");
        } else {
            resumed.open(&story, &cleaner.grpc()).await;
            resumed.take(usize::MAX).await;
            resumed.received.check_complete(&expected);
            changes.check_stream(&resumed.received.members[read.len()..], 0);
            changes.check_nobody_lost(&resumed.received.members);
        }
        tally.rounds += 1;
    }
    tally
}

impl Story {
    /// How the server refuses to stream this.
    async fn refused(&self, wanted: pb::ResolveSegmentRequest) -> Refusal {
        let mut client = client(&self.muster.node.grpc());
        let answer = client.resolve_segment(self.request(wanted)).await;
        answer.expect_err("its resolution is gone").into()
    }

    /// Waits until a resolution is not found any more.
    async fn wait_for_end_of(&self, resolution: &str) {
        let request = pb::GetResolutionRequest {
            workspace: WORKSPACE.into(),
            resolution_id: resolution.into(),
        };
        let mut segments = self.muster.shop.operator.segments();
        let found = async {
            while segments.get_resolution(request.clone()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(RECOVERY, found).await.expect("it is kept for 1 s");
    }

    /// Waits until nothing of a resolution is in the database.
    async fn wait_for_removal_of(&self, resolution: &str) {
        let id: uuid::Uuid = resolution.parse().unwrap();
        let mut conn = self.muster.store.connection().await.unwrap();
        let gone = async {
            loop {
                let left: i64 = sqlx::query_scalar(
                    "SELECT count(*) FROM resolution_part WHERE resolution_id = $1",
                )
                .bind(id)
                .fetch_one(&mut *conn)
                .await
                .unwrap();
                if left == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(RECOVERY, gone).await.expect("it is cleaned up");
    }
}
