//! Service tokens: the credentials of internal callers.

use std::collections::BTreeSet;

use muster_domain::{
    credential::Kind,
    error::{Error, Kind as ErrorKind, Result},
};
use muster_service::{
    Caller, Page,
    authorization::{Scope, Scopes},
};
use muster_storage::{Connection, Store, Timestamp, Tx, WorkspaceId, credentials::Credential};
use uuid::Uuid;

use crate::{
    access,
    credential::{self, Grant, Issued},
};

/// A token to create.
#[derive(Debug)]
pub(crate) struct NewToken {
    pub(crate) label: String,
    pub(crate) scopes: Scopes,
    pub(crate) allowed_addresses: Vec<String>,
    pub(crate) expires_at: Option<Timestamp>,
}

/// Refuses a token that gives what the caller itself has not, and puts that on record.
///
/// # Errors
/// `PERMISSION_DENIED` (`SCOPE_NOT_HELD`, `WORKSPACE_BOUND`).
pub(crate) async fn check_grant(
    store: &Store,
    caller: &Caller,
    workspace: Option<WorkspaceId>,
    new: &NewToken,
) -> Result<()> {
    if workspace.is_none() {
        access::whole_deployment(caller, store).await?;
    }
    if caller.scopes.cover(&new.scopes) {
        return Ok(());
    }
    let reason = "SCOPE_NOT_HELD";
    caller.tell_refusal(store, reason).await;
    let held = names(&caller.scopes).join(", ");
    Err(Error::new(
        ErrorKind::PermissionDenied,
        reason,
        format!("nobody can grant more than they hold, which here is {held}"),
    ))
}

/// Creates a token for one workspace, or for all of them, that [`check_grant`] has let pass.
///
/// # Errors
/// If the database fails.
pub(crate) async fn create(
    tx: &mut Tx,
    caller: &Caller,
    workspace: Option<WorkspaceId>,
    new: &NewToken,
) -> Result<Issued> {
    let grant = Grant {
        kind: Kind::ServiceToken,
        workspace,
        partner: None,
        scopes: &names(&new.scopes),
        allowed_addresses: &new.allowed_addresses,
        label: &new.label,
        expires_at: new.expires_at,
    };
    credential::issue(tx, caller.by(), grant).await
}

/// A page of tokens, newest first: of one workspace, or of the whole deployment.
///
/// # Errors
/// If the database fails.
pub(crate) async fn list(
    conn: &mut Connection,
    workspace: Option<WorkspaceId>,
    page: &Page<Uuid>,
) -> Result<(Vec<Credential>, String)> {
    credential::list(conn, Kind::ServiceToken, workspace, None, page).await
}

/// Revokes a token that the caller may see, unless it was revoked before.
///
/// # Errors
/// `NOT_FOUND`.
pub(crate) async fn revoke(tx: &mut Tx, caller: &Caller, token_id: &str) -> Result<Credential> {
    let token = visible(tx, caller, token_id).await?;
    credential::revoke(tx, caller.by(), token).await
}

/// Sets the networks that a token which the caller may see is accepted from.
///
/// # Errors
/// `NOT_FOUND`; `FAILED_PRECONDITION` (`KEY_NOT_ACTIVE`), and `WOULD_LOCK_OUT` if it is the token of
/// this call, which would not be accepted from here any more.
pub(crate) async fn restrict(
    tx: &mut Tx,
    caller: &Caller,
    token_id: &str,
    allowed_addresses: &[String],
) -> Result<Credential> {
    let token = visible(tx, caller, token_id).await?;
    let token = credential::restrict(tx, caller.by(), token, allowed_addresses).await?;
    if token.id == caller.credential && !token.is_allowed_from(caller.peer) {
        let here = caller
            .peer
            .map_or("here".to_owned(), |peer| peer.to_string());
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            "WOULD_LOCK_OUT",
            format!("it is the token of this call, which comes from {here}"),
        ));
    }
    Ok(token)
}

async fn visible(tx: &mut Tx, caller: &Caller, token_id: &str) -> Result<Credential> {
    credential::find(tx, Kind::ServiceToken, token_id, |token| {
        let of = token.workspace.as_ref().map(|(id, _)| *id);
        access::own(caller).is_none_or(|own| of == Some(own))
    })
    .await
}

/// Scopes as they are stored: each once, in the order of the table.
fn names(scopes: &Scopes) -> Vec<String> {
    match scopes {
        Scopes::All => vec!["*".to_owned()],
        Scopes::Only(scopes) => {
            let distinct: BTreeSet<Scope> = scopes.iter().copied().collect();
            distinct.iter().map(Scope::to_string).collect()
        }
    }
}
