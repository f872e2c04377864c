//! Cohorts: the list, the page of one, and the pages of its imports.
//!
//! Partners choose the ids of cohorts and imports, and an id such as `..` would be no part of a path
//! to a browser: so they stand in the query.

mod chart;
mod import;
mod outcomes;
mod rejected;
mod show;
mod waiting;

use std::sync::Arc;

use askama::Template;
use axum::{
    Router,
    extract::Query,
    response::Response,
    routing::{get, post},
};
use muster_proto::ingest::v1::{Cohort, CohortOrder, CohortVersion, ListCohortsRequest};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use self::chart::Spark;
pub(crate) use self::waiting::Waiting;
use crate::{
    frame::{self, Frame, Section},
    partners::{self, Partner},
    problem::Problem,
    routes::Console,
    session::Visitor,
    view::{Count, Share, When},
};

/// Cohorts on a page.
const PAGE: i32 = 50;

/// How soon a list looks for news, in seconds.
pub(crate) const LOOK_FOR_NEWS: u32 = 5;

/// The pages about cohorts.
pub(crate) fn routes() -> Router<Arc<Console>> {
    Router::new()
        .route("/w/{workspace}/cohorts", get(list))
        .route("/w/{workspace}/cohort", get(show::show))
        .route("/w/{workspace}/cohort/archive", post(show::archive))
        .route(
            "/w/{workspace}/cohort/rejected.csv",
            get(rejected::of_upload),
        )
        .route("/w/{workspace}/import", get(import::show))
        .route("/w/{workspace}/import/confirm", post(waiting::confirm))
        .route("/w/{workspace}/import/abort", post(waiting::abort))
        .route(
            "/w/{workspace}/import/rejected.csv",
            get(rejected::of_import),
        )
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Path of the page of a cohort.
pub(crate) fn path(workspace: &str, partner: &str, cohort_id: &str) -> String {
    format!(
        "/w/{workspace}/cohort?partner={partner}&id={}",
        encoded(cohort_id)
    )
}

/// Path of the page of an import.
pub(crate) fn import_path(workspace: &str, partner: &str, import_id: &str) -> String {
    format!(
        "/w/{workspace}/import?partner={partner}&id={}",
        encoded(import_id)
    )
}

/// How many of the identifiers of a version matched; a dash if that was not recorded.
pub(crate) fn match_rate(version: &CohortVersion) -> Share {
    Share {
        part: version.matched_count.unwrap_or(0),
        whole: version.received_count.unwrap_or(0),
    }
}

/// How the list can be sorted: the value in the address, the words, the order asked for.
const ORDERS: [(&str, &str, CohortOrder); 5] = [
    ("last-import", "last import first", CohortOrder::LastImport),
    (
        "stalest",
        "longest without an import first",
        CohortOrder::Stalest,
    ),
    ("name", "name", CohortOrder::Name),
    ("largest", "most people first", CohortOrder::Largest),
    ("newest", "newest first", CohortOrder::Newest),
];

#[derive(Deserialize)]
struct Wanted {
    #[serde(default)]
    search: String,
    #[serde(default)]
    partner: String,
    #[serde(default)]
    order: String,
    #[serde(default)]
    archived: String,
    #[serde(default)]
    page: String,
}

#[derive(Template)]
#[template(path = "cohorts.html")]
struct Page {
    frame: Frame,
    workspace: String,
    search: String,
    partner: String,
    order: &'static str,
    archived: bool,
    is_first: bool,
    partners: Vec<Partner>,
    rows: Vec<Row>,
    next: String,
}

impl Page {
    /// Whether the list is narrowed down.
    fn is_search(&self) -> bool {
        !self.search.is_empty() || !self.partner.is_empty()
    }

    /// The address of this list, in an order, from its first page.
    fn address(&self, order: &str) -> String {
        let archived = if self.archived { "&archived=1" } else { "" };
        format!(
            "/w/{}/cohorts?search={}&partner={}&order={order}{archived}",
            self.workspace,
            encoded(&self.search),
            encoded(&self.partner),
        )
    }

    /// What a heading says to a screen reader of its order.
    fn aria_sort(&self, ascending: &str, descending: &str) -> &'static str {
        match self.order {
            order if order == ascending => "ascending",
            order if order == descending => "descending",
            _ => "none",
        }
    }

    /// What a press on the heading of the last import leads to.
    fn other_way(&self) -> &'static str {
        if self.order == "last-import" {
            "stalest"
        } else {
            "last-import"
        }
    }

    fn look_again(&self) -> u32 {
        if self.is_first { LOOK_FOR_NEWS } else { 0 }
    }
}

