//! From a filter and bitmaps to the users that match.

use std::borrow::Borrow;

use roaring::{MultiOps as _, RoaringBitmap};
use uuid::Uuid;

use super::{ExpandedFilter, Filter};

impl ExpandedFilter {
    /// The users that match, always among `everyone` (the workspace's live users).
    ///
    /// `cohort` gives a cohort's members, which may include users no longer live; it is asked once
    /// per occurrence and may answer with a shared bitmap, such as an `Arc`.
    ///
    /// # Errors
    /// That of `cohort`, which ends the evaluation.
    pub fn evaluate<B: Borrow<RoaringBitmap>, E>(
        &self,
        everyone: &RoaringBitmap,
        cohort: &mut impl FnMut(&Uuid) -> Result<B, E>,
    ) -> Result<RoaringBitmap, E> {
        let Part { within, without } = part(self, cohort)?;
        Ok(match within {
            None => everyone - union(without).get(),
            Some(users) => {
                let users = subtract(users, without);
                // Comparing numbers takes a hundredth of the time that making another set does.
                if is_among(users.get(), everyone) {
                    users.into_set()
                } else {
                    everyone & users.get()
                }
            }
        })
    }

    /// How many users match: as many as [`evaluate`](Self::evaluate) gives, mostly without making a
    /// set of them.
    ///
    /// # Errors
    /// That of `cohort`.
    pub fn count<B: Borrow<RoaringBitmap>, E>(
        &self,
        everyone: &RoaringBitmap,
        cohort: &mut impl FnMut(&Uuid) -> Result<B, E>,
    ) -> Result<u64, E> {
        let Part { within, without } = part(self, cohort)?;
        Ok(match (within, without.as_slice()) {
            (None, _) => everyone.len() - everyone.intersection_len(union(without).get()),
            (Some(users), [only]) if is_among(users.get(), everyone) => {
                users.get().len() - users.get().intersection_len(only.get())
            }
            (Some(users), _) => everyone.intersection_len(subtract(users, without).get()),
        })
    }
}

fn is_among(users: &RoaringBitmap, everyone: &RoaringBitmap) -> bool {
    everyone.intersection_len(users) == users.len()
}

/// The users of a set, or everyone where there is none, but for those of other sets.
///
/// A subtraction is put off until its result is needed as a set: "does not include" becomes one where
/// it meets a set, a count needs none, and `everyone` is touched once, at the very end.
struct Part<B> {
    within: Option<Users<B>>,
    without: Vec<Users<B>>,
}

enum Users<B> {
    Given(B),
    Made(RoaringBitmap),
}

impl<B: Borrow<RoaringBitmap>> Users<B> {
    fn get(&self) -> &RoaringBitmap {
        match self {
            Self::Given(users) => users.borrow(),
            Self::Made(users) => users,
        }
    }

    fn into_set(self) -> RoaringBitmap {
        match self {
            Self::Given(users) => users.borrow().clone(),
            Self::Made(users) => users,
        }
    }
}

impl<B: Borrow<RoaringBitmap>> Part<B> {
    fn within(users: Users<B>) -> Self {
        Self {
            within: Some(users),
            without: Vec::new(),
        }
    }

    fn without(users: Users<B>) -> Self {
        Self {
            within: None,
            without: vec![users],
        }
    }

    fn inverted(self) -> Self {
        match self.within {
            None => Self::within(union(self.without)),
            Some(users) => Self::without(subtract(users, self.without)),
        }
    }
}

fn part<B: Borrow<RoaringBitmap>, E>(
    filter: &ExpandedFilter,
    cohort: &mut impl FnMut(&Uuid) -> Result<B, E>,
) -> Result<Part<B>, E> {
    match filter {
        Filter::Cohort {
            cohorts, includes, ..
        } => {
            let members = cohorts.iter().map(|id| cohort(id).map(Users::Given));
            let users = union(members.collect::<Result<_, E>>()?);
            Ok(if *includes {
                Part::within(users)
            } else {
                Part::without(users)
            })
        }
        Filter::AllOf(members) => {
            let parts = members.iter().map(|member| part(member, cohort));
            Ok(all_of(parts.collect::<Result<_, E>>()?))
        }
        // a or b = not (not a and not b)
        Filter::AnyOf(members) => {
            let parts = members
                .iter()
                .map(|member| part(member, cohort).map(Part::inverted));
            Ok(all_of(parts.collect::<Result<_, E>>()?).inverted())
        }
        Filter::Not(inner) => part(inner, cohort).map(Part::inverted),
        Filter::Segment(segment) => part(&segment.filter, cohort),
    }
}

