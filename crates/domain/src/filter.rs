//! The segment algebra: filters over cohorts, how they are written, evaluated and explained.
//!
//! A filter passes through three forms, which differ only in how they refer to things:
//! [`WrittenFilter`] (as typed or sent) → [`SavedFilter`] (names resolved) → [`ExpandedFilter`]
//! (nested segments inlined), and only the last can be evaluated. The steps between them,
//! [`Filter::try_map`] and [`SavedFilter::expand`], enforce the limits on size and depth.
//!
//! This module knows neither how names are looked up nor where cohorts are kept.

mod evaluate;
mod expand;
mod explain;
mod print;
#[cfg(test)]
mod strategy;
mod text;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::expand::{ExpandedFilter, Inlined};
pub use self::explain::{CohortFinding, Explanation, Finding, Reason};
pub use self::text::ParseError;

use crate::error::{Error, FieldContext as _, Result};

/// Levels a filter may have: a lone cohort has one, and each group, `not` and nested segment around
/// it adds one.
pub const MAX_DEPTH: usize = 32;
/// Nodes a filter may have; in a list of cohorts, each one after the first counts as one more.
pub const MAX_NODES: usize = 1_000;

/// A condition on users: `C` is how it refers to a cohort, `S` how it refers to a segment.
///
/// Stored as JSON in the shape of the proto message: one key, the variant's name in snake case.
/// Build deep filters only from sources that bound the depth, as the text form, JSON and protobuf
/// all do: dropping or printing a filter recurses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
// A field that this version does not know would change who is targeted, so it is refused.
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Filter<C, S> {
    /// Users in any of the cohorts or, where `includes` is false, live users in none of them.
    Cohort {
        /// Slug of the partner that all the cohorts come from.
        partner: String,
        /// One or more cohorts.
        cohorts: Vec<C>,
        /// Whether members match, rather than non-members.
        includes: bool,
    },
    /// Users that match every member; there is at least one.
    AllOf(Vec<Self>),
    /// Users that match some member; there is at least one.
    AnyOf(Vec<Self>),
    /// Live users that do not match.
    Not(Box<Self>),
    /// Users that match another segment's filter.
    Segment(S),
}

/// A filter as typed or sent. [`FromStr`](std::str::FromStr) and `Display` are its text form.
pub type WrittenFilter = Filter<CohortRef, SegmentRef>;

/// A filter as stored: ids of cohorts and segments, so that a rename changes nothing.
pub type SavedFilter = Filter<Uuid, Uuid>;

/// How a person or a program refers to one of a partner's cohorts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CohortRef {
    /// By the cohort's current name, which several cohorts may share.
    Name(String),
    /// By the partner's cohort id.
    Id(String),
}

/// How a person or a program refers to a segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SegmentRef {
    /// By its current name.
    Name(String),
    /// By its id.
    Id(Uuid),
}

impl<C, S> Filter<C, S> {
    /// Refuses a filter deeper than [`MAX_DEPTH`] or larger than [`MAX_NODES`], an empty group and
    /// an empty list of cohorts.
    ///
    /// The error names the path from the root, such as `all_of[2].cohort.cohorts`.
    pub fn check_limits(&self) -> Result<()> {
        self.try_map(|_, _| Ok(()), |_| Ok(())).map(drop)
    }

    /// The same filter with other references, checked as by [`Filter::check_limits`].
    ///
    /// `cohort` gets the partner and the reference. Where either function fails with a
    /// [`Error::field`] of path `""`, the path of the reference is put in front. Names are looked up
    /// beforehand, all at once, from [`Filter::cohort_refs`] and [`Filter::segment_refs`].
    pub fn try_map<D, T>(
        &self,
        mut cohort: impl FnMut(&str, &C) -> Result<D>,
        mut segment: impl FnMut(&S) -> Result<T>,
    ) -> Result<Filter<D, T>> {
        self.walk(&mut Extent::default(), &mut cohort, &mut |_, it| {
            segment(it)
        })
    }

    /// All cohorts referred to, with their partner, in the order written and with repetitions.
    pub fn cohort_refs(&self) -> impl Iterator<Item = (&str, &C)> {
        self.nodes().flat_map(|node| {
            let (partner, cohorts) = match node {
                Self::Cohort {
                    partner, cohorts, ..
                } => (partner.as_str(), cohorts.as_slice()),
                _ => Default::default(),
            };
            cohorts.iter().map(move |cohort| (partner, cohort))
        })
    }

