//! Imports: how a list of identifiers becomes a new version of a cohort, and how each of them is
//! accounted for.
//!
//! A batch is resolved into [`Run`]s when it arrives. A [`Tally`] folds the runs of the whole import,
//! in the order sent, and [`Tally::publish`] turns the result into the change of the cohort and the
//! [`Summary`]. Runs are kept rather than one set per import because the directory may change
//! before the commit: folding them again against the [`Tombstones`] of that moment gives what would
//! have come out had the directory been so from the start.

use std::{borrow::Cow, sync::Arc};

use roaring::MultiOps as _;
use serde::{Deserialize, Serialize};
use sha2::{
    Digest as _, Sha256,
    digest::common::hazmat::{SerializableState, SerializedState},
};

use crate::{
    error::{Error, Result},
    identifier::{IdentifierKind, IdentifierRef},
    user_set::{self, Standing, Tombstones, UserSet},
};

/// Most identifiers in a batch.
pub const MAX_BATCH_IDENTIFIERS: usize = 10_000;

/// Largest batch message, in bytes.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Effect {
    /// The user shall be in the cohort.
    Add = 1,
    /// The user shall not be in the cohort.
    Remove = 2,
}

impl Effect {
    /// The number that stands for it in storage and in digests.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The effect that a number in storage stands for.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Add, Self::Remove]
            .into_iter()
            .find(|effect| effect.code() == code)
    }
}

/// How an import changes its cohort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Adds and removes people.
    Delta = 1,
    /// The import is the full list; whoever is not in it leaves.
    Replace = 2,
}

/// The digest a client and the server keep over the identifiers of an import, in the order sent.
///
/// It is the SHA-256 over, for each identifier: one byte effect, one byte kind, for an alias the
/// length of the label (4 bytes, big-endian) and the label, then the length of the id (4 bytes,
/// big-endian) and the id, then zero bytes up to a multiple of 64. The state can be stored and
/// continued, so a resumed import needs no identifier twice; and as each identifier ends with a block
/// of the hash, the state never holds the end of one.
#[derive(Clone, Default)]
pub struct ImportDigest {
    hashed: Sha256,
    /// What comes after it: hashing many small pieces one by one costs more than gathering them.
    pending: Vec<u8>,
}

impl ImportDigest {
    /// Goes on with one more identifier.
    pub fn update(&mut self, effect: Effect, identifier: IdentifierRef<'_>) {
        /// What SHA-256 takes at a time.
        const BLOCK_BYTES: usize = 64;
        /// Fits the nearest cache of any processor.
        const GATHER_BYTES: usize = 8 * 1024;
        self.pending.extend([effect.code(), identifier.kind.code()]);
        if identifier.kind == IdentifierKind::Alias {
            self.update_text(identifier.label);
        }
        self.update_text(identifier.id);
        let whole = self.pending.len().next_multiple_of(BLOCK_BYTES);
        self.pending.resize(whole, 0);
        if self.pending.len() >= GATHER_BYTES {
            self.hashed.update(&self.pending);
            self.pending.clear();
        }
    }

    fn update_text(&mut self, text: &str) {
        let length = u32::try_from(text.len()).expect("a message is far smaller than 4 GiB");
        self.pending.extend(length.to_be_bytes());
        self.pending.extend_from_slice(text.as_bytes());
    }

    /// The digest of all identifiers so far.
    pub fn finish(&self) -> [u8; 32] {
        self.all().finalize().into()
    }

    /// The state to store between batches.
    pub fn state(&self) -> Vec<u8> {
        self.all().serialize().to_vec()
    }

    fn all(&self) -> Sha256 {
        self.hashed.clone().chain_update(&self.pending)
    }

    /// Goes on from a stored state.
    ///
    /// # Errors
    /// `INTERNAL` if the state is damaged: it only ever comes from our own tables.
    pub fn from_state(state: &[u8]) -> Result<Self> {
        let state = SerializedState::<Sha256>::try_from(state).map_err(Error::internal)?;
        Ok(Self {
            hashed: Sha256::deserialize(&state).map_err(Error::internal)?,
            pending: Vec::new(),
        })
    }
}

impl std::fmt::Debug for ImportDigest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ImportDigest(…)")
    }
}

/// Consecutive matched identifiers of one batch that have the same effect and were, or were not,
/// matched by device.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What they do.
    pub effect: Effect,
    /// Whether they are device ids: those stop matching once their user is identified.
    pub by_device: bool,
    /// How many identifiers matched.
    pub matched: u64,
    /// Whom they matched.
    pub users: UserSet,
}

