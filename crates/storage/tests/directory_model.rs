//! Any sequence of changes leaves the directory as a model does that is too simple to be wrong.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::{
    identifier::{IdentifierKind, IdentifierRef},
    user_set::{Standing, UserSet},
};
use muster_storage::{
    Settings, Store, WorkspaceId,
    directory::{
        self, Deleted, Identification, Identified, Likely, Match, Merge, Merged, Upserted,
        UserRecord,
    },
    workspaces,
};
use proptest::{
    prelude::*,
    sample::{select, subsequence},
    test_runner::{Config, TestRunner},
};

const EXTERNAL_IDS: [&str; 4] = ["e0", "e1", "e2", "e3"];
const ALIASES: [(&str, &str); 4] = [("m", "x"), ("m", "y"), ("n", "x"), ("n", "y")];
const DEVICES: [&str; 5] = ["d0", "d1", "d2", "d3", "e0"];

type Id = IdentifierRef<'static>;

fn universe() -> Vec<Id> {
    let external_ids = EXTERNAL_IDS.map(IdentifierRef::external_id);
    let aliases = ALIASES.map(|(label, name)| IdentifierRef::alias(label, name));
    let devices = DEVICES.map(IdentifierRef::device_id);
    [&external_ids[..], &aliases, &devices].concat()
}

