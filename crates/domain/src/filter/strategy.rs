//! Filters for tests: short ways to write one, and random ones.

use proptest::prelude::*;
use uuid::Uuid;

use super::{CohortRef, ExpandedFilter, Filter, SavedFilter, SegmentRef, WrittenFilter};

pub(super) fn id(number: u32) -> Uuid {
    Uuid::from_u128(number.into())
}

/// Members of one cohort.
pub(super) fn cohort(number: u32) -> SavedFilter {
    Filter::Cohort {
        partner: "p".into(),
        cohorts: vec![id(number)],
        includes: true,
    }
}

/// Filters up to 7 levels deep over the given references; groups have at least `smallest` members.
pub(super) fn filters<C, S>(
    partner: impl Strategy<Value = String> + 'static,
    cohort: impl Strategy<Value = C> + 'static,
    segment: impl Strategy<Value = S> + 'static,
    smallest: usize,
) -> impl Strategy<Value = Filter<C, S>>
where
    C: Clone + std::fmt::Debug + 'static,
    S: Clone + std::fmt::Debug + 'static,
{
    let cohorts = prop::collection::vec(cohort, 1..4);
    let leaf = prop_oneof![
        4 => (partner, cohorts, any::<bool>()).prop_map(|(partner, cohorts, includes)| {
            Filter::Cohort { partner, cohorts, includes }
        }),
        1 => segment.prop_map(Filter::Segment),
    ];
    leaf.prop_recursive(6, 40, 4, move |inner| {
        let group = prop::collection::vec(inner.clone(), smallest..5);
        prop_oneof![
            group.clone().prop_map(Filter::AllOf),
            group.prop_map(Filter::AnyOf),
            inner.prop_map(|inner| Filter::Not(Box::new(inner))),
        ]
    })
}

/// Filters with every kind of partner and name.
pub(super) fn written(smallest: usize) -> impl Strategy<Value = WrittenFilter> {
    // Partners may be named like the words of the text form.
    let partner = prop_oneof![
        "[a-z0-9][a-z0-9_-]{0,63}",
        prop::sample::select(vec!["and", "or", "not", "segment", "id"]).prop_map(str::to_owned),
    ];
    let name = || {
        prop_oneof![
            any::<String>(),
            r#"["\\\n\t\r\u{0}\u{7f}\u{202e}(){}:a]{0,8}"#
        ]
    };
    let cohort = prop_oneof![
        name().prop_map(CohortRef::Name),
        name().prop_map(CohortRef::Id)
    ];
    let segment = prop_oneof![
        name().prop_map(SegmentRef::Name),
        any::<u128>().prop_map(|bits| SegmentRef::Id(Uuid::from_u128(bits))),
    ];
    filters(partner, cohort, segment, smallest)
}

/// Filters over the cohorts `id(0)` to `id(4)`, with two levels of nested segments.
pub(super) fn expanded() -> impl Strategy<Value = ExpandedFilter> {
    let filters = |segments: std::ops::Range<u32>| {
        filters(
            Just("p".to_owned()),
            (0..5_u32).prop_map(id),
            segments.prop_map(id),
            1,
        )
    };
    let nested = prop::collection::vec(filters(200..201), 3);
    (filters(100..103), nested).prop_filter_map("within the limits", |(outer, nested)| {
        let innermost = cohort(0);
        let segment = |id: &Uuid| match id.as_u128() {
            200 => Some(&innermost),
            number => nested.get(number as usize - 100),
        };
        outer.expand(segment).ok()
    })
}
