//! Giving anonymous users an external id.

use muster_domain::identifier::IdentifierRef;
use sqlx::PgConnection;

use super::change::{Changed, Known, insert_keys, lock, look_up, numbers};
use crate::{Result, WorkspaceId};

/// An external id for an anonymous user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identification<'a> {
    /// Any identifier of the user.
    pub user: IdentifierRef<'a>,
    /// The external id to give it.
    pub external_id: &'a str,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identified {
    /// The user got the external id.
    Identified(u32),
    /// The user has it already.
    Unchanged(u32),
    /// The user has another external id.
    OtherExternalId,
    /// The external id belongs to another user.
    ExternalIdTaken,
    /// No user has the identifier.
    NotFound,
}

/// Gives anonymous users external ids, in order. All identifiers are well-formed.
///
/// The users keep their identifiers; their devices stop matching in imports.
///
/// # Errors
/// If the database fails.
pub async fn identify(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    entries: &[Identification<'_>],
) -> Result<Changed<Identified>> {
    let mut directory = lock(conn, workspace).await?;
    let external_ids = entries
        .iter()
        .map(|entry| IdentifierRef::external_id(entry.external_id));
    let identifiers = entries.iter().map(|entry| entry.user).chain(external_ids);
    let mut known = look_up(conn, workspace, identifiers).await?;
    let mut added = Vec::new();
    let outcomes = entries
        .iter()
        .map(|entry| decide(&mut known, &mut added, entry))
        .collect();
    if !added.is_empty() {
        let epoch = directory.advance(conn, 0).await?;
        write(conn, workspace, epoch, &added).await?;
    }
    Ok(directory.changed(outcomes))
}

fn decide<'a>(
    known: &mut Known<'a>,
    added: &mut Vec<(IdentifierRef<'a>, u32)>,
    entry: &Identification<'a>,
) -> Identified {
    let Some(&user) = known.owners.get(&entry.user) else {
        return Identified::NotFound;
    };
    let external_id = IdentifierRef::external_id(entry.external_id);
    match known.owners.get(&external_id) {
        Some(&owner) if owner == user => Identified::Unchanged(user),
        Some(_) => Identified::ExternalIdTaken,
        None if known.identified.contains(user) => Identified::OtherExternalId,
        None => {
            known.owners.insert(external_id, user);
            known.identified.insert(user);
            added.push((external_id, user));
            Identified::Identified(user)
        }
    }
}

async fn write(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    epoch: i64,
    added: &[(IdentifierRef<'_>, u32)],
) -> Result<()> {
    let users = numbers(added.iter().map(|(_, user)| *user));
    let external_ids: Vec<&str> = added.iter().map(|(identifier, _)| identifier.id).collect();
    sqlx::query!(
        "UPDATE directory_user u
         SET external_id = identified.external_id, identified_epoch = $4, epoch = $4
         FROM unnest($2::bigint[], $3::text[]) AS identified (user_no, external_id)
         WHERE u.workspace_id = $1 AND u.user_no = identified.user_no",
        workspace.0,
        &users,
        &external_ids as &[&str],
        epoch,
    )
    .execute(&mut *conn)
    .await?;
    insert_keys(conn, workspace, added.iter().copied()).await
}
