//! The integration page of a partner: all that an operator hands to the partner, but the secrets.

use muster_domain::{credential::Kind, error::Result};
use muster_storage::{
    Store, WorkspaceId,
    credentials::{self, Credential},
    partners::{self as rows, Partner},
};

use crate::{Settings, partners};

/// Most keys that the page shows.
const MAX_KEYS: i64 = 1_000;

/// What the integration page of a partner shows.
#[derive(Debug)]
pub(crate) struct Integration {
    pub(crate) partner: Partner,
    pub(crate) enabled: bool,
    pub(crate) rest_endpoint: String,
    pub(crate) keys: Vec<Credential>,
}

/// The integration of a partner with a workspace.
///
/// # Errors
/// `NOT_FOUND` for the partner.
pub(crate) async fn get(
    store: &Store,
    settings: &Settings,
    workspace: WorkspaceId,
    partner: &str,
) -> Result<Integration> {
    let mut tx = store.snapshot("get_integration").await?;
    let found = partners::find(&mut tx, partner).await?;
    let enabled = rows::is_enabled(&mut tx, workspace, partner).await?;
    let (kind, of) = (Kind::DataImportKey, Some(workspace));
    let keys = credentials::list(&mut tx, kind, of, Some(partner), None, MAX_KEYS).await?;
    let base = settings.rest_public_url.trim_end_matches('/');
    Ok(Integration {
        partner: found,
        enabled,
        rest_endpoint: format!("{base}/partners/{partner}"),
        keys,
    })
}
