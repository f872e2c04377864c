//! Differences between resolutions.

use muster_proto::segments::v1::{
    self as pb, DiffSide, Withheld, diff_resolutions_response::Message,
};
use tonic::Code;

use crate::deployment::{Deployment, refusal};

const C: &str = r#"tinyclues:"c""#;

struct Difference {
    entered_left_stayed: (u64, u64, u64),
    /// Side, number, external id, in the order sent.
    users: Vec<(DiffSide, pb::AudienceMember)>,
}

async fn diff(it: &Deployment, base: &str, target: &str) -> Difference {
    let request = pb::DiffResolutionsRequest {
        base_resolution_id: base.to_owned(),
        target_resolution_id: target.to_owned(),
        ..Default::default()
    };
    let mut stream = it
        .client()
        .diff_resolutions(request)
        .await
        .unwrap()
        .into_inner();
    let (mut header, mut users, mut ended) = (None, Vec::new(), false);
    while let Some(message) = stream.message().await.unwrap() {
        assert!(!ended);
        match message.message.unwrap() {
            Message::Header(it) => header = Some(it),
            Message::Batch(batch) => {
                assert!(batch.users.len() <= 4_096);
                let side = batch.side();
                users.extend(batch.users.into_iter().map(|user| (side, user)));
            }
            Message::End(_) => ended = true,
        }
    }
    assert!(ended);
    let header = header.unwrap();
    Difference {
        entered_left_stayed: (header.entered_count, header.left_count, header.stayed_count),
        users,
    }
}

#[tokio::test]
async fn a_difference_names_who_left_and_who_entered() {
    let it = Deployment::start().await;
    it.users(10_000).await;
    let cohort = it.cohort("c", "c", 0..6_000).await;
    let base = it.resolve(C).await.resolution_id();
    it.import(cohort, 6_000..6_002, 0..5_000).await;
    let target = it.resolve(C).await.resolution_id();
    let found = diff(&it, &base, &target).await;
    assert_eq!(found.entered_left_stayed, (2, 5_000, 1_000));
    let left = (0..5_000).map(|user| (DiffSide::Left, user));
    let entered = (6_000..6_002).map(|user| (DiffSide::Entered, user));
    let named: Vec<(DiffSide, u32)> = found
        .users
        .iter()
        .map(|(side, it)| (*side, it.user_no))
        .collect();
    assert!(named == left.chain(entered).collect::<Vec<_>>());
    assert!(
        found
            .users
            .iter()
            .all(|(_, it)| it.external_id == format!("u-{}", it.user_no))
    );

    let same = diff(&it, &base, &base).await;
    assert_eq!(
        (same.entered_left_stayed, same.users.len()),
        ((0, 0, 6_000), 0)
    );
    let request = pb::DiffResolutionsRequest {
        base_resolution_id: base,
        target_resolution_id: "7".to_owned(),
        ..Default::default()
    };
    let refused = refusal(&it.client().diff_resolutions(request).await.unwrap_err());
    assert_eq!(
        (refused.0, refused.2.as_str()),
        (Code::InvalidArgument, "target_resolution_id")
    );
}

#[tokio::test]
async fn a_merge_is_nobodys_leaving_and_the_erased_are_withheld() {
    let it = Deployment::start().await;
    it.users(10).await;
    let cohort = it.cohort("c", "c", [1, 2, 3]).await;
    let base = it.resolve(C).await.resolution_id();
    it.merge(1, 9).await;
    it.erase(2).await;
    it.import(cohort, [4], [3]).await;
    let target = it.resolve(C).await.resolution_id();
    let found = diff(&it, &base, &target).await;
    assert_eq!(found.entered_left_stayed, (1, 2, 1));
    let member = |user_no, external_id: &str, withheld: Withheld| pb::AudienceMember {
        user_no,
        external_id: external_id.to_owned(),
        withheld: withheld.into(),
        ..Default::default()
    };
    assert_eq!(
        found.users,
        [
            (DiffSide::Left, member(2, "", Withheld::Erased)),
            (DiffSide::Left, member(3, "u-3", Withheld::Unspecified)),
            (DiffSide::Entered, member(4, "u-4", Withheld::Unspecified)),
        ]
    );
}
