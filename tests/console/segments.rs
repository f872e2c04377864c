//! Segments: built, counted, compared, explained.

use muster_proto::segments::v1::{
    CreateSegmentRequest, ListSegmentsRequest, ResolveSegmentRequest, SegmentReference,
    resolve_segment_request::Audience, segment_reference,
};
use muster_tests::{Muster, WORKSPACE, read_audience, text};
use serde_json::json;
use thirtyfour::Key;

use crate::{
    Stage,
    exports::{export, users},
    sessions::{client, cookie},
};

/// Two cohorts that share people.
async fn two_cohorts(muster: &Muster) {
    export(
        muster,
        "seg-a",
        "shoes.csv",
        json!({ "user_ids": users(1..=100) }),
    )
    .await;
    export(
        muster,
        "seg-b",
        "hats.csv",
        json!({ "user_ids": users(61..=120) }),
    )
    .await;
}

/// How a saved segment reads.
async fn saved(muster: &Muster, name: &str) -> String {
    let request = ListSegmentsRequest {
        workspace: WORKSPACE.into(),
        name_contains: name.into(),
        ..Default::default()
    };
    let listed = muster.operator.segments().list_segments(request).await;
    let mut segments = listed.unwrap().into_inner().segments;
    assert_eq!(segments.len(), 1, "{segments:?}");
    segments.remove(0).filter_text
}

