//! Segments: saved, changed, archived, refused.

use muster_proto::segments::v1 as pb;
use muster_storage::cohorts;
use prost_types::FieldMask;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::deployment::{Deployment, by_id, eventually, named, refusal, shared, text};

async fn get(it: &Deployment, segment: pb::SegmentReference) -> Result<pb::Segment, tonic::Status> {
    let request = pb::GetSegmentRequest {
        segment: Some(segment),
        ..Default::default()
    };
    let found = it.client().get_segment(request).await?;
    Ok(found.into_inner().segment.unwrap())
}

fn update(name: &str, filter: &str) -> pb::UpdateSegmentRequest {
    pb::UpdateSegmentRequest {
        segment: Some(named(name)),
        filter: Some(text(filter)),
        ..Default::default()
    }
}

fn archive(name: &str) -> pb::ArchiveSegmentRequest {
    pb::ArchiveSegmentRequest {
        segment: Some(named(name)),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_saved_filter_keeps_its_cohorts_when_they_are_renamed() {
    let it = Deployment::start().await;
    it.cohort("c_1", "spring sale", []).await;
    let churned = it.cohort("c_2", "churned", []).await;
    let filter = r#"tinyclues:"spring sale" and not tinyclues:id("c_2")"#;
    let created = it.segment("loyal", filter).await;
    assert_eq!(
        created.filter_text,
        r#"tinyclues:"spring sale" and not tinyclues:"churned""#
    );
    assert_eq!(created.workspace, "shop");

    let mut conn = it.store.connection().await.unwrap();
    cohorts::rename(&mut conn, it.shop, churned, "gone")
        .await
        .unwrap();
    it.cohort("c_3", "spring sale", []).await;
    let found = get(&it, by_id(&created.segment_id)).await.unwrap();
    assert_eq!(
        found.filter_text,
        r#"tinyclues:id("c_1") and not tinyclues:"gone""#
    );
    assert_eq!(found.filter, created.filter);
    assert_eq!(get(&it, named("loyal")).await.unwrap(), found);

    // The tree that came back says the same when it is sent again.
    let tree = pb::FilterExpression {
        form: found.filter.clone().map(pb::filter_expression::Form::Tree),
    };
    let request = pb::CreateSegmentRequest {
        workspace: "shop".to_owned(),
        name: "again".to_owned(),
        filter: Some(tree),
        ..Default::default()
    };
    let again = it.client().create_segment(request).await.unwrap();
    assert_eq!(again.into_inner().segment.unwrap().filter, found.filter);
}

#[tokio::test]
async fn an_ambiguous_name_lists_its_candidates_and_an_unknown_one_its_path() {
    let it = Deployment::start().await;
    it.cohort("c_1", "sale", []).await;
    it.cohort("c_2", "sale", []).await;
    let archived = it.cohort("c_3", "sale", []).await;
    it.cohort("c_4", "fine", []).await;
    let mut conn = it.store.connection().await.unwrap();
    cohorts::archive(&mut conn, it.shop, archived)
        .await
        .unwrap();

    let filter = r#"tinyclues:"fine" and tinyclues:"sale""#;
    let refused = it.try_segment("s", filter).await.unwrap_err();
    let (code, reason, field) = refusal(&refused);
    assert_eq!(
        (code, reason.as_str()),
        (Code::InvalidArgument, "COHORT_NAME_AMBIGUOUS")
    );
    assert_eq!(field, "filter.all_of[1].cohort.cohorts[0].name");
    let details = refused.get_error_details();
    assert_eq!(
        details.error_info().unwrap().metadata["candidates"],
        "c_1,c_2"
    );

    let cases = [
        (r#"tinyclues:"none""#, "filter.cohort.cohorts[0].name"),
        (
            r#"amplitude:id("c_1")"#,
            "filter.cohort.cohorts[0].cohort_id",
        ),
        (
            r#"not (tinyclues:id("c_3"))"#,
            "filter.not.cohort.cohorts[0].cohort_id",
        ),
        (r#"tinyclues:"a\u{0}""#, "filter.cohort.cohorts[0].name"),
        (r#"segment("none")"#, "filter.segment.name"),
        (r#"tinyclues:"#, "filter.text"),
    ];
    for (filter, path) in cases {
        let refused = refusal(&it.try_segment("s", filter).await.unwrap_err());
        assert_eq!(
            (refused.0, refused.2.as_str()),
            (Code::InvalidArgument, path),
            "{filter}"
        );
    }
    for name in ["", "a\nb", &"x".repeat(256)] {
        let refused = it
            .try_segment(name, r#"tinyclues:"fine""#)
            .await
            .unwrap_err();
        assert_eq!(refusal(&refused).2, "name");
    }
}

#[tokio::test]
async fn a_name_is_taken_until_its_segment_is_archived() {
    let it = Deployment::start().await;
    it.cohort("c", "c", []).await;
    let first = it.segment("s", r#"tinyclues:"c""#).await;
    let refused = it.try_segment("s", r#"tinyclues:"c""#).await.unwrap_err();
    assert_eq!(refusal(&refused).0, Code::AlreadyExists);
    assert_eq!(refusal(&refused).1, "SEGMENT_EXISTS");

    let archived = it.client().archive_segment(archive("s")).await.unwrap();
    let archived = archived.into_inner().segment.unwrap();
    assert!(archived.archived && archived.etag != first.etag);
    assert_eq!(archived.update_time, first.update_time);
    it.segment("s", r#"tinyclues:"c""#).await;

    // Again, and with an etag from before: nothing changes.
    let again = pb::ArchiveSegmentRequest {
        segment: Some(by_id(&first.segment_id)),
        etag: first.etag.clone(),
        ..Default::default()
    };
    let again = it.client().archive_segment(again).await.unwrap();
    assert_eq!(again.into_inner().segment.unwrap(), archived);
    let mut change = update("s", r#"tinyclues:"c""#);
    change.segment = Some(by_id(&first.segment_id));
    let refused = it.client().update_segment(change).await.unwrap_err();
    assert_eq!(refusal(&refused).1, "SEGMENT_ARCHIVED");
}

#[tokio::test]
async fn a_change_needs_the_etag_that_was_read_and_writes_what_the_mask_names() {
    let it = Deployment::start().await;
    it.cohort("c", "c", []).await;
    it.cohort("d", "d", []).await;
    let first = it.segment("s", r#"tinyclues:"c""#).await;
    let change = pb::UpdateSegmentRequest {
        name: "ignored".to_owned(),
        update_mask: Some(FieldMask {
            paths: vec!["filter".to_owned()],
        }),
        etag: first.etag.clone(),
        ..update("s", r#"tinyclues:"d""#)
    };
    let changed = it.client().update_segment(change.clone()).await.unwrap();
    let changed = changed.into_inner().segment.unwrap();
    assert_eq!(
        (changed.name.as_str(), changed.filter_text.as_str()),
        ("s", r#"tinyclues:"d""#)
    );
    let refused = it.client().update_segment(change).await.unwrap_err();
    assert_eq!(refusal(&refused).0, Code::Aborted);
    assert_eq!(refusal(&refused).1, "ETAG_MISMATCH");

    let rename = pb::UpdateSegmentRequest {
        segment: Some(named("s")),
        name: "t".to_owned(),
        etag: changed.etag,
        ..Default::default()
    };
    let renamed = it.client().update_segment(rename).await.unwrap();
    let renamed = renamed.into_inner().segment.unwrap();
    assert_eq!(
        (renamed.name.as_str(), renamed.filter_text.as_str()),
        ("t", r#"tinyclues:"d""#)
    );

    for paths in [vec![], vec!["etag".to_owned()]] {
        let nothing = pb::UpdateSegmentRequest {
            update_mask: Some(FieldMask { paths }),
            ..update("t", r#"tinyclues:"c""#)
        };
        let refused = it.client().update_segment(nothing).await.unwrap_err();
        assert_eq!(refusal(&refused).2, "update_mask");
    }
}

#[tokio::test]
async fn a_request_sent_twice_is_done_once() {
    let it = Deployment::start().await;
    it.cohort("c", "c", []).await;
    let request = pb::CreateSegmentRequest {
        name: "s".to_owned(),
        filter: Some(text(r#"tinyclues:"c""#)),
        request_id: "r-1".to_owned(),
        ..Default::default()
    };
    let first = it.client().create_segment(request.clone()).await.unwrap();
    let again = it.client().create_segment(request.clone()).await.unwrap();
    assert_eq!(first.into_inner(), again.into_inner());
    let other = pb::CreateSegmentRequest {
        name: "t".to_owned(),
        ..request
    };
    let refused = it.client().create_segment(other).await.unwrap_err();
    assert_eq!(refusal(&refused).2, "request_id");
}

#[tokio::test]
async fn what_is_used_cannot_be_archived_and_a_circle_cannot_be_closed() {
    let it = Deployment::start().await;
    it.cohort("c", "c", []).await;
    it.segment("a", r#"tinyclues:"c""#).await;
    it.segment("b", r#"not segment("a")"#).await;
    it.segment("d", r#"segment("b") or tinyclues:"c""#).await;
    let refused = it.client().archive_segment(archive("a")).await.unwrap_err();
    assert_eq!(refusal(&refused).1, "SEGMENT_IN_USE");
    assert!(
        refused.message().contains(r#""b""#),
        "{}",
        refused.message()
    );

    for filter in [r#"segment("a")"#, r#"tinyclues:"c" or segment("d")"#] {
        let refused = it
            .client()
            .update_segment(update("a", filter))
            .await
            .unwrap_err();
        assert_eq!(refusal(&refused).0, Code::InvalidArgument);
        assert!(
            refused.message().contains("circle"),
            "{}",
            refused.message()
        );
        assert!(refusal(&refused).2.starts_with("filter."), "{refused}");
    }

    // A user that is archived is none.
    for name in ["d", "b", "a"] {
        it.client().archive_segment(archive(name)).await.unwrap();
    }
}

#[tokio::test]
async fn a_change_that_would_spoil_a_segment_that_uses_it_is_refused() {
    let it = Deployment::start().await;
    it.cohort("c", "c", []).await;
    let leaf = r#"tinyclues:"c""#;
    it.segment("small", leaf).await;
    let twice = r#"segment("small") or segment("small")"#;
    it.segment("user", twice).await;
    let large = vec![leaf; 600].join(" or ");
    let refused = it
        .client()
        .update_segment(update("small", &large))
        .await
        .unwrap_err();
    assert!(
        refused.message().contains(r#"segment "user""#),
        "{}",
        refused.message()
    );
    // By itself it would do.
    it.segment("large", &large).await;

    let deep = format!("{}{leaf}{}", "not (".repeat(32), ")".repeat(32));
    let refused = it.try_segment("deep", &deep).await.unwrap_err();
    assert!(
        refused.message().contains("32 levels"),
        "{}",
        refused.message()
    );
    let wide = [r#"segment("large")"#; 2].join(" or ");
    let refused = it.try_segment("wide", &wide).await.unwrap_err();
    assert!(
        refused.message().contains("1000 nodes"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn two_changes_at_once_cannot_close_a_circle_together() {
    let it = shared(Deployment::start().await);
    it.cohort("c", "c", []).await;
    for round in 0..5 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        it.segment(&a, r#"tinyclues:"c""#).await;
        it.segment(&b, r#"tinyclues:"c""#).await;
        let (mut one, mut other) = (it.client(), it.client());
        let to_b = format!(r#"segment("{b}")"#);
        let to_a = format!(r#"segment("{a}")"#);
        let (one, other) = tokio::join!(
            one.update_segment(update(&a, &to_b)),
            other.update_segment(update(&b, &to_a)),
        );
        assert_eq!(u8::from(one.is_ok()) + u8::from(other.is_ok()), 1);
    }
}

#[tokio::test]
async fn a_cohort_that_is_being_archived_cannot_become_part_of_a_segment() {
    let it = shared(Deployment::start().await);
    let cohort = it.cohort("c", "c", []).await;
    let mut tx = it.store.begin("test").await.unwrap();
    cohorts::lock(&mut tx, it.shop, cohort).await.unwrap();
    cohorts::archive(&mut tx, it.shop, cohort).await.unwrap();
    let creating = tokio::spawn({
        let it = it.clone();
        async move { it.try_segment("s", r#"tinyclues:"c""#).await }
    });
    eventually(|| async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        it.number(waiting).await > 0
    })
    .await;
    tx.commit().await.unwrap();
    let refused = creating.await.unwrap().unwrap_err();
    assert_eq!(refusal(&refused).2, "filter");
    assert!(
        refused.message().contains("archived"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn segments_are_listed_by_name_page_by_page() {
    let it = Deployment::start().await;
    it.cohort("c", "c", []).await;
    for name in ["d", "b", "a", "c"] {
        it.segment(name, r#"tinyclues:"c""#).await;
    }
    it.client().archive_segment(archive("b")).await.unwrap();
    for (include_archived, expected) in [
        (false, vec!["a", "c", "d"]),
        (true, vec!["a", "b", "c", "d"]),
    ] {
        let (mut names, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = pb::ListSegmentsRequest {
                include_archived,
                page_size: 2,
                page_token,
                ..Default::default()
            };
            let page = it
                .client()
                .list_segments(request)
                .await
                .unwrap()
                .into_inner();
            assert!(
                page.segments
                    .iter()
                    .all(|it| it.filter_text == r#"tinyclues:"c""#)
            );
            names.extend(page.segments.into_iter().map(|segment| segment.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(names, expected);
    }
}

#[tokio::test]
async fn what_belongs_to_another_workspace_answers_like_what_does_not_exist() {
    let it = Deployment::start().await;
    it.cohort("c", "c", []).await;
    let segment = it.segment("s", r#"tinyclues:"c""#).await;
    let resolution = it.resolve(r#"tinyclues:"c""#).await.resolution_id();
    let (_, mut stranger) = it.stranger().await;
    let none = uuid::Uuid::now_v7().to_string();
    let get = |workspace: &str, id: &str| pb::GetSegmentRequest {
        workspace: workspace.to_owned(),
        segment: Some(by_id(id)),
    };
    let there = stranger
        .get_segment(get("", &segment.segment_id))
        .await
        .unwrap_err();
    let nowhere = stranger.get_segment(get("", &none)).await.unwrap_err();
    assert_eq!(there.code(), Code::NotFound);
    assert_eq!(
        there.message().replace(&segment.segment_id, &none),
        nowhere.message()
    );
    let shop = stranger
        .get_segment(get("shop", &segment.segment_id))
        .await
        .unwrap_err();
    let shed = stranger
        .get_segment(get("shed", &segment.segment_id))
        .await
        .unwrap_err();
    assert_eq!(shop.message().replace("shop", "shed"), shed.message());
    assert_eq!((shop.code(), shed.code()), (Code::NotFound, Code::NotFound));

    let request = crate::deployment::kept(&resolution);
    assert_eq!(
        stranger.resolve_segment(request).await.unwrap_err().code(),
        Code::NotFound
    );
    let request = pb::GetResolutionRequest {
        resolution_id: resolution.clone(),
        ..Default::default()
    };
    assert_eq!(
        stranger.get_resolution(request).await.unwrap_err().code(),
        Code::NotFound
    );
    let request = pb::DiffResolutionsRequest {
        base_resolution_id: resolution.clone(),
        target_resolution_id: resolution,
        ..Default::default()
    };
    assert_eq!(
        stranger.diff_resolutions(request).await.unwrap_err().code(),
        Code::NotFound
    );
    let listed = stranger
        .list_segments(pb::ListSegmentsRequest::default())
        .await;
    assert!(listed.unwrap().into_inner().segments.is_empty());
}