struct Row {
    path: String,
    cohort: Cohort,
    /// The former name to show: the one searched for, or else the last.
    formerly: String,
    spark: Option<Spark>,
}

impl Row {
    fn new(workspace: &str, search: &str, cohort: Cohort) -> Self {
        let search = search.to_lowercase();
        let mut former = cohort.former_names.iter();
        let found = former.find(|name| name.to_lowercase().contains(&search));
        let formerly = match cohort.name.to_lowercase().contains(&search) {
            true => cohort.former_names.first(),
            false => found,
        };
        Self {
            path: path(workspace, &cohort.partner, &cohort.cohort_id),
            formerly: formerly.cloned().unwrap_or_default(),
            spark: Spark::of(&cohort.recent_member_counts),
            cohort,
        }
    }

    fn size(&self) -> Option<Count> {
        let latest = self.cohort.latest_version.as_ref();
        latest.map(|version| Count(version.member_count))
    }

    fn match_rate(&self) -> Option<Share> {
        self.cohort.latest_version.as_ref().map(match_rate)
    }

    fn last_import(&self) -> When {
        When::from(&self.cohort.last_import_time)
    }
}

async fn list(visitor: Visitor, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let known = ORDERS.iter().find(|(value, ..)| *value == wanted.order);
    let (order, _, asked) = known.unwrap_or(&ORDERS[0]);
    let search = wanted.search.trim();
    let request = ListCohortsRequest {
        workspace: visitor.workspace.clone(),
        partner: wanted.partner.clone(),
        name_contains: search.to_owned(),
        include_archived: !wanted.archived.is_empty(),
        page_size: PAGE,
        page_token: wanted.page.clone(),
        order: (*asked).into(),
    };
    let listed = visitor.connection().ingest().list_cohorts(request).await?;
    let listed = listed.into_inner();
    let rows = listed.cohorts.into_iter();
    let rows = rows.map(|cohort| Row::new(&visitor.workspace, search, cohort));
    Ok(frame::html(&Page {
        frame: visitor.frame("Cohorts", Section::Cohorts),
        workspace: visitor.workspace.clone(),
        partners: partners::all(&visitor).await?,
        rows: rows.collect(),
        search: search.to_owned(),
        partner: wanted.partner,
        order,
        archived: !wanted.archived.is_empty(),
        is_first: wanted.page.is_empty(),
        next: listed.next_page_token,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_former_name_that_was_searched_for_is_shown() {
        let row = |search| {
            let cohort = Cohort {
                name: "Summer".to_owned(),
                former_names: vec!["Late Spring".to_owned(), "Early spring".to_owned()],
                ..Cohort::default()
            };
            Row::new("shop", search, cohort).formerly
        };
        assert_eq!(row(""), "Late Spring");
        assert_eq!(row("EARLY"), "Early spring");
        assert_eq!(row("summer"), "Late Spring");
        // Found by its id.
        assert_eq!(row("c-77"), "");
    }

    #[test]
    fn any_id_of_a_partner_fits_into_an_address() {
        assert_eq!(
            path("shop", "tinyclues", "../a&b=\"<é"),
            "/w/shop/cohort?partner=tinyclues&id=%2E%2E%2Fa%26b%3D%22%3C%C3%A9"
        );
    }
}
