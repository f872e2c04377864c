//! What has become of the users of an audience since it was pinned, and how those who were merged
//! into one person come out as one.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use muster_domain::user_set::{Standing, Tombstones, UserSet};

use super::Batch;

/// Why a record has no identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Withheld {
    /// The user was erased since.
    Erased,
    /// The user is the same person as one who comes out through another record, after a merge.
    Merged,
}

/// What has become of a pinned user who is no longer live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Withheld(Withheld),
    /// Merged into this user, who comes out in its place.
    Replaced(u32),
}

/// What has become of the pinned users who are no longer live, and of those live ones whose person
/// has come out already.
///
/// Of several who live on as one and the same, one speaks for them: whoever came out before the
/// merge, for that cannot be taken back; else the survivor, if it is pinned; else the first that is
/// not silent, for a stream that has withheld a user, or may have, cannot take that back either.
pub(super) fn fates(pinned: &UserSet, tombstones: &Tombstones, past: &Past) -> HashMap<u32, Fate> {
    let gone = pinned & tombstones.gone();
    let survivor = |user| match tombstones.standing(user) {
        Standing::Merged(survivor) => Some(survivor),
        Standing::Live | Standing::Deleted => None,
    };
    let mut spoken_for: HashSet<u32> = gone
        .iter()
        .filter(|&user| past.printed(user))
        .filter_map(survivor)
        .collect();
    let repeated = spoken_for
        .iter()
        .filter(|&&survivor| pinned.contains(survivor) && !past.printed(survivor));
    let repeated: Vec<u32> = repeated.copied().collect();
    let fate = |user| match tombstones.standing(user) {
        Standing::Deleted => Fate::Withheld(Withheld::Erased),
        Standing::Merged(survivor)
            if !pinned.contains(survivor)
                && !past.is_silent(user)
                && spoken_for.insert(survivor) =>
        {
            Fate::Replaced(survivor)
        }
        Standing::Merged(_) => Fate::Withheld(Withheld::Merged),
        Standing::Live => unreachable!("the tombstones hold it"),
    };
    let gone: Vec<(u32, Fate)> = gone.iter().zip(gone.iter().map(fate)).collect();
    let repeated = repeated.into_iter();
    let repeated = repeated.map(|user| (user, Fate::Withheld(Withheld::Merged)));
    gone.into_iter().chain(repeated).collect()
}

/// What a stream has done with the pinned users so far. They come out in order, so that little has to
/// be remembered.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Users who came out before the stream was resumed. What was withheld then is not known, so
    /// none of them speaks for anybody: whoever was merged into the same person comes out once more
    /// rather than never.
    passed: Range<u32>,
    /// The last user whose record was made since.
    last: Option<u32>,
    /// Those whose records were withheld since.
    withheld: UserSet,
}

impl Past {
    /// Of a stream that goes on after these users.
    pub(super) fn of(passed: Range<u32>) -> Self {
        Self {
            passed,
            ..Self::default()
        }
    }

    /// Whether the record of this pinned user was made since, with identifiers.
    fn printed(&self, user: u32) -> bool {
        let made = self
            .last
            .is_some_and(|last| (self.passed.end..=last).contains(&user));
        made && !self.withheld.contains(user)
    }

    /// Whether the user can no longer speak for others.
    fn is_silent(&self, user: u32) -> bool {
        self.passed.contains(&user) || self.withheld.contains(user)
    }

    /// The first ones of some users came out, in this batch.
    pub(super) fn made(&mut self, users: &[u32], batch: &Batch) {
        self.last = users[..batch.len].last().copied().or(self.last);
        self.withheld.extend(&batch.withheld);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERASED: Fate = Fate::Withheld(Withheld::Erased);
    const MERGED: Fate = Fate::Withheld(Withheld::Merged);

    fn of(pinned: &[u32], tombstones: &Tombstones, withheld: &[u32]) -> Vec<(u32, Fate)> {
        after(withheld.last().copied(), pinned, tombstones, withheld)
    }

    fn after(
        last: Option<u32>,
        pinned: &[u32],
        tombstones: &Tombstones,
        withheld: &[u32],
    ) -> Vec<(u32, Fate)> {
        let past = Past {
            last,
            withheld: withheld.iter().copied().collect(),
            passed: 0..0,
        };
        let fates = fates(&pinned.iter().copied().collect(), tombstones, &past);
        let mut fates: Vec<_> = fates.into_iter().collect();
        fates.sort_unstable_by_key(|(user, _)| *user);
        fates
    }

    #[test]
    fn who_came_out_before_a_merge_does_not_come_out_as_the_survivor_again() {
        let mut tombstones = Tombstones::default();
        tombstones.merge(1, 3);
        tombstones.merge(2, 3);
        assert_eq!(
            after(Some(1), &[1, 2, 3], &tombstones, &[]),
            [(1, MERGED), (2, MERGED), (3, MERGED)]
        );
        // The survivor came out: nothing is taken back.
        assert_eq!(
            after(Some(3), &[1, 2, 3, 4], &tombstones, &[]),
            [(1, MERGED), (2, MERGED)]
        );
        tombstones.merge(3, 90);
        assert_eq!(
            after(Some(1), &[1, 2, 3], &tombstones, &[]),
            [(1, MERGED), (2, MERGED), (3, MERGED)]
        );
        tombstones.delete(90);
        assert_eq!(
            after(Some(1), &[1, 2, 3], &tombstones, &[]),
            [(1, ERASED), (2, ERASED), (3, ERASED)]
        );
    }

    #[test]
    fn nobody_comes_out_twice_and_nobody_live_is_lost() {
        let mut tombstones = Tombstones::default();
        tombstones.delete(1);
        tombstones.merge(2, 3);
        tombstones.merge(4, 90);
        tombstones.merge(5, 90);
        assert_eq!(
            of(&[1, 2, 3, 4, 5, 6], &tombstones, &[]),
            [
                (1, ERASED),
                (2, MERGED),
                (4, Fate::Replaced(90)),
                (5, MERGED)
            ]
        );
    }

    #[test]
    fn a_chain_of_merges_leads_to_its_end() {
        let mut tombstones = Tombstones::default();
        tombstones.merge(1, 2);
        tombstones.merge(2, 90);
        assert_eq!(
            of(&[1, 2], &tombstones, &[]),
            [(1, Fate::Replaced(90)), (2, MERGED)]
        );
        tombstones.delete(90);
        assert_eq!(of(&[1, 2], &tombstones, &[]), [(1, ERASED), (2, ERASED)]);
    }

    #[test]
    fn who_was_to_be_spoken_for_by_another_does_not_silence_that_one() {
        // 1 was withheld for 2; then 2 was merged as well, before its record was sent.
        let mut tombstones = Tombstones::default();
        tombstones.merge(1, 2);
        tombstones.merge(2, 90);
        assert_eq!(
            of(&[1, 2], &tombstones, &[1]),
            [(1, MERGED), (2, Fate::Replaced(90))]
        );
    }
}
