//! The naive model: one entry a user, one identifier at a time.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::users::v1 as users;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Live { identified: bool },
    Merged(usize),
    Deleted,
}

/// What the naive model knows. Users are numbered in the order of their creation.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) users: Vec<State>,
    /// Who has an identifier; erased ones are gone.
    pub(super) owners: BTreeMap<Name, usize>,
    pub(super) cohorts: BTreeMap<bool, BTreeSet<usize>>,
}

/// An identifier of the user created as number `n`: every user has an alias and a device, and one
/// external id that is used when it becomes identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    External(usize),
    Alias(usize),
    Device(usize),
    Nobody,
}

impl Name {
    pub(super) fn text(self) -> String {
        match self {
            Self::External(n) => format!("u-{n}"),
            Self::Alias(n) => format!("a-{n}"),
            Self::Device(n) => format!("d-{n}"),
            Self::Nobody => "nobody".to_owned(),
        }
    }

    pub(super) fn of(kind: u8, user: usize) -> Self {
        match kind {
            0 => Self::External(user),
            1 => Self::Alias(user),
            2 => Self::Device(user),
            _ => Self::Nobody,
        }
    }

    pub(super) fn wire(self) -> users::Identifier {
        use users::identifier::Kind;
        users::Identifier {
            kind: Some(match self {
                Self::External(_) | Self::Nobody => Kind::ExternalId(self.text()),
                Self::Alias(_) => Kind::Alias(users::Alias {
                    label: "x".into(),
                    name: self.text(),
                }),
                Self::Device(_) => Kind::DeviceId(self.text()),
            }),
        }
    }
}

impl Model {
    pub(super) fn survivor(&self, mut user: usize) -> Option<usize> {
        loop {
            match self.users[user] {
                State::Live { .. } => return Some(user),
                State::Merged(into) => user = into,
                State::Deleted => return None,
            }
        }
    }

    pub(super) fn identified(&self, user: usize) -> bool {
        self.users[user] == State::Live { identified: true }
    }

    /// Whom an identifier matches in an import.
    pub(super) fn matched(&self, name: Name) -> Option<usize> {
        let user = *self.owners.get(&name)?;
        let device = matches!(name, Name::Device(_));
        (!device || !self.identified(user)).then_some(user)
    }

    /// The live members of a cohort.
    pub(super) fn members(&self, cohort: bool) -> BTreeSet<u32> {
        let members = self.cohorts.get(&cohort).into_iter().flatten();
        members
            .filter_map(|user| self.survivor(*user))
            .map(number)
            .collect()
    }

    pub(super) fn everyone(&self) -> BTreeSet<u32> {
        (0..self.users.len())
            .filter(|user| matches!(self.users[*user], State::Live { .. }))
            .map(number)
            .collect()
    }

    pub(super) fn create(&mut self, identified: bool) -> usize {
        let user = self.users.len();
        self.users.push(State::Live { identified });
        self.owners.insert(Name::Alias(user), user);
        self.owners.insert(Name::Device(user), user);
        if identified {
            self.owners.insert(Name::External(user), user);
        }
        user
    }

    pub(super) fn merge(&mut self, from: usize, into: usize) {
        let identified = self.identified(from) || self.identified(into);
        self.users[from] = State::Merged(into);
        self.users[into] = State::Live { identified };
        for owner in self.owners.values_mut().filter(|owner| **owner == from) {
            *owner = into;
        }
    }

    pub(super) fn delete(&mut self, user: usize) {
        self.users[user] = State::Deleted;
        self.owners.retain(|_, owner| *owner != user);
    }
}

pub(super) fn number(user: usize) -> u32 {
    u32::try_from(user).unwrap()
}
