//! A filter as groups of conditions: what the form of the builder holds, and its way to a tree and
//! back.

use muster_proto::segments::v1::{
    CohortFilter, CohortMembershipRule, CohortReference, Filter, FilterGroup, SegmentReference,
    cohort_reference, filter::Node, segment_reference,
};

/// Groups of conditions; somebody must fulfil all groups.
pub(crate) type Groups = Vec<Group>;

/// How the conditions of a group go together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Rule {
    /// All must hold.
    #[default]
    All,
    /// At least one must hold.
    Any,
    /// None may hold.
    None,
}

impl Rule {
    pub(crate) const EVERY: [Self; 3] = [Self::All, Self::Any, Self::None];

    /// Its value in the form.
    pub(crate) fn value(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Any => "any",
            Self::None => "none",
        }
    }

    /// As the builder says it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::All => "all of these",
            Self::Any => "any of these",
            Self::None => "none of these",
        }
    }

    fn read(value: &str) -> Self {
        let rule = Self::EVERY.into_iter().find(|rule| rule.value() == value);
        rule.unwrap_or_default()
    }
}

/// Some conditions and how they go together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) rule: Rule,
    pub(crate) conditions: Vec<Condition>,
}

/// One condition on people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: Kind,
    /// The partner whose cohorts are meant.
    pub(crate) partner: String,
    /// Whether people must be in one of the cohorts, rather than in none.
    pub(crate) includes: bool,
    pub(crate) cohorts: Vec<Chosen>,
    /// What cohorts are searched for.
    pub(crate) search: String,
    /// The id of the segment.
    pub(crate) segment: String,
}

/// What a condition is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Cohorts of a partner.
    #[default]
    Cohort,
    /// Another segment.
    Segment,
}

/// A cohort that somebody chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// The partner's id.
    pub(crate) id: String,
    /// Its name, for people; taken from the form until the servers say.
    pub(crate) name: String,
}

impl Chosen {
    /// Its value in the form. Neither part holds a control character.
    pub(crate) fn value(&self) -> String {
        format!("{}\t{}", self.id, self.name)
    }

