//! What a caller may see and change beyond its scopes: everything, or one workspace.

use muster_domain::error::{Error, Kind, Result};
use muster_service::Caller;
use muster_storage::{Store, WorkspaceId};

/// Admits callers of the whole deployment; others go on record.
///
/// # Errors
/// `PERMISSION_DENIED` (`WORKSPACE_BOUND`) for a caller bound to a workspace.
pub(crate) async fn whole_deployment(caller: &Caller, store: &Store) -> Result<()> {
    let Some((_, own)) = &caller.bound_to else {
        return Ok(());
    };
    let reason = "WORKSPACE_BOUND";
    caller.tell_refusal(store, reason).await;
    Err(Error::new(
        Kind::PermissionDenied,
        reason,
        format!("the token works for workspace {own:?} only, and this concerns all of them"),
    )
    .with("workspace", own))
}

/// The workspace to list from: the one named, or all that the caller may see; `None` for all of the
/// deployment.
///
/// # Errors
/// `NOT_FOUND` for a workspace that does not exist or that the caller may not see.
pub(crate) async fn listed(
    caller: &Caller,
    store: &Store,
    named: &str,
) -> Result<Option<WorkspaceId>> {
    if named.is_empty() {
        return Ok(own(caller));
    }
    caller.workspace(store, named).await.map(Some)
}

/// The only workspace of the caller.
pub(crate) fn own(caller: &Caller) -> Option<WorkspaceId> {
    caller.bound_to.as_ref().map(|(id, _)| *id)
}
