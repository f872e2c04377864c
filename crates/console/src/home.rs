//! The first page of a workspace: what waits for somebody, what came in, whether the servers are
//! well.
//!
//! Each part stands for itself: one that the servers cannot say now, or that the token may not see,
//! says so in its place.

mod arrivals;
mod failing;

use std::time::Duration;

use askama::Template;
use axum::response::Response;
use futures::future::join_all;
use muster_client::{Connection, Health, Refusal};
use muster_proto::ingest::v1::{
    Cohort, CohortOrder, ImportState, ListCohortsRequest, ListImportsRequest,
};
use prost_types::Timestamp;
use time::OffsetDateTime;
use tokio::time::timeout;
use tonic::{Code, Status};

use self::{
    arrivals::{Arrivals, arrivals},
    failing::{Failing, failing},
};
use crate::{
    cohorts::{self, LOOK_FOR_NEWS, Waiting},
    frame::{self, Frame, Section},
    problem::Problem,
    session::Visitor,
    view::{self, Count, When},
};

/// What "today" means, in every zone alike.
const TODAY: time::Duration = time::Duration::hours(24);

/// Without an import for so long, a cohort is stale.
const STALE: time::Duration = time::Duration::days(7);

/// Of each thing that waits, so many are named.
const NAMED: i32 = 5;

/// How long a server may take to say that it is well.
const HEALTH_PATIENCE: Duration = Duration::from_secs(3);

/// The servers, each by one of its services.
const SERVERS: [(&str, &str); 4] = [
    ("Keys and integrations", "muster.keys.v1.IntegrationService"),
    ("Users", "muster.users.v1.UserService"),
    ("Cohorts and imports", "muster.ingest.v1.IngestService"),
    (
        "Segments and audiences",
        "muster.segments.v1.SegmentService",
    ),
];

#[derive(Template)]
#[template(path = "home.html")]
struct Page {
    frame: Frame,
    workspace: String,
    confirmations: Part<Few<Waiting>>,
    stale: Part<Few<Stale>>,
    failing: Part<Vec<Failing>>,
    arrivals: Part<Arrivals>,
    servers: Vec<Server>,
}

impl Page {
    /// Whether nothing waits, as far as all of it is known.
    fn is_quiet(&self) -> bool {
        let confirmations = self
            .confirmations
            .as_ref()
            .is_ok_and(|it| it.first.is_empty());
        let stale = self.stale.as_ref().is_ok_and(|it| it.first.is_empty());
        confirmations && stale && self.failing.as_ref().is_ok_and(Vec::is_empty)
    }

    /// Why some of what waits is not known, each reason once.
    fn unknown(&self) -> Vec<&str> {
        let reasons = [
            self.confirmations.as_ref().err(),
            self.stale.as_ref().err(),
            self.failing.as_ref().err(),
        ];
        let mut reasons: Vec<&str> = reasons.into_iter().flatten().map(String::as_str).collect();
        reasons.dedup();
        reasons
    }
}

/// A part of the page, or why it is not there.
type Part<T> = Result<T, String>;

/// A refusal of the token ends the session, and a workspace that is not there has no page; anything
/// else is said in the place of the part.
fn part<T>(found: Result<T, Status>) -> Result<Part<T>, Problem> {
    match found {
        Ok(found) => Ok(Ok(found)),
        Err(status) if matches!(status.code(), Code::Unauthenticated | Code::NotFound) => {
            Err(status.into())
        }
        Err(status) if status.code() == Code::PermissionDenied => {
            Ok(Err("Your token may not see all of this.".to_owned()))
        }
        Err(status) => {
            let refusal = Refusal::from(status);
            Ok(Err(if refusal.connection_lost {
                "The servers cannot be asked now.".to_owned()
            } else {
                format!("The servers cannot say: {}.", refusal.message)
            }))
        }
    }
}

/// The first of some things, and whether there are more.
struct Few<T> {
    first: Vec<T>,
    more: bool,
}

/// A cohort that nothing came into for long.
struct Stale {
    path: String,
    cohort: Cohort,
}

impl Stale {
    fn last_import(&self) -> When {
        When::from(&self.cohort.last_import_time)
    }
}

/// A server, and what it says of itself.
struct Server {
    name: &'static str,
    words: &'static str,
    tone: &'static str,
}

/// A moment before now, as it goes over the wire.
fn ago(by: time::Duration) -> Timestamp {
    Timestamp {
        seconds: (OffsetDateTime::now_utc() - by).unix_timestamp(),
        nanos: 0,
    }
}

/// The page.
pub(crate) async fn show(visitor: Visitor) -> Result<Response, Problem> {
    let (confirmations, stale, failing, arrivals, servers) = futures::join!(
        confirmations(&visitor),
        stale(&visitor),
        failing(&visitor),
        arrivals(&visitor),
        health(visitor.connection()),
    );
    Ok(frame::html(&Page {
        frame: visitor.frame("Home", Section::Home),
        workspace: visitor.workspace.clone(),
        confirmations: part(confirmations)?,
        stale: part(stale)?,
        failing: part(failing)?,
        arrivals: part(arrivals)?,
        servers,
    }))
}

async fn confirmations(visitor: &Visitor) -> Result<Few<Waiting>, Status> {
    let request = ListImportsRequest {
        workspace: visitor.workspace.clone(),
        state: ImportState::AwaitingConfirmation.into(),
        page_size: NAMED,
        ..Default::default()
    };
    let listed = visitor.connection().ingest().list_imports(request).await?;
    let listed = listed.into_inner();
    Ok(Few {
        first: listed.imports.into_iter().map(Waiting::new).collect(),
        more: !listed.next_page_token.is_empty(),
    })
}

async fn stale(visitor: &Visitor) -> Result<Few<Stale>, Status> {
    let request = ListCohortsRequest {
        workspace: visitor.workspace.clone(),
        page_size: NAMED + 1,
        order: CohortOrder::Stalest.into(),
        ..Default::default()
    };
    let listed = visitor.connection().ingest().list_cohorts(request).await?;
    let before = OffsetDateTime::now_utc() - STALE;
    let is_stale = |cohort: &Cohort| {
        let last = view::instant(&cohort.last_import_time);
        let last = last.or_else(|| view::instant(&cohort.create_time));
        last.is_some_and(|last| last < before)
    };
    let cohorts = listed.into_inner().cohorts.into_iter();
    let mut first: Vec<Stale> = cohorts
        .filter(is_stale)
        .map(|cohort| Stale {
            path: cohorts::path(&visitor.workspace, &cohort.partner, &cohort.cohort_id),
            cohort,
        })
        .collect();
    let more = first.len() > NAMED as usize;
    first.truncate(NAMED as usize);
    Ok(Few { first, more })
}

async fn health(servers: &Connection) -> Vec<Server> {
    let asked = SERVERS.map(async |(name, service)| {
        let (words, tone) = match timeout(HEALTH_PATIENCE, servers.health(service)).await {
            Ok(Ok(Health::Serving)) => ("serving", "good"),
            Ok(Ok(Health::NotServing)) => ("not serving", "bad"),
            Ok(Ok(Health::Absent)) => ("not at this endpoint", "off"),
            Ok(Err(_)) | Err(_) => ("out of reach", "bad"),
        };
        Server { name, words, tone }
    });
    join_all(asked).await
}
