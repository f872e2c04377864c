//! Partners, and which workspaces have enabled them.

use muster_domain::error::{Error, Kind};
use sqlx::PgConnection;

use crate::{OnConstraint, Result, Timestamp, WorkspaceId};

/// An audience-building tool that pushes cohorts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partner {
    /// Slug; stands in the REST path.
    pub partner: String,
    /// What people call it.
    pub display_name: String,
    /// When it was registered.
    pub created_at: Timestamp,
}

/// Registers a partner.
///
/// # Errors
/// `ALREADY_EXISTS` if the slug is taken.
pub async fn insert(conn: &mut PgConnection, partner: &str, display_name: &str) -> Result<Partner> {
    sqlx::query_as!(
        Partner,
        "INSERT INTO partner (partner, display_name) VALUES ($1, $2)
         RETURNING partner, display_name, created_at",
        partner,
        display_name,
    )
    .fetch_one(conn)
    .await
    .on_constraint("partner_pkey", || {
        Error::new(
            Kind::AlreadyExists,
            "PARTNER_EXISTS",
            format!("partner {partner:?} exists already"),
        )
    })
}

/// Finds a partner by slug.
///
/// # Errors
/// If the database fails.
pub async fn find(conn: &mut PgConnection, partner: &str) -> Result<Option<Partner>> {
    Ok(sqlx::query_as!(
        Partner,
        "SELECT partner, display_name, created_at FROM partner WHERE partner = $1",
        partner,
    )
    .fetch_optional(conn)
    .await?)
}

/// A page of partners, by slug after `after`.
///
/// # Errors
/// If the database fails.
pub async fn list(conn: &mut PgConnection, after: &str, limit: i64) -> Result<Vec<Partner>> {
    Ok(sqlx::query_as!(
        Partner,
        "SELECT partner, display_name, created_at FROM partner
         WHERE partner > $1 ORDER BY partner LIMIT $2",
        after,
        limit,
    )
    .fetch_all(conn)
    .await?)
}

/// Enables a partner, which must exist, for a workspace. Returns whether that changed anything.
///
/// # Errors
/// If the database fails.
pub async fn enable(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    partner: &str,
) -> Result<bool> {
    let done = sqlx::query!(
        "INSERT INTO workspace_partner (workspace_id, partner) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        workspace.0,
        partner,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Disables a partner for a workspace. Returns whether that changed anything.
///
/// # Errors
/// If the database fails.
pub async fn disable(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    partner: &str,
) -> Result<bool> {
    let done = sqlx::query!(
        "DELETE FROM workspace_partner WHERE workspace_id = $1 AND partner = $2",
        workspace.0,
        partner,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Whether a workspace has enabled a partner.
///
/// # Errors
/// If the database fails.
pub async fn is_enabled(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    partner: &str,
) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM workspace_partner WHERE workspace_id = $1 AND partner = $2
           ) AS "enabled!""#,
        workspace.0,
        partner,
    )
    .fetch_one(conn)
    .await?)
}