    /// All segments referred to, in the order written and with repetitions.
    pub fn segment_refs(&self) -> impl Iterator<Item = &S> {
        self.nodes().filter_map(|node| match node {
            Self::Segment(segment) => Some(segment),
            _ => None,
        })
    }

    fn nodes(&self) -> impl Iterator<Item = &Self> {
        let mut pending = vec![self];
        std::iter::from_fn(move || {
            let node = pending.pop()?;
            match node {
                Self::AllOf(members) | Self::AnyOf(members) => pending.extend(members.iter().rev()),
                Self::Not(inner) => pending.push(inner),
                Self::Cohort { .. } | Self::Segment(_) => {}
            }
            Some(node)
        })
    }

    /// The one traversal behind all conversions: keeps the limits and names the path of an error.
    fn walk<D, T>(
        &self,
        extent: &mut Extent,
        cohort: &mut impl FnMut(&str, &C) -> Result<D>,
        segment: &mut impl FnMut(&mut Extent, &S) -> Result<T>,
    ) -> Result<Filter<D, T>> {
        extent.enter()?;
        let mapped = match self {
            Self::Cohort {
                partner,
                cohorts,
                includes,
            } => {
                extent
                    .add(cohorts.len().saturating_sub(1))
                    .field("cohort")?;
                let cohorts = each(cohorts, |it| cohort(partner, it))
                    .field("cohorts")
                    .field("cohort")?;
                Filter::Cohort {
                    partner: partner.clone(),
                    cohorts,
                    includes: *includes,
                }
            }
            Self::AllOf(members) => Filter::AllOf(
                each(members, |member| member.walk(extent, cohort, segment)).field("all_of")?,
            ),
            Self::AnyOf(members) => Filter::AnyOf(
                each(members, |member| member.walk(extent, cohort, segment)).field("any_of")?,
            ),
            Self::Not(inner) => {
                Filter::Not(Box::new(inner.walk(extent, cohort, segment).field("not")?))
            }
            Self::Segment(it) => Filter::Segment(segment(extent, it).field("segment")?),
        };
        extent.leave();
        Ok(mapped)
    }
}

/// How far a walk has come, across nested segments.
#[derive(Default)]
struct Extent {
    depth: usize,
    nodes: usize,
}

impl Extent {
    fn enter(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::field(
                "",
                format!("a filter has at most {MAX_DEPTH} levels"),
            ));
        }
        self.add(1)
    }

    fn leave(&mut self) {
        self.depth -= 1;
    }

    fn add(&mut self, nodes: usize) -> Result<()> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(Error::field(
                "",
                format!("a filter has at most {MAX_NODES} nodes"),
            ));
        }
        Ok(())
    }
}

