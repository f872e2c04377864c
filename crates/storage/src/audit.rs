//! The audit trail, written in the transaction of the change it tells of, and only ever added to.
//!
//! It names credentials and things, never secrets or identifiers of people.

use std::net::IpAddr;

use sqlx::PgConnection;

use crate::{Result, Timestamp, WorkspaceId};

/// Who does something, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct By<'a> {
    /// Who, such as `service_token:0195…`.
    pub actor: &'a str,
    /// The address the call came from; `None` if it came from no network.
    pub peer: Option<IpAddr>,
}

/// Something that was done, or refused.
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
    /// The address the call came from; `None` if it came from no network.
    pub peer: Option<String>,
    /// What was done, such as `data_import_key.revoke`.
    pub action: String,
    /// What it was done to.
    pub resource: String,
    /// The reason why it was not done; `None` if it was.
    pub refusal: Option<String>,
}

/// Appends an event of something that was done.
///
/// # Errors
/// If the database fails.
pub async fn append(
    conn: &mut PgConnection,
    workspace: Option<WorkspaceId>,
    by: By<'_>,
    action: &str,
    resource: &str,
) -> Result<()> {
    append_for(conn, workspace, &[by], action, resource).await
}

/// Appends an event of the same done by each of some callers, in order.
///
/// # Errors
/// If the database fails.
pub async fn append_for(
    conn: &mut PgConnection,
    workspace: Option<WorkspaceId>,
    by: &[By<'_>],
    action: &str,
    resource: &str,
) -> Result<()> {
    write(conn, workspace, by, action, resource, None).await
}

/// Appends an event of something that was refused, with the reason. Outside the transaction of what
/// was refused, which is rolled back.
///
/// # Errors
/// If the database fails.
pub async fn append_refusal(
    conn: &mut PgConnection,
    workspace: Option<WorkspaceId>,
    by: By<'_>,
    action: &str,
    resource: &str,
    reason: &str,
) -> Result<()> {
    write(conn, workspace, &[by], action, resource, Some(reason)).await
}

async fn write(
    conn: &mut PgConnection,
    workspace: Option<WorkspaceId>,
    by: &[By<'_>],
    action: &str,
    resource: &str,
    refusal: Option<&str>,
) -> Result<()> {
    let actors: Vec<&str> = by.iter().map(|by| by.actor).collect();
    let peers = by.iter().map(|by| by.peer.map(|peer| peer.to_string()));
    let peers: Vec<Option<String>> = peers.collect();
    sqlx::query!(
        "INSERT INTO audit_event (workspace_id, actor, peer, action, resource, refusal)
         SELECT $1, actor, peer, $4, $5, $6
         FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS by (actor, peer, nth)
         ORDER BY nth",
        workspace.map(|id| id.0),
        &actors as &[&str],
        &peers as &[Option<String>],
        action,
        resource,
        refusal,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The events to list; what is not said is not asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    /// Only of this workspace.
    pub workspace: Option<WorkspaceId>,
    /// Only at or after this moment.
    pub start: Option<Timestamp>,
    /// Only before this moment.
    pub end: Option<Timestamp>,
    /// Only actions that begin so.
    pub action_prefix: &'a str,
    /// Only by this actor.
    pub actor: &'a str,
    /// Only done to this.
    pub resource: &'a str,
}

/// A page of events, newest first, before an event.
///
/// # Errors
/// If the database fails.
pub async fn list(
    conn: &mut PgConnection,
    filter: Filter<'_>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Event>> {
    Ok(sqlx::query_as!(
        Event,
        r#"SELECT event_id, workspace.slug AS "workspace?", occurred_at, actor, peer, action, resource,
                  refusal
           FROM audit_event LEFT JOIN workspace USING (workspace_id)
           WHERE ($1::bigint IS NULL OR audit_event.workspace_id = $1)
             AND ($2::timestamptz IS NULL OR occurred_at >= $2)
             AND ($3::timestamptz IS NULL OR occurred_at < $3)
             AND ($4::bigint IS NULL OR event_id < $4)
             AND starts_with(action, $5)
             AND ($6 = '' OR actor = $6)
             AND ($7 = '' OR resource = $7)
           ORDER BY event_id DESC LIMIT $8"#,
        filter.workspace.map(|id| id.0),
        filter.start,
        filter.end,
        before,
        filter.action_prefix,
        filter.actor,
        filter.resource,
        limit,
    )
    .fetch_all(conn)
    .await?)
}
