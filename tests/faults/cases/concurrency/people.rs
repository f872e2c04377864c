//! A naive model of a cohort: people by their external ids, who are merged and erased.

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::import::Effect;

/// An import that was committed.
#[derive(Debug)]
pub(super) struct Import {
    pub(super) version: u64,
    /// It saw every change of a user up to this epoch, and none after it.
    pub(super) epoch: i64,
    pub(super) replaces: bool,
    pub(super) changes: Vec<(Effect, String)>,
    pub(super) members_after: u64,
}

/// What happened to a user, and when.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) epoch: i64,
    pub(super) change: Change,
}

#[derive(Debug)]
pub(super) enum Change {
    Merge { from: String, into: String },
    Delete { user: String },
}

#[derive(Debug, Default)]
struct People {
    merged: BTreeMap<String, String>,
    erased: BTreeSet<String>,
}

impl People {
    /// Who somebody is now; `None` if they are erased.
    fn now(&self, id: &str) -> Option<String> {
        let mut id = id;
        while let Some(into) = self.merged.get(id) {
            id = into;
        }
        (!self.erased.contains(id)).then(|| id.to_owned())
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Merge { from, into } => {
                let (from, into) = (self.now(from).unwrap(), self.now(into).unwrap());
                assert_ne!(from, into, "merged with themselves");
                self.merged.insert(from, into);
            }
            Change::Delete { user } => {
                let user = self.now(user).expect("erased once");
                self.erased.insert(user);
            }
        }
    }

    fn live(&self, members: &BTreeSet<String>) -> BTreeSet<String> {
        members.iter().filter_map(|id| self.now(id)).collect()
    }
}

/// The live members at the end; checks those at every version on the way.
pub(super) fn replay(imports: Vec<Import>, mut events: Vec<Event>) -> BTreeSet<String> {
    events.sort_by_key(|event| event.epoch);
    let twice = events.windows(2).find(|two| two[0].epoch == two[1].epoch);
    assert!(twice.is_none(), "two changes in one epoch: {twice:?}");
    let mut events = events.into_iter().peekable();
    let mut people = People::default();
    let mut members = BTreeSet::new();
    let mut seen = 0;
    for import in imports {
        assert!(
            seen <= import.epoch,
            "it saw less than the one before: {import:?}"
        );
        seen = import.epoch;
        while let Some(event) = events.next_if(|event| event.epoch <= seen) {
            people.change(&event.change);
        }
        members = match import.replaces {
            true => BTreeSet::new(),
            false => people.live(&members),
        };
        for (effect, id) in &import.changes {
            match (people.now(id), effect) {
                (Some(person), Effect::Add) => drop(members.insert(person)),
                (Some(person), Effect::Remove) => drop(members.remove(&person)),
                (None, _) => {}
            }
        }
        assert_eq!(
            import.members_after,
            members.len() as u64,
            "version {}, of the directory at {}: {members:?}",
            import.version,
            import.epoch
        );
    }
    events.for_each(|event| people.change(&event.change));
    people.live(&members)
}
