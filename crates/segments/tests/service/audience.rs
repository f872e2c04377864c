//! Audiences: exact, ordered, repeatable, splittable, resumable.

use muster_proto::segments::v1 as pb;
use sha2::{Digest as _, Sha256};
use tonic::Code;

use crate::deployment::{Audience, Deployment, inline, kept, named, refusal, text};

/// More than four batches, and no multiple of one.
const USERS: u32 = 20_000;

async fn with_users() -> Deployment {
    let it = Deployment::start().await;
    it.users(USERS).await;
    it.cohort("even", "even", (0..USERS).filter(|n| n % 2 == 0))
        .await;
    it.cohort("third", "third", (0..USERS).filter(|n| n % 3 == 0))
        .await;
    it.cohort("empty", "empty", []).await;
    it
}

fn digest(users: &[u32]) -> Vec<u8> {
    let mut digest = Sha256::new();
    for user in users {
        digest.update(user.to_be_bytes());
    }
    digest.finalize().to_vec()
}

fn part(resolution_id: &str, index: u32, count: u32) -> pb::ResolveSegmentRequest {
    pb::ResolveSegmentRequest {
        partition: Some(pb::Partition { index, count }),
        ..kept(resolution_id)
    }
}

#[tokio::test]
async fn an_audience_is_exact_and_its_end_proves_it() {
    let it = with_users().await;
    let all = || 0..USERS;
    let cases: [(&str, Vec<u32>); 6] = [
        (
            r#"tinyclues:"even""#,
            all().filter(|n| n % 2 == 0).collect(),
        ),
        (
            r#"not tinyclues:"even""#,
            all().filter(|n| n % 2 == 1).collect(),
        ),
        (
            r#"tinyclues:"even" and tinyclues:"third""#,
            all().filter(|n| n % 6 == 0).collect(),
        ),
        (
            r#"tinyclues:("even", "third")"#,
            all().filter(|n| n % 2 == 0 || n % 3 == 0).collect(),
        ),
        (r#"tinyclues:"empty""#, vec![]),
        (r#"not (tinyclues:"empty")"#, all().collect()),
    ];
    for (filter, expected) in cases {
        let audience = it.resolve(filter).await;
        assert!(audience.user_nos() == expected, "{filter}");
        let (header, end) = (&audience.header, &audience.end);
        let count = expected.len() as u64;
        assert_eq!(header.resolution.as_ref().unwrap().user_count, count);
        assert_eq!(
            (header.partition_user_count, end.user_count),
            (count, count)
        );
        assert_eq!(end.digest, digest(&expected));
        assert_eq!(end.withheld_count, 0);
        assert_eq!(it.count(filter).await, count);
        assert!(
            audience
                .batches
                .iter()
                .all(|batch| batch.users.len() <= 4_096)
        );
        assert!(
            audience
                .members()
                .iter()
                .all(|it| it.external_id == format!("u-{}", it.user_no))
        );
    }
}

#[tokio::test]
async fn a_kept_resolution_streams_the_same_bytes_whatever_cohorts_become() {
    let it = with_users().await;
    it.segment("s", r#"tinyclues:"even""#).await;
    let request = pb::ResolveSegmentRequest {
        workspace: "shop".to_owned(),
        audience: Some(pb::resolve_segment_request::Audience::Segment(named("s"))),
        ..Default::default()
    };
    let first = it.stream(request.clone()).await.unwrap();
    let resolution = first.header.resolution.clone().unwrap();
    let read = &resolution.cohort_versions[..];
    assert_eq!((read[0].cohort_id.as_str(), read[0].version), ("even", 1));
    assert_eq!(resolution.filter_text, r#"tinyclues:"even""#);

    it.cohort("even", "even, and one", [1]).await;
    let again = it.stream(kept(&resolution.resolution_id)).await.unwrap();
    assert!(again == first);
    let now = it.stream(request).await.unwrap();
    assert_eq!(now.end.user_count, first.end.user_count + 1);

    let mut client = it.client();
    let found = client.get_resolution(pb::GetResolutionRequest {
        resolution_id: resolution.resolution_id.clone(),
        ..Default::default()
    });
    assert_eq!(
        found.await.unwrap().into_inner().resolution.unwrap(),
        resolution
    );
    let list = |segment, page_size, page_token| pb::ListResolutionsRequest {
        segment,
        page_size,
        page_token,
        ..Default::default()
    };
    it.resolve(r#"tinyclues:"third""#).await;
    let listed = client.list_resolutions(list(Some(named("s")), 1, String::new()));
    let listed = listed.await.unwrap().into_inner();
    assert_eq!(listed.resolutions, [now.header.resolution.unwrap()]);
    let next = list(Some(named("s")), 1, listed.next_page_token);
    let next = client.list_resolutions(next).await.unwrap().into_inner();
    assert_eq!(
        (next.resolutions, next.next_page_token),
        (vec![resolution], String::new())
    );
    let all = client.list_resolutions(list(None, 0, String::new()));
    assert_eq!(all.await.unwrap().into_inner().resolutions.len(), 3);
}

#[tokio::test]
async fn partitions_are_disjoint_and_complete() {
    let it = with_users().await;
    let whole = it.resolve(r#"tinyclues:"third""#).await;
    for count in [1, 2, 7] {
        let mut joined = Vec::new();
        for index in 0..count {
            let part = part(&whole.resolution_id(), index, count);
            let part = it.stream(part).await.unwrap();
            assert_eq!(part.end.digest, digest(&part.user_nos()));
            assert_eq!(part.end.user_count, part.header.partition_user_count);
            joined.extend(part.members());
        }
        assert!(joined == whole.members());
    }
    for (index, count, field) in [(3, 3, "partition.index"), (0, 1_025, "partition.count")] {
        let refused = it.stream(part(&whole.resolution_id(), index, count)).await;
        assert_eq!(refusal(&refused.unwrap_err()).2, field);
    }
}

#[tokio::test]
async fn a_stream_resumed_at_any_batch_ends_as_if_it_had_never_stopped() {
    let it = with_users().await;
    let id = it.resolve(r#"not tinyclues:"empty""#).await.resolution_id();
    for request in [kept(&id), part(&id, 1, 2)] {
        let whole = it.stream(request.clone()).await.unwrap();
        assert!(whole.batches.len() >= 3);
        for (received, batch) in whole.batches.iter().enumerate() {
            let resumed = pb::ResolveSegmentRequest {
                resume_token: batch.resume_token.clone(),
                ..request.clone()
            };
            let rest = it.stream(resumed).await.unwrap();
            let joined = Audience {
                batches: [&whole.batches[..=received], &rest.batches[..]].concat(),
                ..rest
            };
            assert!(joined == whole, "resumed after batch {received}");
        }
    }
}

#[tokio::test]
async fn a_resume_token_fits_its_resolution_and_partition_only() {
    let it = with_users().await;
    let one = it.resolve(r#"tinyclues:"even""#).await;
    let other = it.resolve(r#"tinyclues:"even""#).await;
    assert_ne!(one.resolution_id(), other.resolution_id());
    let resume_token = one.batches[0].resume_token.clone();
    let requests = [
        kept(&other.resolution_id()),
        part(&one.resolution_id(), 0, 2),
        inline(r#"tinyclues:"even""#),
    ];
    for request in requests {
        let refused = it.stream(pb::ResolveSegmentRequest {
            resume_token: resume_token.clone(),
            ..request
        });
        let refused = refusal(&refused.await.unwrap_err());
        assert_eq!(
            (refused.0, refused.2.as_str()),
            (Code::InvalidArgument, "resume_token")
        );
    }
    let made_up = pb::ResolveSegmentRequest {
        resume_token: "e30".to_owned(),
        ..kept(&one.resolution_id())
    };
    assert_eq!(
        refusal(&it.stream(made_up).await.unwrap_err()).2,
        "resume_token"
    );
}

#[tokio::test]
async fn workers_that_share_a_request_id_share_the_resolution() {
    let it = with_users().await;
    let worker = |index| pb::ResolveSegmentRequest {
        partition: Some(pb::Partition { index, count: 4 }),
        view: (if index == 0 {
            pb::AudienceView::UserNo
        } else {
            pb::AudienceView::Full
        })
        .into(),
        request_id: "campaign-7".to_owned(),
        ..inline(r#"tinyclues:"even""#)
    };
    let (a, b, c) = tokio::join!(
        it.stream(worker(0)),
        it.stream(worker(1)),
        it.stream(worker(2)),
    );
    // The last one is late: the cohort has changed, and nobody else is being evaluated.
    it.cohort("even", "renamed", [1, 3, 5]).await;
    let parts = [a, b, c, it.stream(worker(3)).await].map(Result::unwrap);
    let first = parts[0].resolution_id();
    assert!(parts.iter().all(|part| part.resolution_id() == first));
    let joined: Vec<u32> = parts.iter().flat_map(Audience::user_nos).collect();
    assert!(joined == (0..USERS).filter(|n| n % 2 == 0).collect::<Vec<_>>());
    assert_eq!(it.number("SELECT count(*) FROM resolution").await, 1);

    let other = pb::ResolveSegmentRequest {
        request_id: "campaign-7".to_owned(),
        ..inline(r#"tinyclues:"third""#)
    };
    assert_eq!(
        refusal(&it.stream(other).await.unwrap_err()).2,
        "request_id"
    );
}

#[tokio::test]
async fn a_view_prints_what_it_names_and_no_more() {
    let it = Deployment::start().await;
    it.users(2).await;
    it.anonymous_user(2, "d-2").await;
    it.identifier(2, "2mail\tx@example").await;
    it.identifier(0, "2mail\tb@example").await;
    it.identifier(0, "2mail\ta@example").await;
    it.identifier(0, "3d-0").await;
    it.cohort("c", "c", [0, 1, 2]).await;
    let view = async |view: pb::AudienceView| {
        let request = pb::ResolveSegmentRequest {
            view: view.into(),
            ..inline(r#"tinyclues:"c""#)
        };
        it.stream(request).await.unwrap().members()
    };
    let alias = |name: &str| muster_proto::users::v1::Alias {
        label: "mail".to_owned(),
        name: name.to_owned(),
    };
    let full = [
        pb::AudienceMember {
            user_no: 0,
            external_id: "u-0".to_owned(),
            aliases: vec![alias("a@example"), alias("b@example")],
            device_ids: vec!["d-0".to_owned()],
            withheld: 0,
        },
        pb::AudienceMember {
            user_no: 1,
            external_id: "u-1".to_owned(),
            ..Default::default()
        },
        pb::AudienceMember {
            user_no: 2,
            aliases: vec![alias("x@example")],
            device_ids: vec!["d-2".to_owned()],
            ..Default::default()
        },
    ];
    assert_eq!(view(pb::AudienceView::Full).await, full);
    let external_ids = full.clone().map(|user| pb::AudienceMember {
        user_no: user.user_no,
        external_id: user.external_id,
        ..Default::default()
    });
    assert_eq!(view(pb::AudienceView::ExternalId).await, external_ids);
    assert_eq!(view(pb::AudienceView::Unspecified).await, external_ids);
    let numbers = full.map(|user| pb::AudienceMember {
        user_no: user.user_no,
        ..Default::default()
    });
    assert_eq!(view(pb::AudienceView::UserNo).await, numbers);
}

#[tokio::test]
async fn a_nested_segment_counts_like_its_filter() {
    let it = with_users().await;
    it.segment("inner", r#"tinyclues:"even" and not tinyclues:"third""#)
        .await;
    it.segment("outer", r#"not (segment("inner")) and tinyclues:"even""#)
        .await;
    let request = pb::CountSegmentRequest {
        audience: Some(pb::count_segment_request::Audience::Segment(named("outer"))),
        ..Default::default()
    };
    let counted = it
        .client()
        .count_segment(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(counted.user_count, u64::from(USERS.div_ceil(6)));
    let read: Vec<&str> = counted
        .cohort_versions
        .iter()
        .map(|it| it.cohort_id.as_str())
        .collect();
    assert_eq!(read, ["even", "third"]);

    let archive = pb::ArchiveSegmentRequest {
        segment: Some(named("outer")),
        ..Default::default()
    };
    let outer = it
        .client()
        .archive_segment(archive)
        .await
        .unwrap()
        .into_inner();
    let id = outer.segment.unwrap().segment_id;
    let request = pb::CountSegmentRequest {
        audience: Some(pb::count_segment_request::Audience::Segment(
            crate::deployment::by_id(&id),
        )),
        ..Default::default()
    };
    let refused = it.client().count_segment(request).await.unwrap_err();
    assert_eq!(refusal(&refused).1, "SEGMENT_ARCHIVED");
    let refused = it
        .client()
        .count_segment(pb::CountSegmentRequest::default())
        .await;
    assert_eq!(refusal(&refused.unwrap_err()).2, "audience");
    let bad = pb::CountSegmentRequest {
        audience: Some(pb::count_segment_request::Audience::Filter(text(
            "tinyclues:\"x\"",
        ))),
        ..Default::default()
    };
    let refused = it.client().count_segment(bad).await.unwrap_err();
    assert_eq!(refusal(&refused).2, "filter.cohort.cohorts[0].name");
}

#[tokio::test]
async fn a_large_audience_streams() {
    const LARGE: u32 = 100_000;
    let it = Deployment::start().await;
    it.users(LARGE).await;
    it.cohort("all", "all", 0..LARGE).await;
    let begun = std::time::Instant::now();
    let audience = it.resolve(r#"tinyclues:"all""#).await;
    println!("{LARGE} users in {:?}", begun.elapsed());
    assert_eq!(audience.end.user_count, u64::from(LARGE));
    assert_eq!(audience.batches.len(), 25);
    assert!(audience.user_nos().into_iter().eq(0..LARGE));
}