/// Writes runs into the column of a staged batch: for each, one byte effect, one byte by-device,
/// 8 bytes matched and 4 bytes length, little-endian, and the set.
pub fn runs_to_bytes(runs: &[Run]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for run in runs {
        let users = user_set::to_bytes(&run.users);
        let length = u32::try_from(users.len()).expect("a batch is far smaller than 4 GiB");
        bytes.push(run.effect.code());
        bytes.push(u8::from(run.by_device));
        bytes.extend(run.matched.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(users);
    }
    bytes
}

/// Reads what [`runs_to_bytes`] wrote.
///
/// # Errors
/// `INTERNAL` if the bytes are damaged: they only ever come from our own tables.
pub fn runs_from_bytes(mut bytes: &[u8]) -> Result<Vec<Run>> {
    let damaged = || Error::internal("damaged runs of a staged batch");
    let mut runs = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_first_chunk::<14>().ok_or_else(damaged)?;
        let (matched, length) = (&head[2..10], &head[10..14]);
        let length = u32::from_le_bytes(length.try_into().expect("4 bytes")) as usize;
        let (users, rest) = rest.split_at_checked(length).ok_or_else(damaged)?;
        runs.push(Run {
            effect: Effect::from_code(head[0]).ok_or_else(damaged)?,
            by_device: head[1] != 0,
            matched: u64::from_le_bytes(matched.try_into().expect("8 bytes")),
            users: user_set::from_bytes(users)?,
        });
        bytes = rest;
    }
    Ok(runs)
}

/// How many identifiers had no effect because nobody was matched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unmatched {
    /// No user has the identifier.
    pub unknown: u64,
    /// It is a device of an identified user.
    pub device_of_identified_user: u64,
    /// It is malformed.
    pub invalid: u64,
}

impl std::ops::AddAssign for Unmatched {
    fn add_assign(&mut self, other: Self) {
        self.unknown += other.unknown;
        self.device_of_identified_user += other.device_of_identified_user;
        self.invalid += other.invalid;
    }
}

/// How many identifiers ended how. Each received has exactly one outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// The user became a member.
    pub added: u64,
    /// The user was a member already.
    pub already_member: u64,
    /// The user was removed.
    pub removed: u64,
    /// The user, to be removed, was not a member.
    pub not_member: u64,
    /// No user has it.
    pub unknown: u64,
    /// It is a device of an identified user.
    pub device_of_identified_user: u64,
    /// The same user again in this import, with the same effect.
    pub duplicate: u64,
    /// A later change in the same import overrides it.
    pub superseded: u64,
    /// It is malformed.
    pub invalid: u64,
}

impl Outcomes {
    /// The sum of all outcomes, which is the number of identifiers received.
    pub fn total(&self) -> u64 {
        self.added
            + self.already_member
            + self.removed
            + self.not_member
            + self.unknown
            + self.device_of_identified_user
            + self.duplicate
            + self.superseded
            + self.invalid
    }

    /// How many identifiers matched a user, whatever came of it.
    pub fn matched(&self) -> u64 {
        self.total() - self.unknown - self.device_of_identified_user - self.invalid
    }
}

/// What an import did, or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Identifiers received.
    pub received: u64,
    /// How many of them ended how.
    pub outcomes: Outcomes,
    /// Live members before.
    pub members_before: u64,
    /// Live members after.
    pub members_after: u64,
    /// Members it adds.
    pub members_added: u64,
    /// Members it removes.
    pub members_removed: u64,
}

impl Summary {
    /// The share of the members before that it removes, 0 to 1; 0 for an empty cohort.
    pub fn removed_fraction(&self) -> f64 {
        if self.members_before == 0 {
            0.0
        } else {
            // Counts stay far below 2⁵³, where f64 is exact.
            self.members_removed as f64 / self.members_before as f64
        }
    }
}

/// The fold over the runs of an import: who is to be added and removed so far.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    adds: UserSet,
    removes: UserSet,
    unmatched: Unmatched,
    duplicate: u64,
    superseded: u64,
}

impl Tally {
    /// Counts identifiers that matched nobody.
    pub fn count_unmatched(&mut self, unmatched: Unmatched) {
        self.unmatched += unmatched;
    }

