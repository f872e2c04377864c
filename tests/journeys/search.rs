//! A search finds its text, whatever characters it has.

use muster_proto::{ingest::v1 as ingest, segments::v1 as segments};
use muster_tests::{Muster, PARTNER, WORKSPACE, text};

/// Names beside those that they would match if a character in them stood for others.
const NAMES: [&str; 8] = [
    "50% off",
    "500 off",
    "a_b",
    "aXb",
    r"back\slash",
    r"back\\slash",
    "it's",
    r#""so""#,
];

/// What is searched, and would match more if it were a pattern, or break the statement.
const TEXTS: [&str; 9] = ["%", "_", r"\", "'", "\"", "50% o", "a_b", r"\\", "%a%"];

fn expected(text: &str) -> Vec<&'static str> {
    let mut names: Vec<_> = NAMES
        .into_iter()
        .filter(|name| name.contains(text))
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_search_takes_every_character_literally() {
    let muster = Muster::start().await;
    let rest = muster.rest();
    for (number, name) in NAMES.iter().enumerate() {
        rest.name(&format!("c{number}"), name).await.succeeded();
        let segment = segments::CreateSegmentRequest {
            workspace: WORKSPACE.into(),
            name: (*name).into(),
            filter: Some(text(&format!("{PARTNER}:id(\"c{number}\")"))),
            request_id: String::new(),
        };
        muster
            .operator
            .segments()
            .create_segment(segment)
            .await
            .unwrap();
    }
    for text in TEXTS {
        let cohorts = ingest::ListCohortsRequest {
            workspace: WORKSPACE.into(),
            name_contains: text.into(),
            ..Default::default()
        };
        let cohorts = muster
            .operator
            .ingest()
            .list_cohorts(cohorts)
            .await
            .unwrap();
        let cohorts = cohorts.into_inner().cohorts.into_iter();
        let mut found: Vec<String> = cohorts.map(|cohort| cohort.name).collect();
        found.sort_unstable();
        assert_eq!(found, expected(text), "cohorts with {text:?}");

        let segments = segments::ListSegmentsRequest {
            workspace: WORKSPACE.into(),
            name_contains: text.into(),
            ..Default::default()
        };
        let segments = muster
            .operator
            .segments()
            .list_segments(segments)
            .await
            .unwrap();
        let segments = segments.into_inner().segments.into_iter();
        let mut found: Vec<String> = segments.map(|segment| segment.name).collect();
        found.sort_unstable();
        assert_eq!(found, expected(text), "segments with {text:?}");
    }
    muster.stop().await;
}
