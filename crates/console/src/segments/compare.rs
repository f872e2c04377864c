//! Two resolutions compared: who entered, who left, and what was different about the cohorts.

use askama::Template;
use axum::{
    body::{Body, Bytes},
    extract::{Path, Query},
    response::{IntoResponse, Response},
};
use futures::stream;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use muster_proto::segments::v1::{
    AudienceView, DiffHeader, DiffResolutionsRequest, DiffResolutionsResponse, DiffSide,
    GetResolutionRequest, Resolution, Segment, Withheld, diff_resolutions_response::Message,
};
use serde::Deserialize;
use tonic::{Status, Streaming};

use super::{segment, show::Row};
use crate::{
    actors::Actors,
    csv,
    frame::{self, Frame, Section},
    problem::Problem,
    session::Visitor,
    view::{Count, Share},
};

/// Two resolutions.
#[derive(Deserialize)]
pub(crate) struct Pair {
    #[serde(default)]
    base: String,
    #[serde(default)]
    target: String,
}

#[derive(Template)]
#[template(path = "segment_compare.html")]
struct Page {
    frame: Frame,
    workspace: String,
    segment: Segment,
    base: Row,
    target: Row,
    entered: Count,
    left: Count,
    stayed: Count,
    changes: Vec<Change>,
}

impl Page {
    fn share_of_target(&self, count: &Count) -> Share {
        Share {
            part: count.0,
            whole: self.target.resolution.user_count,
        }
    }
}

/// A cohort that both resolutions or one of them read.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    partner: String,
    name: String,
    from: Option<u64>,
    to: Option<u64>,
}

impl Change {
    fn is_same(&self) -> bool {
        self.from == self.to
    }
}

/// What each cohort was in either resolution, in the order of the later one.
fn changes(base: &Resolution, target: &Resolution) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    let read = |resolution: &Resolution, partner: &str, id: &str| {
        let mut cohorts = resolution.cohort_versions.iter();
        let found = cohorts.find(|it| it.partner == partner && it.cohort_id == id);
        found.map(|it| it.version)
    };
    let mut seen = Vec::new();
    for cohort in target.cohort_versions.iter().chain(&base.cohort_versions) {
        let key = (&cohort.partner, &cohort.cohort_id);
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        changes.push(Change {
            partner: cohort.partner.clone(),
            name: cohort.name.clone(),
            from: read(base, &cohort.partner, &cohort.cohort_id),
            to: read(target, &cohort.partner, &cohort.cohort_id),
        });
    }
    changes
}

/// The page that compares them.
pub(crate) async fn show(
    visitor: Visitor,
    Path((_, id)): Path<(String, String)>,
    Query(pair): Query<Pair>,
) -> Result<Response, Problem> {
    let segment = segment(&visitor, &id).await?;
    let actors = Actors::of(&visitor).await?;
    let row = |resolution: Resolution| Row {
        asked_by: actors.name(&resolution.created_by),
        resolution,
    };
    let base = row(resolution(&visitor, &pair.base).await?);
    let target = row(resolution(&visitor, &pair.target).await?);
    let (header, _) = difference(&visitor, &pair, AudienceView::UserNo).await?;
    Ok(frame::html(&Page {
        frame: visitor.frame("Two resolutions compared", Section::Segments),
        workspace: visitor.workspace.clone(),
        segment,
        changes: changes(&base.resolution, &target.resolution),
        base,
        target,
        entered: Count(header.entered_count),
        left: Count(header.left_count),
        stayed: Count(header.stayed_count),
    }))
}

async fn resolution(visitor: &Visitor, id: &str) -> Result<Resolution, Problem> {
    if id.is_empty() {
        return Err(Problem::invalid("Choose two resolutions to compare."));
    }
    let request = GetResolutionRequest {
        workspace: visitor.workspace.clone(),
        resolution_id: id.to_owned(),
    };
    let mut client = visitor.connection().segments();
    let found = client.get_resolution(request).await?.into_inner();
    found.resolution.ok_or_else(Problem::not_found)
}

/// The difference: how large it is, then who.
async fn difference(
    visitor: &Visitor,
    pair: &Pair,
    view: AudienceView,
) -> Result<(DiffHeader, Streaming<DiffResolutionsResponse>), Problem> {
    let request = DiffResolutionsRequest {
        workspace: visitor.workspace.clone(),
        base_resolution_id: pair.base.clone(),
        target_resolution_id: pair.target.clone(),
        view: view.into(),
    };
    let mut client = visitor.connection().segments();
    let mut answers = client.diff_resolutions(request).await?.into_inner();
    match answers.message().await?.and_then(|it| it.message) {
        Some(Message::Header(header)) => Ok((header, answers)),
        _ => Err(Status::internal("a difference begins with its header").into()),
    }
}

/// Everybody who left or entered, as a file for spreadsheets. A download that breaks off is an error
/// to the browser, too: it never looks complete.
pub(crate) async fn download(
    visitor: Visitor,
    Path((_, id)): Path<(String, String)>,
    Query(pair): Query<Pair>,
) -> Result<Response, Problem> {
    segment(&visitor, &id).await?;
    let (_, answers) = difference(&visitor, &pair, AudienceView::ExternalId).await?;
    let head = csv::line(["change", "user_no", "external_id", "note"]);
    let rows = stream::try_unfold((Some(head), answers), async |(head, mut answers)| {
        if let Some(head) = head {
            return Ok(Some((Bytes::from(head), (None, answers))));
        }
        let message = answers.message().await?.and_then(|it| it.message);
        match message {
            Some(Message::Batch(batch)) => {
                let side = match batch.side() {
                    DiffSide::Entered => "entered",
                    _ => "left",
                };
                let lines = batch.users.iter().map(|user| {
                    let note = match user.withheld() {
                        Withheld::Unspecified => "",
                        Withheld::Erased => "erased since",
                        Withheld::Merged => "merged since",
                    };
                    let number = user.user_no.to_string();
                    csv::line([side, number.as_str(), user.external_id.as_str(), note])
                });
                let lines: String = lines.collect();
                Ok(Some((Bytes::from(lines), (None, answers))))
            }
            Some(Message::End(_)) => Ok(None),
            Some(Message::Header(_)) | None => {
                Err(Status::data_loss("the difference ended before its end"))
            }
        }
    });
    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8"),
        (
            CONTENT_DISPOSITION,
            "attachment; filename=\"difference.csv\"",
        ),
    ];
    Ok((headers, Body::from_stream(rows)).into_response())
}

#[cfg(test)]
mod tests {
    use muster_proto::segments::v1::CohortVersion;

    use super::*;

    #[test]
    fn a_cohort_of_either_resolution_is_compared() {
        let read = |cohorts: &[(&str, u64)]| Resolution {
            cohort_versions: cohorts
                .iter()
                .map(|(id, version)| CohortVersion {
                    partner: "tinyclues".to_owned(),
                    cohort_id: (*id).to_owned(),
                    name: (*id).to_owned(),
                    version: *version,
                    publish_time: None,
                })
                .collect(),
            ..Default::default()
        };
        let found = changes(
            &read(&[("a", 1), ("gone", 3)]),
            &read(&[("new", 2), ("a", 1)]),
        );
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.name.as_str(), it.from, it.to))
            .collect();
        let expected = [
            ("new", None, Some(2)),
            ("a", Some(1), Some(1)),
            ("gone", Some(3), None),
        ];
        assert_eq!(found, expected);
    }
}
