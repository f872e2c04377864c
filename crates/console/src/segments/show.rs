//! One segment: what it is, how many it holds and held, and who was targeted with it when.

use askama::Template;
use axum::{
    Form,
    extract::{Path, Query},
    response::{IntoResponse, Redirect, Response},
};
use muster_client::Refusal;
use muster_proto::segments::v1::{
    ArchiveSegmentRequest, ListResolutionsRequest, Resolution, Segment,
};
use prost_types::Timestamp;
use serde::Deserialize;
use time::{Date, Duration, OffsetDateTime, macros::format_description};
use tonic::Code;
use uuid::Uuid;

use super::{
    by_id, draft,
    figures::{self, Figures},
    path, segment,
};
use crate::{
    actors::Actors,
    frame::{self, Frame, Notice, Section},
    problem::Problem,
    session::Visitor,
    view::{Count, When},
};

/// Resolutions on a page.
const PAGE: i32 = 20;

/// Resolutions in the chart.
const CHARTED: i32 = 100;

#[derive(Deserialize)]
pub(crate) struct Wanted {
    /// Only resolutions of this day, in the zone below.
    #[serde(default)]
    on: String,
    /// Minutes that the reader's zone is behind UTC; empty for UTC.
    #[serde(default)]
    zone: String,
    #[serde(default)]
    page: String,
}

#[derive(Template)]
#[template(path = "segment.html")]
struct Page {
    frame: Frame,
    workspace: String,
    segment: Segment,
    /// The numbers of now, or why there are none.
    figures: Result<Figures, String>,
    chart: Option<Chart>,
    resolutions: Vec<Row>,
    on: String,
    zone: String,
    /// What is wrong with the day asked for.
    day_error: String,
    is_first: bool,
    next: String,
}

/// A resolution as the page lists it.
pub(crate) struct Row {
    pub(crate) resolution: Resolution,
    pub(crate) asked_by: String,
}

impl Row {
    pub(crate) fn made(&self) -> When {
        When::from(&self.resolution.create_time)
    }

    pub(crate) fn count(&self) -> Count {
        Count(self.resolution.user_count)
    }
}

/// The page of a segment.
pub(crate) async fn show(
    visitor: Visitor,
    Path((_, id)): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let segment = segment(&visitor, &id).await?;
    let figures = figures(&visitor, &segment).await?;
    let (period, day_error) = match day(&wanted.on, &wanted.zone) {
        Ok(period) => (period, String::new()),
        Err(error) => (None, error),
    };
    let (since, until) = period.unzip();
    let mut request = ListResolutionsRequest {
        workspace: visitor.workspace.clone(),
        segment: Some(by_id(&segment.segment_id)),
        page_size: PAGE,
        page_token: wanted.page.clone(),
        since,
        until,
    };
    let mut client = visitor.connection().segments();
    let listed = client.list_resolutions(request.clone()).await?.into_inner();
    (request.page_size, request.page_token) = (CHARTED, String::new());
    (request.since, request.until) = (None, None);
    let charted = client.list_resolutions(request).await?.into_inner();
    let actors = Actors::of(&visitor).await?;
    let rows = listed.resolutions.into_iter().map(|resolution| Row {
        asked_by: actors.name(&resolution.created_by),
        resolution,
    });
    let mut frame = visitor.frame(&segment.name, Section::Segments);
    frame.scripts = &["zone.js"];
    Ok(frame::html(&Page {
        frame,
        workspace: visitor.workspace.clone(),
        chart: Chart::of(&charted.resolutions),
        figures,
        segment,
        resolutions: rows.collect(),
        on: wanted.on,
        zone: wanted.zone,
        day_error,
        is_first: wanted.page.is_empty(),
        next: listed.next_page_token,
    }))
}

async fn figures(visitor: &Visitor, segment: &Segment) -> Result<Result<Figures, String>, Problem> {
    if segment.archived {
        let text = "It is archived: it can be looked at, but is no longer counted or used.";
        return Ok(Err(text.to_owned()));
    }
    let steps = draft::steps_of(&segment.filter.clone().unwrap_or_default());
    match figures::count(visitor.connection(), &visitor.workspace, &steps).await {
        Ok(figures) => Ok(Ok(figures)),
        Err(refusal) if refusal.code == Code::Unauthenticated => Err(refusal.into()),
        Err(refusal) => Ok(Err(refusal.message)),
    }
}

/// Beginning and end of a day in a zone.
fn day(on: &str, zone: &str) -> Result<Option<(Timestamp, Timestamp)>, String> {
    if on.is_empty() {
        return Ok(None);
    }
    let format = format_description!("[year]-[month]-[day]");
    let date = Date::parse(on, format).map_err(|_| "That is no day.".to_owned())?;
    let behind: i64 = zone.parse().unwrap_or(0);
    let begin = date.midnight().assume_utc() + Duration::minutes(behind.clamp(-1_440, 1_440));
    let at = |moment: OffsetDateTime| Timestamp {
        seconds: moment.unix_timestamp(),
        nanos: 0,
    };
    Ok(Some((at(begin), at(begin + Duration::days(1)))))
}

