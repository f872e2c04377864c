//! A directory in memory, as of one epoch.

use muster_domain::identifier::{IdentifierKind, IdentifierRef};
use muster_storage::directory::{Match, feed::TouchedUser};

use crate::{
    arena::{Address, Arena, Entry, Full},
    table::{Key, Table},
};

/// Stands for a user without a record.
const NOBODY: Address = Address::MAX;

/// Identifiers that are looked up together: enough for the processor to wait for many of them at
/// once, few enough for their hashes to stay in its nearest cache.
const GROUP: usize = 64;

/// The identifiers of all live users of a workspace.
#[derive(Debug)]
pub(crate) struct Index {
    key: Key,
    table: Table,
    arena: Arena,
    /// Where the record of each user begins.
    records: Vec<Address>,
}

impl Index {
    /// An index for about so many users and identifiers.
    ///
    /// # Errors
    /// If the system has no memory for it.
    pub(crate) fn with_capacity(users: usize, identifiers: usize) -> Result<Self, Full> {
        Ok(Self {
            key: Key::default(),
            table: Table::with_capacity(identifiers)?,
            arena: Arena::default(),
            records: Vec::with_capacity(users),
        })
    }

    /// Begins to add users.
    pub(crate) fn adding(&mut self) -> Adding<'_> {
        Adding {
            index: self,
            waiting: Vec::with_capacity(2 * GROUP),
        }
    }

    /// Removes a user, and overwrites the identifiers.
    pub(crate) fn remove(&mut self, user: u32) {
        let Some(first) = self.first(user) else {
            return;
        };
        for (address, entry) in self.arena.record(first) {
            self.table.remove(hash_of(&self.key, entry), address);
        }
        self.arena.erase(first);
        self.records[user as usize] = NOBODY;
    }

    /// Makes some users what they are in the directory now. All of them are removed before any is
    /// added, since identifiers move between users.
    pub(crate) fn apply(&mut self, changed: &[TouchedUser]) -> Result<(), Full> {
        for user in changed {
            self.remove(user.number);
        }
        let mut adding = self.adding();
        for user in changed {
            if !user.identifiers.is_empty() {
                let identifiers: Vec<_> = user.identifiers.iter().map(|i| i.as_ref()).collect();
                adding.insert(user.number, user.printed, &identifiers)?;
            }
        }
        Ok(())
    }

    /// What identifiers lead to, by the rule of [`muster_storage::directory::match_identifiers`].
    pub(crate) fn matches(&self, identifiers: &[IdentifierRef<'_>]) -> Vec<Match> {
        let mut matches = Vec::with_capacity(identifiers.len());
        // Each step waits for memory. Done for a group at a time, the waits overlap; but only as
        // long as nothing is decided by what is waited for, so it is fetched before it is looked at.
        let mut hashes = [0; GROUP];
        let mut likely = [None; GROUP];
        for group in identifiers.chunks(GROUP) {
            for (hash_of_it, identifier) in hashes.iter_mut().zip(group) {
                *hash_of_it = hash(&self.key, *identifier);
            }
            let hashes = &hashes[..group.len()];
            fetch(hashes.iter().map(|hash| self.table.fetch(*hash)));
            for (address, hash) in likely.iter_mut().zip(hashes) {
                *address = self.table.likely(*hash);
            }
            let likely = &likely[..group.len()];
            let sought = likely.iter().zip(group);
            fetch(sought.map(|(address, identifier)| {
                let text = identifier.label.len() + identifier.id.len();
                self.arena.fetch(address.unwrap_or_default(), text)
            }));
            for (identifier, (hash, likely)) in group.iter().zip(hashes.iter().zip(likely)) {
                let likely = likely.map(|address| self.arena.entry(address));
                let found = likely
                    .filter(|entry| entry.is(*identifier))
                    .or_else(|| self.find(*hash, *identifier));
                matches.push(match found {
                    None => Match::Unknown,
                    Some(entry)
                        if identifier.kind == IdentifierKind::DeviceId
                            && self.is_identified(entry.user) =>
                    {
                        Match::DeviceOfIdentifiedUser(entry.user)
                    }
                    Some(entry) => Match::User(entry.user),
                });
            }
        }
        matches
    }

    fn find(&self, hash: u64, identifier: IdentifierRef<'_>) -> Option<Entry<'_>> {
        let is = |address| self.arena.entry(address).is(identifier);
        let address = self.table.find(hash, is)?;
        Some(self.arena.entry(address))
    }

    fn is_identified(&self, user: u32) -> bool {
        self.first(user)
            .is_some_and(|first| self.arena.entry(first).is_printed())
    }

    fn first(&self, user: u32) -> Option<Address> {
        let first = self.records.get(user as usize).copied();
        first.filter(|first| *first != NOBODY)
    }

    /// The identifiers of a user: first the external id that audiences print, if there is one, then
    /// others, aliases and devices, each in order. `None` if the user is not live.
    pub(crate) fn record(&self, user: u32) -> Option<impl Iterator<Item = Entry<'_>>> {
        let record = self.arena.record(self.first(user)?);
        Some(record.map(|(_, entry)| entry))
    }

    /// Waits for the records of some users, which are looked into next.
    pub(crate) fn fetch(&self, users: &[u32]) {
        /// Bytes of an external id of the usual sort.
        const TEXT: usize = 32;
        let first = users.iter().map(|&user| self.first(user));
        fetch(first.map(|first| first.map_or(0, |first| self.arena.fetch(first, TEXT))));
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.table.bytes() + self.arena.bytes() + self.records.capacity() * size_of::<Address>()
    }

    /// Whether so much of it is room of what was removed, or it has grown so much, that it had
    /// better be loaded anew.
    pub(crate) fn is_worn(&self) -> bool {
        /// Below this nothing is gained.
        const LEAST_BYTES: usize = 1 << 20;
        let dead = self.arena.dead_bytes();
        dead > LEAST_BYTES.max(self.arena.bytes() / 4) || self.table.is_outgrown()
    }
}

