//! Why one user matches a filter, or does not.

use uuid::Uuid;

use super::ExpandedFilter;

/// The answer for one user, node by node, in the structure of the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Whether the user matches here.
    pub matched: bool,
    /// What the node is and what was found beneath it.
    pub finding: Finding,
}

/// One node of an [`Explanation`]; the variants are those of [`Filter`](super::Filter).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A condition on cohorts.
    Cohort(CohortFinding),
    /// Every member has to match.
    AllOf(Vec<Explanation>),
    /// Some member has to match.
    AnyOf(Vec<Explanation>),
    /// The inner filter must not match.
    Not(Box<Explanation>),
    /// A nested segment.
    Segment {
        /// The segment.
        id: Uuid,
        /// What was found for its filter.
        filter: Box<Explanation>,
    },
}

/// What was found for a condition on cohorts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CohortFinding {
    /// Slug of the partner.
    pub partner: String,
    /// Whether the condition asks for members, rather than non-members.
    pub includes: bool,
    /// The cohorts asked about.
    pub cohorts: Vec<Uuid>,
    /// Those of them that contain the user.
    pub containing: Vec<Uuid>,
}

/// One of the conditions that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason<'a> {
    /// Where it stands in the filter, such as `all_of[1].not.cohort`.
    pub path: String,
    /// What was found there.
    pub cohort: &'a CohortFinding,
}

impl ExpandedFilter {
    /// Explains the answer for one live user; `contains` tells whether a cohort contains the user.
    ///
    /// Every cohort is asked about, also where the answer is already settled, so that the
    /// explanation is complete. The first error of `contains` ends it.
    pub fn explain<E>(
        &self,
        contains: &mut impl FnMut(&Uuid) -> Result<bool, E>,
    ) -> Result<Explanation, E> {
        let (matched, finding) = match self {
            Self::Cohort {
                partner,
                cohorts,
                includes,
            } => {
                let mut containing = Vec::new();
                for cohort in cohorts {
                    if contains(cohort)? {
                        containing.push(*cohort);
                    }
                }
                let matched = containing.is_empty() != *includes;
                let (partner, cohorts) = (partner.clone(), cohorts.clone());
                let finding = CohortFinding {
                    partner,
                    includes: *includes,
                    cohorts,
                    containing,
                };
                (matched, Finding::Cohort(finding))
            }
            Self::AllOf(members) => {
                let members = explain_each(members, contains)?;
                (
                    members.iter().all(|member| member.matched),
                    Finding::AllOf(members),
                )
            }
            Self::AnyOf(members) => {
                let members = explain_each(members, contains)?;
                (
                    members.iter().any(|member| member.matched),
                    Finding::AnyOf(members),
                )
            }
            Self::Not(inner) => {
                let inner = inner.explain(contains)?;
                (!inner.matched, Finding::Not(Box::new(inner)))
            }
            Self::Segment(segment) => {
                let filter = segment.filter.explain(contains)?;
                (
                    filter.matched,
                    Finding::Segment {
                        id: segment.id,
                        filter: Box::new(filter),
                    },
                )
            }
        };
        Ok(Explanation { matched, finding })
    }
}

fn explain_each<E>(
    members: &[ExpandedFilter],
    contains: &mut impl FnMut(&Uuid) -> Result<bool, E>,
) -> Result<Vec<Explanation>, E> {
    members
        .iter()
        .map(|member| member.explain(contains))
        .collect()
}

impl Explanation {
    /// A shortest set of conditions that settles the answer, whatever all others say.
    ///
    /// For a user shut out by one branch of an `all_of` that is this branch alone, as in
    /// `all_of[1].not.cohort`; for a user let in by it, it is every branch. Among equally short
    /// answers the one written first is given.
    pub fn reasons(&self) -> Vec<Reason<'_>> {
        match &self.finding {
            Finding::Cohort(cohort) => vec![Reason {
                path: "cohort".to_owned(),
                cohort,
            }],
            // One member that fails settles an `all_of`, as one that matches settles an `any_of`;
            // otherwise it took all of them.
            Finding::AllOf(members) => self.of_members("all_of", members, !self.matched),
            Finding::AnyOf(members) => self.of_members("any_of", members, self.matched),
            Finding::Not(inner) => within("not", inner.reasons()),
            Finding::Segment { filter, .. } => within("segment", filter.reasons()),
        }
    }

    fn of_members<'a>(
        &self,
        name: &str,
        members: &'a [Explanation],
        one_suffices: bool,
    ) -> Vec<Reason<'a>> {
        let agreeing = members
            .iter()
            .enumerate()
            .filter(|(_, it)| it.matched == self.matched);
        let reasons = agreeing.map(|(index, it)| within(&format!("{name}[{index}]"), it.reasons()));
        if one_suffices {
            reasons.min_by_key(Vec::len).unwrap_or_default()
        } else {
            reasons.flatten().collect()
        }
    }
}

