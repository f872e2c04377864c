//! Random histories of users, imports and resolutions, held against a naive model.
//!
//! The model keeps one entry a user and looks at one identifier at a time. It knows nothing of
//! bitmaps, versions, epochs or batches.

mod naive;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
};

use muster_domain::{identifier::IdentifierRef, import::Effect, import::ImportDigest};
use muster_proto::{
    ingest::v1::{self as ingest, ingest_cohort_request as req, ingest_cohort_response as res},
    keys::v1 as keys,
    segments::v1 as segments,
    users::v1 as users,
};
use muster_tests::{Muster, PARTNER, read_audience, text};
use proptest::{prelude::*, sample::Index, test_runner::TestRunner};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use naive::{Model, Name, State, number};

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    CreateIdentified,
    CreateAnonymous,
    Identify(Index),
    Merge(Index, Index),
    Delete(Index),
    /// Opens an import into one of two cohorts, unless one is open.
    Open {
        cohort: bool,
        replace: bool,
    },
    /// Sends identifiers into the open import: whose, which sort, add or remove.
    Send(Vec<(Index, u8, bool)>),
    /// Commits the open import.
    Commit,
    /// Compares audiences.
    Look,
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<Index>();
    prop_oneof![
        2 => Just(Event::CreateIdentified),
        3 => Just(Event::CreateAnonymous),
        2 => index.clone().prop_map(Event::Identify),
        2 => (index.clone(), index.clone()).prop_map(|(a, b)| Event::Merge(a, b)),
        1 => index.clone().prop_map(Event::Delete),
        3 => any::<(bool, bool)>().prop_map(|(cohort, replace)| Event::Open { cohort, replace }),
        6 => prop::collection::vec((index, 0u8..4, any::<bool>()), 1..12).prop_map(Event::Send),
        3 => Just(Event::Commit),
        2 => Just(Event::Look),
    ]
}

/// An open import, as the model and as the wire see it.
struct Open {
    cohort: bool,
    replace: bool,
    /// Whom each identifier matched when it was sent, and whether by device.
    sent: Vec<(Option<(usize, bool)>, Effect)>,
    requests: mpsc::Sender<ingest::IngestCohortRequest>,
    answers: Streaming<ingest::IngestCohortResponse>,
    digest: ImportDigest,
}

struct History<'a> {
    muster: &'a Muster,
    workspace: String,
    model: Model,
    open: Option<Open>,
    imports: u32,
}

static WORKSPACES: AtomicU32 = AtomicU32::new(0);

impl<'a> History<'a> {
    async fn begin(muster: &'a Muster) -> Self {
        let workspace = format!("w-{}", WORKSPACES.fetch_add(1, Ordering::Relaxed));
        let mut integrations = muster.operator.integrations();
        let create = keys::CreateWorkspaceRequest {
            workspace: workspace.clone(),
            ..Default::default()
        };
        integrations.create_workspace(create).await.unwrap();
        let enable = keys::EnablePartnerRequest {
            workspace: workspace.clone(),
            partner: PARTNER.into(),
            request_id: String::new(),
        };
        integrations.enable_partner(enable).await.unwrap();
        // Both cohorts exist from the start, so that filters can name them.
        for id in ["a", "b"] {
            let cohort = ingest::UpsertCohortRequest {
                workspace: workspace.clone(),
                partner: PARTNER.into(),
                cohort_id: id.into(),
                name: id.into(),
                ..Default::default()
            };
            muster
                .operator
                .ingest()
                .upsert_cohort(cohort)
                .await
                .unwrap();
        }
        Self {
            muster,
            workspace,
            model: Model::default(),
            open: None,
            imports: 0,
        }
    }

    /// A live user, if there is one.
    fn pick(&self, index: Index) -> Option<usize> {
        let live: Vec<u32> = self.model.everyone().into_iter().collect();
        (!live.is_empty()).then(|| index.get(&live).to_owned() as usize)
    }

    async fn play(&mut self, event: Event) {
        match event {
            Event::CreateIdentified => self.create(true).await,
            Event::CreateAnonymous => self.create(false).await,
            Event::Identify(index) => self.identify(index).await,
            Event::Merge(from, into) => self.merge(from, into).await,
            Event::Delete(index) => self.delete(index).await,
            Event::Open { cohort, replace } => self.open(cohort, replace).await,
            Event::Send(changes) => self.send(changes).await,
            Event::Commit => self.commit().await,
            Event::Look => self.look().await,
        }
    }

