//! Finding one user.

use muster_domain::{
    error::{Error, Kind, Result},
    identifier::{IdentifierKind, IdentifierRef},
};
use muster_storage::{
    Store, WorkspaceId,
    directory::{self, User},
};

/// How a user is named.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Name<'a> {
    Identifier(IdentifierRef<'a>),
    Number(u32),
}

/// A user, and whether its name would have matched it in an import.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) user: User,
    pub(crate) matched_by_imports: bool,
}

/// Finds a user.
pub(crate) async fn find(store: &Store, workspace: WorkspaceId, name: Name<'_>) -> Result<Found> {
    let mut tx = store.snapshot_in("find_user", workspace).await?;
    let number = match name {
        Name::Number(number) => number,
        Name::Identifier(identifier) => {
            let owner = directory::owner(&mut tx, workspace, identifier).await?;
            owner.ok_or_else(not_found)?
        }
    };
    let user = directory::find(&mut tx, workspace, number).await?;
    let user = user.ok_or_else(not_found)?;
    let matched_by_imports = match name {
        Name::Number(_) => false,
        Name::Identifier(identifier) => {
            identifier.kind != IdentifierKind::DeviceId || user.external_id.is_none()
        }
    };
    Ok(Found {
        user,
        matched_by_imports,
    })
}

/// Does not repeat the name: messages of errors end up in logs.
fn not_found() -> Error {
    Error::new(Kind::NotFound, "NOT_FOUND", "the user does not exist").with("resource_type", "user")
}
