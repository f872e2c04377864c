//! Merging users.

use muster_domain::error::Result;
use muster_storage::{
    Tx, WorkspaceId,
    directory::{self, Merge, Merged},
};

use crate::outcome::{Answer, Done, Entries, Outcome};

/// Merges users, in order.
pub(crate) async fn merge(
    tx: &mut Tx,
    workspace: WorkspaceId,
    entries: Entries<Merge<'_>>,
) -> Result<Answer> {
    let changed = directory::merge(tx, workspace, &entries.well_formed).await?;
    Ok(entries.answer(changed, |_, merged| describe(merged)))
}

fn describe(merged: Merged) -> Outcome {
    match merged {
        Merged::Merged(survivor) => Outcome::Done(Done::Merged, survivor),
        Merged::Unchanged(user) => Outcome::Done(Done::Unchanged, user),
        Merged::FromNotFound => Outcome::not_found("from"),
        Merged::IntoNotFound => Outcome::not_found("into"),
    }
}
