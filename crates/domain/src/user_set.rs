//! Sets of users, as Roaring bitmaps of `user_no`, and how they are cut into rows.
//!
//! Format: <https://github.com/RoaringBitmap/RoaringFormatSpec>. A set is stored in parts of
//! 2²³ consecutive numbers, so that no row exceeds 1 MiB and a few KiB of headers.

use std::{collections::HashMap, sync::Arc};

use crate::error::{Error, Result};

/// A set of users of one workspace, by `user_no`.
pub use roaring::RoaringBitmap as UserSet;

/// Width of a part, in bits of `user_no`.
const PART_BITS: u32 = 23;

/// One stored part of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which part: `user_no >> 23`.
    pub number: u32,
    /// The users of the part, in the portable Roaring format.
    pub bytes: Vec<u8>,
}

/// The number of the part that holds a user.
pub fn part_of(user: u32) -> u32 {
    user >> PART_BITS
}

/// Cuts a set into its non-empty parts, by number.
pub fn split(set: &UserSet) -> Vec<Part> {
    let (Some(min), Some(max)) = (set.min(), set.max()) else {
        return Vec::new();
    };
    if part_of(min) == part_of(max) {
        return vec![part(set.clone())];
    }
    (part_of(min)..=part_of(max))
        .filter_map(|number| {
            let first = number << PART_BITS;
            let last = first | ((1 << PART_BITS) - 1);
            let mut users = set.clone();
            users.remove_range(..first);
            if last < u32::MAX {
                users.remove_range(last + 1..);
            }
            (!users.is_empty()).then(|| part(users))
        })
        .collect()
}

fn part(mut users: UserSet) -> Part {
    users.optimize();
    Part {
        number: users.min().map_or(0, part_of),
        bytes: to_bytes(&users),
    }
}

/// Writes a set in the portable Roaring format.
pub fn to_bytes(set: &UserSet) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(set.serialized_size());
    set.serialize_into(&mut bytes)
        .expect("writing into memory does not fail");
    bytes
}

/// Reads a set in the portable Roaring format.
///
/// # Errors
/// `INTERNAL` if the bytes are damaged: they only ever come from our own tables.
pub fn from_bytes(bytes: &[u8]) -> Result<UserSet> {
    UserSet::deserialize_from(bytes).map_err(Error::internal)
}

/// The users of a workspace that are no longer live: what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tombstones {
    gone: UserSet,
    merged: HashMap<u32, u32>,
}

/// What a number stands for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A live user.
    Live,
    /// The user lives on as this one.
    Merged(u32),
    /// Erased.
    Deleted,
}

impl Tombstones {
    /// Records that a user was deleted, also one that had been merged.
    pub fn delete(&mut self, user: u32) {
        self.gone.insert(user);
        self.merged.remove(&user);
    }

    /// Records that a user was merged into another.
    pub fn merge(&mut self, user: u32, into: u32) {
        self.gone.insert(user);
        self.merged.insert(user, into);
    }

    /// All users that are not live.
    pub fn gone(&self) -> &UserSet {
        &self.gone
    }

    /// What became of a user, after any number of merges.
    pub fn standing(&self, user: u32) -> Standing {
        let mut current = user;
        while let Some(&next) = self.merged.get(&current) {
            current = next;
        }
        if self.gone.contains(current) {
            Standing::Deleted
        } else if current == user {
            Standing::Live
        } else {
            Standing::Merged(current)
        }
    }

    /// The live users that a set stands for now: merged ones are replaced by their survivors,
    /// deleted ones left out.
    pub fn normalise(&self, mut set: UserSet) -> UserSet {
        let stale = &set & &self.gone;
        if stale.is_empty() {
            return set;
        }
        set -= &stale;
        for user in &stale {
            if let Standing::Merged(survivor) = self.standing(user) {
                set.insert(survivor);
            }
        }
        set
    }

    /// As [`normalise`](Self::normalise), without a copy if the set stays as it is.
    pub fn normalise_shared(&self, set: Arc<UserSet>) -> Arc<UserSet> {
        if set.is_disjoint(&self.gone) {
            return set;
        }
        Arc::new(self.normalise(Arc::unwrap_or_clone(set)))
    }

    /// Every live user of a workspace whose numbers run from 0 to `next_user_no` exclusive.
    pub fn live(&self, next_user_no: u64) -> UserSet {
        let mut live = UserSet::new();
        if let Some(last) = next_user_no.checked_sub(1) {
            live.insert_range(0..=u32::try_from(last).unwrap_or(u32::MAX));
        }
        live - &self.gone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_part_fits_a_row_of_one_mebibyte() {
        // Every other number defeats run-length encoding.
        let worst = UserSet::from_sorted_iter((0..1 << PART_BITS).filter(|n| n % 2 == 0)).unwrap();
        let parts = split(&worst);
        assert_eq!(parts.len(), 1);
        assert!(parts[0].bytes.len() <= (1 << 20) + 4096);
    }

    #[test]
    fn a_merged_user_is_replaced_by_the_last_survivor() {
        let mut tombstones = Tombstones::default();
        tombstones.merge(1, 2);
        tombstones.merge(2, 3);
        assert_eq!(tombstones.standing(1), Standing::Merged(3));
        assert_eq!(
            tombstones.normalise(UserSet::from([1, 9])),
            UserSet::from([3, 9])
        );
        tombstones.delete(3);
        assert_eq!(tombstones.standing(1), Standing::Deleted);
        assert_eq!(
            tombstones.normalise(UserSet::from([1, 9])),
            UserSet::from([9])
        );
        assert_eq!(tombstones.live(5), UserSet::from([0, 4]));
    }

    proptest! {
        #[test]
        fn parts_are_disjoint_and_complete(
            users in prop::collection::btree_set(
                prop_oneof![any::<u32>(), 0u32..100, (u32::MAX - 100)..=u32::MAX, 8_388_600u32..8_388_616],
                0..200,
            ),
        ) {
            let set: UserSet = users.iter().copied().collect();
            let mut joined = UserSet::new();
            for part in split(&set) {
                let users = from_bytes(&part.bytes).unwrap();
                prop_assert!(users.iter().all(|user| part_of(user) == part.number));
                prop_assert!(joined.is_disjoint(&users));
                joined |= users;
            }
            prop_assert_eq!(joined, set);
        }
    }
}
