//! Workspaces: the tenants of the deployment.

use muster_domain::error::Result;
use muster_service::{Caller, Page};
use muster_storage::{
    Connection, Tx,
    audit::{self, By},
    workspaces::{self, Workspace},
};

/// Creates a workspace.
///
/// # Errors
/// `ALREADY_EXISTS`.
pub(crate) async fn create(
    tx: &mut Tx,
    by: By<'_>,
    slug: &str,
    display_name: &str,
) -> Result<Workspace> {
    let workspace = workspaces::insert(tx, slug, display_name).await?;
    let resource = format!("workspace:{slug}");
    audit::append(tx, Some(workspace.id), by, "workspace.create", &resource).await?;
    Ok(workspace)
}

/// A page of the workspaces that the caller may see, by slug.
///
/// # Errors
/// If the database fails.
pub(crate) async fn list(
    conn: &mut Connection,
    caller: &Caller,
    page: &Page<String>,
) -> Result<(Vec<Workspace>, String)> {
    let after = page.after.as_deref().unwrap_or_default();
    if let Some((_, own)) = &caller.bound_to {
        let own = workspaces::find(conn, own).await?;
        let rest = own.into_iter().filter(|own| own.slug.as_str() > after);
        return Ok((rest.collect(), String::new()));
    }
    let mut found = workspaces::list(conn, after, page.limit()).await?;
    let next = page.cut(&mut found, |last| last.slug.clone());
    Ok((found, next))
}
