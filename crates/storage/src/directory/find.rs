//! Finding one user.

use muster_domain::{
    identifier::{IdentifierKind, IdentifierRef},
    user_set::Standing,
};
use sqlx::PgConnection;

use super::{
    follow::user_no,
    record::{key, read},
};
use crate::{Result, Timestamp, WorkspaceId};

/// A person or device known to a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub user_no: u32,
    /// What it stands for now, after any number of merges.
    pub standing: Standing,
    /// The external id that audiences print; `None` for an anonymous user.
    pub external_id: Option<String>,
    /// Further external ids that lead here, sorted.
    pub merged_external_ids: Vec<String>,
    /// Label and name, sorted.
    pub aliases: Vec<(String, String)>,
    /// Sorted.
    pub device_ids: Vec<String>,
    /// When it was first written.
    pub created_at: Timestamp,
}

/// The user that has an identifier, whether or not it would match in an import.
///
/// # Errors
/// If the database fails.
pub async fn owner(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    identifier: IdentifierRef<'_>,
) -> Result<Option<u32>> {
    let owner = sqlx::query_scalar!(
        "SELECT user_no FROM user_identifier
         WHERE workspace_id = $1 AND key = $2",
        workspace.0,
        key(identifier),
    )
    .fetch_optional(conn)
    .await?;
    Ok(owner.map(user_no))
}

/// Finds a user by number, also one that was merged or deleted.
///
/// # Errors
/// If the database fails.
pub async fn find(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    user: u32,
) -> Result<Option<User>> {
    let row = sqlx::query!(
        r#"WITH RECURSIVE chain (user_no, state, merged_into) AS (
               SELECT user_no, state, merged_into FROM directory_user
               WHERE workspace_id = $1 AND user_no = $2
               UNION ALL
               SELECT u.user_no, u.state, u.merged_into
               FROM chain JOIN directory_user u
                 ON u.workspace_id = $1 AND u.user_no = chain.merged_into
           )
           SELECT u.external_id, u.identifiers, u.created_at, last.user_no AS "last_no!", last.state AS "state!"
           FROM directory_user u, chain last
           WHERE u.workspace_id = $1 AND u.user_no = $2 AND last.merged_into IS NULL"#,
        workspace.0,
        i64::from(user),
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let last = user_no(row.last_no);
    let mut found = User {
        user_no: user,
        standing: match row.state {
            1 if last == user => Standing::Live,
            1 => Standing::Merged(last),
            _ => Standing::Deleted,
        },
        external_id: row.external_id,
        merged_external_ids: Vec::new(),
        aliases: Vec::new(),
        device_ids: Vec::new(),
        created_at: row.created_at,
    };
    let lines = row.identifiers.unwrap_or_default();
    let mut identifiers = read(&lines).collect::<Result<Vec<_>>>()?;
    identifiers.sort_unstable();
    for IdentifierRef { kind, label, id } in identifiers {
        let id = id.to_owned();
        match kind {
            IdentifierKind::ExternalId => found.merged_external_ids.push(id),
            IdentifierKind::Alias => found.aliases.push((label.to_owned(), id)),
            IdentifierKind::DeviceId => found.device_ids.push(id),
        }
    }
    Ok(Some(found))
}
