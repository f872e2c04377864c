//! What every change of the directory has in common: the lock, the look-up, the epoch.

use std::collections::HashMap;

use muster_domain::{identifier::IdentifierRef, user_set::UserSet};
use sqlx::PgConnection;

use crate::{Result, WorkspaceId, directory::follow::user_no};

/// What a call did to the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed<T> {
    /// The epoch that a reader must have reached to see it.
    pub epoch: i64,
    /// What became of each entry, in order.
    pub outcomes: Vec<T>,
}

/// The directory of a workspace, locked against other changes until the transaction ends.
#[derive(Debug)]
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
    let mut sent: Vec<IdentifierRef<'a>> = identifiers.collect();
    // In the order of the index, neighbours share its pages.
    sent.sort_unstable();
    sent.dedup();
    let kinds: Vec<i16> = sent.iter().map(|i| i.kind.code().into()).collect();
    let labels: Vec<&str> = sent.iter().map(|i| i.label).collect();
    let ids: Vec<&str> = sent.iter().map(|i| i.id).collect();
    let found = sqlx::query!(
        // One probe of the index for each, whatever the planner believes of their number: left to
        // itself it may read the whole table.
        r#"SELECT sent.position AS "position!", found.user_no AS "user_no!",
                  found.identified AS "identified!"
           FROM unnest($2::smallint[], $3::text[], $4::text[])
                WITH ORDINALITY AS sent (kind, label, id, position)
           CROSS JOIN LATERAL (
               SELECT i.user_no, u.external_id IS NOT NULL AS identified
               FROM user_identifier i
               JOIN directory_user u ON u.workspace_id = i.workspace_id AND u.user_no = i.user_no
               WHERE i.workspace_id = $1 AND i.kind = sent.kind AND i.label = sent.label
                 AND i.id = sent.id
               LIMIT 1
           ) AS found"#,
        workspace.0,
        &kinds,
        &labels as &[&str],
        &ids as &[&str],
    )
    .fetch_all(conn)
    .await?;
    let mut known = Known::default();
    for row in found {
        let index = usize::try_from(row.position - 1).expect("positions begin at 1");
        let user = user_no(row.user_no);
        known.owners.insert(sent[index], user);
        if row.identified {
            known.identified.insert(user);
        }
    }
    Ok(known)
}

/// Users, as their numbers are stored.
pub(super) fn numbers(users: impl IntoIterator<Item = u32>) -> Vec<i64> {
    users.into_iter().map(i64::from).collect()
}

/// Adds identifiers, none of which is known, to users.
pub(super) async fn insert_identifiers(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    epoch: i64,
    added: &[(IdentifierRef<'_>, u32)],
) -> Result<()> {
    let kinds: Vec<i16> = added.iter().map(|(i, _)| i.kind.code().into()).collect();
    let labels: Vec<&str> = added.iter().map(|(i, _)| i.label).collect();
    let ids: Vec<&str> = added.iter().map(|(i, _)| i.id).collect();
    let users = numbers(added.iter().map(|(_, user)| *user));
    sqlx::query!(
        "INSERT INTO user_identifier (workspace_id, kind, label, id, user_no, epoch)
         SELECT $1, kind, label, id, user_no, $6
         FROM unnest($2::smallint[], $3::text[], $4::text[], $5::bigint[])
              AS added (kind, label, id, user_no)",
        workspace.0,
        &kinds,
        &labels as &[&str],
        &ids as &[&str],
        &users,
        epoch,
    )
    .execute(conn)
    .await?;
    Ok(())
}
