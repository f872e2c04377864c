//! Why one user is in an audience, or is not.

use muster_domain::identifier::IdentifierRef;
use muster_proto::{
    segments::v1::{
        self as pb, MembershipReason as Reason, SubjectState as State,
        check_membership_request::{Audience, User},
    },
    users::v1::{Identifier, identifier::Kind},
};
use tonic::Code;

use crate::deployment::{Deployment, named, refusal, text};

async fn check(it: &Deployment, user: User, filter: &str) -> pb::CheckMembershipResponse {
    let request = pb::CheckMembershipRequest {
        user: Some(user),
        audience: Some(Audience::Filter(text(filter))),
        ..Default::default()
    };
    it.client()
        .check_membership(request)
        .await
        .unwrap()
        .into_inner()
}

fn external_id(id: &str) -> User {
    User::Identifier(Identifier {
        kind: Some(Kind::ExternalId(id.to_owned())),
    })
}

fn device(id: &str) -> User {
    User::Identifier(Identifier {
        kind: Some(Kind::DeviceId(id.to_owned())),
    })
}

/// The reason of every cohort in an explanation, in the order of the filter.
fn reasons(part: &pb::Explanation) -> Vec<(String, Reason, u64)> {
    let own = part.cohorts.iter();
    let own = own.map(|it| (it.cohort_id.clone(), it.reason(), it.since_version));
    own.chain(part.branches.iter().flat_map(reasons)).collect()
}

fn paths(part: &pb::Explanation) -> Vec<(String, bool)> {
    let branches = part.branches.iter().flat_map(paths);
    [(part.path.clone(), part.matched)]
        .into_iter()
        .chain(branches)
        .collect()
}

/// The sentence without the moment in it.
fn undated(reason: &str) -> String {
    match reason.find(" on 2") {
        Some(at) => {
            let end = reason[at..]
                .find("UTC")
                .map_or(reason.len(), |end| at + end + 3);
            format!("{}{}", &reason[..at], &reason[end..])
        }
        None => reason.to_owned(),
    }
}

async fn with_cohorts() -> Deployment {
    let it = Deployment::start().await;
    it.users(20).await;
    let spring = it.cohort("c_1", "spring sale", [1, 2, 3]).await;
    it.import(spring, [5], [3]).await;
    it.cohort("c_2", "churned", [2]).await;
    it
}

const LOYAL: &str = r#"tinyclues:"spring sale" and not (tinyclues:"churned")"#;