fn within<'a>(parent: &str, mut reasons: Vec<Reason<'a>>) -> Vec<Reason<'a>> {
    for reason in &mut reasons {
        reason.path = format!("{parent}.{}", reason.path);
    }
    reasons
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use proptest::prelude::*;
    use roaring::RoaringBitmap;

    use super::super::strategy::{cohort, expanded, id};
    use super::super::{Filter, SavedFilter};
    use super::*;

    fn explained(filter: &ExpandedFilter, member_of: &BTreeSet<Uuid>) -> Explanation {
        let Ok(explanation) =
            filter.explain(&mut |cohort| Ok::<_, Infallible>(member_of.contains(cohort)));
        explanation
    }

    fn memberships() -> impl Strategy<Value = BTreeSet<Uuid>> {
        prop::collection::btree_set((0..5_u32).prop_map(id), 0..5)
    }

    proptest! {
        #[test]
        fn the_explanation_agrees_with_the_evaluation(
            filter in expanded(),
            member_of in memberships(),
        ) {
            const USER: u32 = 7;
            let everyone = RoaringBitmap::from_iter([USER]);
            let Ok(found) = filter.evaluate(&everyone, &mut |id| {
                let users = member_of.contains(id).then_some(USER);
                Ok::<_, Infallible>(RoaringBitmap::from_iter(users))
            });
            prop_assert_eq!(explained(&filter, &member_of).matched, found.contains(USER));
        }

        #[test]
        fn the_reasons_settle_the_answer_whatever_else_changes(
            filter in expanded(),
            member_of in memberships(),
            otherwise in memberships(),
        ) {
            let explanation = explained(&filter, &member_of);
            let reasons = explanation.reasons();
            prop_assert!(!reasons.is_empty());
            let settled: BTreeSet<_> =
                reasons.iter().flat_map(|reason| &reason.cohort.cohorts).copied().collect();
            let changed = &(&member_of & &settled) | &(&otherwise - &settled);
            prop_assert_eq!(explained(&filter, &changed).matched, explanation.matched);
        }
    }

    fn paths(
        filter: &SavedFilter,
        member_of: impl IntoIterator<Item = u32>,
    ) -> (bool, Vec<String>) {
        let nested = cohort(9);
        let filter = filter.expand(|_| Some(&nested)).unwrap();
        let explanation = explained(&filter, &member_of.into_iter().map(id).collect());
        let paths = explanation
            .reasons()
            .into_iter()
            .map(|reason| reason.path)
            .collect();
        (explanation.matched, paths)
    }

    #[test]
    fn the_shortest_reason_is_given() {
        // p1 and not (p2 or p3) and segment(p9)
        let filter = Filter::AllOf(vec![
            cohort(1),
            Filter::Not(Box::new(Filter::AnyOf(vec![cohort(2), cohort(3)]))),
            Filter::Segment(id(99)),
        ]);
        let answer = |matched, paths: &[&str]| {
            (matched, paths.iter().map(|path| path.to_string()).collect())
        };
        assert_eq!(
            paths(&filter, [1, 9]),
            answer(
                true,
                &[
                    "all_of[0].cohort",
                    "all_of[1].not.any_of[0].cohort",
                    "all_of[1].not.any_of[1].cohort",
                    "all_of[2].segment.cohort",
                ]
            )
        );
        assert_eq!(
            paths(&filter, [1, 3, 9]),
            answer(false, &["all_of[1].not.any_of[1].cohort"])
        );
        assert_eq!(
            paths(&filter, [1]),
            answer(false, &["all_of[2].segment.cohort"])
        );

        // (p1 or p2) and p3: the second branch excludes with fewer conditions.
        let filter = Filter::AllOf(vec![Filter::AnyOf(vec![cohort(1), cohort(2)]), cohort(3)]);
        assert_eq!(paths(&filter, []), answer(false, &["all_of[1].cohort"]));
    }

    #[test]
    fn a_leaf_says_which_of_its_cohorts_contain_the_user() {
        let filter: ExpandedFilter = Filter::Cohort {
            partner: "p".into(),
            cohorts: vec![id(1), id(2), id(3)],
            includes: false,
        };
        let explanation = explained(&filter, &[id(2)].into());
        assert!(!explanation.matched);
        let [Reason { path, cohort }] = &explanation.reasons()[..] else {
            panic!("one leaf")
        };
        assert_eq!(
            (path.as_str(), &cohort.containing),
            ("cohort", &vec![id(2)])
        );
    }
}