pub(crate) async fn a_segment_is_built_by_keyboard_with_live_counts(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    two_cohorts(muster).await;
    stage.sign_in("/w/shop/segments").await;
    browser.until_it_says("Segments").await;
    browser.look("segments").await;
    browser.press("New segment").await;
    browser
        .until_it_says("Choose a cohort to see the count")
        .await;
    browser.tab_to("#name").await;
    browser.keys("Shoes, no hats").await;
    browser.tab_to("#g0c0-partner").await;
    browser.keys("t").await;
    browser.tab_to("#g0c0-search").await;
    browser.keys("shoes").await;
    browser.until_it_says("shoes.csv").await;
    browser
        .tab_to("[id='g0c0-seg-a'], [id='g0c0-seg%2Da']")
        .await;
    browser.keys(" ").await;
    browser.until_it_says("100\nof 600 people, exactly").await;
    // Another condition in a group of its own.
    browser.tab_to("button[value='add-group']").await;
    browser.keys(Key::Enter).await;
    browser.until_it_says("Group 2").await;
    browser.tab_to("#g1c0-rule").await;
    browser.keys("d").await;
    browser.tab_to("#g1c0-search").await;
    browser.keys("hats").await;
    browser.until_it_says("hats.csv").await;
    browser
        .tab_to("[id='g1c0-seg-b'], [id='g1c0-seg%2Db']")
        .await;
    browser.keys(" ").await;
    browser.until_it_says("60\nof 600 people, exactly").await;
    browser.until_it_says("40 fell away").await;
    browser.until_it_says("How the cohorts overlap").await;
    browser.press("The same as a table").await;
    let said = browser.text().await;
    for line in ["only A 60", "A and B 40", "only B 20"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    browser.look("builder").await;
    browser.tab_to("button.primary[value='save']").await;
    browser.keys(Key::Enter).await;
    browser.until_it_says("is saved").await;
    assert_eq!(
        saved(muster, "Shoes, no hats").await,
        "tinyclues:\"shoes.csv\" and not tinyclues:\"hats.csv\""
    );
    // The name is taken: it is said beside the field, and nothing is lost.
    browser
        .go(&format!("{}/w/shop/segments/new", muster.console))
        .await;
    browser.write("#name", "Shoes, no hats").await;
    browser
        .write("#text", "tinyclues:\"shoes.csv\" and tinyclues:\"nothing\"")
        .await;
    browser.press("Save as a segment").await;
    browser
        .until_it_says("There is no count while something is wrong")
        .await;
    assert_eq!(
        browser
            .script("return document.querySelector('#text').ariaInvalid")
            .await,
        "true"
    );
    browser.look("builder-mistake").await;
    browser.write("#text", "tinyclues:\"shoes.csv\"").await;
    browser.press("Save as a segment").await;
    browser
        .until_it_says("Another segment has this name already")
        .await;
}

pub(crate) async fn a_segment_is_built_without_scripts(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    two_cohorts(muster).await;
    browser.allow_scripts(false).await;
    stage
        .sign_in("/w/shop/cohort?partner=tinyclues&id=seg-a")
        .await;
    browser.press("Build a segment from it").await;
    browser.until_it_says("100\nof 600 people, exactly").await;
    browser.press("Add a group").await;
    browser.until_it_says("Group 2").await;
    browser.choose("#g1c0-partner", "tinyclues cohorts").await;
    browser.write("#g1c0-search", "hats").await;
    browser.press("Update the count").await;
    browser.until_it_says("hats.csv").await;
    browser
        .find("#g1c0 input[type=checkbox]")
        .await
        .click()
        .await
        .unwrap();
    browser.press("Update the count").await;
    browser.until_it_says("40\nof 600 people, exactly").await;
    browser.until_it_says("60 fell away").await;
    browser.write("#name", "Shoes and hats").await;
    browser.press("Save as a segment").await;
    browser.until_it_says("is saved").await;
    browser.allow_scripts(true).await;
    assert_eq!(
        saved(muster, "Shoes and hats").await,
        "tinyclues:\"shoes.csv\" and tinyclues:\"hats.csv\""
    );
}

/// Resolves a segment, as the campaign service does.
async fn resolve(muster: &Muster, segment_id: &str) -> usize {
    let request = ResolveSegmentRequest {
        workspace: WORKSPACE.into(),
        audience: Some(Audience::Segment(by_id(segment_id))),
        ..Default::default()
    };
    let stream = muster.operator.segments().resolve_segment(request).await;
    read_audience(stream.unwrap().into_inner()).await.len()
}

fn by_id(segment_id: &str) -> SegmentReference {
    SegmentReference {
        segment: Some(segment_reference::Segment::SegmentId(segment_id.into())),
    }
}

pub(crate) async fn who_was_targeted_is_compared_downloaded_and_explained(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    export(
        muster,
        "seg-c",
        "gloves.csv",
        json!({ "user_ids": users(1..=30) }),
    )
    .await;
    let segment = CreateSegmentRequest {
        workspace: WORKSPACE.into(),
        name: "Glove people".into(),
        filter: Some(text("tinyclues:\"gloves.csv\"")),
        request_id: String::new(),
    };
    let mut segments = muster.operator.segments();
    let segment = segments.create_segment(segment).await.unwrap();
    let id = segment.into_inner().segment.unwrap().segment_id;
    let page = format!("/w/shop/segments/{id}");
    stage.sign_in(&page).await;
    browser
        .until_it_says("Nobody has asked for its people yet")
        .await;
    assert_eq!(resolve(muster, &id).await, 30);
    // One that was made on an earlier day: the clock of the database is not to be turned.
    let mut connection = muster.store.connection().await.unwrap();
    let earlier = "UPDATE resolution SET created_at = created_at - interval '2 days'
                   WHERE segment_id = $1";
    let segment_id = uuid::Uuid::parse_str(&id).unwrap();
    let done = sqlx::query(earlier)
        .bind(segment_id)
        .execute(&mut *connection)
        .await;
    assert_eq!(done.unwrap().rows_affected(), 1);
    let change = json!([
        { "user_ids": users(1..=4), "should_remove": true },
        { "user_ids": users(31..=40) },
    ]);
    muster.rest().change("seg-c", change).await.succeeded();
    assert_eq!(resolve(muster, &id).await, 36);
    browser.go(&format!("{}{page}", muster.console)).await;
    browser
        .until_it_says("People at each resolution; the most were 36")
        .await;
    browser.look("segment").await;
    // Who was targeted the day before yesterday?
    let day = "const day = new Date(Date.now() - 48 * 3600 * 1000);
               const two = (n) => String(n).padStart(2, '0');
               const field = document.querySelector('#on');
               field.value = `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())}`;
               field.dispatchEvent(new Event('input'));";
    browser.script(day).await;
    browser.press("Show").await;
    browser.until_it_says("All days").await;
    let rows = "return document.querySelectorAll('[aria-label=\"Table of the resolutions\"] tbody tr').length";
    assert_eq!(browser.script(rows).await, 1);
    browser.press("All days").await;
    browser.press("Compare from and to").await;
    browser.until_it_says("Who entered and who left").await;
    let said = browser.text().await;
    assert!(
        said.contains("Entered\n10") && said.contains("Left\n4"),
        "{said}"
    );
    browser.look("segment-compare").await;
    let file = browser
        .script("return document.querySelector('a[download]').href")
        .await;
    let answer = client()
        .get(file.as_str().unwrap())
        .header("cookie", cookie(stage).await);
    let lines = answer.send().await.unwrap().text().await.unwrap();
    assert_eq!(
        lines
            .lines()
            .filter(|line| line.starts_with("\"entered\""))
            .count(),
        10
    );
    assert_eq!(
        lines
            .lines()
            .filter(|line| line.starts_with("\"left\""))
            .count(),
        4
    );
    // One person, and why.
    browser.go(&format!("{}{page}/check", muster.console)).await;
    browser.write("#id", "user-2").await;
    browser.press("Check").await;
    browser.until_it_says("They are not in the segment").await;
    browser.look("segment-check").await;
    browser.write("#id", "user-7").await;
    browser.press("Check").await;
    browser.until_it_says("They are in the segment").await;
}
