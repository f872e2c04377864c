//! Several counts at one snapshot, and the lists that say who uses what.

use muster_proto::segments::v1 as pb;
use tonic::{Code, Status};

use crate::deployment::{Deployment, named, refusal, text};

async fn count(it: &Deployment, filters: &[&str]) -> Result<pb::CountFiltersResponse, Status> {
    let request = pb::CountFiltersRequest {
        workspace: "shop".to_owned(),
        filters: filters.iter().copied().map(text).collect(),
        ..Default::default()
    };
    Ok(it.client().count_filters(request).await?.into_inner())
}

fn numbers(counted: &pb::CountFiltersResponse) -> Vec<u64> {
    counted.counts.iter().map(|it| it.user_count).collect()
}

#[tokio::test]
async fn the_steps_of_a_funnel_and_the_overlap_of_cohorts_fit_together() {
    let it = Deployment::start().await;
    it.users(100).await;
    it.cohort("a", "a", 0..40).await;
    it.cohort("b", "b", 20..60).await;
    it.cohort("c", "c", 30..50).await;
    it.cohort("empty", "empty", []).await;
    it.segment("nested", r#"tinyclues:"a" and tinyclues:"b""#)
        .await;
    it.erase(25).await;
    let counted = count(
        &it,
        &[
            r#"tinyclues:"a""#,
            r#"tinyclues:"a" and tinyclues:"b""#,
            r#"tinyclues:"a" and tinyclues:"b" and not tinyclues:"c""#,
            r#"segment("nested")"#,
            r#"tinyclues:"empty""#,
            r#"not tinyclues:"empty""#,
        ],
    )
    .await
    .unwrap();
    assert_eq!(numbers(&counted), [39, 19, 9, 19, 0, 99]);
    assert_eq!(counted.counts[3].filter_text, r#"segment("nested")"#);
    let tree = pb::FilterExpression {
        form: counted.counts[2]
            .filter
            .clone()
            .map(pb::filter_expression::Form::Tree),
    };
    let again = pb::CountFiltersRequest {
        filters: vec![tree],
        ..Default::default()
    };
    let again = it.client().count_filters(again).await.unwrap().into_inner();
    assert_eq!(again.counts[..], counted.counts[2..3]);
    assert_eq!(counted.live_user_count, 99);
    let read = counted.cohort_versions.iter();
    let read: Vec<_> = read.map(|it| (it.cohort_id.as_str(), it.version)).collect();
    assert_eq!(read, [("a", 1), ("b", 1), ("c", 1), ("empty", 0)]);
    // Each alone says the same.
    assert_eq!(
        it.count(r#"segment("nested") and not tinyclues:"c""#).await,
        9
    );
}

#[tokio::test]
async fn an_error_names_the_filter_and_the_path_in_it() {
    let it = Deployment::start().await;
    it.cohort("a", "a", []).await;
    let fine = r#"tinyclues:"a""#;
    for (wrong, path) in [
        (r#"tinyclues:"#, "filters[1].text"),
        (
            r#"tinyclues:"a" and tinyclues:"none""#,
            "filters[1].all_of[1].cohort.cohorts[0].name",
        ),
        (r#"segment("none")"#, "filters[1].segment.name"),
    ] {
        let refused = count(&it, &[fine, wrong]).await.unwrap_err();
        let (code, reason, field) = refusal(&refused);
        assert_eq!(
            (code, reason.as_str(), field.as_str()),
            (Code::InvalidArgument, "INVALID_FIELD", path)
        );
    }
    for wrong in [vec![], vec![fine; 101]] {
        let refused = count(&it, &wrong).await.unwrap_err();
        assert_eq!(refusal(&refused).2, "filters");
    }
    assert_eq!(numbers(&count(&it, &[fine; 100]).await.unwrap()), [0; 100]);

    let (_, mut stranger) = it.stranger().await;
    let request = |workspace: &str| pb::CountFiltersRequest {
        workspace: workspace.to_owned(),
        filters: vec![text(fine)],
        ..Default::default()
    };
    let foreign = stranger.count_filters(request("shop")).await.unwrap_err();
    assert_eq!(foreign.code(), Code::NotFound);
    let own = stranger.count_filters(request("other")).await.unwrap_err();
    assert_eq!(refusal(&own).2, "filters[0].cohort.cohorts[0].name");
}

#[tokio::test]
async fn segments_are_found_by_name_and_by_the_cohort_they_use() {
    let it = Deployment::start().await;
    for id in ["a", "b"] {
        it.cohort(id, id, []).await;
    }
    it.segment("Loyal", r#"tinyclues:"a" and tinyclues:"b""#)
        .await;
    it.segment("loyal_100%", r#"not tinyclues:"a""#).await;
    it.segment("through", r#"segment("Loyal")"#).await;
    let list = async |wanted: pb::ListSegmentsRequest| {
        let listed = it.client().list_segments(wanted).await?;
        let segments = listed.into_inner().segments.into_iter();
        Ok::<Vec<String>, Status>(segments.map(|it| it.name).collect())
    };
    let containing = |text: &str| pb::ListSegmentsRequest {
        name_contains: text.to_owned(),
        ..Default::default()
    };
    let using = |partner: &str, cohort_id: &str| pb::ListSegmentsRequest {
        uses: Some(pb::CohortUse {
            partner: partner.to_owned(),
            cohort_id: cohort_id.to_owned(),
        }),
        ..Default::default()
    };
    assert_eq!(
        list(containing("LOYAL")).await.unwrap(),
        ["Loyal", "loyal_100%"]
    );
    assert_eq!(list(containing("%")).await.unwrap(), ["loyal_100%"]);
    assert_eq!(
        list(using("tinyclues", "a")).await.unwrap(),
        ["Loyal", "loyal_100%"]
    );
    assert_eq!(list(using("tinyclues", "b")).await.unwrap(), ["Loyal"]);
    let none = list(using("tinyclues", "none")).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    let wrong = list(using("No Slug", "a")).await.unwrap_err();
    assert_eq!(refusal(&wrong).2, "uses.partner");
    let wrong = list(containing(&"x".repeat(256))).await.unwrap_err();
    assert_eq!(refusal(&wrong).2, "name_contains");
}

#[tokio::test]
async fn resolutions_are_found_by_the_time_they_were_made() {
    let it = Deployment::start().await;
    it.users(3).await;
    it.cohort("a", "a", [1]).await;
    it.segment("s", r#"tinyclues:"a""#).await;
    for _ in 0..3 {
        let request = pb::ResolveSegmentRequest {
            audience: Some(pb::resolve_segment_request::Audience::Segment(named("s"))),
            ..Default::default()
        };
        it.stream(request).await.unwrap();
    }
    it.sql(
        "UPDATE resolution r SET created_at = to_timestamp(1000 * n)
         FROM (SELECT resolution_id, row_number() OVER (ORDER BY resolution_id) AS n
               FROM resolution) numbered
         WHERE numbered.resolution_id = r.resolution_id",
    )
    .await;
    let made = async |since: Option<i64>, until: Option<i64>| {
        let at = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
        let request = pb::ListResolutionsRequest {
            segment: Some(named("s")),
            since: since.map(at),
            until: until.map(at),
            ..Default::default()
        };
        let listed = it.client().list_resolutions(request).await?.into_inner();
        let times = listed.resolutions.into_iter();
        Ok::<Vec<i64>, Status>(times.map(|it| it.create_time.unwrap().seconds).collect())
    };
    assert_eq!(made(None, None).await.unwrap(), [3000, 2000, 1000]);
    assert_eq!(made(Some(2000), None).await.unwrap(), [3000, 2000]);
    assert_eq!(made(Some(2000), Some(3000)).await.unwrap(), [2000]);
    let wrong = made(None, Some(i64::MAX)).await.unwrap_err();
    assert_eq!(refusal(&wrong).2, "until");
}
