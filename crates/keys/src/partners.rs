//! Partners: who pushes cohorts, and into which workspaces they may.

use muster_domain::{
    error::{Error, Result},
    name,
};
use muster_service::Page;
use muster_storage::{
    Connection, Tx, WorkspaceId,
    audit::{self, By},
    partners::{self, Partner},
};

/// Registers a partner with the deployment.
///
/// # Errors
/// `ALREADY_EXISTS`.
pub(crate) async fn create(
    tx: &mut Tx,
    by: By<'_>,
    slug: &str,
    display_name: &str,
) -> Result<Partner> {
    let partner = partners::insert(tx, slug, display_name).await?;
    audit::append(tx, None, by, "partner.create", &resource(slug)).await?;
    Ok(partner)
}

/// The partner with a slug.
///
/// # Errors
/// `NOT_FOUND`, also for what is no slug.
pub(crate) async fn find(conn: &mut Connection, slug: &str) -> Result<Partner> {
    // Postgres would refuse some of what is no slug, such as a NUL, as a broken query.
    let found = match name::check_slug(slug) {
        Ok(()) => partners::find(conn, slug).await?,
        Err(_) => None,
    };
    found.ok_or_else(|| Error::not_found("partner", slug))
}

/// A page of the partners of the deployment, by slug.
///
/// # Errors
/// If the database fails.
pub(crate) async fn list(
    conn: &mut Connection,
    page: &Page<String>,
) -> Result<(Vec<Partner>, String)> {
    let after = page.after.as_deref().unwrap_or_default();
    let mut found = partners::list(conn, after, page.limit()).await?;
    let next = page.cut(&mut found, |last| last.partner.clone());
    Ok((found, next))
}

/// Lets a partner push into a workspace, unless it may already.
///
/// # Errors
/// `NOT_FOUND` for the partner.
pub(crate) async fn enable(
    tx: &mut Tx,
    by: By<'_>,
    workspace: WorkspaceId,
    slug: &str,
) -> Result<()> {
    find(tx, slug).await?;
    if partners::enable(tx, workspace, slug).await? {
        let workspace = Some(workspace);
        audit::append(tx, workspace, by, "partner.enable", &resource(slug)).await?;
    }
    Ok(())
}

/// Stops a partner from pushing into a workspace, unless it could not anyway.
///
/// # Errors
/// `NOT_FOUND` for the partner.
pub(crate) async fn disable(
    tx: &mut Tx,
    by: By<'_>,
    workspace: WorkspaceId,
    slug: &str,
) -> Result<()> {
    find(tx, slug).await?;
    if partners::disable(tx, workspace, slug).await? {
        let workspace = Some(workspace);
        audit::append(tx, workspace, by, "partner.disable", &resource(slug)).await?;
    }
    Ok(())
}

fn resource(slug: &str) -> String {
    format!("partner:{slug}")
}