#[tokio::test]
async fn a_check_says_which_version_and_which_branch_decided() {
    let it = with_cohorts().await;
    let cases = [
        (
            1,
            true,
            "all_of[0].cohort",
            r#"in it: "spring sale" (tinyclues) added the user in version 1"#,
        ),
        (
            5,
            true,
            "all_of[0].cohort",
            r#"in it: "spring sale" (tinyclues) added the user in version 2"#,
        ),
        (
            3,
            false,
            "all_of[0].cohort",
            r#"not in it: removed from "spring sale" (tinyclues) by version 2"#,
        ),
        (
            2,
            false,
            "all_of[1].not.cohort",
            r#"not in it: "churned" (tinyclues) added the user in version 1, and the filter leaves its members out"#,
        ),
        (
            7,
            false,
            "all_of[0].cohort",
            r#"not in it: never uploaded to "spring sale" (tinyclues)"#,
        ),
    ];
    let audience = it.resolve(LOYAL).await.user_nos();
    for (user, member, path, reason) in cases {
        let found = check(&it, User::UserNo(user), LOYAL).await;
        assert_eq!(
            (found.member, found.deciding_path.as_str()),
            (member, path),
            "user {user}"
        );
        assert_eq!(undated(&found.reason), reason);
        assert_eq!(
            (found.subject_state(), found.user_no),
            (State::Live, Some(user))
        );
        assert_eq!(audience.contains(&user), member);
        let by_identifier = check(&it, external_id(&format!("u-{user}")), LOYAL).await;
        assert_eq!(by_identifier, found);
    }
    let found = check(&it, User::UserNo(2), LOYAL)
        .await
        .explanation
        .unwrap();
    assert_eq!(
        paths(&found),
        [
            (String::new(), false),
            ("all_of[0].cohort".to_owned(), true),
            ("all_of[1]".to_owned(), false),
            ("all_of[1].not.cohort".to_owned(), true),
        ]
    );
    assert_eq!(found.text, LOYAL);
    assert_eq!(found.branches[1].branches[0].text, r#"tinyclues:"churned""#);
    assert_eq!(
        reasons(&found),
        [
            ("c_1".to_owned(), Reason::Member, 1),
            ("c_2".to_owned(), Reason::Member, 1)
        ]
    );
    let cohort = &found.branches[0].cohorts[0];
    assert_eq!((cohort.name.as_str(), cohort.version), ("spring sale", 2));
    assert!(cohort.since_time.is_some());
}

#[tokio::test]
async fn a_check_looks_into_nested_segments() {
    let it = with_cohorts().await;
    it.segment("loyal", LOYAL).await;
    let found = check(&it, User::UserNo(2), r#"not (segment("loyal"))"#).await;
    assert!(found.member);
    assert_eq!(found.deciding_path, "not.segment.all_of[1].not.cohort");
    let explanation = found.explanation.unwrap();
    assert_eq!(explanation.branches[0].text, r#"segment("loyal")"#);
    assert_eq!(explanation.branches[0].branches[0].path, "not.segment");
    let request = pb::CheckMembershipRequest {
        user: Some(User::UserNo(1)),
        audience: Some(Audience::Segment(named("loyal"))),
        ..Default::default()
    };
    let found = it.client().check_membership(request).await.unwrap();
    assert!(found.into_inner().member);
}

#[tokio::test]
async fn a_merged_user_is_explained_as_the_survivor() {
    let it = with_cohorts().await;
    it.merge(1, 9).await;
    let audience = r#"tinyclues:"spring sale""#;
    let found = check(&it, User::UserNo(1), audience).await;
    assert!(found.member);
    assert_eq!(
        (found.subject_state(), found.user_no),
        (State::Merged, Some(9))
    );
    assert_eq!(
        undated(&found.reason),
        r#"user 1 was merged into user 9, who is in it: "spring sale" (tinyclues) added user 1, who was merged into this one, in version 1"#
    );
    // Its identifiers lead to the survivor.
    let found = check(&it, external_id("u-1"), audience).await;
    assert_eq!(
        (found.subject_state(), found.user_no),
        (State::Live, Some(9))
    );
    let reason = reasons(&found.explanation.unwrap());
    assert_eq!(reason, [("c_1".to_owned(), Reason::MemberByMerge, 1)]);

    // Who was removed before the merge counts as removed.
    it.merge(3, 10).await;
    let found = check(&it, User::UserNo(10), audience).await;
    let reason = reasons(&found.explanation.unwrap());
    assert_eq!(reason, [("c_1".to_owned(), Reason::Removed, 2)]);
}

#[tokio::test]
async fn the_directory_decides_about_the_deleted_the_unknown_and_devices_of_identified_users() {
    let it = with_cohorts().await;
    it.erase(1).await;
    it.identifier(5, "3d-77").await;
    it.anonymous_user(20, "d-78").await;
    let everyone = r#"not tinyclues:"churned""#;
    let deleted = check(&it, User::UserNo(1), everyone).await;
    assert_eq!(
        (deleted.member, deleted.subject_state()),
        (false, State::Deleted)
    );
    assert_eq!(deleted.deciding_path, "");
    assert_eq!(
        deleted.reason,
        "user 1 was deleted, and an audience holds live users only"
    );

    let device_of = check(&it, device("d-77"), everyone).await;
    assert_eq!(
        (
            device_of.member,
            device_of.subject_state(),
            device_of.user_no
        ),
        (false, State::DeviceOfIdentifiedUser, Some(5))
    );
    assert_eq!(
        device_of.reason,
        r#""d-77" is a device of an identified user, and devices match anonymous users only"#
    );
    assert!(device_of.explanation.unwrap().matched);
    let own = check(&it, device("d-78"), everyone).await;
    assert_eq!((own.member, own.user_no), (true, Some(20)));

    let nobody = check(&it, external_id("u-99"), everyone).await;
    assert_eq!((nobody.member, nobody.user_no), (false, None));
    assert_eq!(nobody.subject_state(), State::Unknown);
    assert_eq!(nobody.reason, r#"nobody has external_id "u-99""#);
    let nobody = check(&it, User::UserNo(21), everyone).await;
    assert_eq!(
        (nobody.subject_state(), nobody.user_no),
        (State::Unknown, None)
    );
    assert_eq!(nobody.reason, "there is no user 21");
}

#[tokio::test]
async fn an_identifier_that_was_uploaded_but_matched_nobody_is_found_again() {
    let it = Deployment::start().await;
    it.users(3).await;
    let cohort = it.cohort("c_1", "spring sale", [0]).await;
    it.import_rejecting("i-1", cohort, IdentifierRef::external_id("u-99"))
        .await;
    it.import_rejecting("i-2", cohort, IdentifierRef::external_id("u-99"))
        .await;
    it.import_rejecting("i-3", cohort, IdentifierRef::external_id("u-98"))
        .await;
    let audience = r#"tinyclues:"spring sale""#;
    let found = check(&it, external_id("u-99"), audience).await;
    assert_eq!(
        found.reason,
        r#"nobody has external_id "u-99"; it was uploaded to "spring sale" (tinyclues) (import "i-2", position 17) but matched nobody then"#
    );
    let cohort = &found.explanation.unwrap().cohorts[0];
    assert_eq!(cohort.reason(), Reason::Rejected);
    assert_eq!(
        (cohort.import_id.as_str(), cohort.position),
        ("i-2", Some(17))
    );

    // The user came later than the upload.
    it.sql(
        "UPDATE user_identifier SET key = identifier_key('1u-99')
         WHERE key = identifier_key('1u-1')",
    )
    .await;
    let found = check(&it, external_id("u-99"), audience).await;
    assert_eq!((found.member, found.subject_state()), (false, State::Live));
    assert_eq!(found.deciding_path, "cohort");
    assert!(
        found.reason.starts_with("not in it: it was uploaded to"),
        "{}",
        found.reason
    );
    let never = check(&it, User::UserNo(1), audience).await;
    let never = reasons(&never.explanation.unwrap());
    assert_eq!(never, [("c_1".to_owned(), Reason::NeverUploaded, 0)]);
}

#[tokio::test]
async fn a_check_looks_back_over_all_whom_the_user_was_but_not_for_ever() {
    let it = Deployment::start().await;
    // Two parts of the bitmap, each with a user who was merged into 1.
    let far = 9_000_000;
    it.users(20).await;
    it.anonymous_user(far, "d-far").await;
    let cohort = it.cohort("c", "c", [2, far]).await;
    it.merge(far, 1).await;
    it.merge(2, 1).await;
    let audience = r#"tinyclues:"c""#;
    it.import(cohort, [], [1]).await;
    for user in 3..15 {
        it.import(cohort, [user], []).await;
    }
    let found = check(&it, User::UserNo(1), audience).await;
    let reasons_of = |it: pb::CheckMembershipResponse| reasons(&it.explanation.unwrap());
    assert_eq!(reasons_of(found), [("c".to_owned(), Reason::Removed, 2)]);

    // 2,100 versions later.
    it.sql(&format!(
        "INSERT INTO cohort_version (workspace_id, cohort_id, version, import_id, published_at,
                                     member_count, added_count, removed_count)
         SELECT workspace_id, cohort_id, version + n, 'i-' || n, published_at, 0, 0, 0
         FROM cohort_version, generate_series(1, 2100) n
         WHERE workspace_id = $ws AND cohort_id = '{cohort}' AND version = 14;
         INSERT INTO cohort_delta (workspace_id, cohort_id, version, part, added, removed)
         SELECT workspace_id, cohort_id, version + n, part, added, removed
         FROM cohort_delta, generate_series(1, 2100) n
         WHERE workspace_id = $ws AND cohort_id = '{cohort}' AND version = 14;
         UPDATE cohort SET version = 2114 WHERE workspace_id = $ws AND cohort_id = '{cohort}'"
    ))
    .await;
    let found = check(&it, User::UserNo(1), audience).await;
    let expected = r#"not in it: "c" (tinyclues) does not have the user, and has not had lately"#;
    assert_eq!(found.reason, expected);
    assert_eq!(
        reasons_of(found),
        [("c".to_owned(), Reason::NeverUploaded, 0)]
    );
}

#[tokio::test]
async fn a_check_needs_a_user_and_an_audience() {
    let it = with_cohorts().await;
    let refused = it
        .client()
        .check_membership(pb::CheckMembershipRequest::default())
        .await;
    let refused = refusal(&refused.unwrap_err());
    assert_eq!(
        (refused.0, refused.2.as_str()),
        (Code::InvalidArgument, "user")
    );
    let request = pb::CheckMembershipRequest {
        user: Some(external_id("")),
        audience: Some(Audience::Filter(text(LOYAL))),
        ..Default::default()
    };
    let refused = refusal(&it.client().check_membership(request).await.unwrap_err());
    assert_eq!(refused.2, "identifier.external_id");
}
