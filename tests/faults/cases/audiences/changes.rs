//! Erasure, merge, publication and clean-up while an audience is read: what was pinned stays, and
//! what is told of people is what they are when it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use muster_client::Refusal;
use muster_domain::{
    identifier::IdentifierKind,
    import::{Effect, Mode},
};
use muster_proto::{
    segments::v1::{self as pb, Withheld, resolve_segment_request::Audience},
    users::v1 as users,
};
use muster_tests::{WORKSPACE, text};
use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::time::timeout;
use tonic::Code;

use super::{HALF, Part, RECOVERY, Received, Story, client, draw, filter, name};
use crate::{
    node::Node,
    suite::{Plan, Tally},
};

/// Most records in a batch.
const BATCH: usize = 4_096;

/// The batches that may be under way when a client has read one: what the client's window of
/// [`WINDOW`](super::WINDOW) bytes and the socket hold, and what the server makes ahead.
const UNDER_WAY: usize = 5;

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
