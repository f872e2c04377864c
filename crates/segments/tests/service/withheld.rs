//! Users change under the feet of audiences: merged, erased, before and after the pinning.

use muster_proto::segments::v1::{self as pb, Withheld};

use crate::deployment::{Audience, Deployment, kept};

const C: &str = r#"tinyclues:"c""#;

/// What came out: number, external id, withheld.
fn records(audience: &Audience) -> Vec<(u32, String, Withheld)> {
    let members = audience.members().into_iter();
    members
        .map(|it| (it.user_no, it.external_id.clone(), it.withheld()))
        .collect()
}

fn printed(user_no: u32, external_id: &str) -> (u32, String, Withheld) {
    (user_no, external_id.to_owned(), Withheld::Unspecified)
}

fn withheld(user_no: u32, why: Withheld) -> (u32, String, Withheld) {
    (user_no, String::new(), why)
}

#[tokio::test]
async fn membership_follows_a_merge_and_ends_with_an_erasure() {
    let it = Deployment::start().await;
    it.users(10).await;
    let cohort = it.cohort("c", "c", [1, 2, 3, 4]).await;
    it.merge(1, 7).await;
    it.merge(2, 3).await;
    it.erase(4).await;
    assert_eq!(it.resolve(C).await.user_nos(), [3, 7]);
    assert_eq!(it.count(C).await, 2);
    // "Does not include" is relative to live users.
    let others = it.resolve(r#"not tinyclues:"c""#).await;
    assert_eq!(others.user_nos(), [0, 5, 6, 8, 9]);
    assert_eq!(it.count(r#"not tinyclues:"c""#).await, 5);
    it.import(cohort, [], [7]).await;
    assert_eq!(it.resolve(C).await.user_nos(), [3]);
}

#[tokio::test]
async fn who_was_erased_since_is_withheld_and_counts_never_change() {
    let it = Deployment::start().await;
    it.users(10).await;
    it.cohort("c", "c", [1, 2, 3]).await;
    let before = it.resolve(C).await;
    it.erase(2).await;
    let after = it.stream(kept(&before.resolution_id())).await.unwrap();
    assert_eq!(
        records(&after),
        [
            printed(1, "u-1"),
            withheld(2, Withheld::Erased),
            printed(3, "u-3")
        ]
    );
    assert_eq!(after.header, before.header);
    assert_eq!(after.end.user_count, before.end.user_count);
    assert_eq!(after.end.digest, before.end.digest);
    assert_eq!(
        (before.end.withheld_count, after.end.withheld_count),
        (0, 1)
    );
    assert_eq!(
        after.batches[0].resume_token,
        before.batches[0].resume_token
    );
}

#[tokio::test]
async fn who_was_merged_since_comes_out_once() {
    let it = Deployment::start().await;
    it.users(20).await;
    it.cohort("c", "c", [1, 2, 3, 4, 5, 6]).await;
    let id = it.resolve(C).await.resolution_id();
    // 1 into one who is in it; 3 and 5 into one who is not; 6 into one who is erased then.
    it.merge(1, 2).await;
    it.merge(5, 15).await;
    it.merge(3, 14).await;
    it.merge(14, 15).await;
    it.merge(6, 16).await;
    it.erase(16).await;
    let expected = [
        withheld(1, Withheld::Merged),
        printed(2, "u-2"),
        printed(3, "u-15"),
        printed(4, "u-4"),
        withheld(5, Withheld::Merged),
        withheld(6, Withheld::Erased),
    ];
    let after = it.stream(kept(&id)).await.unwrap();
    assert_eq!(records(&after), expected);
    assert_eq!(after.end.withheld_count, 3);

    // So it does when it is split: each part knows of the others.
    let mut joined = Vec::new();
    for index in 0..3 {
        let part = pb::ResolveSegmentRequest {
            partition: Some(pb::Partition { index, count: 3 }),
            ..kept(&id)
        };
        joined.extend(records(&it.stream(part).await.unwrap()));
    }
    assert_eq!(joined, expected);

    let full = pb::ResolveSegmentRequest {
        view: pb::AudienceView::Full.into(),
        ..kept(&id)
    };
    it.identifier(15, "3d-15").await;
    let members = it.stream(full).await.unwrap().members();
    assert_eq!(members[2].device_ids, ["d-15"]);
    let numbers = pb::ResolveSegmentRequest {
        view: pb::AudienceView::UserNo.into(),
        ..kept(&id)
    };
    let members = it.stream(numbers).await.unwrap().members();
    let why: Vec<Withheld> = members.iter().map(pb::AudienceMember::withheld).collect();
    assert_eq!(why, expected.map(|(_, _, why)| why));
}

#[tokio::test]
async fn who_is_merged_before_a_resumption_is_not_lost() {
    let it = Deployment::start().await;
    it.users(5_001).await;
    it.cohort("c", "c", 0..5_000).await;
    let id = it.resolve(C).await.resolution_id();
    it.merge(1, 4_500).await;
    let broken = it.stream(kept(&id)).await.unwrap();
    let first = broken.batches[0].users.len();
    assert_eq!(
        records(&broken)[1],
        withheld(1, Withheld::Merged),
        "4500 is to speak for it"
    );
    // Only now the one who was to speak goes as well, into somebody who is not in the resolution.
    it.merge(4_500, 5_000).await;
    let resumed = pb::ResolveSegmentRequest {
        resume_token: broken.batches[0].resume_token.clone(),
        ..kept(&id)
    };
    let rest = records(&it.stream(resumed).await.unwrap());
    assert_eq!(rest[4_500 - first], printed(4_500, "u-5000"));
}
