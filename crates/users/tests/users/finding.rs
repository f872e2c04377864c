//! Finding users.

use muster_proto::users::v1::{self as pb, Alias, UserState};
use tonic::Code;

use crate::harness::{Muster, alias, device, external_id, records, refused_as};

#[tokio::test]
async fn a_user_is_shown_with_everything_known() {
    let muster = Muster::start().await;
    muster
        .upsert(records(&["dev=x", "ext=ann b=2 a=3 a=1 dev=d2 dev=d1"]))
        .await;
    let found = muster.find(alias("a", "3")).await.unwrap();
    assert!(found.matched_by_imports);
    let user = found.user.unwrap();
    assert_eq!(user.user_no, 1);
    assert_eq!(user.external_id, "ann");
    assert_eq!(user.device_ids, ["d1", "d2"]);
    let aliases = [("a", "1"), ("a", "3"), ("b", "2")].map(|(label, name)| Alias {
        label: label.to_owned(),
        name: name.to_owned(),
    });
    assert_eq!(user.aliases, aliases);
    assert_eq!(user.state(), UserState::Live);
    assert!(user.create_time.is_some() && user.merged_into_user_no.is_none());
    let by_number = muster.find(1).await.unwrap();
    assert_eq!(by_number.user.unwrap(), user);
    assert!(!by_number.matched_by_imports);
}

#[tokio::test]
async fn a_device_matches_in_imports_only_while_its_user_is_anonymous() {
    let muster = Muster::start().await;
    muster
        .upsert(records(&["dev=anonymous", "ext=ann dev=identified"]))
        .await;
    for (name, matched) in [("anonymous", true), ("identified", false)] {
        let found = muster.find(device(name)).await.unwrap();
        assert_eq!(found.matched_by_imports, matched, "{name}");
    }
}

#[tokio::test]
async fn whoever_is_not_there_is_not_found_and_not_repeated() {
    let muster = Muster::start().await;
    muster.upsert(records(&["ext=ann"])).await;
    for refused in [
        muster.find(external_id("Ann")).await,
        muster.find(device("ann")).await,
        muster.find(1).await,
    ] {
        let refused = refused.unwrap_err();
        refused_as(&refused, Code::NotFound, "NOT_FOUND", "");
        assert!(!refused.message().to_lowercase().contains("ann"));
    }
}

#[tokio::test]
async fn a_malformed_name_is_refused_with_its_path() {
    let muster = Muster::start().await;
    let nobody = pb::FindUserRequest {
        workspace: "shop".to_owned(),
        user: None,
    };
    let nobody = muster.users.clone().find_user(nobody).await;
    for (refused, field) in [
        (nobody.map(|found| found.into_inner()), "user"),
        (muster.find(alias("", "x")).await, "identifier.alias.label"),
        (
            muster.find(pb::Identifier { kind: None }).await,
            "identifier",
        ),
    ] {
        let refused = refused.unwrap_err();
        refused_as(&refused, Code::InvalidArgument, "INVALID_FIELD", field);
    }
}
