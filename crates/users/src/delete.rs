//! Erasing users.

use std::collections::BTreeSet;

use muster_domain::{
    error::Result,
    identifier::{IdentifierKind, IdentifierRef},
};
use muster_storage::{
    Tx, WorkspaceId,
    audit::{self, By},
    directory::{self, Deleted},
};

use crate::outcome::{Answer, Done, Entries, Outcome};

/// Erases users, and says in the audit trail how many.
pub(crate) async fn delete(
    tx: &mut Tx,
    by: By<'_>,
    workspace: WorkspaceId,
    users: Entries<IdentifierRef<'_>>,
) -> Result<Answer> {
    let changed = directory::delete(tx, workspace, &users.well_formed).await?;
    let erased: BTreeSet<u32> = changed.outcomes.iter().filter_map(erased).collect();
    if !erased.is_empty() {
        // Numbers lead to nobody any more; identifiers would.
        let resource = format!("users:{}", erased.len());
        audit::append(tx, Some(workspace), by, "users.erase", &resource).await?;
    }
    Ok(users.answer(changed, describe))
}

fn erased(outcome: &Deleted) -> Option<u32> {
    match outcome {
        Deleted::Deleted(user) => Some(*user),
        Deleted::NotFound => None,
    }
}

fn describe(user: &IdentifierRef<'_>, deleted: Deleted) -> Outcome {
    match deleted {
        Deleted::Deleted(user) => Outcome::Done(Done::Deleted, user),
        Deleted::NotFound => Outcome::not_found(match user.kind {
            IdentifierKind::ExternalId => "external_id",
            IdentifierKind::Alias => "alias",
            IdentifierKind::DeviceId => "device_id",
        }),
    }
}
