//! Segments: saved filters, and which cohorts and segments they use.
//!
//! Changes of the segments of a workspace are made one after the other, under [`lock`]: only so can
//! a change be checked against all others, such as that no two of them close a circle together.

use muster_domain::{
    error::{Error, Kind},
    filter::SavedFilter,
};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use crate::{OnConstraint, Result, Timestamp, WorkspaceId};

/// A saved filter over cohorts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// UUIDv7.
    pub id: Uuid,
    /// Unique among the segments of the workspace that are not archived.
    pub name: String,
    /// The filter, with internal ids.
    pub filter: SavedFilter,
    /// Counts changes: the etag.
    pub revision: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When name or filter last changed.
    pub updated_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

struct Row {
    segment_id: Uuid,
    name: String,
    filter: Json<SavedFilter>,
    revision: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
    archived_at: Option<Timestamp>,
}

impl From<Row> for Segment {
    fn from(row: Row) -> Self {
        Self {
            id: row.segment_id,
            name: row.name,
            filter: row.filter.0,
            revision: row.revision,
            created_at: row.created_at,
            updated_at: row.updated_at,
            archived_at: row.archived_at,
        }
    }
}

/// Keeps every other change of the workspace's segments waiting until the transaction ends.
///
/// # Errors
/// `ABORTED` if another transaction holds them for longer than the lock timeout.
pub async fn lock(conn: &mut PgConnection, workspace: WorkspaceId) -> Result<()> {
    // The row of the workspace, since nothing else waits for it: the row of its directory is held
    // for long by changes of users.
    sqlx::query!(
        "SELECT FROM workspace WHERE workspace_id = $1 FOR NO KEY UPDATE",
        workspace.0,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Saves a new segment; the caller has called [`lock`].
///
/// # Errors
/// `ALREADY_EXISTS` (`SEGMENT_EXISTS`) if the name is taken.
pub async fn insert(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    name: &str,
    filter: &SavedFilter,
) -> Result<Segment> {
    let row = sqlx::query_as!(
        Row,
        r#"INSERT INTO segment (workspace_id, segment_id, name, filter) VALUES ($1, $2, $3, $4)
           RETURNING segment_id, name, filter AS "filter: Json<SavedFilter>", revision, created_at,
                     updated_at, archived_at"#,
        workspace.0,
        Uuid::now_v7(),
        name,
        Json(filter) as _,
    )
    .fetch_one(&mut *conn)
    .await
    .on_constraint("segment_name_unique", || name_taken(name))?;
    write_uses(conn, workspace, row.segment_id, filter).await?;
    Ok(row.into())
}

/// Changes name and filter of a segment; the caller has called [`lock`].
///
/// # Errors
/// `ALREADY_EXISTS` (`SEGMENT_EXISTS`) if the name is taken.
pub async fn update(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
    name: &str,
    filter: &SavedFilter,
) -> Result<Segment> {
    let row = sqlx::query_as!(
        Row,
        r#"UPDATE segment SET name = $3, filter = $4, revision = revision + 1, updated_at = now()
           WHERE workspace_id = $1 AND segment_id = $2
           RETURNING segment_id, name, filter AS "filter: Json<SavedFilter>", revision, created_at,
                     updated_at, archived_at"#,
        workspace.0,
        id,
        name,
        Json(filter) as _,
    )
    .fetch_one(&mut *conn)
    .await
    .on_constraint("segment_name_unique", || name_taken(name))?;
    sqlx::query!(
        "DELETE FROM segment_cohort WHERE workspace_id = $1 AND segment_id = $2",
        workspace.0,
        id,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "DELETE FROM segment_segment WHERE workspace_id = $1 AND segment_id = $2",
        workspace.0,
        id,
    )
    .execute(&mut *conn)
    .await?;
    write_uses(conn, workspace, id, filter).await?;
    Ok(row.into())
}

/// Archives a segment; the caller has called [`lock`].
///
/// # Errors
/// If the database fails.
pub async fn archive(conn: &mut PgConnection, workspace: WorkspaceId, id: Uuid) -> Result<Segment> {
    let row = sqlx::query_as!(
        Row,
        r#"UPDATE segment SET archived_at = now(), revision = revision + 1
           WHERE workspace_id = $1 AND segment_id = $2
           RETURNING segment_id, name, filter AS "filter: Json<SavedFilter>", revision, created_at,
                     updated_at, archived_at"#,
        workspace.0,
        id,
    )
    .fetch_one(conn)
    .await?;
    Ok(row.into())
}

fn name_taken(name: &str) -> Error {
    Error::new(
        Kind::AlreadyExists,
        "SEGMENT_EXISTS",
        format!("a segment named {name:?} exists already"),
    )
}

/// Keeps beside the filter what it uses, so that use can be found.
async fn write_uses(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
    filter: &SavedFilter,
) -> Result<()> {
    let cohorts: Vec<Uuid> = filter.cohort_refs().map(|(_, cohort)| *cohort).collect();
    sqlx::query!(
        "INSERT INTO segment_cohort (workspace_id, segment_id, cohort_id)
         SELECT DISTINCT $1::bigint, $2::uuid, cohort_id FROM unnest($3::uuid[]) AS used (cohort_id)",
        workspace.0,
        id,
        &cohorts,
    )
    .execute(&mut *conn)
    .await?;
    let segments: Vec<Uuid> = filter.segment_refs().copied().collect();
    sqlx::query!(
        "INSERT INTO segment_segment (workspace_id, segment_id, used_segment_id)
         SELECT DISTINCT $1::bigint, $2::uuid, segment_id FROM unnest($3::uuid[]) AS used (segment_id)",
        workspace.0,
        id,
        &segments,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Finds a segment by id, archived or not.
///
/// # Errors
/// If the database fails.
pub async fn find(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
) -> Result<Option<Segment>> {
    let row = sqlx::query_as!(
        Row,
        r#"SELECT segment_id, name, filter AS "filter: Json<SavedFilter>", revision, created_at,
                  updated_at, archived_at
           FROM segment WHERE workspace_id = $1 AND segment_id = $2"#,
        workspace.0,
        id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(Into::into))
}

/// Finds the segment, not archived, with a name.
///
/// # Errors
/// If the database fails.
pub async fn find_named(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    name: &str,
) -> Result<Option<Segment>> {
    let row = sqlx::query_as!(
        Row,
        r#"SELECT segment_id, name, filter AS "filter: Json<SavedFilter>", revision, created_at,
                  updated_at, archived_at
           FROM segment WHERE workspace_id = $1 AND name = $2 AND archived_at IS NULL"#,
        workspace.0,
        name,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(Into::into))
}

/// Which segments to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    /// Only those whose name contains this text literally, whatever the case.
    pub name_contains: &'a str,
    /// Only those that name this cohort themselves.
    pub cohort: Option<Uuid>,
    /// Archived ones, too.
    pub include_archived: bool,
}

/// A page of segments, by name and id, after one of them.
///
/// # Errors
/// If the database fails.
pub async fn list(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    selection: Selection<'_>,
    after: Option<(&str, Uuid)>,
    limit: i64,
) -> Result<Vec<Segment>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT segment_id, name, filter AS "filter: Json<SavedFilter>", revision, created_at,
                  updated_at, archived_at
           FROM segment
           WHERE workspace_id = $1
             AND ($2 OR archived_at IS NULL)
             AND ($3 = '' OR position(lower($3) IN lower(name)) > 0)
             AND ($4::uuid IS NULL OR segment_id IN (
                 SELECT uses.segment_id FROM segment_cohort uses
                 WHERE uses.workspace_id = $1 AND uses.cohort_id = $4
             ))
             AND ($5::text IS NULL OR (name, segment_id) > ($5, $6::uuid))
           ORDER BY name, segment_id LIMIT $7"#,
        workspace.0,
        selection.include_archived,
        selection.name_contains,
        selection.cohort,
        after.map(|(name, _)| name),
        after.map(|(_, id)| id),
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// These segments and all that they use, however far down.
///
/// # Errors
/// If the database fails.
pub async fn with_used(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    ids: &[Uuid],
) -> Result<Vec<Segment>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // UNION drops what was met before, so that even a circle would end.
    let rows = sqlx::query_as!(
        Row,
        r#"WITH RECURSIVE reached AS (
               SELECT id FROM unnest($2::uuid[]) AS root (id)
               UNION
               SELECT uses.used_segment_id FROM reached
               JOIN segment_segment uses ON uses.workspace_id = $1 AND uses.segment_id = reached.id
           )
           SELECT segment_id, name, filter AS "filter: Json<SavedFilter>", revision, created_at,
                  updated_at, archived_at
           FROM segment WHERE workspace_id = $1 AND segment_id IN (SELECT id FROM reached)"#,
        workspace.0,
        ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// The segments, not archived, that use a segment, however far up.
///
/// # Errors
/// If the database fails.
pub async fn dependants(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar!(
        "WITH RECURSIVE reached AS (
             SELECT segment_id FROM segment_segment
             WHERE workspace_id = $1 AND used_segment_id = $2
             UNION
             SELECT uses.segment_id FROM reached
             JOIN segment_segment uses
               ON uses.workspace_id = $1 AND uses.used_segment_id = reached.segment_id
         )
         SELECT segment_id FROM segment
         WHERE workspace_id = $1 AND archived_at IS NULL
           AND segment_id IN (SELECT segment_id FROM reached)
         ORDER BY name",
        workspace.0,
        id,
    )
    .fetch_all(conn)
    .await?)
}

/// The names of the segments, not archived, that use a segment directly.
///
/// # Errors
/// If the database fails.
pub async fn used_by(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar!(
        "SELECT s.name FROM segment_segment uses
         JOIN segment s ON s.workspace_id = uses.workspace_id AND s.segment_id = uses.segment_id
         WHERE uses.workspace_id = $1 AND uses.used_segment_id = $2 AND s.archived_at IS NULL
         ORDER BY s.name",
        workspace.0,
        id,
    )
    .fetch_all(conn)
    .await?)
}