/// Adds users to an index; they are found once this is dropped.
pub(crate) struct Adding<'a> {
    index: &'a mut Index,
    /// Hashes and addresses that the table lacks: their places are fetched a group at a time.
    waiting: Vec<(u64, Address)>,
}

impl Adding<'_> {
    /// Adds a user that has no record, with at least one identifier. If `printed`, the first of
    /// them is the external id that audiences print.
    pub(crate) fn insert(
        &mut self,
        user: u32,
        printed: bool,
        identifiers: &[IdentifierRef<'_>],
    ) -> Result<(), Full> {
        let mut first = None;
        let Index {
            key,
            arena,
            records,
            ..
        } = &mut *self.index;
        arena.push(user, printed, identifiers, |identifier, address| {
            first.get_or_insert(address);
            self.waiting.push((hash(key, identifier), address));
        })?;
        let place = user as usize;
        if records.len() <= place {
            if records.capacity() <= place {
                // By a little: doubling would waste what the index saves elsewhere.
                let more = place + 1 - records.len() + place / 8;
                records.reserve_exact(more);
            }
            records.resize(place + 1, NOBODY);
        }
        records[place] = first.unwrap_or(NOBODY);
        if self.waiting.len() >= GROUP {
            self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) {
        let Index {
            key, table, arena, ..
        } = &mut *self.index;
        fetch(self.waiting.iter().map(|(hash, _)| table.fetch(*hash)));
        for (hash, address) in self.waiting.drain(..) {
            table.insert(hash, address, |address| hash_of(key, arena.entry(address)));
        }
    }
}

impl Drop for Adding<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Waits for what is in no cache yet, for all of it at once.
#[inline]
fn fetch(bytes: impl Iterator<Item = u8>) {
    std::hint::black_box(bytes.fold(0, |all, byte| all ^ byte));
}

#[inline]
fn hash(key: &Key, identifier: IdentifierRef<'_>) -> u64 {
    let (label, id) = (identifier.label.as_bytes(), identifier.id.as_bytes());
    key.hash(identifier.kind, label, id)
}

fn hash_of(key: &Key, entry: Entry<'_>) -> u64 {
    let (label, id) = entry.parts();
    key.hash(entry.kind(), label, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(user: u32) -> [String; 2] {
        [
            format!("user-{user:020}"),
            format!("01234567-89ab-cdef-{user:017}"),
        ]
    }

    fn add(index: &mut Index, user: u32) {
        let [external_id, device] = ids(user);
        let identifiers = [
            IdentifierRef::external_id(&external_id),
            IdentifierRef::device_id(&device),
        ];
        index.adding().insert(user, true, &identifiers).unwrap();
    }

    #[test]
    fn a_user_with_an_external_id_and_a_device_takes_less_than_100_bytes() {
        const USERS: u32 = 200_000;
        let mut index = Index::with_capacity(USERS as usize, 2 * USERS as usize).unwrap();
        (0..USERS).for_each(|user| add(&mut index, user));
        let bytes = index.bytes() as f64 / f64::from(USERS);
        assert!(bytes < 100.0, "{bytes}");
    }

    #[test]
    fn an_index_that_was_planned_for_nobody_grows_and_shrinks() {
        const USERS: u32 = 20_000;
        let mut index = Index::with_capacity(0, 0).unwrap();
        (0..USERS).for_each(|user| add(&mut index, user));
        (0..USERS)
            .filter(|user| user % 3 == 0)
            .for_each(|user| index.remove(user));
        for user in 0..USERS {
            let [external_id, device] = ids(user);
            let found = index.matches(&[
                IdentifierRef::external_id(&external_id),
                IdentifierRef::device_id(&device),
                IdentifierRef::device_id(&external_id),
            ]);
            let expected = if user % 3 == 0 {
                [Match::Unknown; 3]
            } else {
                let device = Match::DeviceOfIdentifiedUser(user);
                [Match::User(user), device, Match::Unknown]
            };
            assert_eq!(found, expected, "{user}");
        }
        assert!(index.is_worn(), "it is far beyond its plan");
    }

    #[test]
    fn a_user_may_have_more_identifiers_than_a_chunk_holds() {
        let texts: Vec<String> = (0..70_000).map(|n| format!("{n:0>500}")).collect();
        let identifiers: Vec<_> = texts.iter().map(|t| IdentifierRef::device_id(t)).collect();
        let mut index = Index::with_capacity(3, 6).unwrap();
        add(&mut index, 0);
        index.adding().insert(1, false, &identifiers).unwrap();
        add(&mut index, 2);
        let held: Vec<_> = index.record(1).unwrap().map(Entry::to_owned).collect();
        let sent: Vec<_> = identifiers.iter().map(|i| (*i).to_owned()).collect();
        assert_eq!(held, sent);
        assert!(
            index
                .matches(&identifiers)
                .iter()
                .all(|m| *m == Match::User(1))
        );
        index.remove(1);
        assert!(
            index
                .matches(&identifiers)
                .iter()
                .all(|m| *m == Match::Unknown)
        );
        assert_eq!(index.record(2).unwrap().count(), 2);
    }

    #[test]
    fn what_is_removed_is_gone_from_memory() {
        let mut index = Index::with_capacity(2, 4).unwrap();
        add(&mut index, 0);
        add(&mut index, 1);
        let held = |index: &Index, user| index.arena.holds(ids(user)[0].as_bytes());
        assert!(held(&index, 0) && held(&index, 1));
        index.remove(0);
        assert!(!held(&index, 0) && held(&index, 1));
    }

    #[test]
    fn no_identifier_is_longer_than_any_can_be() {
        let mut index = Index::with_capacity(1, 1).unwrap();
        let long = "x".repeat(513);
        let refused = index
            .adding()
            .insert(0, false, &[IdentifierRef::device_id(&long)]);
        assert_eq!(refused, Err(Full));
    }
}
