//! Many at once: commits into one cohort, replacements against changes, erasures and merges, REST
//! calls against a replacement that takes its time.

mod people;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use muster_client::{
    Connection, Refusal,
    upload::{Outcome, Upload},
};
use muster_domain::{
    identifier::Identifier,
    import::{Effect, Mode, Summary},
};
use muster_proto::users::v1::{
    DeleteUsersRequest, Identifier as UserId, MergeUsersRequest, UserOutcome, identifier::Kind,
    merge_users_request::Entry,
};
use muster_service::consistency::ConsistencyToken;
use muster_storage::{Store, WorkspaceId, versions};
use muster_tests::{PARTNER, Shop, WORKSPACE, connect, identified, rest::Rest};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use crate::{
    dawdle::{self, What},
    node::{Deployment, Node},
    oracle::{self, List},
    suite::{Plan, Tally},
};

use people::{Change, Event, replay};

const USERS: usize = 1_000;

/// Adds and removes, in order.
type Changes = Vec<(Effect, String)>;

/// An import that was committed.
#[derive(Debug, Clone)]
struct Committed {
    mode: Mode,
    changes: Changes,
    summary: Summary,
    version: u64,
    /// The directory it was published against.
    epoch: i64,
    began: Instant,
    ended: Instant,
}

/// 64 commits at once, over two servers, into one cohort (fewer in the rounds after the first):
/// their versions are a total order, and every version is what that order makes of it.
pub(crate) async fn commits_at_once(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let other = Node::start(&["ingest"], &muster.database_url, &[]);
    let endpoints = [muster.shop.grpc.clone(), other.grpc()];
    let numbers = user_numbers(&muster.store).await;
    let mut tally = Tally::default();
    for round in 0..plan.rounds {
        let count = match round % 20 {
            0 => 64,
            _ => plan.rng.random_range(8..=16),
        };
        let cohort = format!("cohort-{round}");
        let running: Vec<_> = (0..count)
            .map(|n: usize| {
                let rng = &mut plan.rng;
                let mut upload = oracle::upload(&cohort, Mode::Delta, &oracle::import_id(rng));
                upload.retry.first_wait = Duration::from_millis(20);
                let changes = draw_changes(rng, Mode::Delta);
                // Every one over a connection of its own.
                let connection = connect(&endpoints[n % 2], &muster.shop.client_secret);
                let pipelined = rng.random_range(0..2) == 0;
                tokio::spawn(import(connection, upload, changes, pipelined))
            })
            .collect();
        let mut committed = BTreeMap::new();
        for running in running {
            let import = running.await.unwrap();
            let twice = committed.insert(import.version, import);
            assert!(twice.is_none(), "one version for two imports: {twice:?}");
        }
        let versions: Vec<u64> = committed.keys().copied().collect();
        let contiguous: Vec<u64> = (1..=count as u64).collect();
        assert_eq!(versions, contiguous, "a version is lost");
        for (earlier, later) in committed.values().zip(committed.values().skip(1)) {
            assert!(
                later.ended > earlier.began,
                "version {} was committed before version {} was begun",
                later.version,
                earlier.version,
            );
        }
        let mut members = BTreeSet::new();
        for import in committed.values() {
            let before = members.clone();
            apply(&mut members, &import.changes);
            let (gained, lost) = (members.difference(&before), before.difference(&members));
            let summary = &import.summary;
            assert_eq!(summary.members_before, before.len() as u64, "{import:?}");
            assert_eq!(summary.members_added, gained.count() as u64, "{import:?}");
            assert_eq!(summary.members_removed, lost.count() as u64, "{import:?}");
            assert_eq!(summary.members_after, members.len() as u64, "{import:?}");
            let stored = stored(&muster.store, &cohort, import.version).await;
            let expected: BTreeSet<u32> = members.iter().map(|id| numbers[id]).collect();
            assert_eq!(stored, expected, "version {} of {cohort}", import.version);
        }
        oracle::check_published(&muster.shop, &cohort, &members).await;
        tally.faults += count as u32;
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally.note = "a fault is a commit; 64 in every 20th round, 8 to 16 in the others".into();
    tally
}

fn draw_changes(rng: &mut StdRng, mode: Mode) -> Changes {
    let count = rng.random_range(1..100);
    let change = |_| {
        let effect = match mode == Mode::Delta && rng.random_range(0..3) == 0 {
            true => Effect::Remove,
            false => Effect::Add,
        };
        (effect, oracle::user(rng.random_range(0..200)))
    };
    (0..count).map(change).collect()
}

fn apply(members: &mut BTreeSet<String>, changes: &Changes) {
    for (effect, id) in changes {
        match effect {
            Effect::Add => members.insert(id.clone()),
            Effect::Remove => members.remove(id),
        };
    }
}

/// Sends an import until it is committed.
async fn import(
    connection: Connection,
    upload: Upload,
    changes: Changes,
    pipelined: bool,
) -> Committed {
    let rows: Vec<(Effect, Identifier)> = changes
        .iter()
        .map(|(effect, id)| (*effect, oracle::external_id(id)))
        .collect();
    let began = Instant::now();
    let outcome = match pipelined {
        true => {
            let call = || {
                let (connection, upload, rows) = (connection.clone(), upload.clone(), rows.clone());
                let limit = Duration::from_secs(60);
                async move { upload.run_pipelined(&connection, rows, limit).await }
            };
            retried(call).await
        }
        false => {
            let source = move || Ok(rows.clone().into_iter().map(io::Result::Ok));
            upload.run(&connection, source, &mut |_| {}).await.unwrap()
        }
    };
    let ended = Instant::now();
    let Outcome::Committed {
        summary,
        version,
        consistency_token,
    } = outcome
    else {
        panic!("not committed: {outcome:?}");
    };
    oracle::check_accounted(&summary);
    assert_eq!(summary.received, changes.len() as u64);
    Committed {
        mode: upload.mode,
        changes,
        summary,
        version,
        epoch: epoch(&consistency_token),
        began,
        ended,
    }
}

/// Calls again, for a minute, while somebody else is in the way.
async fn retried<T, C>(mut call: impl FnMut() -> C) -> T
where
    C: Future<Output = Result<T, Refusal>>,
{
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(refusal) if refusal.is_transient() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(refusal) => panic!("{refusal:?}"),
        }
    }
}

