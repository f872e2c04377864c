//! A look into a directory.

use muster_domain::identifier::IdentifierRef;
use muster_storage::directory::{
    Match,
    feed::{History, Position},
};

use crate::{arena::Entry, index::Index};

/// A directory as it was at one epoch. Held for the moment of a look only: it keeps others from
/// bringing the index up to date.
#[derive(Debug)]
pub struct Snapshot<'a> {
    index: &'a Index,
    moment: Moment,
}

/// The epoch of a directory, and the history that counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub(crate) history: History,
    pub(crate) epoch: i64,
}

impl Moment {
    /// The moment when the directory was there.
    pub fn at(position: Position) -> Self {
        Self {
            history: position.history,
            epoch: position.epoch,
        }
    }

    /// The epoch.
    pub fn epoch(self) -> i64 {
        self.epoch
    }

    /// Whether everything that had happened at a position was seen.
    pub fn includes(self, position: Position) -> bool {
        self.history == position.history && self.epoch >= position.epoch
    }
}

impl<'a> Snapshot<'a> {
    pub(crate) fn new(index: &'a Index, moment: Moment) -> Self {
        Self { index, moment }
    }

    /// When it was like that.
    pub fn moment(&self) -> Moment {
        self.moment
    }

    /// The epoch.
    pub fn epoch(&self) -> i64 {
        self.moment.epoch
    }

    /// What well-formed identifiers lead to; one entry for each, in order.
    pub fn matches(&self, identifiers: &[IdentifierRef<'_>]) -> Vec<Match> {
        self.index.matches(identifiers)
    }

    /// Waits for the memory of some users whose [identifiers](Self::identifiers) are asked for next,
    /// for all of them at once.
    pub fn fetch(&self, users: &[u32]) {
        self.index.fetch(users);
    }

    /// The identifiers of a user: first the external id that audiences print, if there is one, then
    /// the others by kind, label and id. `None` if the user is not live.
    pub fn identifiers(&self, user: u32) -> Option<impl Iterator<Item = Entry<'a>>> {
        self.index.record(user)
    }
}