    /// Applies runs in order, seen through the directory as it is now.
    ///
    /// `identified` holds the users that have become identified since the runs were matched; device
    /// ids no longer match them. An identifier whose match is gone counts as unknown or as the
    /// device of an identified user; one that was a duplicate of it stays a duplicate.
    ///
    /// Neighbours with the same effect are united in one pass: one after the other, each would be merged
    /// with all that came before it.
    pub fn apply<'a>(
        &mut self,
        runs: impl IntoIterator<Item = &'a Run>,
        tombstones: &Tombstones,
        identified: &UserSet,
    ) {
        let runs: Vec<&Run> = runs.into_iter().collect();
        for same_effect in runs.chunk_by(|one, next| one.effect == next.effect) {
            let current = same_effect.iter();
            let current = current.map(|run| self.current(run, tombstones, identified));
            let current: Vec<Cow<'_, UserSet>> = current.collect();
            let named: u64 = current.iter().map(|users| users.len()).sum();
            let users = current.iter().map(AsRef::as_ref).union();
            let (same, other) = match same_effect[0].effect {
                Effect::Add => (&mut self.adds, &mut self.removes),
                Effect::Remove => (&mut self.removes, &mut self.adds),
            };
            self.duplicate += named - users.len() + users.intersection_len(same);
            self.superseded += users.intersection_len(other);
            *other -= &users;
            *same |= users;
        }
    }

    /// Whom a run matches now; counts those of its identifiers that name nobody else.
    fn current<'a>(
        &mut self,
        run: &'a Run,
        tombstones: &Tombstones,
        identified: &UserSet,
    ) -> Cow<'a, UserSet> {
        self.duplicate += run.matched - run.users.len();
        let mut users = Cow::Borrowed(&run.users);
        for stale in &(&run.users & tombstones.gone()) {
            let users = users.to_mut();
            users.remove(stale);
            match tombstones.standing(stale) {
                Standing::Merged(survivor) => self.duplicate += u64::from(!users.insert(survivor)),
                Standing::Deleted => self.unmatched.unknown += 1,
                Standing::Live => unreachable!("the tombstones hold it"),
            }
        }
        if run.by_device && !users.is_disjoint(identified) {
            self.unmatched.device_of_identified_user += users.intersection_len(identified);
            *users.to_mut() -= identified;
        }
        users
    }

    /// Brings the members of a cohort to what the import makes of them.
    ///
    /// They are taken as they are stored, possibly with users that are no longer live; the change is
    /// relative to that, so that every version tidies up after merges and deletions.
    ///
    /// A small import looks at the users it names, and copies the cohort only if somebody else holds it.
    pub fn publish(
        self,
        mode: Mode,
        members: &mut Arc<UserSet>,
        tombstones: &Tombstones,
    ) -> Publication {
        let untidy = (!members.is_disjoint(tombstones.gone())).then(|| Arc::clone(members));
        if let Some(stored) = &untidy {
            *members = tombstones.normalise_shared(Arc::clone(stored));
        }
        let members_before = members.len();
        let entering = &self.adds - &**members;
        let leaving = &self.removes & &**members;
        let outcomes = Outcomes {
            added: entering.len(),
            already_member: self.adds.len() - entering.len(),
            removed: leaving.len(),
            not_member: self.removes.len() - leaving.len(),
            unknown: self.unmatched.unknown,
            device_of_identified_user: self.unmatched.device_of_identified_user,
            duplicate: self.duplicate,
            superseded: self.superseded,
            invalid: self.unmatched.invalid,
        };
        let leaving = match mode {
            Mode::Delta => {
                let members = Arc::make_mut(members);
                *members |= &entering;
                *members -= &leaving;
                leaving
            }
            Mode::Replace => {
                let leaving = &**members - &self.adds;
                *members = Arc::new(self.adds);
                leaving
            }
        };
        let summary = Summary {
            received: outcomes.total(),
            outcomes,
            members_before,
            members_after: members.len(),
            members_added: entering.len(),
            members_removed: leaving.len(),
        };
        let (added, removed) = match untidy {
            None => (entering, leaving),
            Some(stored) => (&**members - &*stored, &*stored - &**members),
        };
        Publication {
            added,
            removed,
            summary,
        }
    }
}

/// A new version of a cohort, relative to the one before.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    /// Members that the stored version lacks.
    pub added: UserSet,
    /// Members of the stored version that the new one lacks.
    pub removed: UserSet,
    /// What became of every identifier.
    pub summary: Summary,
}

#[cfg(test)]
mod tests;
