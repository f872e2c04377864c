//! The user directory: reading it, matching against it, following its changes.
//!
//! Changes take the row lock of [`lock`], bump the epoch and stamp what they touch, so changes are
//! totally ordered and a reader can follow them by epoch without gaps.

mod follow;
mod matching;

pub use follow::{Directory, DirectoryCache};
pub use matching::{Match, identified_since, match_identifiers};

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

/// Keeps the directory from changing until the transaction ends; returns its epoch.
///
/// # Errors
/// If the database fails.
pub async fn hold(conn: &mut PgConnection, workspace: WorkspaceId) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        "SELECT epoch FROM directory WHERE workspace_id = $1 FOR SHARE",
        workspace.0,
    )
    .fetch_one(conn)
    .await?)
}