    async fn create(&mut self, identified: bool) {
        let user = self.model.create(identified);
        let external_id = match identified {
            true => Name::External(user).text(),
            false => String::new(),
        };
        let record = users::UserRecord {
            external_id,
            aliases: vec![users::Alias {
                label: "x".into(),
                name: Name::Alias(user).text(),
            }],
            device_ids: vec![Name::Device(user).text()],
        };
        let request = users::UpsertUsersRequest {
            workspace: self.workspace.clone(),
            users: vec![record],
            request_id: String::new(),
        };
        let answer = self
            .muster
            .operator
            .users()
            .upsert_users(request)
            .await
            .unwrap();
        assert_eq!(answer.into_inner().results[0].user_no, Some(number(user)));
    }

    async fn identify(&mut self, index: Index) {
        let Some(user) = self
            .pick(index)
            .filter(|user| !self.model.identified(*user))
        else {
            return;
        };
        self.model.users[user] = State::Live { identified: true };
        self.model.owners.insert(Name::External(user), user);
        let entry = users::identify_users_request::Entry {
            user: Some(Name::Device(user).wire()),
            external_id: Name::External(user).text(),
        };
        let request = users::IdentifyUsersRequest {
            workspace: self.workspace.clone(),
            entries: vec![entry],
            request_id: String::new(),
        };
        let answer = self
            .muster
            .operator
            .users()
            .identify_users(request)
            .await
            .unwrap();
        let result = answer.into_inner().results.remove(0);
        assert_eq!(
            result.outcome(),
            users::UserOutcome::Identified,
            "{result:?}"
        );
    }

    async fn merge(&mut self, from: Index, into: Index) {
        let (Some(from), Some(into)) = (self.pick(from), self.pick(into)) else {
            return;
        };
        if from == into {
            return;
        }
        self.model.merge(from, into);
        let entry = users::merge_users_request::Entry {
            from: Some(Name::Alias(from).wire()),
            into: Some(Name::Alias(into).wire()),
        };
        let request = users::MergeUsersRequest {
            workspace: self.workspace.clone(),
            entries: vec![entry],
            request_id: String::new(),
        };
        let answer = self
            .muster
            .operator
            .users()
            .merge_users(request)
            .await
            .unwrap();
        let result = answer.into_inner().results.remove(0);
        assert_eq!(result.outcome(), users::UserOutcome::Merged, "{result:?}");
    }

    async fn delete(&mut self, index: Index) {
        let Some(user) = self.pick(index) else { return };
        self.model.delete(user);
        let request = users::DeleteUsersRequest {
            workspace: self.workspace.clone(),
            users: vec![Name::Alias(user).wire()],
            request_id: String::new(),
        };
        let answer = self
            .muster
            .operator
            .users()
            .delete_users(request)
            .await
            .unwrap();
        let result = answer.into_inner().results.remove(0);
        assert_eq!(result.outcome(), users::UserOutcome::Deleted, "{result:?}");
    }

    async fn open(&mut self, cohort: bool, replace: bool) {
        if self.open.is_some() {
            return;
        }
        self.imports += 1;
        let mode = match replace {
            true => ingest::ImportMode::Replace,
            false => ingest::ImportMode::Delta,
        };
        let open = ingest::OpenImport {
            workspace: self.workspace.clone(),
            partner: PARTNER.into(),
            cohort_id: cohort_id(cohort).into(),
            mode: mode.into(),
            import_id: format!("import-{}", self.imports),
            ..Default::default()
        };
        let (requests, stream) = mpsc::channel(4);
        requests
            .send(request(req::Message::Open(open)))
            .await
            .unwrap();
        let mut ingest = self.muster.operator.ingest();
        let answers = ingest
            .ingest_cohort(ReceiverStream::new(stream))
            .await
            .unwrap();
        let mut answers = answers.into_inner();
        answers.message().await.unwrap().expect("it is opened");
        self.open = Some(Open {
            cohort,
            replace,
            sent: Vec::new(),
            requests,
            answers,
            digest: ImportDigest::default(),
        });
    }