fn all_of<B: Borrow<RoaringBitmap>>(parts: Vec<Part<B>>) -> Part<B> {
    let (mut within, mut without) = (Vec::new(), Vec::new());
    for part in parts {
        within.extend(part.within);
        without.extend(part.without);
    }
    Part {
        within: (!within.is_empty()).then(|| intersection(within)),
        without,
    }
}

fn subtract<B: Borrow<RoaringBitmap>>(users: Users<B>, without: Vec<Users<B>>) -> Users<B> {
    without.iter().fold(users, |users, without| {
        Users::Made(match users {
            Users::Given(users) => users.borrow() - without.get(),
            Users::Made(users) => users - without.get(),
        })
    })
}

fn union<B: Borrow<RoaringBitmap>>(sets: Vec<Users<B>>) -> Users<B> {
    combine(sets, |sets| sets.iter().map(Users::get).union())
}

fn intersection<B: Borrow<RoaringBitmap>>(sets: Vec<Users<B>>) -> Users<B> {
    combine(sets, |sets| sets.iter().map(Users::get).intersection())
}

/// Leaves a single set as it is, which spares a copy of the commonest case.
fn combine<B>(
    mut sets: Vec<Users<B>>,
    operation: impl FnOnce(&[Users<B>]) -> RoaringBitmap,
) -> Users<B> {
    match sets.pop() {
        Some(only) if sets.is_empty() => only,
        last => {
            sets.extend(last);
            Users::Made(operation(&sets))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::strategy::{cohort, expanded};
    use super::*;

    type Naive = BTreeSet<u32>;

    fn naive(filter: &ExpandedFilter, everyone: &Naive, cohorts: &[Naive]) -> Naive {
        let matching = |member: &ExpandedFilter| naive(member, everyone, cohorts);
        let none = Naive::new();
        match filter {
            Filter::Cohort {
                cohorts: ids,
                includes,
                ..
            } => {
                let members = ids.iter().map(|id| &cohorts[id.as_u128() as usize]);
                let members = members.fold(none, |union, members| &union | members);
                if *includes {
                    &members & everyone
                } else {
                    everyone - &members
                }
            }
            Filter::AllOf(members) => members
                .iter()
                .fold(everyone.clone(), |both, member| &both & &matching(member)),
            Filter::AnyOf(members) => members
                .iter()
                .fold(none, |either, member| &either | &matching(member)),
            Filter::Not(inner) => everyone - &matching(inner),
            Filter::Segment(segment) => matching(&segment.filter),
        }
    }

    fn users() -> impl Strategy<Value = Naive> {
        prop::collection::btree_set(0..12_u32, 0..12)
    }

    proptest! {
        #[test]
        fn evaluation_agrees_with_the_definition(
            filter in expanded(),
            everyone in users(),
            cohorts in prop::collection::vec(users(), 5),
        ) {
            let expected = naive(&filter, &everyone, &cohorts);
            let everyone = everyone.into_iter().collect();
            let bitmap = |id: &Uuid| {
                let members = &cohorts[id.as_u128() as usize];
                Ok::<_, Infallible>(members.iter().copied().collect::<RoaringBitmap>())
            };
            let Ok(count) = filter.count(&everyone, &mut { bitmap });
            prop_assert_eq!(count, expected.len() as u64);
            let Ok(found) = filter.evaluate(&everyone, &mut { bitmap });
            prop_assert_eq!(found.into_iter().collect::<Naive>(), expected);
        }
    }

    #[test]
    fn shared_bitmaps_will_do_and_an_error_ends_it() {
        let shared = Arc::new(RoaringBitmap::from_iter([1, 2, 3]));
        let filter = cohort(1).expand(|_| None).unwrap();
        let everyone = RoaringBitmap::from_iter([2, 3, 4]);
        let found = filter.evaluate(&everyone, &mut |_| Ok::<_, ()>(Arc::clone(&shared)));
        assert_eq!(found, Ok(RoaringBitmap::from_iter([2, 3])));
        let failed = filter.evaluate(&everyone, &mut |_| Err::<RoaringBitmap, _>("gone"));
        assert_eq!(failed, Err("gone"));
    }
}
