//! Giving anonymous users an external id.

use muster_domain::error::Result;
use muster_storage::{
    Tx, WorkspaceId,
    directory::{self, Identification, Identified},
};

use crate::outcome::{Answer, Done, Entries, Outcome};

/// Identifies users, in order.
pub(crate) async fn identify(
    tx: &mut Tx,
    workspace: WorkspaceId,
    entries: Entries<Identification<'_>>,
) -> Result<Answer> {
    let changed = directory::identify(tx, workspace, &entries.well_formed).await?;
    Ok(entries.answer(changed, |_, identified| describe(identified)))
}

fn describe(identified: Identified) -> Outcome {
    match identified {
        Identified::Identified(user) => Outcome::Done(Done::Identified, user),
        Identified::Unchanged(user) => Outcome::Done(Done::Unchanged, user),
        Identified::OtherExternalId => {
            Outcome::conflict("external_id", "the user has another one already")
        }
        Identified::ExternalIdTaken => Outcome::conflict(
            "external_id",
            "belongs to another user; use MergeUsers if they are one person",
        ),
        Identified::NotFound => Outcome::not_found("user"),
    }
}