    fn read(value: &str) -> Self {
        let (id, name) = value.split_once('\t').unwrap_or((value, value));
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl Condition {
    /// A condition on cohorts of a partner that are yet to be chosen.
    pub(crate) fn new(partner: &str) -> Self {
        Self {
            partner: partner.to_owned(),
            includes: true,
            ..Self::default()
        }
    }

    /// A condition on another segment that is yet to be chosen.
    pub(crate) fn on_segment() -> Self {
        Self {
            kind: Kind::Segment,
            ..Self::default()
        }
    }

    /// Whether something was chosen.
    pub(crate) fn is_complete(&self) -> bool {
        match self.kind {
            Kind::Cohort => !self.cohorts.is_empty(),
            Kind::Segment => !self.segment.is_empty(),
        }
    }

    fn filter(&self) -> Filter {
        node(match self.kind {
            Kind::Cohort => Node::Cohort(CohortFilter {
                partner: self.partner.clone(),
                cohorts: self.cohorts.iter().map(|it| reference(&it.id)).collect(),
                rule: if self.includes {
                    CohortMembershipRule::Includes
                } else {
                    CohortMembershipRule::DoesNotInclude
                }
                .into(),
            }),
            Kind::Segment => Node::Segment(SegmentReference {
                segment: Some(segment_reference::Segment::SegmentId(self.segment.clone())),
            }),
        })
    }

    fn of(filter: &Filter) -> Option<Self> {
        match filter.node.as_ref()? {
            Node::Cohort(cohort) => {
                let ids = cohort.cohorts.iter().map(|it| match it.cohort.as_ref()? {
                    cohort_reference::Cohort::CohortId(id) => Some(Chosen {
                        id: id.clone(),
                        name: id.clone(),
                    }),
                    cohort_reference::Cohort::Name(_) => None,
                });
                Some(Self {
                    includes: cohort.rule() != CohortMembershipRule::DoesNotInclude,
                    cohorts: ids.collect::<Option<_>>()?,
                    ..Self::new(&cohort.partner)
                })
            }
            Node::Segment(segment) => match segment.segment.as_ref()? {
                segment_reference::Segment::SegmentId(id) => Some(Self {
                    segment: id.clone(),
                    ..Self::on_segment()
                }),
                segment_reference::Segment::Name(_) => None,
            },
            Node::AllOf(_) | Node::AnyOf(_) | Node::Not(_) => None,
        }
    }
}

fn node(node: Node) -> Filter {
    Filter { node: Some(node) }
}

/// People in a cohort, or not in it.
pub(crate) fn cohort(partner: &str, id: &str, includes: bool) -> Filter {
    Condition {
        includes,
        cohorts: vec![Chosen {
            id: id.to_owned(),
            name: String::new(),
        }],
        ..Condition::new(partner)
    }
    .filter()
}

fn reference(id: &str) -> CohortReference {
    CohortReference {
        cohort: Some(cohort_reference::Cohort::CohortId(id.to_owned())),
    }
}

/// People that fulfil all of these.
pub(crate) fn all_of(mut filters: Vec<Filter>) -> Filter {
    match filters.pop() {
        Some(only) if filters.is_empty() => only,
        last => {
            filters.extend(last);
            node(Node::AllOf(FilterGroup { filters }))
        }
    }
}

/// One step of a filter: what is demanded beside all steps before.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub(crate) filter: Filter,
    /// The conditions in it: group, number in the group, and the path in `filter`.
    pub(crate) conditions: Vec<(usize, usize, String)>,
}

/// The steps of a filter, from the conditions that are complete.
pub(crate) fn steps(groups: &[Group]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (g, group) in groups.iter().enumerate() {
        let conditions = group.conditions.iter().enumerate();
        let complete: Vec<_> = conditions.filter(|(_, it)| it.is_complete()).collect();
        let place = |c: usize, path: &str| (g, c, path.to_owned());
        match (group.rule, complete.as_slice()) {
            (_, []) => {}
            (Rule::All, all) => steps.extend(all.iter().map(|(c, condition)| Step {
                filter: condition.filter(),
                conditions: vec![place(*c, "")],
            })),
            (Rule::Any, [(c, only)]) => steps.push(Step {
                filter: only.filter(),
                conditions: vec![place(*c, "")],
            }),
            (Rule::None, [(c, only)]) => steps.push(Step {
                filter: node(Node::Not(Box::new(only.filter()))),
                conditions: vec![place(*c, "not")],
            }),
            (rule, several) => {
                let filters = several.iter().map(|(_, it)| it.filter()).collect();
                let any = node(Node::AnyOf(FilterGroup { filters }));
                let (filter, outer) = match rule {
                    Rule::None => (node(Node::Not(Box::new(any))), "not."),
                    Rule::All | Rule::Any => (any, ""),
                };
                let conditions = several.iter().enumerate();
                let conditions =
                    conditions.map(|(index, (c, _))| place(*c, &format!("{outer}any_of[{index}]")));
                steps.push(Step {
                    filter,
                    conditions: conditions.collect(),
                });
            }
        }
    }
    steps
}

/// Which condition the path of an error leads to: group, and number in the group.
pub(crate) fn condition_at(steps: &[Step], path: &str) -> Option<(usize, usize)> {
    let within = |path: &str, part: &str| {
        part.is_empty()
            || path
                .strip_prefix(part)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    for (index, step) in steps.iter().enumerate() {
        let rest = if steps.len() == 1 {
            path
        } else {
            let outer = format!("all_of[{index}]");
            if !within(path, &outer) {
                continue;
            }
            path[outer.len()..].trim_start_matches('.')
        };
        let found = step.conditions.iter().find(|(.., part)| within(rest, part));
        return found.map(|(g, c, _)| (*g, *c));
    }
    None
}

/// The groups that say the same as a filter; `None` if groups cannot, since it is nested deeper.
pub(crate) fn groups_of(filter: &Filter) -> Option<Groups> {
    let members = match filter.node.as_ref()? {
        Node::AllOf(all) => all.filters.as_slice(),
        _ => std::slice::from_ref(filter),
    };
    let mut groups: Groups = Vec::new();
    for member in members {
        if let Some(condition) = Condition::of(member) {
            match groups.last_mut() {
                Some(group) if group.rule == Rule::All => group.conditions.push(condition),
                _ => groups.push(Group {
                    rule: Rule::All,
                    conditions: vec![condition],
                }),
            }
            continue;
        }
        let (rule, inner) = match member.node.as_ref()? {
            Node::Not(inner) => (Rule::None, inner.as_ref()),
            _ => (Rule::Any, member),
        };
        let conditions = match (rule, inner.node.as_ref()?) {
            (_, Node::AnyOf(any)) => any.filters.iter().map(Condition::of).collect(),
            (Rule::None, _) => Condition::of(inner).map(|only| vec![only]),
            _ => None,
        };
        groups.push(Group {
            rule,
            conditions: conditions?,
        });
    }
    Some(groups)
}

/// The steps of any filter: what all of must hold at its top.
pub(crate) fn steps_of(filter: &Filter) -> Vec<Step> {
    let members = match &filter.node {
        Some(Node::AllOf(all)) => all.filters.clone(),
        _ => vec![filter.clone()],
    };
    let step = |filter| Step {
        filter,
        conditions: Vec::new(),
    };
    members.into_iter().map(step).collect()
}

/// The cohorts that a filter names itself, partner and partner's id; its branches go to `pending`.
pub(crate) fn cohorts_in<'a>(
    filter: &'a Filter,
    pending: &mut Vec<&'a Filter>,
) -> Vec<(String, String)> {
    match &filter.node {
        Some(Node::Cohort(cohort)) => {
            let ids = cohort.cohorts.iter().filter_map(|it| match &it.cohort {
                Some(cohort_reference::Cohort::CohortId(id)) => Some(id.clone()),
                Some(cohort_reference::Cohort::Name(_)) | None => None,
            });
            ids.map(|id| (cohort.partner.clone(), id)).collect()
        }
        Some(Node::AllOf(group) | Node::AnyOf(group)) => {
            pending.extend(group.filters.iter().rev());
            Vec::new()
        }
        Some(Node::Not(inner)) => {
            pending.push(inner);
            Vec::new()
        }
        Some(Node::Segment(_)) | None => Vec::new(),
    }
}

/// The form of the builder. Browsers send the fields in the order in which they stand on the page,
/// so a field belongs to the group and the condition that was begun last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) groups: Groups,
    /// The text form.
    pub(crate) text: String,
    /// The text form as the page had it: another one was typed by somebody.
    pub(crate) text_shown: String,
    /// What the segment was when the editing began; empty for a new one.
    pub(crate) etag: String,
    /// Makes saving twice save once.
    pub(crate) request_id: String,
    /// The button that was pressed, with what it is about.
    pub(crate) button: String,
}