/// Converts a list that must not be empty; an error names the index.
fn each<A, B>(items: &[A], mut convert: impl FnMut(&A) -> Result<B>) -> Result<Vec<B>> {
    if items.is_empty() {
        return Err(Error::field("", "must not be empty"));
    }
    items
        .iter()
        .enumerate()
        .map(|(index, item)| convert(item).map_err(|error| error.within(&format!("[{index}]"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::strategy::{cohort, id};
    use super::*;

    fn refused(filter: &SavedFilter) -> String {
        filter
            .check_limits()
            .field("filter")
            .unwrap_err()
            .to_string()
    }

    fn nested(levels: usize) -> SavedFilter {
        (1..levels).fold(cohort(1), |inner, _| Filter::AllOf(vec![inner]))
    }

    #[test]
    fn stored_json_keeps_its_shape() {
        let filter = Filter::AllOf(vec![
            Filter::Cohort {
                partner: "tinyclues".into(),
                cohorts: vec![id(1), id(2)],
                includes: true,
            },
            Filter::Not(Box::new(Filter::AnyOf(vec![Filter::Segment(id(3))]))),
            Filter::Cohort {
                partner: "amplitude".into(),
                cohorts: vec![id(4)],
                includes: false,
            },
        ]);
        let stored = json!({"all_of": [
            {"cohort": {
                "partner": "tinyclues",
                "cohorts": [
                    "00000000-0000-0000-0000-000000000001",
                    "00000000-0000-0000-0000-000000000002",
                ],
                "includes": true,
            }},
            {"not": {"any_of": [{"segment": "00000000-0000-0000-0000-000000000003"}]}},
            {"cohort": {
                "partner": "amplitude",
                "cohorts": ["00000000-0000-0000-0000-000000000004"],
                "includes": false,
            }},
        ]});
        assert_eq!(serde_json::to_value(&filter).unwrap(), stored);
        assert_eq!(
            serde_json::from_value::<SavedFilter>(stored).unwrap(),
            filter
        );
    }

    #[test]
    fn a_stored_field_of_a_newer_version_is_refused() {
        let newer = json!({"cohort": {"partner": "p", "cohorts": [], "includes": true, "days": 3}});
        assert!(serde_json::from_value::<SavedFilter>(newer).is_err());
    }

    #[test]
    fn the_deepest_filter_can_be_stored_and_hostile_json_is_refused() {
        let text = serde_json::to_string(&nested(MAX_DEPTH)).unwrap();
        assert_eq!(
            serde_json::from_str::<SavedFilter>(&text).unwrap(),
            nested(MAX_DEPTH)
        );
        let hostile = r#"{"not":"#.repeat(100_000);
        assert!(serde_json::from_str::<SavedFilter>(&hostile).is_err());
    }

    #[test]
    fn depth_is_limited() {
        nested(MAX_DEPTH).check_limits().unwrap();
        let error = refused(&nested(MAX_DEPTH + 1));
        assert!(
            error.ends_with(".all_of[0]: a filter has at most 32 levels"),
            "{error}"
        );
        // Far deeper than any source builds, yet no deeper than it can be dropped.
        assert!(nested(2_000).check_limits().is_err());
    }

    #[test]
    fn size_is_limited() {
        let group = |members| Filter::AnyOf(vec![cohort(1); members]);
        group(MAX_NODES - 1).check_limits().unwrap();
        assert_eq!(
            refused(&group(MAX_NODES)),
            "filter.any_of[999]: a filter has at most 1000 nodes"
        );

        let list = |cohorts| SavedFilter::Cohort {
            partner: "p".into(),
            cohorts: vec![id(1); cohorts],
            includes: true,
        };
        list(MAX_NODES).check_limits().unwrap();
        assert_eq!(
            refused(&list(MAX_NODES + 1)),
            "filter.cohort: a filter has at most 1000 nodes"
        );
    }

    #[test]
    fn empty_groups_and_lists_are_refused_by_path() {
        let empty = Filter::Cohort {
            partner: "p".into(),
            cohorts: vec![],
            includes: true,
        };
        assert_eq!(
            refused(&Filter::AllOf(vec![])),
            "filter.all_of: must not be empty"
        );
        assert_eq!(
            refused(&Filter::AllOf(vec![cohort(1), cohort(2), empty])),
            "filter.all_of[2].cohort.cohorts: must not be empty"
        );
        assert_eq!(
            refused(&Filter::Not(Box::new(Filter::AnyOf(vec![])))),
            "filter.not.any_of: must not be empty"
        );
    }

    #[test]
    fn references_are_resolved_and_an_unknown_one_is_named_by_path() {
        let written: WrittenFilter =
            r#"tinyclues:("a", id("b")) and not (amplitude:"c" or segment("s"))"#
                .parse()
                .unwrap();
        let cohorts: Vec<_> = written.cohort_refs().collect();
        assert_eq!(
            cohorts,
            [
                ("tinyclues", &CohortRef::Name("a".into())),
                ("tinyclues", &CohortRef::Id("b".into())),
                ("amplitude", &CohortRef::Name("c".into())),
            ]
        );
        assert_eq!(
            written.segment_refs().collect::<Vec<_>>(),
            [&SegmentRef::Name("s".into())]
        );

        let known = |partner: &str, _: &CohortRef| match partner {
            "tinyclues" => Ok(id(1)),
            _ => Err(Error::field("", "no such cohort")),
        };
        let error = written
            .try_map(known, |_| Ok(id(2)))
            .unwrap_err()
            .within("filter");
        assert_eq!(
            error.to_string(),
            "filter.all_of[1].not.any_of[0].cohort.cohorts[0]: no such cohort"
        );
        let error = written
            .try_map(
                |_, _| Ok(id(1)),
                |_| Err::<Uuid, _>(Error::field("", "no such segment")),
            )
            .unwrap_err();
        assert_eq!(error.fields[0].field, "all_of[1].not.any_of[1].segment");
    }
}