#[derive(Deserialize)]
pub(crate) struct Archived {
    etag: String,
}

/// Archives the segment, unless others use it.
pub(crate) async fn archive(
    visitor: Visitor,
    Path((_, id)): Path<(String, String)>,
    Form(form): Form<Archived>,
) -> Result<Response, Problem> {
    let segment = segment(&visitor, &id).await?;
    let request = ArchiveSegmentRequest {
        workspace: visitor.workspace.clone(),
        segment: Some(by_id(&id)),
        etag: form.etag,
        request_id: Uuid::now_v7().to_string(),
    };
    let done = visitor
        .connection()
        .segments()
        .archive_segment(request)
        .await;
    let notice = match done.map_err(Refusal::from) {
        Ok(_) => Notice::good(format!("The segment “{}” is archived.", segment.name)),
        Err(refusal) if refusal.reason == "SEGMENT_IN_USE" => {
            let users = refusal.metadata.get("used_by").map_or("", String::as_str);
            let users: Vec<String> = users.lines().map(|name| format!("“{name}”")).collect();
            Notice::bad(format!(
                "It was not archived, because other segments are built on it: {}. Change or archive \
                 those first.",
                users.join(", ")
            ))
        }
        Err(refusal) if refusal.reason == "ETAG_MISMATCH" => Notice::bad(
            "It was not archived: somebody changed it after you opened the page. Look at it again.",
        ),
        Err(refusal) => return Err(refusal.into()),
    };
    visitor.session().notify(notice);
    Ok(Redirect::to(&path(&visitor.workspace, &id)).into_response())
}

/// Counts over time, as points of a picture.
struct Chart {
    points: Vec<Point>,
    most: Count,
    from: When,
    to: When,
}

struct Point {
    x: u64,
    y: u64,
}

impl Chart {
    /// Width and height of the picture.
    const SIZE: (u64, u64) = (600, 140);

    /// Of resolutions, newest first; `None` if there are not two to compare.
    fn of(resolutions: &[Resolution]) -> Option<Self> {
        let (newest, oldest) = (resolutions.first()?, resolutions.last()?);
        let second = |it: &Resolution| it.create_time.map_or(0, |time| time.seconds);
        let (begin, end) = (second(oldest), second(newest));
        if resolutions.len() < 2 {
            return None;
        }
        let most = resolutions.iter().map(|it| it.user_count).max()?;
        let scale = |part: u64, whole: u64, size: u64| {
            let scaled = u128::from(part) * u128::from(size) / u128::from(whole.max(1));
            u64::try_from(scaled).unwrap_or(size).min(size)
        };
        let span = end.abs_diff(begin);
        let points = resolutions.iter().rev().map(|it| Point {
            x: scale(second(it).abs_diff(begin), span, Self::SIZE.0),
            y: Self::SIZE.1 - scale(it.user_count, most, Self::SIZE.1),
        });
        Some(Self {
            points: points.collect(),
            most: Count(most),
            from: When::from(&oldest.create_time),
            to: When::from(&newest.create_time),
        })
    }

    /// The line, as SVG writes it: a count stays until the next one.
    fn line(&self) -> String {
        let mut line = String::new();
        let mut last_y = None;
        for Point { x, y } in &self.points {
            if let Some(last_y) = last_y {
                line.push_str(&format!("{x},{last_y} "));
            }
            line.push_str(&format!("{x},{y} "));
            last_y = Some(y);
        }
        line.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_that_of_the_reader() {
        let seconds = |on, zone| {
            let period = day(on, zone).unwrap();
            period.map(|(since, until)| (since.seconds, until.seconds))
        };
        assert_eq!(seconds("", ""), None);
        assert_eq!(seconds("1970-01-02", ""), Some((86_400, 172_800)));
        // Two hours ahead of UTC.
        assert_eq!(seconds("1970-01-02", "-120"), Some((79_200, 165_600)));
        assert!(day("last Tuesday", "").is_err());
    }

    #[test]
    fn counts_are_drawn_to_scale_in_the_order_of_time() {
        let made = |seconds, user_count| Resolution {
            create_time: Some(Timestamp { seconds, nanos: 0 }),
            user_count,
            ..Default::default()
        };
        let newest_first = [made(400, 50), made(200, 100), made(0, 0)];
        let chart = Chart::of(&newest_first).unwrap();
        assert_eq!(chart.line(), "0,140 300,140 300,0 600,0 600,70");
        assert!(Chart::of(&newest_first[..1]).is_none());
        let at_once = Chart::of(&[made(7, 0), made(7, 0)]).unwrap();
        assert_eq!(at_once.line(), "0,140 0,140 0,140");
    }
}