#[derive(Debug, Clone)]
enum Change {
    Upsert(Vec<UserRecord<'static>>, Likely),
    Identify(Vec<(Id, &'static str)>),
    Merge(Vec<(Id, Id)>),
    Delete(Vec<Id>),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let some = || select(universe());
    let record = (
        prop::option::of(select(EXTERNAL_IDS.to_vec())),
        subsequence(ALIASES.to_vec(), 0..=2),
        subsequence(DEVICES.to_vec(), 0..=2),
    );
    let record = record.prop_map(|(external_id, aliases, device_ids)| UserRecord {
        external_id,
        aliases,
        device_ids,
    });
    let record = record.prop_filter("needs an identifier", |r| r.identifiers().next().is_some());
    let identification = (some(), select(EXTERNAL_IDS.to_vec()));
    let change = prop_oneof![
        4 => (prop::collection::vec(record, 1..5), select(vec![Likely::Anyone, Likely::New]))
            .prop_map(|(records, likely)| Change::Upsert(records, likely)),
        2 => prop::collection::vec(identification, 1..4).prop_map(Change::Identify),
        2 => prop::collection::vec((some(), some()), 1..4).prop_map(Change::Merge),
        1 => prop::collection::vec(some(), 1..3).prop_map(Change::Delete),
    ];
    prop::collection::vec(change, 1..12)
}

#[derive(Debug, Default, Clone, PartialEq)]
struct ModelUser {
    external_id: Option<&'static str>,
    identifiers: BTreeSet<Id>,
    merged_into: Option<u32>,
    deleted: bool,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Model(Vec<ModelUser>);

impl Model {
    fn user(&mut self, user: u32) -> &mut ModelUser {
        &mut self.0[user as usize]
    }

    fn owner(&self, identifier: Id) -> Option<u32> {
        let owner = self
            .0
            .iter()
            .position(|u| u.identifiers.contains(&identifier));
        owner.map(|index| index as u32)
    }

    fn standing(&self, user: u32) -> Standing {
        let this = &self.0[user as usize];
        match this.merged_into {
            _ if this.deleted => Standing::Deleted,
            None => Standing::Live,
            Some(into) => match self.standing(into) {
                Standing::Live => Standing::Merged(into),
                further => further,
            },
        }
    }

    fn matching(&self, identifier: Id) -> Match {
        match self.owner(identifier) {
            None => Match::Unknown,
            Some(user) => {
                let identified = self.0[user as usize].external_id.is_some();
                if identified && identifier.kind == IdentifierKind::DeviceId {
                    Match::DeviceOfIdentifiedUser(user)
                } else {
                    Match::User(user)
                }
            }
        }
    }

    fn upsert(&mut self, record: &UserRecord<'static>) -> Option<u32> {
        let owners: BTreeSet<u32> = record.identifiers().filter_map(|i| self.owner(i)).collect();
        let external_id = record.external_id.map(IdentifierRef::external_id);
        let is_new = external_id.is_some_and(|id| self.owner(id).is_none());
        let user = match owners.len() {
            0 => {
                self.0.push(ModelUser {
                    external_id: record.external_id,
                    ..ModelUser::default()
                });
                self.0.len() as u32 - 1
            }
            1 if !is_new => *owners.first().unwrap(),
            _ => return None,
        };
        self.user(user).identifiers.extend(record.identifiers());
        Some(user)
    }

    fn identify(&mut self, user: Id, external_id: &'static str) -> Identified {
        let id = IdentifierRef::external_id(external_id);
        match (self.owner(user), self.owner(id)) {
            (None, _) => Identified::NotFound,
            (Some(user), Some(owner)) if user == owner => Identified::Unchanged(user),
            (Some(_), Some(_)) => Identified::ExternalIdTaken,
            (Some(user), None) if self.user(user).external_id.is_some() => {
                Identified::OtherExternalId
            }
            (Some(user), None) => {
                self.user(user).external_id = Some(external_id);
                self.user(user).identifiers.insert(id);
                Identified::Identified(user)
            }
        }
    }

    fn merge(&mut self, from: Id, into: Id) -> Merged {
        match (self.owner(from), self.owner(into)) {
            (None, _) => Merged::FromNotFound,
            (_, None) => Merged::IntoNotFound,
            (Some(from), Some(into)) if from == into => Merged::Unchanged(into),
            (Some(from), Some(into)) => {
                let ended = std::mem::take(self.user(from));
                self.user(from).merged_into = Some(into);
                let survivor = self.user(into);
                survivor.identifiers.extend(ended.identifiers);
                survivor.external_id = survivor.external_id.or(ended.external_id);
                Merged::Merged(into)
            }
        }
    }

    fn delete(&mut self, users: &[Id]) -> Vec<Deleted> {
        let outcome = |user: &Id| {
            self.owner(*user)
                .map_or(Deleted::NotFound, Deleted::Deleted)
        };
        let outcomes: Vec<Deleted> = users.iter().map(outcome).collect();
        for outcome in &outcomes {
            if let Deleted::Deleted(user) = *outcome {
                *self.user(user) = ModelUser {
                    deleted: true,
                    ..ModelUser::default()
                };
            }
        }
        outcomes
    }
}

/// Does the same to the directory and to the model, and compares the answers.
async fn apply(store: &Store, workspace: WorkspaceId, model: &mut Model, change: &Change) {
    let mut tx = store.begin("change").await.unwrap();
    match change {
        Change::Upsert(records, likely) => {
            let changed = directory::upsert(&mut tx, workspace, records, *likely).await;
            for (record, outcome) in records.iter().zip(changed.unwrap().outcomes) {
                let before = model.clone();
                let user = model.upsert(record);
                let expected = user.map(|user| {
                    if before.0.len() < model.0.len() {
                        Upserted::Created(user)
                    } else if before.0[user as usize].identifiers
                        == model.0[user as usize].identifiers
                    {
                        Upserted::Unchanged(user)
                    } else {
                        Upserted::Updated(user)
                    }
                });
                match outcome {
                    Upserted::Conflict(_) => assert_eq!(expected, None, "{record:?}"),
                    outcome => assert_eq!(expected, Some(outcome), "{record:?}"),
                }
            }
        }
        Change::Identify(entries) => {
            let sent: Vec<_> = entries
                .iter()
                .map(|&(user, external_id)| Identification { user, external_id })
                .collect();
            let changed = directory::identify(&mut tx, workspace, &sent).await;
            let expected: Vec<_> = entries
                .iter()
                .map(|&(user, external_id)| model.identify(user, external_id))
                .collect();
            assert_eq!(changed.unwrap().outcomes, expected);
        }
        Change::Merge(entries) => {
            let sent: Vec<_> = entries
                .iter()
                .map(|&(from, into)| Merge { from, into })
                .collect();
            let changed = directory::merge(&mut tx, workspace, &sent).await;
            let expected: Vec<_> = entries
                .iter()
                .map(|&(from, into)| model.merge(from, into))
                .collect();
            assert_eq!(changed.unwrap().outcomes, expected);
        }
        Change::Delete(users) => {
            let changed = directory::delete(&mut tx, workspace, users).await;
            assert_eq!(changed.unwrap().outcomes, model.delete(users));
        }
    }
    tx.commit().await.unwrap();
}

/// Compares all that can be read of the directory with the model.
async fn compare(store: &Store, workspace: WorkspaceId, model: &Model) {
    let (mut tx, followed) = store.directory_snapshot("read", workspace).await.unwrap();
    let universe = universe();
    let matches = directory::match_identifiers(&mut tx, workspace, &universe).await;
    let expected: Vec<Match> = universe.iter().map(|&i| model.matching(i)).collect();
    assert_eq!(matches.unwrap(), expected);
    for &identifier in &universe {
        let owner = directory::owner(&mut tx, workspace, identifier).await;
        assert_eq!(owner.unwrap(), model.owner(identifier));
    }
    let mut live = UserSet::new();
    for (user, expected) in (0..).zip(&model.0) {
        let found = directory::find(&mut tx, workspace, user).await.unwrap();
        let found = found.expect("every number given out is a user");
        let standing = model.standing(user);
        assert_eq!(found.standing, standing);
        assert_eq!(followed.tombstones.standing(user), standing);
        if standing == Standing::Live {
            live.insert(user);
        }
        let mut by_kind: BTreeMap<IdentifierKind, Vec<(&str, &str)>> = BTreeMap::new();
        for identifier in &expected.identifiers {
            let same_kind = by_kind.entry(identifier.kind).or_default();
            same_kind.push((identifier.label, identifier.id));
        }
        let mut of = |kind| by_kind.remove(&kind).unwrap_or_default();
        let mut external_ids = of(IdentifierKind::ExternalId);
        external_ids.retain(|(_, id)| Some(*id) != expected.external_id);
        let plain = |ids: Vec<(&'static str, &'static str)>| -> Vec<&str> {
            ids.into_iter().map(|(_, id)| id).collect()
        };
        assert_eq!(found.external_id.as_deref(), expected.external_id);
        assert_eq!(found.merged_external_ids, plain(external_ids));
        assert_eq!(found.device_ids, plain(of(IdentifierKind::DeviceId)));
        let aliases = of(IdentifierKind::Alias).into_iter();
        let aliases: Vec<_> = aliases.map(|(l, n)| (l.to_owned(), n.to_owned())).collect();
        assert_eq!(found.aliases, aliases);
    }
    assert_eq!(followed.next_user_no, model.0.len() as u64);
    assert_eq!(followed.live(), live);
    let epoch = directory::epoch(&mut tx, workspace).await.unwrap();
    assert_eq!(followed.epoch, epoch);
}

#[test]
fn any_sequence_of_changes_agrees_with_the_model() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = runtime.block_on(muster_testbed::database());
    let connect = || Store::connect(&Settings::new(&*url)).unwrap();
    let store = runtime.block_on(async { connect() });
    let cases = std::cell::Cell::new(0);
    let config = Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&changes(), |changes| {
        cases.set(cases.get() + 1);
        runtime.block_on(async {
            let mut connection = store.connection().await.unwrap();
            let slug = format!("w{}", cases.get());
            let workspace = workspaces::insert(&mut connection, &slug, "").await;
            let workspace = workspace.unwrap().id;
            let mut model = Model::default();
            for change in &changes {
                let before = directory::epoch(&mut connection, workspace).await.unwrap();
                let was = model.clone();
                apply(&store, workspace, &mut model, change).await;
                let after = directory::epoch(&mut connection, workspace).await.unwrap();
                assert_eq!(after - before, i64::from(was != model));
                compare(&store, workspace, &model).await;
            }
            // Whoever follows step by step ends where one who reads it all at once begins.
            let fresh = connect();
            let once = fresh.directory(&mut connection, workspace).await.unwrap();
            let stepwise = store.directory(&mut connection, workspace).await.unwrap();
            assert_eq!(once.tombstones, stepwise.tombstones);
            fresh.close().await;
        });
        Ok(())
    });
    outcome.unwrap();
}
