//! The pages that make and change a segment.

use std::collections::HashMap;

use askama::Template;
use axum::{
    Form,
    extract::{Path, Query},
    response::{IntoResponse, Redirect, Response},
};
use http::StatusCode;
use muster_client::Refusal;
use muster_proto::{
    ingest::v1::{CohortOrder, ListCohortsRequest},
    segments::v1::{
        CreateSegmentRequest, FilterExpression, ListSegmentsRequest, Segment, UpdateSegmentRequest,
        filter_expression::Form as Expression,
    },
};
use serde::Deserialize;
use tonic::Code;
use uuid::Uuid;

use super::{
    by_id,
    draft::{self, Chosen, Condition, Draft, Group, Kind, Rule, Step},
    figures::{self, Figures},
    path, segment,
};
use crate::{
    frame::{self, Frame, Notice, Section},
    partners::{self, Partner},
    problem::Problem,
    session::Visitor,
    view::Count,
};

/// Cohorts that a condition offers at a time.
const OFFERED: usize = 12;

/// Segments that a condition offers.
const MAX_SEGMENTS: i32 = 500;

#[derive(Template)]
#[template(path = "segment_builder.html")]
struct Page {
    frame: Frame,
    workspace: String,
    /// The segment that is changed; `None` for a new one.
    segment: Option<Segment>,
    draft: Draft,
    groups: Vec<GroupView>,
    partners: Vec<Partner>,
    segments: Vec<Segment>,
    figures: Option<Figures>,
    mistakes: Mistakes,
    /// Whether conditions are left out of the count because nothing is chosen in them yet.
    is_partial: bool,
}

struct GroupView {
    number: usize,
    rule: Rule,
    conditions: Vec<ConditionView>,
}

struct ConditionView {
    group: usize,
    number: usize,
    condition: Condition,
    options: Vec<Offer>,
    /// Whether there are more cohorts than are offered.
    more: bool,
    mistake: String,
    has_focus: bool,
}

impl ConditionView {
    fn key(&self) -> String {
        format!("g{}c{}", self.group, self.number)
    }

    /// What a screen reader calls it.
    fn title(&self) -> String {
        format!("Condition {} of group {}", self.number + 1, self.group + 1)
    }
}

struct Offer {
    cohort: Chosen,
    is_chosen: bool,
    /// Its size at the last import.
    size: Option<Count>,
    /// What tells it from another one of the same name.
    detail: String,
}

/// What is wrong, by the field that it is about.
#[derive(Debug, Default)]
struct Mistakes {
    name: String,
    text: String,
    conditions: HashMap<(usize, usize), String>,
    /// What is about no field in particular.
    other: String,
}

impl Mistakes {
    fn any(&self) -> bool {
        !self.name.is_empty()
            || !self.text.is_empty()
            || !self.other.is_empty()
            || !self.conditions.is_empty()
    }

    /// Sorts what the servers refused; gives back what no form can mend.
    fn take(&mut self, refusal: Refusal, steps: &[Step], is_text: bool) -> Result<(), Problem> {
        if refusal.reason == "SEGMENT_EXISTS" {
            self.name = "Another segment has this name already.".to_owned();
            return Ok(());
        }
        if refusal.code != Code::InvalidArgument {
            return Err(refusal.into());
        }
        for violation in &refusal.fields {
            let text = sentence(&violation.description);
            let path = ["filters[0]", "filter"]
                .iter()
                .find_map(|outer| violation.field.strip_prefix(outer))
                .map(|rest| rest.trim_start_matches('.'));
            let place = path.and_then(|path| draft::condition_at(steps, path));
            match (violation.field.as_str(), place) {
                ("name", _) => self.name = text,
                (_, Some(place)) if !is_text => {
                    self.conditions.insert(place, text);
                }
                _ if is_text && path.is_some() => self.text = text,
                _ => self.other = text,
            }
        }
        if refusal.fields.is_empty() {
            self.other = sentence(&refusal.message);
        }
        Ok(())
    }
}

/// As a sentence: with a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_uppercase());
    let end = if text.ends_with('.') { "" } else { "." };
    format!(
        "{}{}{end}",
        first.into_iter().flatten().collect::<String>(),
        rest.as_str()
    )
}

/// A cohort to begin with.
#[derive(Deserialize)]
pub(crate) struct Beginning {
    #[serde(default)]
    partner: String,
    #[serde(default)]
    cohort: String,
    #[serde(default)]
    name: String,
}

