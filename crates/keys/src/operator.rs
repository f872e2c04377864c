//! The first credential of a deployment, which nobody can have asked for over the wire.

use muster_domain::{
    credential::{Kind, Secret},
    error::Result,
};
use muster_storage::{Role, Store, audit::By};

use crate::credential::{self, Grant};

/// Who the audit trail says made it.
const BY: By<'_> = By {
    actor: "muster up",
    peer: None,
};

/// Makes a service token that may do everything in every workspace, labelled `operator`; returns
/// the secret, which is kept nowhere. Each call makes another one.
///
/// # Errors
/// If the database fails.
pub async fn bootstrap_operator(store: &Store) -> Result<Secret> {
    let mut tx = store
        .acting_as(Role::Keys)
        .begin("bootstrap_operator")
        .await?;
    let grant = Grant {
        kind: Kind::ServiceToken,
        workspace: None,
        partner: None,
        scopes: &["*".to_owned()],
        allowed_addresses: &[],
        label: "operator",
        expires_at: None,
    };
    let issued = credential::issue(&mut tx, BY, grant).await?;
    tx.commit().await?;
    Ok(issued.secret)
}