impl Draft {
    /// Reads the fields of a form; unknown ones are passed over.
    pub(crate) fn read(fields: Vec<(String, String)>) -> Self {
        let mut draft = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                "name" => draft.name = value.trim().to_owned(),
                "text" => draft.text = value.replace("\r\n", "\n").trim().to_owned(),
                "text_shown" => draft.text_shown = value.replace("\r\n", "\n").trim().to_owned(),
                "etag" => draft.etag = value,
                "request_id" => draft.request_id = value,
                "do" => draft.button = value,
                "group" => draft.groups.push(Group {
                    rule: Rule::read(&value),
                    conditions: Vec::new(),
                }),
                _ => draft.read_condition(&name, value),
            }
        }
        draft
    }

    fn read_condition(&mut self, name: &str, value: String) {
        let Some(group) = self.groups.last_mut() else {
            return;
        };
        if name == "condition" {
            group.conditions.push(match value.as_str() {
                "segment" => Condition::on_segment(),
                _ => Condition::new(""),
            });
            return;
        }
        let Some(condition) = group.conditions.last_mut() else {
            return;
        };
        match name {
            "partner" => condition.partner = value,
            "rule" => condition.includes = value != "excludes",
            "cohort" => {
                let chosen = Chosen::read(&value);
                if condition.cohorts.iter().all(|it| it.id != chosen.id) {
                    condition.cohorts.push(chosen);
                }
            }
            // Cohorts of another partner would be others.
            "partner_shown" if value != condition.partner => condition.cohorts.clear(),
            "search" => condition.search = value.trim().to_owned(),
            "segment" => condition.segment = value,
            _ => {}
        }
    }

    /// Whether somebody typed a text of their own.
    pub(crate) fn text_was_typed(&self) -> bool {
        self.text != self.text_shown
    }

    /// Does what a button says that changes the groups. Returns the place to go on at: the number of
    /// a group and of a condition in it.
    pub(crate) fn press(&mut self, partner: &str) -> Option<(usize, usize)> {
        let button = self.button.clone();
        let mut words = button.split(' ');
        let verb = words.next()?;
        let mut number = || words.next()?.parse::<usize>().ok();
        let (group, condition) = (number(), number());
        if verb == "add-group" {
            self.groups.push(Group {
                rule: Rule::All,
                conditions: vec![Condition::new(partner)],
            });
            return Some((self.groups.len() - 1, 0));
        }
        let g = group.filter(|g| *g < self.groups.len())?;
        if verb == "remove-group" {
            self.groups.remove(g);
            return None;
        }
        let conditions = &mut self.groups[g].conditions;
        match verb {
            "add-condition" => conditions.push(Condition::new(partner)),
            "add-segment" => conditions.push(Condition::on_segment()),
            "remove-condition" => {
                let c = condition.filter(|c| *c < conditions.len())?;
                conditions.remove(c);
                if conditions.is_empty() {
                    self.groups.remove(g);
                }
                return None;
            }
            _ => return None,
        }
        Some((g, conditions.len() - 1))
    }
}

#[cfg(test)]
mod tests;
