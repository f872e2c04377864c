//! Filter trees; every error names the path from the filter's root.

use muster_domain::{
    error::{Error, FieldContext as _, Result},
    filter::{CohortRef, Filter, SavedFilter, SegmentRef, WrittenFilter},
    name,
};
use muster_proto::segments::v1::{
    self as pb, cohort_reference, filter::Node, filter_expression::Form, segment_reference,
};

use super::missing;
use crate::references::Names;

/// Reads a filter, a tree or text; the path of an error is relative to it.
pub(super) fn expression(expression: Option<&pb::FilterExpression>) -> Result<WrittenFilter> {
    let form = expression.and_then(|expression| expression.form.as_ref());
    match form.ok_or_else(|| Error::field("", "must be set: a tree or text"))? {
        Form::Tree(filter) => {
            let filter = tree(filter)?;
            filter.check_limits()?;
            Ok(filter)
        }
        Form::Text(text) => text
            .parse::<WrittenFilter>()
            .map_err(Error::from)
            .field("text"),
    }
}

/// Recursion is bounded: protobuf is decoded to a depth of 100 messages.
fn tree(filter: &pb::Filter) -> Result<WrittenFilter> {
    Ok(match filter.node.as_ref().ok_or_else(missing)? {
        Node::Cohort(filter) => cohort(filter).field("cohort")?,
        Node::AllOf(group) => Filter::AllOf(members(group).field("all_of")?),
        Node::AnyOf(group) => Filter::AnyOf(members(group).field("any_of")?),
        Node::Not(inner) => Filter::Not(Box::new(tree(inner).field("not")?)),
        Node::Segment(segment) => Filter::Segment(segment_ref(segment).field("segment")?),
    })
}

fn members(group: &pb::FilterGroup) -> Result<Vec<WrittenFilter>> {
    each(&group.filters, tree)
}

fn each<A, B>(items: &[A], convert: impl Fn(&A) -> Result<B>) -> Result<Vec<B>> {
    let items = items.iter().enumerate();
    items
        .map(|(index, item)| convert(item).field(&format!("[{index}]")))
        .collect()
}

fn cohort(filter: &pb::CohortFilter) -> Result<WrittenFilter> {
    use pb::CohortMembershipRule::{DoesNotInclude, Includes, Unspecified};

    name::check_slug(&filter.partner).field("partner")?;
    let includes = match pb::CohortMembershipRule::try_from(filter.rule) {
        Ok(Includes | Unspecified) => true,
        Ok(DoesNotInclude) => false,
        // To guess would be to target the wrong people.
        Err(_) => return Err(Error::field("rule", "is not one this server knows")),
    };
    Ok(Filter::Cohort {
        partner: filter.partner.clone(),
        cohorts: each(&filter.cohorts, cohort_ref).field("cohorts")?,
        includes,
    })
}

fn cohort_ref(cohort: &pb::CohortReference) -> Result<CohortRef> {
    Ok(match cohort.cohort.as_ref().ok_or_else(missing)? {
        cohort_reference::Cohort::CohortId(id) => CohortRef::Id(id.clone()),
        cohort_reference::Cohort::Name(name) => CohortRef::Name(name.clone()),
    })
}

/// Reads a reference to a segment.
pub(super) fn segment_ref(segment: &pb::SegmentReference) -> Result<SegmentRef> {
    Ok(match segment.segment.as_ref().ok_or_else(missing)? {
        segment_reference::Segment::SegmentId(id) => {
            let id = id.parse();
            SegmentRef::Id(id.map_err(|_| Error::field("segment_id", "must be a UUID"))?)
        }
        segment_reference::Segment::Name(text) => {
            name::check_name(text).field("name")?;
            SegmentRef::Name(text.clone())
        }
    })
}

/// Writes a saved filter, with the partners' cohort ids.
pub(super) fn to_wire(filter: &SavedFilter, names: &Names) -> Result<pb::Filter> {
    let group = |members: &[SavedFilter]| {
        let filters = members.iter().map(|member| to_wire(member, names));
        let filters = filters.collect::<Result<_>>()?;
        Ok::<_, Error>(pb::FilterGroup { filters })
    };
    let node = match filter {
        Filter::Cohort {
            partner,
            cohorts,
            includes,
        } => {
            let reference = |id| {
                let id = names.cohort(id)?.partner_cohort_id.clone();
                Ok(pb::CohortReference {
                    cohort: Some(cohort_reference::Cohort::CohortId(id)),
                })
            };
            let rule = if *includes {
                pb::CohortMembershipRule::Includes
            } else {
                pb::CohortMembershipRule::DoesNotInclude
            };
            Node::Cohort(pb::CohortFilter {
                partner: partner.clone(),
                cohorts: cohorts.iter().map(reference).collect::<Result<_>>()?,
                rule: rule.into(),
            })
        }
        Filter::AllOf(members) => Node::AllOf(group(members)?),
        Filter::AnyOf(members) => Node::AnyOf(group(members)?),
        Filter::Not(inner) => Node::Not(Box::new(to_wire(inner, names)?)),
        Filter::Segment(id) => Node::Segment(pb::SegmentReference {
            segment: Some(segment_reference::Segment::SegmentId(id.to_string())),
        }),
    };
    Ok(pb::Filter { node: Some(node) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node: Node) -> pb::Filter {
        pb::Filter { node: Some(node) }
    }

    fn leaf(partner: &str) -> pb::Filter {
        node(Node::Cohort(pb::CohortFilter {
            partner: partner.to_owned(),
            cohorts: vec![pb::CohortReference {
                cohort: Some(cohort_reference::Cohort::Name("a".to_owned())),
            }],
            rule: 0,
        }))
    }

    fn refused(tree: pb::Filter) -> String {
        let tree = pb::FilterExpression {
            form: Some(Form::Tree(tree)),
        };
        expression(Some(&tree)).field("filter").unwrap_err().fields[0]
            .field
            .clone()
    }

    #[test]
    fn an_error_names_the_path() {
        let all_of = |filters| node(Node::AllOf(pb::FilterGroup { filters }));
        assert_eq!(
            refused(all_of(vec![leaf("a"), leaf("b"), leaf("No Slug")])),
            "filter.all_of[2].cohort.partner"
        );
        assert_eq!(refused(pb::Filter { node: None }), "filter");
        assert_eq!(refused(all_of(vec![])), "filter.all_of");
        let segment = pb::SegmentReference {
            segment: Some(segment_reference::Segment::SegmentId("7".to_owned())),
        };
        assert_eq!(
            refused(node(Node::Not(Box::new(node(Node::Segment(segment)))))),
            "filter.not.segment.segment_id"
        );
        let Some(Node::Cohort(mut cohort)) = leaf("a").node else {
            panic!("a leaf is a cohort");
        };
        cohort.rule = 9;
        assert_eq!(
            refused(node(Node::Cohort(cohort.clone()))),
            "filter.cohort.rule"
        );
        cohort.rule = 1;
        cohort.cohorts.push(pb::CohortReference { cohort: None });
        assert_eq!(
            refused(node(Node::Cohort(cohort))),
            "filter.cohort.cohorts[1]"
        );
        let bad = pb::FilterExpression {
            form: Some(Form::Text("a:".to_owned())),
        };
        let error = expression(Some(&bad)).field("filter").unwrap_err();
        assert_eq!(error.fields[0].field, "filter.text");
        let error = expression(None).field("filter").unwrap_err();
        assert_eq!(error.fields[0].field, "filter");
    }
}
