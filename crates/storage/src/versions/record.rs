//! What each version counted: kept for ever, unlike the users in it.

use std::collections::HashMap;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Timestamp, WorkspaceId};

/// The result of one committed import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Counts up from 1.
    pub version: i64,
    /// When it was published.
    pub published_at: Timestamp,
    /// The import that published it.
    pub import_id: String,
    /// Live members when it was published.
    pub member_count: i64,
    /// Members it added.
    pub added_count: i64,
    /// Members it removed.
    pub removed_count: i64,
    /// Identifiers of its import; `None` if it was published before this was recorded.
    pub received_count: Option<i64>,
    /// How many of them matched a user; `None` as `received_count` is.
    pub matched_count: Option<i64>,
}

/// A page of the versions of a cohort, newest first, before one of them.
///
/// # Errors
/// If the database fails.
pub async fn list(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: Uuid,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Version>> {
    Ok(sqlx::query_as!(
        Version,
        "SELECT version, published_at, import_id, member_count, added_count, removed_count,
                received_count, matched_count
         FROM cohort_version
         WHERE workspace_id = $1 AND cohort_id = $2 AND version < coalesce($3, 9223372036854775807)
         ORDER BY version DESC LIMIT $4",
        workspace.0,
        cohort,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?)
}

/// The last versions, oldest first and at most `count`, of each of these cohorts that has any.
///
/// # Errors
/// If the database fails.
pub async fn recent(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohorts: &[Uuid],
    count: i64,
) -> Result<HashMap<Uuid, Vec<Version>>> {
    let rows = sqlx::query!(
        "SELECT v.cohort_id, v.version, published_at, import_id, v.member_count, added_count,
                removed_count, received_count, matched_count
         FROM cohort c
         JOIN cohort_version v ON v.workspace_id = c.workspace_id AND v.cohort_id = c.cohort_id
          AND v.version > c.version - $3
         WHERE c.workspace_id = $1 AND c.cohort_id = ANY($2)
         ORDER BY v.cohort_id, v.version",
        workspace.0,
        cohorts,
        count,
    )
    .fetch_all(conn)
    .await?;
    let mut recent: HashMap<_, Vec<_>> = HashMap::new();
    for row in rows {
        recent.entry(row.cohort_id).or_default().push(Version {
            version: row.version,
            published_at: row.published_at,
            import_id: row.import_id,
            member_count: row.member_count,
            added_count: row.added_count,
            removed_count: row.removed_count,
            received_count: row.received_count,
            matched_count: row.matched_count,
        });
    }
    Ok(recent)
}
