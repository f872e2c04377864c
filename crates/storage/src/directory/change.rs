//! What every change of the directory has in common: the lock, the look-up, the epoch.

use std::collections::HashMap;

use muster_domain::{identifier::IdentifierRef, user_set::UserSet};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{matching::owners, record::key};
use crate::{Result, WorkspaceId};

/// What a call did to the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed<T> {
    /// The epoch that a reader must have reached to see it.
    pub epoch: i64,
    /// What became of each entry, in order.
    pub outcomes: Vec<T>,
}

/// The directory of a workspace, locked against other changes until the transaction ends.
#[derive(Debug, Clone)]
pub(super) struct Locked {
    workspace: WorkspaceId,
    /// The epoch before the change.
    epoch: i64,
    /// Number of the next user, before the change.
    pub(super) next_user_no: u64,
}

/// Locks the directory. It comes first in a change: what is read after it stays true.
pub(super) async fn lock(conn: &mut PgConnection, workspace: WorkspaceId) -> Result<Locked> {
    let row = sqlx::query!(
        "SELECT epoch, next_user_no FROM directory WHERE workspace_id = $1 FOR UPDATE",
        workspace.0,
    )
    .fetch_one(conn)
    .await?;
    Ok(Locked {
        workspace,
        epoch: row.epoch,
        next_user_no: u64::try_from(row.next_user_no)
            .expect("a check constraint keeps it positive"),
    })
}

impl Locked {
    /// Begins the next epoch, in which so many users are created; returns it.
    pub(super) async fn advance(&mut self, conn: &mut PgConnection, created: usize) -> Result<i64> {
        let created = i64::try_from(created).expect("a batch is small");
        let epoch = sqlx::query_scalar!(
            "UPDATE directory SET epoch = epoch + 1, next_user_no = next_user_no + $2
             WHERE workspace_id = $1
             RETURNING epoch",
            self.workspace.0,
            created,
        )
        .fetch_one(conn)
        .await?;
        self.epoch = epoch;
        Ok(epoch)
    }

    /// The answer of a change that is complete.
    pub(super) fn changed<T>(self, outcomes: Vec<T>) -> Changed<T> {
        Changed {
            epoch: self.epoch,
            outcomes,
        }
    }
}

/// What the directory holds of a set of identifiers.
#[derive(Debug, Default)]
pub(super) struct Known<'a> {
    /// The user of each identifier that has one.
    pub(super) owners: HashMap<IdentifierRef<'a>, u32>,
    /// Those users who are identified.
    pub(super) identified: UserSet,
}

/// Looks identifiers up, all in one query.
pub(super) async fn look_up<'a>(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    identifiers: impl Iterator<Item = IdentifierRef<'a>>,
) -> Result<Known<'a>> {
    let mut sent: Vec<(Uuid, IdentifierRef<'a>)> = identifiers.map(|i| (key(i), i)).collect();
    // In the order of the index, neighbours share its pages.
    sent.sort_unstable();
    sent.dedup();
    let keys: Vec<Uuid> = sent.iter().map(|(key, _)| *key).collect();
    let mut known = Known::default();
    for owner in owners(conn, workspace, &keys).await? {
        known.owners.insert(sent[owner.position].1, owner.user);
        if owner.is_identified {
            known.identified.insert(owner.user);
        }
    }
    Ok(known)
}

/// Users, as their numbers are stored.
pub(super) fn numbers(users: impl IntoIterator<Item = u32>) -> Vec<i64> {
    users.into_iter().map(i64::from).collect()
}

/// Lets identifiers, none of which is known, lead to users, whose rows have them already.
pub(super) async fn insert_keys(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    added: impl Iterator<Item = (IdentifierRef<'_>, u32)>,
) -> Result<()> {
    let mut added: Vec<(Uuid, u32)> = added.map(|(i, user)| (key(i), user)).collect();
    // In the order of the index, neighbours share its pages.
    added.sort_unstable();
    let (keys, users): (Vec<Uuid>, Vec<u32>) = added.into_iter().unzip();
    sqlx::query!(
        "INSERT INTO user_identifier (workspace_id, key, user_no)
         SELECT $1, key, user_no FROM unnest($2::uuid[], $3::bigint[]) AS added (key, user_no)",
        workspace.0,
        &keys,
        &numbers(users),
    )
    .execute(conn)
    .await?;
    Ok(())
}
