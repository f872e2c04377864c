//! What the three kinds of credential have in common: how they are found, issued and revoked.

use muster_domain::{
    credential::{Kind, Secret},
    error::{Error, Kind as ErrorKind, Result},
};
use muster_service::Page;
use muster_storage::{
    Connection, Timestamp, Tx, WorkspaceId,
    audit::{self, By},
    credentials::{self, Credential, NewCredential, State, noun},
};
use uuid::Uuid;

/// A credential that has just been made, with the secret that is shown this once.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) credential: Credential,
    pub(crate) secret: Secret,
}

/// Whom a new credential is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant<'a> {
    pub(crate) kind: Kind,
    pub(crate) workspace: Option<WorkspaceId>,
    pub(crate) partner: Option<&'a str>,
    pub(crate) scopes: &'a [String],
    pub(crate) allowed_addresses: &'a [String],
    pub(crate) label: &'a str,
    pub(crate) expires_at: Option<Timestamp>,
}

/// Makes a credential and its audit event.
///
/// # Errors
/// `INVALID_ARGUMENT` if it would have expired already.
pub(crate) async fn issue(tx: &mut Tx, by: By<'_>, grant: Grant<'_>) -> Result<Issued> {
    // Only here and not where the request is read: a request repeated after that moment has passed
    // still gets the answer it got before.
    if grant
        .expires_at
        .is_some_and(|at| at <= Timestamp::now_utc())
    {
        return Err(Error::field("expire_time", "must lie in the future"));
    }
    let secret = Secret::generate(grant.kind)?;
    let new = NewCredential {
        secret: &secret,
        workspace: grant.workspace,
        partner: grant.partner,
        scopes: grant.scopes,
        allowed_addresses: grant.allowed_addresses,
        label: grant.label,
        created_by: by.actor,
        expires_at: grant.expires_at,
    };
    let credential = credentials::insert(tx, &new).await?;
    record(tx, by, "create", &credential).await?;
    Ok(Issued { credential, secret })
}

/// The credential of a kind that a request names by id, if `visible`.
///
/// # Errors
/// `NOT_FOUND`, the same for no id, no credential and none that is visible.
pub(crate) async fn find(
    conn: &mut Connection,
    kind: Kind,
    named: &str,
    visible: impl FnOnce(&Credential) -> bool,
) -> Result<Credential> {
    let found = match named.parse() {
        Ok(id) => credentials::find(conn, kind, id).await?,
        Err(_) => None,
    };
    found
        .filter(visible)
        .ok_or_else(|| Error::not_found(noun(kind), named))
}

/// Revokes a credential and writes the audit event, unless it was revoked before.
///
/// # Errors
/// If the database fails.
pub(crate) async fn revoke(tx: &mut Tx, by: By<'_>, credential: Credential) -> Result<Credential> {
    if credentials::revoke(tx, credential.kind, credential.id).await? {
        record(tx, by, "revoke", &credential).await?;
    }
    again(tx, &credential).await
}

/// Sets the networks that a credential is accepted from, and writes the audit event.
///
/// # Errors
/// `FAILED_PRECONDITION` (`KEY_NOT_ACTIVE`).
pub(crate) async fn restrict(
    tx: &mut Tx,
    by: By<'_>,
    credential: Credential,
    allowed_addresses: &[String],
) -> Result<Credential> {
    if credential.state != State::Active {
        return Err(not_active(&credential));
    }
    credentials::restrict(tx, credential.kind, credential.id, allowed_addresses).await?;
    record(tx, by, "restrict", &credential).await?;
    again(tx, &credential).await
}

/// The credential as it is now.
pub(crate) async fn again(tx: &mut Tx, credential: &Credential) -> Result<Credential> {
    let found = credentials::find(tx, credential.kind, credential.id).await?;
    Ok(found.expect("credentials are never deleted"))
}

/// Writes the audit event of a change of a credential.
pub(crate) async fn record(
    tx: &mut Tx,
    by: By<'_>,
    change: &str,
    credential: &Credential,
) -> Result<()> {
    let workspace = credential.workspace.as_ref().map(|(id, _)| *id);
    let action = format!("{}.{change}", noun(credential.kind));
    Ok(audit::append(tx, workspace, by, &action, &credential.actor()).await?)
}

/// A page of credentials of one kind, newest first, with the token of the next page.
///
/// # Errors
/// If the database fails.
pub(crate) async fn list(
    conn: &mut Connection,
    kind: Kind,
    workspace: Option<WorkspaceId>,
    partner: Option<&str>,
    page: &Page<Uuid>,
) -> Result<(Vec<Credential>, String)> {
    let mut found =
        credentials::list(conn, kind, workspace, partner, page.after, page.limit()).await?;
    let next = page.cut(&mut found, |last| last.id);
    Ok((found, next))
}

/// The refusal of something that only an accepted key can have done to it.
pub(crate) fn not_active(credential: &Credential) -> Error {
    let state = match credential.state {
        State::Active => "active",
        State::Expired => "expired",
        State::Revoked => "revoked",
    };
    Error::new(
        ErrorKind::FailedPrecondition,
        "KEY_NOT_ACTIVE",
        format!("the key is {state}; create a new one"),
    )
    .with("state", state)
}
