//! Partner API keys: which say, to the whole deployment, which partner calls the REST endpoint.

use muster_domain::{credential::Kind, error::Result};
use muster_service::Page;
use muster_storage::{Connection, Tx, audit::By, credentials::Credential};
use uuid::Uuid;

use crate::{
    credential::{self, Grant, Issued},
    partners,
};

/// Creates a key for a partner.
///
/// # Errors
/// `NOT_FOUND` for the partner.
pub(crate) async fn create(
    tx: &mut Tx,
    by: By<'_>,
    partner: &str,
    label: &str,
    allowed_addresses: &[String],
) -> Result<Issued> {
    partners::find(tx, partner).await?;
    let grant = Grant {
        kind: Kind::PartnerApiKey,
        workspace: None,
        partner: Some(partner),
        scopes: &[],
        allowed_addresses,
        label,
        expires_at: None,
    };
    credential::issue(tx, by, grant).await
}

/// A page of a partner's keys, newest first.
///
/// # Errors
/// `NOT_FOUND` for the partner.
pub(crate) async fn list(
    conn: &mut Connection,
    partner: &str,
    page: &Page<Uuid>,
) -> Result<(Vec<Credential>, String)> {
    partners::find(conn, partner).await?;
    credential::list(conn, Kind::PartnerApiKey, None, Some(partner), page).await
}

/// Revokes a partner's key, unless it was revoked before.
///
/// # Errors
/// `NOT_FOUND` for the partner or the key.
pub(crate) async fn revoke(
    tx: &mut Tx,
    by: By<'_>,
    partner: &str,
    key_id: &str,
) -> Result<Credential> {
    partners::find(tx, partner).await?;
    let key = credential::find(tx, Kind::PartnerApiKey, key_id, |key| {
        key.partner.as_deref() == Some(partner)
    })
    .await?;
    credential::revoke(tx, by, key).await
}
