//! One import: how far it is, what became of every identifier, and which ones had no effect.

use askama::Template;
use axum::{extract::Query, response::Response};
use muster_proto::ingest::v1::{ImportState, ListRejectedIdentifiersRequest};
use serde::Deserialize;

use super::{
    outcomes::Outcomes,
    path,
    rejected::{self, Rejected},
    show::ImportRow,
    waiting::{self, Waiting},
};
use crate::{
    actors::Actors,
    frame::{self, Frame, Section},
    problem::Problem,
    session::Visitor,
    view::{Count, When},
};

/// Rejected identifiers on a page.
const PAGE: i32 = 100;

#[derive(Deserialize)]
pub(crate) struct Wanted {
    partner: String,
    id: String,
    #[serde(default)]
    page: String,
}

#[derive(Template)]
#[template(path = "import.html")]
struct Page {
    frame: Frame,
    workspace: String,
    row: ImportRow,
    cohort_path: String,
    /// What became of the identifiers; `None` until that is known.
    outcomes: Option<Outcomes>,
    /// Who it made join and leave, once it is published.
    changed: Option<(Count, Count)>,
    waiting: Option<Waiting>,
    rejected: Vec<Rejected>,
    is_first: bool,
    next: String,
}

impl Page {
    fn csv(&self) -> String {
        self.row
            .path
            .replacen("/import?", "/import/rejected.csv?", 1)
    }

    /// How soon it looks again: only while something can still change.
    fn look_again(&self) -> u32 {
        u32::from(self.row.runs() && self.is_first)
    }
}

/// The page.
pub(crate) async fn show(
    visitor: Visitor,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let import = waiting::find(&visitor, &wanted.partner, &wanted.id).await?;
    let request = ListRejectedIdentifiersRequest {
        workspace: visitor.workspace.clone(),
        partner: import.partner.clone(),
        import_id: import.import_id.clone(),
        page_size: PAGE,
        page_token: wanted.page.clone(),
    };
    let listed = rejected::page(visitor.connection(), request).await?;
    let actors = Actors::of(&visitor).await?;
    let waits = import.state() == ImportState::AwaitingConfirmation;
    let published = import.state() == ImportState::Committed;
    let summary = import.summary.as_ref();
    let title = format!("Import of {}", import.cohort_name);
    Ok(frame::html(&Page {
        frame: visitor.frame(&title, Section::Cohorts),
        workspace: visitor.workspace.clone(),
        cohort_path: path(&visitor.workspace, &import.partner, &import.cohort_id),
        outcomes: summary.map(|it| Outcomes::of([it].into_iter())),
        changed: summary
            .filter(|_| published)
            .map(|it| (Count(it.members_added), Count(it.members_removed))),
        waiting: waits.then(|| Waiting::new(import.clone())),
        rejected: listed.identifiers.into_iter().map(Rejected::from).collect(),
        is_first: wanted.page.is_empty(),
        next: listed.next_page_token,
        row: ImportRow::new(&visitor.workspace, &actors, import),
    }))
}
