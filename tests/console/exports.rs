//! What partners send and the company knows, before somebody looks at it.

use std::time::Duration;

use muster_client::upload::{Outcome, Upload};
use muster_domain::{
    identifier::{Identifier, IdentifierKind},
    import::{Effect, Mode},
};
use muster_proto::{keys::v1::CreateWorkspaceRequest, users::v1::UserRecord};
use muster_tests::{Muster, PARTNER, WORKSPACE};
use serde_json::{Value, json};

/// Users that the directory knows, as `user-1` and so on; the last hundred have a device.
pub(crate) const USERS: usize = 600;

/// Writes the users, and makes a workspace where nothing ever happens.
pub(crate) async fn prepare(muster: &Muster) {
    let calm = CreateWorkspaceRequest {
        workspace: "calm".into(),
        ..Default::default()
    };
    let mut integrations = muster.operator.integrations();
    integrations.create_workspace(calm).await.unwrap();
    let users = (1..=USERS).map(|number| UserRecord {
        external_id: user(number),
        device_ids: if number > USERS - 100 {
            vec![format!("device-{number}")]
        } else {
            Vec::new()
        },
        ..Default::default()
    });
    muster.upsert_users(users.collect()).await;
}

/// The external id of a user.
pub(crate) fn user(number: usize) -> String {
    format!("user-{number}")
}

/// The external ids of some users.
pub(crate) fn users(numbers: std::ops::RangeInclusive<usize>) -> Vec<String> {
    numbers.map(user).collect()
}

/// Names a cohort and adds people to it, over REST.
pub(crate) async fn export(muster: &Muster, cohort: &str, name: &str, ids: Value) {
    let rest = muster.rest();
    rest.name(cohort, name).await.succeeded();
    rest.change(cohort, json!([ids])).await.succeeded();
}

/// Replaces the people of a cohort, unless more than a tenth of them would leave.
pub(crate) async fn replace(
    muster: &Muster,
    cohort: &str,
    import: &str,
    ids: Vec<String>,
) -> Outcome {
    let mut upload = Upload::new(WORKSPACE, PARTNER, cohort, Mode::Replace, import);
    upload.max_removed_fraction = Some(0.1);
    let ids = ids.into_iter();
    let ids = ids.map(|id| {
        let id = Identifier {
            kind: IdentifierKind::ExternalId,
            label: String::new(),
            id,
        };
        (Effect::Add, id)
    });
    let sent = upload.run_pipelined(&muster.operator, ids.collect(), Duration::from_secs(30));
    sent.await.unwrap()
}
