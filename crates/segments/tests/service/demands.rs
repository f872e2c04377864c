//! What a caller may demand of an evaluation: to be recent enough, to see what was written.

use std::time::Duration;

use muster_proto::segments::v1 as pb;
use muster_segments::Settings;
use muster_service::ConsistencyToken;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::deployment::{Deployment, inline, kept, refusal, text};

const C: &str = r#"tinyclues:"c""#;

fn seeing(token: &ConsistencyToken) -> pb::ResolveSegmentRequest {
    pb::ResolveSegmentRequest {
        consistency_token: token.encode(),
        ..inline(C)
    }
}

#[tokio::test]
async fn an_evaluation_is_never_older_than_its_consistency_token() {
    let settings = Settings {
        visibility_timeout: Duration::from_millis(200),
        ..Settings::default()
    };
    let it = Deployment::start_with(settings).await;
    it.users(3).await;
    let cohort = it.cohort("c", "c", [1]).await;
    let now = ConsistencyToken {
        workspace: it.shop.0,
        directory_epoch: 1,
        cohort: Some((cohort, 1)),
    };
    assert_eq!(it.stream(seeing(&now)).await.unwrap().user_nos(), [1]);
    let epoch_ahead = ConsistencyToken {
        directory_epoch: 2,
        ..now
    };
    let cohort_ahead = ConsistencyToken {
        cohort: Some((cohort, 2)),
        ..now
    };
    let unknown_cohort = ConsistencyToken {
        cohort: Some((uuid::Uuid::now_v7(), 1)),
        ..now
    };
    for ahead in [epoch_ahead, cohort_ahead, unknown_cohort] {
        let refused = it.stream(seeing(&ahead)).await.unwrap_err();
        let (code, reason, _) = refusal(&refused);
        assert_eq!(
            (code, reason.as_str()),
            (Code::Unavailable, "NOT_YET_VISIBLE")
        );
        assert!(refused.get_error_details().retry_info().is_some());
    }
    let count = pb::CountSegmentRequest {
        audience: Some(pb::count_segment_request::Audience::Filter(text(C))),
        consistency_token: epoch_ahead.encode(),
        ..Default::default()
    };
    let refused = it.client().count_segment(count.clone()).await.unwrap_err();
    assert_eq!(refusal(&refused).1, "NOT_YET_VISIBLE");

    it.erase(1).await;
    assert_eq!(
        it.client()
            .count_segment(count)
            .await
            .unwrap()
            .into_inner()
            .user_count,
        0
    );
    let elsewhere = ConsistencyToken {
        workspace: it.shop.0 + 1,
        ..now
    };
    for token in [elsewhere.encode(), "e30".to_owned()] {
        let request = pb::ResolveSegmentRequest {
            consistency_token: token,
            ..inline(C)
        };
        let refused = refusal(&it.stream(request).await.unwrap_err());
        assert_eq!(
            (refused.0, refused.2.as_str()),
            (Code::InvalidArgument, "consistency_token")
        );
    }
}

#[tokio::test]
async fn an_evaluation_waits_for_what_is_about_to_become_visible() {
    let settings = Settings {
        visibility_timeout: Duration::from_secs(30),
        ..Settings::default()
    };
    let it = Deployment::start_with(settings).await;
    it.users(3).await;
    let cohort = it.cohort("c", "c", [1]).await;
    let soon = ConsistencyToken {
        workspace: it.shop.0,
        directory_epoch: 1,
        cohort: Some((cohort, 2)),
    };
    let (audience, _) = tokio::join!(it.stream(seeing(&soon)), it.import(cohort, [2], []));
    assert_eq!(audience.unwrap().user_nos(), [1, 2]);
}

#[tokio::test]
async fn a_cohort_that_is_too_old_is_named() {
    let it = Deployment::start().await;
    it.users(3).await;
    it.cohort("c", "fresh", [1]).await;
    it.cohort("d", "stale", [1]).await;
    it.cohort("e", "never imported", []).await;
    it.sql(
        "UPDATE cohort_version SET published_at = now() - interval '2 days'
         FROM cohort c WHERE c.cohort_id = cohort_version.cohort_id AND c.partner_cohort_id = 'd'",
    )
    .await;
    let within_a_day = |filter: &str| pb::ResolveSegmentRequest {
        max_cohort_age: Some(prost_types::Duration {
            seconds: 24 * 60 * 60,
            nanos: 0,
        }),
        ..inline(filter)
    };
    it.stream(within_a_day(r#"tinyclues:"fresh""#))
        .await
        .unwrap();
    let all = r#"tinyclues:("fresh", "stale", "never imported")"#;
    let refused = it.stream(within_a_day(all)).await.unwrap_err();
    let (code, reason, _) = refusal(&refused);
    assert_eq!(
        (code, reason.as_str()),
        (Code::FailedPrecondition, "COHORT_TOO_OLD")
    );
    let details = refused.get_error_details();
    assert_eq!(
        details.error_info().unwrap().metadata["cohorts"],
        "tinyclues:d\ntinyclues:e"
    );
    assert!(
        refused.message().contains(r#""stale""#),
        "{}",
        refused.message()
    );
    it.resolve(all).await;
    let negative = pb::ResolveSegmentRequest {
        max_cohort_age: Some(prost_types::Duration {
            seconds: -1,
            nanos: 0,
        }),
        ..inline(all)
    };
    assert_eq!(
        refusal(&it.stream(negative).await.unwrap_err()).2,
        "max_cohort_age"
    );
}

#[tokio::test]
async fn an_expired_resolution_does_not_exist() {
    let it = Deployment::start().await;
    it.users(3).await;
    it.cohort("c", "c", [1]).await;
    let (gone, stays) = (it.resolve(C).await, it.resolve(C).await);
    let (gone, stays) = (gone.resolution_id(), stays.resolution_id());
    it.sql(&format!(
        "UPDATE resolution SET expires_at = now() WHERE resolution_id = '{gone}'"
    ))
    .await;
    let refused = it.stream(kept(&gone)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let mut client = it.client();
    let listed = client.list_resolutions(pb::ListResolutionsRequest::default());
    let listed = listed.await.unwrap().into_inner().resolutions;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].resolution_id, stays);

    let rounds = tokio::spawn(muster_segments::housekeeping(
        it.store.clone(),
        it.shutdown.clone(),
    ));
    crate::deployment::eventually(|| async {
        it.number("SELECT count(*) FROM resolution").await == 1
    })
    .await;
    it.stream(kept(&stays)).await.unwrap();
    it.shutdown.cancel();
    rounds.await.unwrap();
}

#[tokio::test]
async fn evaluations_take_turns_and_do_not_wait_for_ever() {
    let with_turns = |concurrent_evaluations| Settings {
        concurrent_evaluations,
        evaluation_wait: Duration::from_millis(if concurrent_evaluations == 0 {
            1
        } else {
            20_000
        }),
        ..Settings::default()
    };
    let busy = Deployment::start_with(with_turns(0)).await;
    busy.cohort("c", "c", []).await;
    let refused = busy.stream(inline(C)).await.unwrap_err();
    assert_eq!(refusal(&refused).1, "EVALUATIONS_BUSY", "{refused:?}");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_error_details().retry_info().is_some());

    let it = Deployment::start_with(with_turns(1)).await;
    it.users(3).await;
    it.cohort("c", "c", [1]).await;
    let counts = futures::future::join_all((0..20).map(|_| it.count(C))).await;
    assert_eq!(counts, [1; 20]);
}
