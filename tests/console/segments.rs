//! The console's pages about segments, in a real browser: somebody builds a segment, is told what is
//! wrong beside the field, compares two resolutions and checks a person.
//!
//! The browser is Debian's chromium, driven by playwright-core, which is installed on the first run.
//! Each page is looked at by axe and photographed, into `target/console-screenshots`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{path::Path, process::Stdio, time::Duration};

use muster_proto::segments::v1::{self as segments, resolve_segment_request::Audience};
use muster_tests::{Muster, WORKSPACE, identified, read_audience, text};
use serde_json::json;
use tokio::process::Command;

fn ids(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("u-{number}")).collect()
}

async fn cohort(muster: &Muster, id: &str, name: &str, people: std::ops::Range<u32>) {
    let rest = muster.rest();
    rest.name(id, name).await;
    let answer = rest.change(id, json!([{ "user_ids": ids(people) }])).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

/// Asks for the people of a segment, as a campaign service does.
async fn resolve(muster: &Muster, name: &str) {
    let request = segments::ResolveSegmentRequest {
        workspace: WORKSPACE.into(),
        audience: Some(Audience::Segment(segments::SegmentReference {
            segment: Some(segments::segment_reference::Segment::Name(name.into())),
        })),
        ..Default::default()
    };
    let stream = muster.operator.segments().resolve_segment(request).await;
    read_audience(stream.unwrap().into_inner()).await;
}

#[tokio::test]
async fn a_marketer_builds_a_segment_and_sees_who_was_targeted_with_it() {
    let muster = Muster::start().await;
    let users = ids(0..2_000);
    muster
        .upsert_users(users.iter().map(|id| identified(id)).collect())
        .await;
    cohort(&muster, "c_1", "spring sale", 0..600).await;
    cohort(&muster, "c_2", "churned", 400..800).await;
    cohort(&muster, "c_3", "حملة الربيع ٢٠٢٦", 150..500).await;
    cohort(&muster, "c_4", "<script>alert(1)</script>", 0..10).await;
    let long = "spring_sale_with_a_name_that_has_no_blank_in_it_".repeat(5);
    cohort(&muster, "c_5", &long, 0..10).await;
    let request = segments::CreateSegmentRequest {
        workspace: WORKSPACE.into(),
        name: "loyal".into(),
        filter: Some(text(
            r#"tinyclues:"spring sale" and not tinyclues:"churned""#,
        )),
        ..Default::default()
    };
    let loyal = muster.operator.segments().create_segment(request).await;
    let loyal = loyal.unwrap().into_inner().segment.unwrap().segment_id;
    resolve(&muster, "loyal").await;
    // 10 enter, 5 leave.
    cohort(&muster, "c_1", "spring sale", 900..910).await;
    cohort(&muster, "c_2", "churned", 0..5).await;
    resolve(&muster, "loyal").await;

    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let browser = Command::new(top.join("tests/console/run"))
        .arg("segments.mjs")
        .env("CONSOLE_URL", &muster.console)
        .env("CONSOLE_TOKEN", &muster.operator_token)
        .env("LOYAL", &loyal)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(300), browser).await;
    let output = output.unwrap().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    muster.stop().await;
}