    async fn send(&mut self, changes: Vec<(Index, u8, bool)>) {
        let Some(open) = &mut self.open else { return };
        if self.model.users.is_empty() {
            return;
        }
        let offset = open.sent.len() as u64;
        let mut batch = Vec::new();
        for (index, kind, remove) in changes {
            let name = Name::of(kind, index.index(self.model.users.len()));
            let remove = remove && !open.replace;
            let (effect, wire_effect) = match remove {
                true => (Effect::Remove, ingest::ChangeEffect::Remove),
                false => (Effect::Add, ingest::ChangeEffect::Add),
            };
            let text = name.text();
            let mut change = ingest::CohortChange {
                effect: wire_effect.into(),
                ..Default::default()
            };
            match name {
                Name::Alias(_) => {
                    open.digest.update(effect, IdentifierRef::alias("x", &text));
                    change.aliases.push(users::Alias {
                        label: "x".into(),
                        name: text,
                    });
                }
                Name::Device(_) => {
                    open.digest.update(effect, IdentifierRef::device_id(&text));
                    change.device_ids.push(text);
                }
                Name::External(_) | Name::Nobody => {
                    open.digest
                        .update(effect, IdentifierRef::external_id(&text));
                    change.external_ids.push(text);
                }
            }
            batch.push(change);
            let by_device = matches!(name, Name::Device(_));
            let matched = self.model.matched(name);
            open.sent
                .push((matched.map(|user| (user, by_device)), effect));
        }
        let batch = ingest::IdentifierBatch {
            offset,
            changes: batch,
        };
        open.requests
            .send(request(req::Message::Batch(batch)))
            .await
            .unwrap();
        open.answers
            .message()
            .await
            .unwrap()
            .expect("it is acknowledged");
    }

    async fn commit(&mut self) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        // The last change about a person wins, as the directory knows the person now.
        let mut last = BTreeMap::new();
        for (matched, effect) in &open.sent {
            let Some((user, by_device)) = *matched else {
                continue;
            };
            let Some(survivor) = self.model.survivor(user) else {
                continue;
            };
            if !(by_device && self.model.identified(survivor)) {
                last.insert(survivor, *effect);
            }
        }
        let before: BTreeSet<usize> = match open.replace {
            true => BTreeSet::new(),
            false => {
                let members = self.model.members(open.cohort).into_iter();
                members.map(|user| user as usize).collect()
            }
        };
        let mut after = before;
        for (user, effect) in last {
            match effect {
                Effect::Add => after.insert(user),
                Effect::Remove => after.remove(&user),
            };
        }
        let commit = ingest::CommitImport {
            total: open.sent.len() as u64,
            digest: open.digest.finish().to_vec().into(),
        };
        open.requests
            .send(request(req::Message::Commit(commit)))
            .await
            .unwrap();
        let answer = open
            .answers
            .message()
            .await
            .unwrap()
            .unwrap()
            .message
            .unwrap();
        let res::Message::Committed(committed) = answer else {
            panic!("not committed: {answer:?}");
        };
        let summary = committed.summary.unwrap();
        assert_eq!(summary.received, open.sent.len() as u64);
        assert_eq!(summary.members_after, after.len() as u64);
        self.model.cohorts.insert(open.cohort, after);
    }

    async fn look(&self) {
        let (a, b) = (self.model.members(false), self.model.members(true));
        let everyone = self.model.everyone();
        let expected: [(&str, BTreeSet<u32>); 4] = [
            (r#"tinyclues:"a""#, a.clone()),
            (r#"tinyclues:"a" and not tinyclues:"b""#, &a - &b),
            (r#"tinyclues:("a", "b")"#, &a | &b),
            (
                r#"not (tinyclues:"a" and tinyclues:"b")"#,
                &everyone - &(&a & &b),
            ),
        ];
        for (filter, expected) in expected {
            let request = segments::ResolveSegmentRequest {
                workspace: self.workspace.clone(),
                audience: Some(segments::resolve_segment_request::Audience::Filter(text(
                    filter,
                ))),
                ..Default::default()
            };
            let mut client = self.muster.operator.segments();
            let stream = client.resolve_segment(request).await.unwrap();
            let members = read_audience(stream.into_inner()).await;
            let members: BTreeSet<u32> = members.iter().map(|member| member.user_no).collect();
            assert_eq!(members, expected, "{filter}");
            let count = segments::CountSegmentRequest {
                workspace: self.workspace.clone(),
                audience: Some(segments::count_segment_request::Audience::Filter(text(
                    filter,
                ))),
                consistency_token: String::new(),
            };
            let count = client.count_segment(count).await.unwrap().into_inner();
            assert_eq!(count.user_count, expected.len() as u64, "{filter}");
        }
    }
}

fn cohort_id(cohort: bool) -> &'static str {
    if cohort { "b" } else { "a" }
}

fn request(message: req::Message) -> ingest::IngestCohortRequest {
    ingest::IngestCohortRequest {
        message: Some(message),
    }
}

#[test]
fn audiences_are_those_of_a_naive_model_whatever_happens() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let muster = runtime.block_on(Muster::start());
    let config = ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let histories = prop::collection::vec(event(), 1..60);
    let mut runner = TestRunner::new(config);
    let result = runner.run(&histories, |events| {
        runtime.block_on(async {
            let mut history = History::begin(&muster).await;
            for event in events {
                history.play(event).await;
            }
            history.commit().await;
            history.look().await;
        });
        Ok(())
    });
    runtime.block_on(muster.stop());
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
