//! Erasing users.

use muster_domain::{
    error::Result,
    identifier::{IdentifierKind, IdentifierRef},
};
use muster_storage::{
    Tx, WorkspaceId,
    directory::{self, Deleted},
};

use crate::outcome::{Answer, Done, Entries, Outcome};

/// Erases users.
pub(crate) async fn delete(
    tx: &mut Tx,
    workspace: WorkspaceId,
    users: Entries<IdentifierRef<'_>>,
) -> Result<Answer> {
    let changed = directory::delete(tx, workspace, &users.well_formed).await?;
    Ok(users.answer(changed, describe))
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
