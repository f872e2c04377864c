//! Who may do what, where.

use muster_proto::users::v1::{self as pb, UserOutcome};
use muster_storage::Role;
use tonic::Code;

use crate::harness::{Muster, outcomes, records, refused_as};

fn upsert(workspace: &str) -> pb::UpsertUsersRequest {
    pb::UpsertUsersRequest {
        workspace: workspace.to_owned(),
        users: records(&["ext=ann"]),
        ..Default::default()
    }
}

#[tokio::test]
async fn who_may_read_may_not_write() {
    let muster = Muster::start().await;
    let (_, mut reader) = muster.token(None, "users:read").await;
    let refused = reader.upsert_users(upsert("shop")).await.unwrap_err();
    refused_as(&refused, Code::PermissionDenied, "SCOPE_MISSING", "");
    muster.upsert(records(&["ext=ann"])).await;
    let request = pb::FindUserRequest {
        workspace: "shop".to_owned(),
        user: Some(pb::find_user_request::User::UserNo(0)),
    };
    reader.find_user(request).await.unwrap();
}

#[tokio::test]
async fn a_token_of_one_workspace_sees_no_other() {
    let muster = Muster::start().await;
    let other = muster.workspace("other").await;
    let (_, mut bound) = muster.token(Some(other), "users:write").await;
    let refused = bound.upsert_users(upsert("shop")).await.unwrap_err();
    refused_as(&refused, Code::NotFound, "NOT_FOUND", "");
    let missing = muster.users.clone().upsert_users(upsert("nowhere")).await;
    refused_as(&missing.unwrap_err(), Code::NotFound, "NOT_FOUND", "");
    for own in ["", "other"] {
        bound.upsert_users(upsert(own)).await.unwrap();
    }
    assert_eq!(
        outcomes(&muster.upsert(records(&["ext=ann"])).await),
        [(UserOutcome::Created, Some(0))]
    );
}

#[tokio::test]
async fn work_that_holds_every_connection_locks_nobody_out() {
    let muster = Muster::with_connections(1).await;
    let users = muster.store.acting_as(Role::Users);
    let _busy = users.connection().await.unwrap();
    // What needs no other connection than that of its credential is told at once.
    let empty = pb::UpsertUsersRequest::default();
    let refused = muster.users.clone().upsert_users(empty).await;
    refused_as(
        &refused.unwrap_err(),
        Code::InvalidArgument,
        "INVALID_FIELD",
        "users",
    );
}