/// An empty builder, or one with a cohort in it.
pub(crate) async fn new(
    visitor: Visitor,
    Query(beginning): Query<Beginning>,
) -> Result<Response, Problem> {
    let mut condition = Condition::new(&beginning.partner);
    if !beginning.cohort.is_empty() {
        let (id, name) = (beginning.cohort, beginning.name);
        condition.cohorts.push(Chosen { id, name });
    }
    let draft = Draft {
        groups: vec![Group {
            rule: Rule::All,
            conditions: vec![condition],
        }],
        request_id: Uuid::now_v7().to_string(),
        ..Draft::default()
    };
    show(&visitor, None, draft, Mistakes::default(), None).await
}

/// The builder with what a segment is now.
pub(crate) async fn edit(
    visitor: Visitor,
    Path((_, id)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let segment = segment(&visitor, &id).await?;
    let filter = segment.filter.clone().unwrap_or_default();
    let draft = Draft {
        name: segment.name.clone(),
        groups: draft::groups_of(&filter).unwrap_or_default(),
        text: segment.filter_text.clone(),
        text_shown: segment.filter_text.clone(),
        etag: segment.etag.clone(),
        request_id: Uuid::now_v7().to_string(),
        button: String::new(),
    };
    show(&visitor, Some(segment), draft, Mistakes::default(), None).await
}

/// Brings a new draft up to date, or saves it.
pub(crate) async fn new_sent(
    visitor: Visitor,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    sent(visitor, None, Draft::read(fields)).await
}

/// Brings the draft of a change up to date, or saves it.
pub(crate) async fn edit_sent(
    visitor: Visitor,
    Path((_, id)): Path<(String, String)>,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let segment = segment(&visitor, &id).await?;
    sent(visitor, Some(segment), Draft::read(fields)).await
}

async fn sent(
    visitor: Visitor,
    segment: Option<Segment>,
    mut draft: Draft,
) -> Result<Response, Problem> {
    let mut mistakes = Mistakes::default();
    if draft.button != "save" {
        let partner = match draft
            .groups
            .iter()
            .flat_map(|it| it.conditions.last())
            .last()
        {
            Some(last) if !last.partner.is_empty() => last.partner.clone(),
            _ => String::new(),
        };
        let focus = draft.press(&partner);
        return show(&visitor, segment, draft, mistakes, focus).await;
    }
    if draft.name.is_empty() {
        mistakes.name = "Give it a name.".to_owned();
    }
    let is_text = draft.text_was_typed() || draft.groups.is_empty();
    if !is_text {
        for (g, group) in draft.groups.iter().enumerate() {
            for (c, condition) in group.conditions.iter().enumerate() {
                if !condition.is_complete() {
                    let what = match condition.kind {
                        Kind::Cohort => "Choose at least one cohort, or remove the condition.",
                        Kind::Segment => "Choose a segment, or remove the condition.",
                    };
                    mistakes.conditions.insert((g, c), what.to_owned());
                }
            }
        }
    }
    let steps = draft::steps(&draft.groups);
    if is_text && draft.text.is_empty() || !is_text && steps.is_empty() {
        mistakes.other = "A segment needs at least one condition.".to_owned();
    }
    if mistakes.any() {
        return show(&visitor, segment, draft, mistakes, None).await;
    }
    let form = if is_text {
        Expression::Text(draft.text.clone())
    } else {
        let filters = steps.iter().map(|step| step.filter.clone());
        Expression::Tree(draft::all_of(filters.collect()))
    };
    match save(&visitor, segment.as_ref(), &draft, form).await {
        Ok(saved) => {
            let text = format!("The segment “{}” is saved.", saved.name);
            visitor.session().notify(Notice::good(text));
            let to = path(&visitor.workspace, &saved.segment_id);
            Ok(Redirect::to(&to).into_response())
        }
        Err(refusal) if refusal.reason == "ETAG_MISMATCH" => {
            // With the new etag the next attempt replaces what is there, knowingly.
            draft.etag = segment
                .as_ref()
                .map_or_else(String::new, |it| it.etag.clone());
            draft.request_id = Uuid::now_v7().to_string();
            mistakes.other = match &segment {
                Some(now) => format!(
                    "Somebody changed this segment after you opened it. It is now “{}”: {}. Your \
                     version is still below: save again to put it in place of theirs.",
                    now.name, now.filter_text
                ),
                None => sentence(&refusal.message),
            };
            show(&visitor, segment, draft, mistakes, None).await
        }
        Err(refusal) => {
            mistakes.take(refusal, &steps, is_text)?;
            // A refused attempt must not be taken for the next one.
            draft.request_id = Uuid::now_v7().to_string();
            show(&visitor, segment, draft, mistakes, None).await
        }
    }
}

async fn save(
    visitor: &Visitor,
    segment: Option<&Segment>,
    draft: &Draft,
    form: Expression,
) -> Result<Segment, Refusal> {
    let mut client = visitor.connection().segments();
    let workspace = visitor.workspace.clone();
    let filter = Some(FilterExpression { form: Some(form) });
    let saved = match segment {
        None => {
            let request = CreateSegmentRequest {
                workspace,
                name: draft.name.clone(),
                filter,
                request_id: draft.request_id.clone(),
            };
            client.create_segment(request).await?.into_inner().segment
        }
        Some(segment) => {
            let request = UpdateSegmentRequest {
                workspace,
                segment: Some(by_id(&segment.segment_id)),
                name: draft.name.clone(),
                filter,
                update_mask: None,
                etag: draft.etag.clone(),
                request_id: draft.request_id.clone(),
            };
            client.update_segment(request).await?.into_inner().segment
        }
    };
    Ok(saved.unwrap_or_default())
}

/// The builder with everything that the draft leads to.
async fn show(
    visitor: &Visitor,
    segment: Option<Segment>,
    mut draft: Draft,
    mut mistakes: Mistakes,
    focus: Option<(usize, usize)>,
) -> Result<Response, Problem> {
    let partners = partners::all(visitor).await?;
    if let [only] = &partners[..] {
        for condition in draft.groups.iter_mut().flat_map(|it| &mut it.conditions) {
            if condition.partner.is_empty() {
                condition.partner.clone_from(&only.slug);
            }
        }
    }
    let steps = understand(visitor, &mut draft, &mut mistakes).await?;
    let mut counted = None;
    if !steps.is_empty() {
        match figures::count(visitor.connection(), &visitor.workspace, &steps).await {
            Ok(figures) => counted = Some(figures),
            Err(refusal) => mistakes.take(refusal, &steps, draft.groups.is_empty())?,
        }
    }
    if let Some(figures) = &counted {
        draft.text.clone_from(&figures.filter_text);
        draft.text_shown.clone_from(&figures.filter_text);
        name_chosen(&mut draft, figures);
    } else if steps.is_empty() && mistakes.text.is_empty() {
        draft.text.clear();
        draft.text_shown.clear();
    }
    let conditions = || draft.groups.iter().flat_map(|group| &group.conditions);
    let segments = match conditions().any(|it| it.kind == Kind::Segment) {
        true => offered_segments(visitor, segment.as_ref()).await?,
        false => Vec::new(),
    };
    let is_partial = conditions().any(|it| !it.is_complete());
    let status = if mistakes.any() {
        StatusCode::UNPROCESSABLE_ENTITY
    } else {
        StatusCode::OK
    };
    let title = match &segment {
        Some(segment) => format!("Change {}", segment.name),
        None => "New segment".to_owned(),
    };
    let mut frame = visitor.frame(&title, Section::Segments);
    frame.scripts = &["builder.js"];
    let page = Page {
        frame,
        workspace: visitor.workspace.clone(),
        groups: group_views(visitor, &draft, &mistakes, focus).await?,
        segment,
        draft,
        partners,
        segments,
        figures: counted,
        mistakes,
        is_partial,
    };
    Ok((status, frame::html(&page)).into_response())
}

/// The steps of the draft. A text that somebody typed takes the place of the groups, if it is one.
async fn understand(
    visitor: &Visitor,
    draft: &mut Draft,
    mistakes: &mut Mistakes,
) -> Result<Vec<Step>, Problem> {
    let is_text = draft.text_was_typed() || draft.groups.is_empty();
    if !is_text || draft.text.is_empty() {
        return Ok(draft::steps(&draft.groups));
    }
    let (servers, workspace) = (visitor.connection(), &visitor.workspace);
    match figures::understand(servers, workspace, &draft.text).await {
        Ok(understood) => {
            let filter = understood.filter.unwrap_or_default();
            draft.groups = draft::groups_of(&filter).unwrap_or_default();
            Ok(match draft.groups.as_slice() {
                [] => draft::steps_of(&filter),
                groups => draft::steps(groups),
            })
        }
        Err(refusal) => {
            mistakes.take(refusal, &[], true)?;
            Ok(Vec::new())
        }
    }
}

/// Calls the cohorts chosen by their current names.
fn name_chosen(draft: &mut Draft, figures: &Figures) {
    for condition in draft.groups.iter_mut().flat_map(|it| &mut it.conditions) {
        for chosen in &mut condition.cohorts {
            let read = figures.cohorts.iter();
            let mut read = read.filter(|it| it.partner == condition.partner);
            if let Some(cohort) = read.find(|it| it.cohort_id == chosen.id) {
                chosen.name.clone_from(&cohort.name);
            }
        }
    }
}

async fn offered_segments(
    visitor: &Visitor,
    changed: Option<&Segment>,
) -> Result<Vec<Segment>, Problem> {
    let request = ListSegmentsRequest {
        workspace: visitor.workspace.clone(),
        page_size: MAX_SEGMENTS,
        ..Default::default()
    };
    let mut client = visitor.connection().segments();
    let listed = client.list_segments(request).await?;
    let mut segments = listed.into_inner().segments;
    segments.retain(|it| changed.is_none_or(|changed| it.segment_id != changed.segment_id));
    Ok(segments)
}

async fn group_views(
    visitor: &Visitor,
    draft: &Draft,
    mistakes: &Mistakes,
    focus: Option<(usize, usize)>,
) -> Result<Vec<GroupView>, Problem> {
    let mut groups = Vec::new();
    for (g, group) in draft.groups.iter().enumerate() {
        let mut conditions = Vec::new();
        for (c, condition) in group.conditions.iter().enumerate() {
            let (options, more) = offers(visitor, condition).await?;
            conditions.push(ConditionView {
                group: g,
                number: c,
                condition: condition.clone(),
                options,
                more,
                mistake: mistakes
                    .conditions
                    .get(&(g, c))
                    .cloned()
                    .unwrap_or_default(),
                has_focus: focus == Some((g, c)),
            });
        }
        groups.push(GroupView {
            number: g,
            rule: group.rule,
            conditions,
        });
    }
    Ok(groups)
}

/// The cohorts of a condition, then others to choose: those searched for, or those imported last
/// while there is none.
async fn offers(visitor: &Visitor, condition: &Condition) -> Result<(Vec<Offer>, bool), Problem> {
    let mut offers: Vec<Offer> = condition
        .cohorts
        .iter()
        .map(|cohort| Offer {
            cohort: cohort.clone(),
            is_chosen: true,
            size: None,
            detail: String::new(),
        })
        .collect();
    let wanted = condition.kind == Kind::Cohort
        && !condition.partner.is_empty()
        && (condition.cohorts.is_empty() || !condition.search.is_empty());
    if !wanted {
        return Ok((offers, false));
    }
    let request = ListCohortsRequest {
        workspace: visitor.workspace.clone(),
        partner: condition.partner.clone(),
        name_contains: condition.search.clone(),
        page_size: i32::try_from(OFFERED + condition.cohorts.len())
            .unwrap_or(i32::MAX)
            .min(1_000),
        order: CohortOrder::LastImport.into(),
        ..Default::default()
    };
    let listed = visitor.connection().ingest().list_cohorts(request).await?;
    let listed = listed.into_inner();
    let mut found: Vec<Offer> = listed
        .cohorts
        .into_iter()
        .filter(|it| {
            condition
                .cohorts
                .iter()
                .all(|chosen| chosen.id != it.cohort_id)
        })
        .map(|it| Offer {
            is_chosen: false,
            size: it.latest_version.map(|version| Count(version.member_count)),
            detail: match it.former_names.first() {
                Some(former) if it.name != it.cohort_id => {
                    format!("{}, formerly “{former}”", it.cohort_id)
                }
                _ if it.name == it.cohort_id => String::new(),
                _ => it.cohort_id.clone(),
            },
            cohort: Chosen {
                id: it.cohort_id,
                name: it.name,
            },
        })
        .collect();
    let more = found.len() > OFFERED || !listed.next_page_token.is_empty();
    found.truncate(OFFERED);
    offers.extend(found);
    Ok((offers, more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_servers_say_reads_as_a_sentence() {
        assert_eq!(sentence("must be set"), "Must be set.");
        assert_eq!(
            sentence("tinyclues has no cohort."),
            "Tinyclues has no cohort."
        );
    }
}
