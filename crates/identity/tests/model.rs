//! Whatever happens to a directory, the index answers as SQL does.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{collections::BTreeMap, time::Duration};

use muster_domain::identifier::{IdentifierKind, IdentifierRef};
use muster_identity::{Identities, Settings};
use muster_storage::{
    Store, WorkspaceId, audience,
    directory::{self, Identification, Likely, Merge, UserRecord, feed},
    workspaces,
};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};

/// Identifiers of the same text in several kinds, and some that only differ in the label.
const TEXTS: [&str; 8] = ["a", "b", "c", "d", "e", "é", "ab", "a b"];

fn settings() -> Settings {
    Settings {
        least_users: 0,
        ..Settings::default()
    }
}

type Id = IdentifierRef<'static>;

fn universe() -> Vec<Id> {
    let external_ids = TEXTS.map(IdentifierRef::external_id);
    let devices = TEXTS.map(IdentifierRef::device_id);
    let aliases = TEXTS.map(|text| IdentifierRef::alias(text, "a"));
    let others = TEXTS.map(|text| IdentifierRef::alias("ab", text));
    [external_ids, devices, aliases, others].concat()
}

#[derive(Debug, Clone)]
enum Change {
    Upsert(Vec<UserRecord<'static>>),
    Identify(Vec<(Id, &'static str)>),
    Merge(Vec<(Id, Id)>),
    Delete(Vec<Id>),
    /// Looks into the index, so that it follows from here.
    Look,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let text = || select(TEXTS.to_vec());
    let some = || select(universe());
    let record = (
        prop::option::of(text()),
        prop::collection::vec((select(vec!["ab", "c"]), text()), 0..3),
        prop::collection::vec(text(), 0..3),
    );
    let record = record.prop_map(|(external_id, aliases, device_ids)| UserRecord {
        external_id,
        aliases,
        device_ids,
    });
    let record = record.prop_filter("needs an identifier", |r| r.identifiers().next().is_some());
    let change = prop_oneof![
        5 => prop::collection::vec(record, 1..5).prop_map(Change::Upsert),
        2 => prop::collection::vec((some(), text()), 1..4).prop_map(Change::Identify),
        3 => prop::collection::vec((some(), some()), 1..4).prop_map(Change::Merge),
        2 => prop::collection::vec(some(), 1..3).prop_map(Change::Delete),
        3 => Just(Change::Look),
    ];
    prop::collection::vec(change, 1..20)
}

async fn apply(store: &Store, workspace: WorkspaceId, change: &Change) {
    let mut tx = store.begin("change").await.unwrap();
    match change {
        Change::Upsert(records) => directory::upsert(&mut tx, workspace, records, Likely::Anyone)
            .await
            .map(drop),
        Change::Identify(entries) => {
            let entries = entries.iter();
            let entries: Vec<_> = entries
                .map(|(user, external_id)| Identification {
                    user: *user,
                    external_id,
                })
                .collect();
            directory::identify(&mut tx, workspace, &entries)
                .await
                .map(drop)
        }
        Change::Merge(entries) => {
            let entries = entries.iter();
            let entries: Vec<_> = entries.map(|&(from, into)| Merge { from, into }).collect();
            directory::merge(&mut tx, workspace, &entries)
                .await
                .map(drop)
        }
        Change::Delete(users) => directory::delete(&mut tx, workspace, users).await.map(drop),
        Change::Look => Ok(()),
    }
    .unwrap();
    tx.commit().await.unwrap();
}

/// Compares what the index says with what SQL says, once the index answers.
async fn compare(identities: &Identities, store: &Store, workspace: WorkspaceId) {
    let all = universe();
    let mut conn = store.connection().await.unwrap();
    let position = feed::position(&mut conn, workspace).await.unwrap();
    let numbers: Vec<u32> = (0..u32::try_from(position.next_user_no).unwrap()).collect();
    let look = |snapshot: &muster_identity::Snapshot<'_>| {
        assert_eq!(snapshot.epoch(), position.epoch);
        let users = numbers.iter().map(|user| {
            let found = snapshot.identifiers(*user)?;
            let owned = found.map(|entry| (entry.is_printed(), entry.to_owned()));
            Some(owned.collect::<Vec<_>>())
        });
        (snapshot.matches(&all), users.collect::<Vec<_>>())
    };
    let (matches, users) = loop {
        let seen = identities.look(&mut conn, workspace, position, look).await;
        if let Some(seen) = seen.unwrap() {
            break seen;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let expected = directory::match_identifiers(&mut conn, workspace, &all).await;
    assert_eq!(matches, expected.unwrap());

    let printed = audience::external_ids(&mut conn, workspace, &numbers)
        .await
        .unwrap();
    let (others, whole) = audience::aliases_and_devices(&mut conn, workspace, &numbers, usize::MAX)
        .await
        .unwrap();
    assert_eq!(whole, numbers.len());
    let mut of: BTreeMap<usize, Vec<_>> = BTreeMap::new();
    for (user, identifier) in others {
        of.entry(user).or_default().push(identifier);
    }
    for (number, user) in users.into_iter().enumerate() {
        let live = printed.get(&u32::try_from(number).unwrap());
        assert_eq!(user.is_some(), live.is_some(), "user {number}");
        let user = user.unwrap_or_default();
        let first = user
            .first()
            .filter(|(printed, _)| *printed)
            .map(|(_, it)| it.id.clone());
        assert_eq!(first.as_ref(), live.and_then(Option::as_ref));
        let listed = user.into_iter().map(|(_, identifier)| identifier);
        let listed: Vec<_> = listed
            .filter(|it| it.kind != IdentifierKind::ExternalId)
            .collect();
        assert_eq!(listed, of.remove(&number).unwrap_or_default());
    }
}

#[test]
fn the_index_answers_as_sql_does_whatever_changes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(muster_testbed::store());
    // Pools are made outside of what is awaited, too.
    let _inside = runtime.enter();
    let mut runner = TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    // One of them follows all cases, as a server does that has run for long.
    let identities = Identities::new(store.clone(), settings());
    let case = std::cell::Cell::new(0);
    let outcome = runner.run(&changes(), |changes| {
        case.set(case.get() + 1);
        runtime.block_on(async {
            let mut tx = store.begin("workspace").await.unwrap();
            let slug = format!("w{}", case.get());
            let workspace = workspaces::insert(&mut tx, &slug, "").await.unwrap().id;
            tx.commit().await.unwrap();
            for change in &changes {
                apply(&store, workspace, change).await;
                if matches!(change, Change::Look) {
                    compare(&identities, &store, workspace).await;
                }
            }
            compare(&identities, &store, workspace).await;
            // Loaded at the end, it is as the one that followed.
            let fresh = Identities::new(store.clone(), settings());
            compare(&fresh, &store, workspace).await;
        });
        Ok(())
    });
    outcome.unwrap();
}