fn epoch(consistency_token: &str) -> i64 {
    ConsistencyToken::decode(consistency_token)
        .unwrap()
        .directory_epoch
}

/// The members of a version, as it is stored.
async fn stored(store: &Store, cohort: &str, version: u64) -> BTreeSet<u32> {
    let mut tx = store.snapshot("stored").await.unwrap();
    let (workspace, id): (i64, uuid::Uuid) =
        sqlx::query_as("SELECT workspace_id, cohort_id FROM cohort WHERE partner_cohort_id = $1")
            .bind(cohort)
            .fetch_one(&mut *tx)
            .await
            .unwrap();
    let version = i64::try_from(version).unwrap();
    let set = versions::stored(&mut tx, WorkspaceId(workspace), id, version).await;
    set.unwrap().iter().collect()
}

async fn user_numbers(store: &Store) -> BTreeMap<String, u32> {
    let mut connection = store.connection().await.unwrap();
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT external_id, user_no::bigint FROM directory_user")
            .fetch_all(&mut *connection)
            .await
            .unwrap();
    let number = |(id, user_no): (String, i64)| (id, u32::try_from(user_no).unwrap());
    rows.into_iter().map(number).collect()
}

/// Replacements, deltas, erasures and merges at once, over two servers: at the end, and at every
/// version, the cohort is what a naive model makes of them.
///
/// The order is the one the product names: imports by their version, a change of a user by the
/// directory's epoch, which every import says it was published against.
pub(crate) async fn everything_at_once(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    let other = Node::start(&["ingest", "users"], &muster.database_url, &[]);
    let endpoints = [muster.shop.grpc.clone(), other.grpc()];
    let mut tally = Tally::default();
    let (mut merged, mut erased) = (0, 0);
    for round in 0..plan.rounds {
        let ids: Vec<String> = (0..60).map(|n| format!("user-{round}-{n}")).collect();
        let records = ids.iter().map(|id| identified(id)).collect();
        muster.shop.upsert_users(records).await;
        let cohort = format!("cohort-{round}");
        let actor = |rng: &mut StdRng, n: usize| Actor {
            shop: muster.shop.clone(),
            endpoint: endpoints[n % 2].clone(),
            cohort: cohort.clone(),
            ids: ids.clone(),
            rng: StdRng::seed_from_u64(rng.next_u64()),
        };
        let mut importers = Vec::new();
        for n in 0..4 {
            let mode = [Mode::Delta, Mode::Replace][n / 2];
            importers.push(tokio::spawn(actor(&mut plan.rng, n).import(mode)));
        }
        let mut changers = Vec::new();
        for n in 0..4 {
            let merges = n / 2 == 0;
            changers.push(tokio::spawn(actor(&mut plan.rng, n).change_users(merges)));
        }
        let mut committed = BTreeMap::new();
        for importer in importers {
            for import in importer.await.unwrap() {
                committed.insert(import.version, import);
            }
        }
        let mut changes = Vec::new();
        for changer in changers {
            changes.extend(changer.await.unwrap());
        }
        let versions: Vec<u64> = committed.keys().copied().collect();
        let contiguous: Vec<u64> = (1..=4 * IMPORTS as u64).collect();
        assert_eq!(versions, contiguous, "a version is lost, or given twice");
        tally.faults += (committed.len() + changes.len()) as u32;
        let merges = |event: &&Event| matches!(event.change, Change::Merge { .. });
        merged += changes.iter().filter(merges).count();
        erased += changes.len() - changes.iter().filter(merges).count();

        let imports = committed.into_values().map(|import| people::Import {
            version: import.version,
            epoch: import.epoch,
            replaces: import.mode == Mode::Replace,
            changes: import.changes,
            members_after: import.summary.members_after,
        });
        let members = replay(imports.collect(), changes);
        oracle::check_published(&muster.shop, &cohort, &members).await;
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally.note =
        format!("a fault is an import or a change of a user: {merged} merges, {erased} erasures");
    tally
}

/// Imports of one importer in a round.
const IMPORTS: usize = 3;

/// One of those who do something at the same time.
struct Actor {
    shop: Shop,
    endpoint: String,
    cohort: String,
    ids: Vec<String>,
    rng: StdRng,
}

impl Actor {
    async fn pause(&mut self) {
        let pause = Duration::from_millis(self.rng.random_range(0..30));
        tokio::time::sleep(pause).await;
    }

    fn anybody(&mut self) -> String {
        let n = self.rng.random_range(0..self.ids.len());
        self.ids[n].clone()
    }

    async fn import(mut self, mode: Mode) -> Vec<Committed> {
        let mut done = Vec::new();
        for _ in 0..IMPORTS {
            self.pause().await;
            let mut changes = Vec::new();
            for _ in 0..self.rng.random_range(1..60) {
                let remove = mode == Mode::Delta && self.rng.random_range(0..3) == 0;
                let effect = if remove { Effect::Remove } else { Effect::Add };
                changes.push((effect, self.anybody()));
            }
            let import_id = oracle::import_id(&mut self.rng);
            let mut upload = oracle::upload(&self.cohort, mode, &import_id);
            upload.retry.first_wait = Duration::from_millis(20);
            let connection = connect(&self.endpoint, &self.shop.client_secret);
            let pipelined = self.rng.random_range(0..2) == 0;
            done.push(import(connection, upload, changes, pipelined).await);
        }
        done
    }

    async fn change_users(mut self, merges: bool) -> Vec<Event> {
        let mut done = Vec::new();
        let connection = self.shop.operator_at(&self.endpoint);
        for _ in 0..4 {
            self.pause().await;
            let (one, another) = (self.anybody(), self.anybody());
            let (results, token) = match merges {
                true => {
                    let request = MergeUsersRequest {
                        workspace: WORKSPACE.into(),
                        entries: vec![Entry {
                            from: Some(user_id(&one)),
                            into: Some(user_id(&another)),
                        }],
                        request_id: String::new(),
                    };
                    let call = || {
                        let (mut users, request) = (connection.users(), request.clone());
                        async move { Ok(users.merge_users(request).await?.into_inner()) }
                    };
                    let answer = retried(call).await;
                    (answer.results, answer.consistency_token)
                }
                false => {
                    let request = DeleteUsersRequest {
                        workspace: WORKSPACE.into(),
                        users: vec![user_id(&one)],
                        request_id: String::new(),
                    };
                    let call = || {
                        let (mut users, request) = (connection.users(), request.clone());
                        async move { Ok(users.delete_users(request).await?.into_inner()) }
                    };
                    let answer = retried(call).await;
                    (answer.results, answer.consistency_token)
                }
            };
            let change = match results[0].outcome() {
                UserOutcome::Merged => Change::Merge {
                    from: one,
                    into: another,
                },
                UserOutcome::Deleted => Change::Delete { user: one },
                // Somebody else was faster, or both are one already.
                UserOutcome::NotFound | UserOutcome::Unchanged => continue,
                outcome => panic!("{outcome:?}"),
            };
            done.push(Event {
                epoch: epoch(&token),
                change,
            });
        }
        done
    }
}

fn user_id(external_id: &str) -> UserId {
    UserId {
        kind: Some(Kind::ExternalId(external_id.to_owned())),
    }
}

/// Within what a REST call is told that a cohort is locked: after a wait of 5 s, but on a busy machine
/// no later than any call is answered.
const LOCKED_WITHIN: Duration = Duration::from_secs(8);

/// REST calls that meet a replacement while it publishes are told so in time, whichever server they
/// come through and however many wait before them; the replacement completes.
pub(crate) async fn rest_meets_replacement(mut plan: Plan) -> Tally {
    /// Longer than two waits.
    const PUBLISHING: Duration = Duration::from_secs(11);
    /// Rounds that run side by side: each holds a connection or two.
    const AT_ONCE: u32 = 20;
    // A workspace has half of them.
    let words = &["--database-connections", "160"];
    let muster = Deployment::start(words).await;
    oracle::fill(&muster.shop, USERS).await;
    dawdle::install(&muster.store).await;
    let other = Node::start(&["ingest", "bridge"], &muster.database_url, words);
    let mut tally = Tally::default();
    let (mut locked, mut worst) = (0, Duration::ZERO);
    let mut round = 0;
    while round < plan.rounds {
        let until = plan.rounds.min(round + AT_ONCE);
        let side_by_side: Vec<_> = (round..until)
            .map(|round| {
                let rng = StdRng::seed_from_u64(plan.rng.next_u64());
                let meeting = Meeting {
                    shop: muster.shop.clone(),
                    store: muster.store.clone(),
                    cohort: format!("cohort-{round}"),
                    endpoints: [muster.shop.grpc.clone(), other.grpc()],
                    rests: [muster.shop.rest.clone(), other.rest()],
                    rng,
                };
                tokio::spawn(meeting.run(PUBLISHING))
            })
            .collect();
        for meeting in side_by_side {
            for took in meeting.await.unwrap() {
                locked += 1;
                worst = worst.max(took);
            }
            tally.faults += 1;
            tally.rounds += 1;
        }
        round = until;
    }
    oracle::check_versions(&muster.store).await;
    tally.note = format!(
        "{locked} calls were told 423, the last after {:.1} s",
        worst.as_secs_f64()
    );
    tally
}

struct Meeting {
    shop: Shop,
    store: Store,
    cohort: String,
    endpoints: [String; 2],
    rests: [String; 2],
    rng: StdRng,
}

impl Meeting {
    /// Returns how long each call waited that was told 423.
    async fn run(mut self, publishing: Duration) -> Vec<Duration> {
        let rng = &mut self.rng;
        let list = List::draw(rng, USERS, 100);
        let millis = publishing.as_millis().try_into().unwrap();
        let import_id = dawdle::slow(What::Version, millis, &oracle::import_id(rng));
        let upload = oracle::upload(&self.cohort, Mode::Replace, &import_id);
        let endpoint = &self.endpoints[rng.random_range(0..2)];
        let connection = connect(endpoint, &self.shop.client_secret);
        let source = list.source();
        let replacing =
            tokio::spawn(async move { upload.run(&connection, source, &mut |_| {}).await });
        // All is staged; moments later it publishes.
        oracle::reached(&self.store, &import_id, list.ids.len() as u64).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let calls: Vec<_> = (0..3)
            .map(|n| {
                let wait = Duration::from_millis(rng.random_range(0..3_000));
                let secrets = (&self.shop.partner_api_key, &self.shop.client_secret);
                let base = &self.rests[rng.random_range(0..2)];
                let rest = Rest::new(base, PARTNER, secrets.0, secrets.1);
                let cohort = self.cohort.clone();
                let user = oracle::user(n);
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    if n == 0 {
                        return (None, rest.name(&cohort, "called so").await);
                    }
                    let changes = json!([{ "user_ids": [user] }]);
                    (Some(user.clone()), rest.change(&cohort, changes).await)
                })
            })
            .collect();
        let mut expected = list.known.clone();
        let mut waited = Vec::new();
        for call in calls {
            let (user, answer) = call.await.unwrap();
            match answer.status {
                201 => expected.extend(user),
                423 => {
                    let answer = answer.says(423, "Resource locked");
                    assert!(answer.took < LOCKED_WITHIN, "{answer:?}");
                    waited.push(answer.took);
                }
                _ => panic!("neither done nor locked: {answer:?}"),
            }
        }
        let outcome = replacing.await.unwrap().unwrap();
        assert_eq!(
            list.check_committed(&outcome),
            1,
            "the replacement was first"
        );
        oracle::check_published(&self.shop, &self.cohort, &expected).await;
        waited
    }
}
