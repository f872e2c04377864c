//! One cohort: how it grew, what its last upload did, who uses it.

use askama::Template;
use axum::{
    Form,
    extract::Query,
    response::{IntoResponse, Redirect, Response},
};
use muster_client::Refusal;
use muster_proto::{
    ingest::v1::{
        ArchiveCohortRequest, Cohort, CohortVersion, GetCohortRequest, Import, ImportMode,
        ImportState, ListCohortVersionsRequest, ListImportsRequest,
    },
    segments::v1::{CohortUse, ListSegmentsRequest, Segment},
};
use serde::Deserialize;
use tonic::{Code, Status};

use super::{
    LOOK_FOR_NEWS,
    chart::Chart,
    import_path,
    outcomes::{Outcomes, last_upload, unmatched_of},
    path,
    waiting::Waiting,
};
use crate::{
    actors::Actors,
    frame::{self, Frame, Notice, Section},
    problem::Problem,
    session::Visitor,
    view::{Count, When},
};

/// Versions in the chart and its table.
const CHARTED: i32 = 60;

/// Imports on a page.
const PAGE: usize = 20;

/// Imports that are looked through for the last upload, and for those that run or wait.
const RECENT: i32 = 1_000;

/// Segments that are named.
const SEGMENTS: i32 = 100;

/// How soon a page with a running import looks again, in seconds.
const LOOK_AGAIN: u32 = 1;

/// A cohort, named in the address.
#[derive(Deserialize)]
pub(crate) struct Named {
    pub(super) partner: String,
    pub(super) id: String,
    #[serde(default)]
    page: String,
}

#[derive(Template)]
#[template(path = "cohort.html")]
struct Page {
    frame: Frame,
    workspace: String,
    path: String,
    cohort: Cohort,
    chart: Option<Chart>,
    versions: Vec<CohortVersion>,
    upload: Option<Upload>,
    waiting: Vec<Waiting>,
    imports: Vec<ImportRow>,
    is_first: bool,
    next: String,
    /// Those that name the cohort; `None` if the token may not see segments.
    segments: Option<Vec<Segment>>,
    look_again: u32,
}

impl Page {
    fn csv(&self) -> String {
        self.path.replacen("/cohort?", "/cohort/rejected.csv?", 1)
    }

    fn new_segment(&self) -> String {
        let name = super::encoded(&self.cohort.name);
        let query = self.path.split_once("?partner=").map_or("", |(_, it)| it);
        let query = query.replacen("&id=", "&cohort=", 1);
        format!(
            "/w/{}/segments/new?partner={query}&name={name}",
            self.workspace
        )
    }
}

/// The calls that brought the last export, as one.
struct Upload {
    calls: usize,
    /// The page of its import, if it is a single one.
    path: String,
    begun: When,
    outcomes: Outcomes,
}

impl Upload {
    fn of(workspace: &str, recent: &[Import]) -> Option<Self> {
        let imports = last_upload(recent);
        let (newest, oldest) = (imports.first()?, imports.last()?);
        Some(Self {
            calls: imports.len(),
            path: import_path(workspace, &newest.partner, &newest.import_id),
            begun: When::from(&oldest.create_time),
            outcomes: Outcomes::of(imports.iter().filter_map(|it| it.summary.as_ref())),
        })
    }
}

/// An import as a row.
pub(crate) struct ImportRow {
    pub(crate) path: String,
    pub(crate) by: String,
    pub(crate) import: Import,
}

impl ImportRow {
    pub(crate) fn new(workspace: &str, actors: &Actors, import: Import) -> Self {
        Self {
            path: import_path(workspace, &import.partner, &import.import_id),
            by: actors.name(&import.created_by),
            import,
        }
    }

    pub(crate) fn opened(&self) -> When {
        When::from(&self.import.create_time)
    }

    pub(crate) fn received(&self) -> Count {
        Count(self.import.received)
    }

    pub(crate) fn unmatched(&self) -> Option<Count> {
        unmatched_of(&self.import)
    }

    pub(crate) fn runs(&self) -> bool {
        self.import.state() == ImportState::Open
    }

    pub(crate) fn mode(&self) -> &'static str {
        match self.import.mode() {
            ImportMode::Replace => "the full list",
            _ => "changes",
        }
    }

    /// How far it is: the words, and what they look like.
    pub(crate) fn state(&self) -> (&'static str, &'static str) {
        match self.import.state() {
            ImportState::Open => ("running", "wait"),
            ImportState::AwaitingConfirmation => ("waits for you", "wait"),
            ImportState::Committed => ("published", "good"),
            ImportState::Aborted => ("aborted", "off"),
            ImportState::Expired => ("given up", "bad"),
            ImportState::Unspecified => ("", "off"),
        }
    }
}

/// The newest imports of a cohort.
pub(crate) async fn recent_imports(
    visitor: &Visitor,
    named: &Named,
) -> Result<Vec<Import>, Status> {
    let request = ListImportsRequest {
        workspace: visitor.workspace.clone(),
        partner: named.partner.clone(),
        cohort_id: named.id.clone(),
        page_size: RECENT,
        ..Default::default()
    };
    let listed = visitor.connection().ingest().list_imports(request).await?;
    Ok(listed.into_inner().imports)
}

