//! Data import keys: with which a partner pushes cohorts into a workspace.

use muster_domain::{
    credential::Kind,
    error::{Error, Kind as ErrorKind, Result},
};
use muster_service::Page;
use muster_storage::{
    Connection, Timestamp, Tx, WorkspaceId,
    audit::By,
    credentials::{self, Credential, State, noun},
    partners as rows,
};
use time::Duration;
use uuid::Uuid;

use crate::{
    credential::{self, Grant, Issued},
    partners,
};

/// A key to create.
#[derive(Debug)]
pub(crate) struct NewKey {
    pub(crate) partner: String,
    pub(crate) label: String,
    pub(crate) allowed_addresses: Vec<String>,
    pub(crate) expires_at: Option<Timestamp>,
}

/// A key and the one that a rotation made of it.
#[derive(Debug)]
pub(crate) struct Rotated {
    pub(crate) successor: Issued,
    pub(crate) replaced: Credential,
}

/// Creates a key.
///
/// # Errors
/// `NOT_FOUND` for the partner; `FAILED_PRECONDITION` (`PARTNER_NOT_ENABLED`).
pub(crate) async fn create(
    tx: &mut Tx,
    by: By<'_>,
    workspace: WorkspaceId,
    new: &NewKey,
) -> Result<Issued> {
    partners::find(tx, &new.partner).await?;
    check_enabled(tx, workspace, &new.partner).await?;
    let grant = Grant {
        kind: Kind::DataImportKey,
        workspace: Some(workspace),
        partner: Some(&new.partner),
        scopes: &[],
        allowed_addresses: &new.allowed_addresses,
        label: &new.label,
        expires_at: new.expires_at,
    };
    credential::issue(tx, by, grant).await
}

/// The key of a workspace with an id.
///
/// # Errors
/// `NOT_FOUND`.
pub(crate) async fn get(
    conn: &mut Connection,
    workspace: WorkspaceId,
    key_id: &str,
) -> Result<Credential> {
    credential::find(conn, Kind::DataImportKey, key_id, |key| {
        key.workspace
            .as_ref()
            .is_some_and(|(id, _)| *id == workspace)
    })
    .await
}

/// A page of the keys of a workspace, newest first; of one partner or of all.
///
/// # Errors
/// `NOT_FOUND` for the partner.
pub(crate) async fn list(
    conn: &mut Connection,
    workspace: WorkspaceId,
    partner: Option<&str>,
    page: &Page<Uuid>,
) -> Result<(Vec<Credential>, String)> {
    if let Some(partner) = partner {
        partners::find(conn, partner).await?;
    }
    credential::list(conn, Kind::DataImportKey, Some(workspace), partner, page).await
}

/// Revokes a key, unless it was revoked before.
///
/// # Errors
/// `NOT_FOUND`.
pub(crate) async fn revoke(
    tx: &mut Tx,
    by: By<'_>,
    workspace: WorkspaceId,
    key_id: &str,
) -> Result<Credential> {
    let key = get(tx, workspace, key_id).await?;
    credential::revoke(tx, by, key).await
}

/// Sets the networks that a key is accepted from.
///
/// # Errors
/// `NOT_FOUND`; `FAILED_PRECONDITION` (`KEY_NOT_ACTIVE`).
pub(crate) async fn restrict(
    tx: &mut Tx,
    by: By<'_>,
    workspace: WorkspaceId,
    key_id: &str,
    allowed_addresses: &[String],
) -> Result<Credential> {
    let key = get(tx, workspace, key_id).await?;
    credential::restrict(tx, by, key, allowed_addresses).await
}

/// Creates a successor of a key and lets the key expire after `overlap`.
///
/// The successor lives as long as the key was made to: keys that are to be renewed every quarter
/// stay so through a rotation.
///
/// # Errors
/// `NOT_FOUND`; `FAILED_PRECONDITION` (`KEY_NOT_ACTIVE`, `KEY_ALREADY_ROTATED`,
/// `PARTNER_NOT_ENABLED`).
pub(crate) async fn rotate(
    tx: &mut Tx,
    by: By<'_>,
    workspace: WorkspaceId,
    key_id: &str,
    overlap: Duration,
) -> Result<Rotated> {
    let key = get(tx, workspace, key_id).await?;
    // Of two rotations at once the second must see the first.
    let key = credentials::lock(tx, key.kind, key.id)
        .await?
        .ok_or_else(|| Error::not_found(noun(key.kind), key_id))?;
    if key.state != State::Active {
        return Err(credential::not_active(&key));
    }
    if let Some(successor) = key.replaced_by {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            "KEY_ALREADY_ROTATED",
            format!("key {successor} has taken its place; rotate that one"),
        )
        .with("replaced_by_key_id", successor));
    }
    let partner = key.partner.as_deref().expect("the schema binds every key");
    check_enabled(tx, workspace, partner).await?;
    let now = Timestamp::now_utc();
    let grant = Grant {
        kind: Kind::DataImportKey,
        workspace: Some(workspace),
        partner: Some(partner),
        scopes: &[],
        allowed_addresses: &key.allowed_addresses,
        label: &key.label,
        expires_at: key
            .expires_at
            .map(|expires_at| now.saturating_add(expires_at - key.created_at)),
    };
    let successor = credential::issue(tx, by, grant).await?;
    credentials::replace(tx, key.kind, key.id, successor.credential.id, overlap).await?;
    credential::record(tx, by, "rotate", &key).await?;
    let replaced = credential::again(tx, &key).await?;
    Ok(Rotated {
        successor,
        replaced,
    })
}

/// A key of a partner that is not enabled would be refused: nobody should get one.
async fn check_enabled(tx: &mut Tx, workspace: WorkspaceId, partner: &str) -> Result<()> {
    if rows::is_enabled(tx, workspace, partner).await? {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::FailedPrecondition,
        "PARTNER_NOT_ENABLED",
        format!("the workspace has not enabled partner {partner:?}"),
    )
    .with("partner", partner))
}
