//! From a filter and bitmaps to the users that match.

use std::borrow::Borrow;

use roaring::{MultiOps as _, RoaringBitmap};
use uuid::Uuid;

use super::{ExpandedFilter, Filter};

impl ExpandedFilter {
    /// The users that match, always among `everyone` (the workspace's live users).
    ///
    /// `cohort` gives a cohort's members, which may include users no longer live; it is asked once
    /// per occurrence and may answer with a shared bitmap, such as an `Arc`. Its error ends the
    /// evaluation.
    pub fn evaluate<B: Borrow<RoaringBitmap>, E>(
        &self,
        everyone: &RoaringBitmap,
        cohort: &mut impl FnMut(&Uuid) -> Result<B, E>,
    ) -> Result<RoaringBitmap, E> {
        let Part { users, complement } = part(self, cohort)?;
        Ok(if complement {
            everyone - users.get()
        } else {
            everyone & users.get()
        })
    }
}

/// A set of users or, where `complement` is set, everyone but them.
///
/// Carrying the complement as a mark means that "does not include" becomes one subtraction where it
/// meets a set, and that `everyone` is touched once, at the very end.
struct Part<B> {
    users: Users<B>,
    complement: bool,
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
}

impl<B> Part<B> {
    fn inverted(self) -> Self {
        Self {
            complement: !self.complement,
            ..self
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
            Ok(Part {
                users,
                complement: !includes,
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
    let (without, within): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.complement);
    let [without, within] =
        [without, within].map(|parts| parts.into_iter().map(|part| part.users).collect::<Vec<_>>());
    if within.is_empty() {
        return Part {
            users: union(without),
            complement: true,
        };
    }
    let users = without.iter().fold(intersection(within), |users, without| {
        Users::Made(match users {
            Users::Given(users) => users.borrow() - without.get(),
            Users::Made(users) => users - without.get(),
        })
    });
    Part {
        users,
        complement: false,
    }
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
