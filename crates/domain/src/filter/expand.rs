//! Inlining nested segments, so that evaluation needs to know no segment but the one asked for.

use uuid::Uuid;

use super::{Extent, Filter, SavedFilter};
use crate::error::{Error, Result};

/// A filter with every nested segment inlined: what is evaluated and explained.
pub type ExpandedFilter = Filter<Uuid, Inlined>;

/// A nested segment together with its filter; the id stays, so that an explanation can name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inlined {
    /// The segment.
    pub id: Uuid,
    /// Its filter, expanded as well.
    pub filter: Box<ExpandedFilter>,
}

impl SavedFilter {
    /// Inlines nested segments, whose filters `lookup` gives.
    ///
    /// The limits hold for the expanded filter as a whole, where each reference counts as a node
    /// and a level. A circle of segments is an `INVALID_ARGUMENT` that names the whole chain, also
    /// as metadata `segment_chain` (comma-separated ids); an unknown segment is `NOT_FOUND`.
    ///
    /// Before a changed segment is saved, expand its new filter with a `lookup` that already answers
    /// the new filter for it: that is what finds a circle through itself.
    pub fn expand<'a>(
        &'a self,
        lookup: impl Fn(&Uuid) -> Option<&'a SavedFilter>,
    ) -> Result<ExpandedFilter> {
        inline(self, &mut Extent::default(), &mut Vec::new(), &lookup)
    }
}

fn inline<'a>(
    filter: &'a SavedFilter,
    extent: &mut Extent,
    chain: &mut Vec<Uuid>,
    lookup: &impl Fn(&Uuid) -> Option<&'a SavedFilter>,
) -> Result<ExpandedFilter> {
    filter.walk(extent, &mut |_, cohort| Ok(*cohort), &mut |extent, &id| {
        if let Some(start) = chain.iter().position(|outer| *outer == id) {
            return Err(circle(&chain[start..], id));
        }
        let nested = lookup(&id).ok_or_else(|| Error::not_found("segment", id))?;
        chain.push(id);
        let filter = Box::new(inline(nested, extent, chain, lookup)?);
        chain.pop();
        Ok(Inlined { id, filter })
    })
}

fn circle(chain: &[Uuid], back_to: Uuid) -> Error {
    let ids: Vec<_> = chain
        .iter()
        .chain([&back_to])
        .map(Uuid::to_string)
        .collect();
    Error::field(
        "",
        format!(
            "segments refer to each other in a circle: {}",
            ids.join(" → ")
        ),
    )
    .with("segment_chain", ids.join(","))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::strategy::{cohort, id};
    use super::*;
    use crate::error::Kind;

    fn segment(number: u32) -> SavedFilter {
        Filter::Segment(id(number))
    }

    fn segments(filters: impl IntoIterator<Item = SavedFilter>) -> HashMap<Uuid, SavedFilter> {
        (1..).map(id).zip(filters).collect()
    }

    #[test]
    fn nested_segments_are_inlined_and_stay_named() {
        let known = segments([cohort(7), Filter::Not(Box::new(segment(1)))]);
        let expanded = Filter::AllOf(vec![segment(2), segment(1)])
            .expand(|id| known.get(id))
            .unwrap();
        let leaf = cohort(7).expand(|_| None).unwrap();
        let one = || {
            Filter::Segment(Inlined {
                id: id(1),
                filter: Box::new(leaf.clone()),
            })
        };
        let two = Inlined {
            id: id(2),
            filter: Box::new(Filter::Not(Box::new(one()))),
        };
        assert_eq!(expanded, Filter::AllOf(vec![Filter::Segment(two), one()]));
    }

    #[test]
    fn a_circle_is_refused_and_names_the_chain() {
        let known = segments([
            Filter::AnyOf(vec![cohort(7), segment(2)]),
            Filter::Not(Box::new(segment(3))),
            segment(2),
        ]);
        let error = known[&id(1)].expand(|id| known.get(id)).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument);
        assert_eq!(
            error.fields[0].field,
            "any_of[1].segment.not.segment.segment"
        );
        let [two, three] = [id(2), id(3)];
        assert!(
            error
                .message
                .ends_with(&format!("in a circle: {two} → {three} → {two}"))
        );
        assert_eq!(
            error.metadata,
            [("segment_chain", format!("{two},{three},{two}"))]
        );
    }

    #[test]
    fn a_segment_that_refers_to_itself_is_a_circle() {
        let known = segments([segment(1)]);
        assert!(
            known[&id(1)]
                .expand(|id| known.get(id))
                .unwrap_err()
                .message
                .contains("circle")
        );
    }

    #[test]
    fn the_same_segment_twice_is_no_circle() {
        let known = segments([cohort(7)]);
        Filter::AnyOf(vec![segment(1), segment(1)])
            .expand(|id| known.get(id))
            .unwrap();
    }

    #[test]
    fn limits_hold_across_segments() {
        // Each refers to the one before twice: small filters that double at every step.
        let doubling = segments(
            [cohort(7)]
                .into_iter()
                .chain((1..10).map(|n| Filter::AnyOf(vec![segment(n); 2]))),
        );
        let error = segment(10).expand(|id| doubling.get(id)).unwrap_err();
        assert!(error.message.contains("at most 1000 nodes"));

        let chained = segments([cohort(7)].into_iter().chain((1..100_000).map(segment)));
        segment(31).expand(|id| chained.get(id)).unwrap();
        let error = segment(100_000).expand(|id| chained.get(id)).unwrap_err();
        assert!(error.message.contains("at most 32 levels"));
    }

    #[test]
    fn an_unknown_segment_is_not_found() {
        assert_eq!(
            segment(1).expand(|_| None).unwrap_err().kind,
            Kind::NotFound
        );
    }
}
