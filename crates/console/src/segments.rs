//! Segments: the list, the builder, and the page of one with its resolutions.

mod builder;
mod check;
mod compare;
mod draft;
mod figures;
mod show;

use std::sync::Arc;

use askama::Template;
use axum::{
    Router,
    extract::Query,
    response::Response,
    routing::{get, post},
};
use muster_client::Refusal;
use muster_proto::segments::v1::{
    CountFiltersRequest, Filter, FilterExpression, GetSegmentRequest, ListSegmentsRequest, Segment,
    SegmentReference, filter::Node, filter_expression::Form, segment_reference,
};
use serde::Deserialize;

use crate::{
    frame::{self, Frame, Section},
    problem::Problem,
    routes::Console,
    session::Visitor,
    view::{Count, When},
};

/// Segments on a page.
const PAGE: i32 = 25;

/// The pages about segments.
pub(crate) fn routes() -> Router<Arc<Console>> {
    Router::new()
        .route("/w/{workspace}/segments", get(list))
        .route(
            "/w/{workspace}/segments/new",
            get(builder::new).post(builder::new_sent),
        )
        .route("/w/{workspace}/segments/{segment}", get(show::show))
        .route(
            "/w/{workspace}/segments/{segment}/edit",
            get(builder::edit).post(builder::edit_sent),
        )
        .route(
            "/w/{workspace}/segments/{segment}/archive",
            post(show::archive),
        )
        .route(
            "/w/{workspace}/segments/{segment}/check",
            get(check::ask).post(check::check),
        )
        .route(
            "/w/{workspace}/segments/{segment}/compare",
            get(compare::show),
        )
        .route(
            "/w/{workspace}/segments/{segment}/compare.csv",
            get(compare::download),
        )
}

/// Path of the page of a segment.
pub(crate) fn path(workspace: &str, segment_id: &str) -> String {
    format!("/w/{workspace}/segments/{segment_id}")
}

/// Names a segment by its id.
pub(crate) fn by_id(id: &str) -> SegmentReference {
    SegmentReference {
        segment: Some(segment_reference::Segment::SegmentId(id.to_owned())),
    }
}

/// The segment in the path.
pub(crate) async fn segment(visitor: &Visitor, id: &str) -> Result<Segment, Problem> {
    // What is no id leads nowhere, rather than being a mistake of the reader's.
    if uuid::Uuid::try_parse(id).is_err() {
        return Err(Problem::not_found());
    }
    let request = GetSegmentRequest {
        workspace: visitor.workspace.clone(),
        segment: Some(by_id(id)),
    };
    let found = visitor.connection().segments().get_segment(request).await?;
    found.into_inner().segment.ok_or_else(Problem::not_found)
}

#[derive(Deserialize)]
struct Wanted {
    #[serde(default)]
    search: String,
    #[serde(default)]
    archived: String,
    #[serde(default)]
    page: String,
}

#[derive(Template)]
#[template(path = "segments.html")]
struct Page {
    frame: Frame,
    workspace: String,
    search: String,
    archived: bool,
    is_first: bool,
    segments: Vec<Row>,
    next: String,
}

struct Row {
    segment: Segment,
    /// How many people are in it now; `None` if it is archived or the servers could not say.
    count: Option<Count>,
}

impl Row {
    fn updated(&self) -> When {
        When::from(&self.segment.update_time)
    }
}

async fn list(visitor: Visitor, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let archived = !wanted.archived.is_empty();
    let request = ListSegmentsRequest {
        workspace: visitor.workspace.clone(),
        include_archived: archived,
        name_contains: wanted.search.trim().to_owned(),
        page_size: PAGE,
        page_token: wanted.page.clone(),
        ..Default::default()
    };
    let mut client = visitor.connection().segments();
    let listed = client.list_segments(request).await?.into_inner();
    let counts = counts(&visitor, &listed.segments).await;
    let mut counts = counts.unwrap_or_default().into_iter();
    let rows = listed.segments.into_iter().map(|segment| Row {
        count: if segment.archived {
            None
        } else {
            counts.next()
        },
        segment,
    });
    Ok(frame::html(&Page {
        frame: visitor.frame("Segments", Section::Segments),
        workspace: visitor.workspace.clone(),
        search: wanted.search,
        archived,
        is_first: wanted.page.is_empty(),
        segments: rows.collect(),
        next: listed.next_page_token,
    }))
}

/// How many people are in each segment that is not archived, all at one moment.
async fn counts(visitor: &Visitor, segments: &[Segment]) -> Result<Vec<Count>, Refusal> {
    let live = segments.iter().filter(|segment| !segment.archived);
    let filters: Vec<FilterExpression> = live
        .map(|segment| FilterExpression {
            form: Some(Form::Tree(Filter {
                node: Some(Node::Segment(by_id(&segment.segment_id))),
            })),
        })
        .collect();
    if filters.is_empty() {
        return Ok(Vec::new());
    }
    let request = CountFiltersRequest {
        workspace: visitor.workspace.clone(),
        filters,
        ..Default::default()
    };
    let mut client = visitor.connection().segments();
    let counted = client.count_filters(request).await?.into_inner();
    let counts = counted.counts.into_iter();
    Ok(counts.map(|it| Count(it.user_count)).collect())
}
