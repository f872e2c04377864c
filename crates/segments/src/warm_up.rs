//! What a first caller would wait for, done before there is one.

use muster_domain::{
    credential::Digest,
    error::Result,
    filter::{CohortRef, Filter},
};
use muster_storage::{Role, Store, WorkspaceId, credentials, workspaces};
use uuid::Uuid;

use crate::references;

/// Asks the database what a count asks it, of a workspace and a cohort that there are not: so
/// connections are made, and the catalog is read and the statements are planned on them.
///
/// Only speed depends on it.
///
/// # Errors
/// If the database fails.
pub async fn warm_up(store: &Store) -> Result<()> {
    // Two, as one workspace may have half of the connections.
    const NOWHERE: [WorkspaceId; 2] = [WorkspaceId(0), WorkspaceId(-1)];
    let mut access = store.credential_connection().await?;
    credentials::find_by_digest(&mut access, &Digest::from([0; 32]), None).await?;
    let store = store.acting_as(Role::Segments);
    let filter = Filter::Cohort {
        partner: "nobody".to_owned(),
        cohorts: vec![CohortRef::Id("nothing".to_owned())],
        includes: true,
    };
    // A call takes a connection twice, and the first may not be back by the second time.
    let mut snapshots = Vec::new();
    for nowhere in NOWHERE {
        snapshots.push((nowhere, store.directory_snapshot("warm_up", nowhere).await?));
    }
    for (nowhere, (mut tx, directory)) in snapshots {
        workspaces::find(&mut tx, "").await?;
        // Both find nothing, and say so.
        let _ = references::resolve(&mut tx, nowhere, &filter).await;
        let members = store.members(&mut tx, nowhere, &directory, Uuid::nil(), 1);
        let _ = members.await;
        tx.commit().await?;
    }
    Ok(())
}
