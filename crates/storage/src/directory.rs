//! The user directory: changing it, reading it, matching against it, following its changes.
//!
//! Every change locks the workspace's row of `directory`, bumps the epoch and stamps what it
//! touches, so changes are totally ordered and a reader can follow them by epoch without gaps. A
//! call that turns out to change nothing leaves the epoch as it is.
//!
//! A change costs a fixed number of statements, however many entries it has: `change` locks and
//! looks all their identifiers up, the operation decides in memory, in order, then writes in bulk.

pub mod feed;
pub(crate) mod record;

mod change;
mod delete;
mod find;
mod follow;
mod identify;
mod matching;
mod merge;
mod upsert;

pub use change::Changed;
pub use delete::{Deleted, delete};
pub use find::{User, find, owner};
pub use follow::{Directory, DirectoryCache};
pub use identify::{Identification, Identified, identify};
pub use matching::{Match, identified_since, match_identifiers};
pub use merge::{Merge, Merged, merge};
pub use upsert::{Conflict, Likely, Upserted, UserRecord, upsert};

use sqlx::PgConnection;

use crate::{Result, WorkspaceId};

/// The directory's epoch now, without locking it.
///
/// # Errors
/// If the database fails.
pub async fn epoch(conn: &mut PgConnection, workspace: WorkspaceId) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        "SELECT epoch FROM directory WHERE workspace_id = $1",
        workspace.0,
    )
    .fetch_one(conn)
    .await?)
}
