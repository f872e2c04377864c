//! The audit trail, written in the transaction of the change it tells of.

use sqlx::PgConnection;

use crate::{Result, Timestamp, WorkspaceId};

/// One change of a credential or an integration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Position in the trail.
    pub event_id: i64,
    /// Slug of the workspace concerned; `None` for the whole deployment.
    pub workspace: Option<String>,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// Who did it, such as `service_token:0195…`.
    pub actor: String,
    /// What was done, such as `data_import_key.revoke`.
    pub action: String,
    /// What it was done to.
    pub resource: String,
}

/// Appends an event.
///
/// # Errors
/// If the database fails.
pub async fn append(
    conn: &mut PgConnection,
    workspace: Option<WorkspaceId>,
    actor: &str,
    action: &str,
    resource: &str,
) -> Result<()> {
    sqlx::query!(
        "INSERT INTO audit_event (workspace_id, actor, action, resource) VALUES ($1, $2, $3, $4)",
        workspace.map(|id| id.0),
        actor,
        action,
        resource,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A page of events, newest first: of one workspace or of all, within a time, before an event.
///
/// # Errors
/// If the database fails.
pub async fn list(
    conn: &mut PgConnection,
    workspace: Option<WorkspaceId>,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Event>> {
    Ok(sqlx::query_as!(
        Event,
        r#"SELECT event_id, workspace.slug AS "workspace?", occurred_at, actor, action, resource
           FROM audit_event LEFT JOIN workspace USING (workspace_id)
           WHERE ($1::bigint IS NULL OR audit_event.workspace_id = $1)
             AND ($2::timestamptz IS NULL OR occurred_at >= $2)
             AND ($3::timestamptz IS NULL OR occurred_at < $3)
             AND ($4::bigint IS NULL OR event_id < $4)
           ORDER BY event_id DESC LIMIT $5"#,
        workspace.map(|id| id.0),
        start,
        end,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?)
}