/// The imports that the page lists, and the token of the next page. The first page is the beginning
/// of what was read anyway.
async fn page_of_imports(
    visitor: &Visitor,
    named: &Named,
) -> Result<(Vec<Import>, String), Status> {
    let request = ListImportsRequest {
        workspace: visitor.workspace.clone(),
        partner: named.partner.clone(),
        cohort_id: named.id.clone(),
        page_size: i32::try_from(PAGE).expect("a page is short"),
        page_token: named.page.clone(),
        ..Default::default()
    };
    let listed = visitor.connection().ingest().list_imports(request).await?;
    let listed = listed.into_inner();
    Ok((listed.imports, listed.next_page_token))
}

async fn versions(visitor: &Visitor, named: &Named) -> Result<Vec<CohortVersion>, Status> {
    let request = ListCohortVersionsRequest {
        workspace: visitor.workspace.clone(),
        partner: named.partner.clone(),
        cohort_id: named.id.clone(),
        page_size: CHARTED,
        page_token: String::new(),
    };
    let mut client = visitor.connection().ingest();
    Ok(client
        .list_cohort_versions(request)
        .await?
        .into_inner()
        .versions)
}

async fn find(visitor: &Visitor, named: &Named) -> Result<Cohort, Problem> {
    let request = GetCohortRequest {
        workspace: visitor.workspace.clone(),
        partner: named.partner.clone(),
        cohort_id: named.id.clone(),
    };
    let found = visitor.connection().ingest().get_cohort(request).await?;
    found.into_inner().cohort.ok_or_else(Problem::not_found)
}

async fn used_by(visitor: &Visitor, named: &Named) -> Result<Option<Vec<Segment>>, Status> {
    let request = ListSegmentsRequest {
        workspace: visitor.workspace.clone(),
        page_size: SEGMENTS,
        uses: Some(CohortUse {
            partner: named.partner.clone(),
            cohort_id: named.id.clone(),
        }),
        ..Default::default()
    };
    match visitor.connection().segments().list_segments(request).await {
        Ok(listed) => Ok(Some(listed.into_inner().segments)),
        Err(status) if status.code() == Code::PermissionDenied => Ok(None),
        Err(status) => Err(status),
    }
}

/// The page.
pub(crate) async fn show(
    visitor: Visitor,
    Query(named): Query<Named>,
) -> Result<Response, Problem> {
    let cohort = find(&visitor, &named).await?;
    let (versions, recent, (listed, next), segments) = futures::try_join!(
        versions(&visitor, &named),
        recent_imports(&visitor, &named),
        page_of_imports(&visitor, &named),
        used_by(&visitor, &named),
    )?;
    let actors = Actors::of(&visitor).await?;
    let workspace = &visitor.workspace;
    let runs = recent.iter().any(|it| it.state() == ImportState::Open);
    let upload = Upload::of(workspace, &recent);
    let waiting = recent
        .into_iter()
        .filter(|it| it.state() == ImportState::AwaitingConfirmation);
    let rows = listed.into_iter();
    let is_first = named.page.is_empty();
    Ok(frame::html(&Page {
        frame: visitor.frame(&cohort.name, Section::Cohorts),
        workspace: workspace.clone(),
        path: path(workspace, &named.partner, &named.id),
        chart: Chart::of(&versions),
        versions,
        upload,
        waiting: waiting.map(Waiting::new).collect(),
        imports: rows
            .map(|import| ImportRow::new(workspace, &actors, import))
            .collect(),
        is_first,
        next,
        segments,
        look_again: match (is_first, runs) {
            (false, _) => 0,
            (true, true) => LOOK_AGAIN,
            (true, false) => LOOK_FOR_NEWS,
        },
        cohort,
    }))
}

#[derive(Deserialize)]
pub(crate) struct Archived {
    partner: String,
    id: String,
    etag: String,
}

/// Archives the cohort, unless segments use it.
pub(crate) async fn archive(
    visitor: Visitor,
    Form(form): Form<Archived>,
) -> Result<Response, Problem> {
    let request = ArchiveCohortRequest {
        workspace: visitor.workspace.clone(),
        partner: form.partner.clone(),
        cohort_id: form.id.clone(),
        etag: form.etag,
        // Archiving twice changes nothing.
        request_id: String::new(),
    };
    let mut client = visitor.connection().ingest();
    let done = client.archive_cohort(request).await;
    let notice = match done.map_err(Refusal::from) {
        Ok(done) => {
            let name = done.into_inner().cohort.unwrap_or_default().name;
            Notice::good(format!("The cohort “{name}” is archived."))
        }
        Err(refusal) if refusal.reason == "COHORT_IN_USE" => Notice::bad(
            "It was not archived, because segments use it. They are named below: change or archive \
             them first.",
        ),
        Err(refusal) if refusal.reason == "ETAG_MISMATCH" => Notice::bad(
            "It was not archived: somebody renamed or archived it after you opened the page. Look at \
             it again.",
        ),
        Err(refusal) => return Err(refusal.into()),
    };
    visitor.session().notify(notice);
    let to = path(&visitor.workspace, &form.partner, &form.id);
    Ok(Redirect::to(&to).into_response())
}
