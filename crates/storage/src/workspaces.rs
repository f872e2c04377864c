//! Workspaces: tenants.

use muster_domain::error::{Error, Kind};
use sqlx::PgConnection;

use crate::{OnConstraint, Result, Timestamp};

/// Internal id of a workspace; leads every key of every table that belongs to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkspaceId(pub i64);

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// Internal id.
    pub id: WorkspaceId,
    /// Name on the wire.
    pub slug: String,
    /// What people call it.
    pub display_name: String,
    /// When it was created.
    pub created_at: Timestamp,
}

struct Row {
    workspace_id: i64,
    slug: String,
    display_name: String,
    created_at: Timestamp,
}

impl From<Row> for Workspace {
    fn from(row: Row) -> Self {
        Self {
            id: WorkspaceId(row.workspace_id),
            slug: row.slug,
            display_name: row.display_name,
            created_at: row.created_at,
        }
    }
}

/// Creates a workspace and its empty directory.
///
/// # Errors
/// `ALREADY_EXISTS` if the slug is taken.
pub async fn insert(conn: &mut PgConnection, slug: &str, display_name: &str) -> Result<Workspace> {
    let row = sqlx::query_as!(
        Row,
        "INSERT INTO workspace (slug, display_name) VALUES ($1, $2)
         RETURNING workspace_id, slug, display_name, created_at",
        slug,
        display_name,
    )
    .fetch_one(&mut *conn)
    .await
    .on_constraint("workspace_slug_unique", || {
        Error::new(
            Kind::AlreadyExists,
            "WORKSPACE_EXISTS",
            format!("workspace {slug:?} exists already"),
        )
    })?;
    sqlx::query!(
        "INSERT INTO directory (workspace_id) VALUES ($1)",
        row.workspace_id
    )
    .execute(conn)
    .await?;
    Ok(row.into())
}

/// Finds a workspace by slug.
///
/// # Errors
/// If the database fails.
pub async fn find(conn: &mut PgConnection, slug: &str) -> Result<Option<Workspace>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT workspace_id, slug, display_name, created_at FROM workspace WHERE slug = $1",
        slug,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(Into::into))
}

/// A page of workspaces, by slug after `after`.
///
/// # Errors
/// If the database fails.
pub async fn list(conn: &mut PgConnection, after: &str, limit: i64) -> Result<Vec<Workspace>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT workspace_id, slug, display_name, created_at FROM workspace
         WHERE slug > $1 ORDER BY slug LIMIT $2",
        after,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}
