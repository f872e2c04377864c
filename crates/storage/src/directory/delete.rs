//! Erasing users: the number stays as a tombstone, every identifier goes.

use muster_domain::{identifier::IdentifierRef, user_set::UserSet};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    change::{Changed, lock, look_up, numbers},
    record::{key, read_all},
};
use crate::{Result, WorkspaceId, rejected};

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// The user was erased, by this entry or by an earlier one of the same call that named the same
    /// user.
    Deleted(u32),
    /// No user has the identifier.
    NotFound,
}

/// Erases the users that have these identifiers, all of which are well-formed.
///
/// Users merged into them earlier keep pointing at them, and so are deleted with them.
///
/// # Errors
/// If the database fails.
pub async fn delete(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    users: &[IdentifierRef<'_>],
) -> Result<Changed<Deleted>> {
    let mut directory = lock(conn, workspace).await?;
    let known = look_up(conn, workspace, users.iter().copied()).await?;
    let outcomes = users
        .iter()
        .map(|identifier| match known.owners.get(identifier) {
            Some(&user) => Deleted::Deleted(user),
            None => Deleted::NotFound,
        })
        .collect();
    let gone: UserSet = known.owners.into_values().collect();
    if !gone.is_empty() {
        let epoch = directory.advance(conn, 0).await?;
        erase(conn, workspace, epoch, &numbers(&gone)).await?;
    }
    Ok(directory.changed(outcomes))
}

async fn erase(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    epoch: i64,
    users: &[i64],
) -> Result<()> {
    let rows = sqlx::query!(
        "SELECT external_id, identifiers FROM directory_user
         WHERE workspace_id = $1 AND user_no = ANY ($2)",
        workspace.0,
        users,
    )
    .fetch_all(&mut *conn)
    .await?;
    let erased: Vec<IdentifierRef<'_>> = rows
        .iter()
        .flat_map(|row| read_all(row.external_id.as_deref(), row.identifiers.as_deref()))
        .collect::<Result<_>>()?;
    sqlx::query!(
        "UPDATE directory_user SET state = 3, external_id = NULL, identifiers = NULL, epoch = $3
         WHERE workspace_id = $1 AND user_no = ANY ($2)",
        workspace.0,
        users,
        epoch,
    )
    .execute(&mut *conn)
    .await?;
    let keys: Vec<Uuid> = erased.iter().map(|identifier| key(*identifier)).collect();
    sqlx::query!(
        "DELETE FROM user_identifier WHERE workspace_id = $1 AND key = ANY ($2)",
        workspace.0,
        &keys,
    )
    .execute(&mut *conn)
    .await?;
    rejected::forget(conn, workspace, &erased).await
}
