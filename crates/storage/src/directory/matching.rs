//! Matching identifiers to users, in SQL, a batch at a time.
//!
//! This is the rule of the partner page: an external id matches the identified user with it, an
//! alias the user with it, a device id the user with it only while that user is anonymous.

use muster_domain::{
    identifier::{IdentifierKind, IdentifierRef},
    user_set::UserSet,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{follow::user_no, record::key};
use crate::{Result, WorkspaceId};

/// What an identifier leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// This user.
    User(u32),
    /// Nobody: it is a device of this user, who is identified.
    DeviceOfIdentifiedUser(u32),
    /// Nobody has it.
    Unknown,
}

/// Matches a batch of well-formed identifiers; the answer has one entry for each, in order.
///
/// # Errors
/// If the database fails.
pub async fn match_identifiers(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    identifiers: &[IdentifierRef<'_>],
) -> Result<Vec<Match>> {
    let mut matches = vec![Match::Unknown; identifiers.len()];
    if identifiers.is_empty() {
        return Ok(matches);
    }
    let keys: Vec<Uuid> = identifiers.iter().map(|i| key(*i)).collect();
    for owner in owners(conn, workspace, &keys).await? {
        let is_device = identifiers[owner.position].kind == IdentifierKind::DeviceId;
        matches[owner.position] = if is_device && owner.is_identified {
            Match::DeviceOfIdentifiedUser(owner.user)
        } else {
            Match::User(owner.user)
        };
    }
    Ok(matches)
}

/// The user that a key leads to.
pub(super) struct Owner {
    /// The place of the key among those that were asked for.
    pub(super) position: usize,
    pub(super) user: u32,
    pub(super) is_identified: bool,
}

/// The users that keys lead to, in any order.
pub(super) async fn owners(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    keys: &[Uuid],
) -> Result<Vec<Owner>> {
    let found = sqlx::query!(
        // One probe of the index for each, whatever the planner believes of their number: left to
        // itself it may read the whole table.
        r#"SELECT sent.position AS "position!", found.user_no AS "user_no!",
                  found.is_identified AS "is_identified!"
           FROM unnest($2::uuid[]) WITH ORDINALITY AS sent (key, position)
           CROSS JOIN LATERAL (
               SELECT i.user_no, u.external_id IS NOT NULL AS is_identified
               FROM user_identifier i
               JOIN directory_user u ON u.workspace_id = i.workspace_id AND u.user_no = i.user_no
               WHERE i.workspace_id = $1 AND i.key = sent.key
               LIMIT 1
           ) AS found"#,
        workspace.0,
        keys,
    )
    .fetch_all(conn)
    .await?;
    Ok(found
        .into_iter()
        .map(|row| Owner {
            position: usize::try_from(row.position - 1).expect("positions begin at 1"),
            user: user_no(row.user_no),
            is_identified: row.is_identified,
        })
        .collect())
}

/// The users up to `last` that are identified and were touched after an epoch. Whoever was matched
/// by a device id before, and is among them, or was merged into one of them, became identified
/// since: the device id no longer matches.
///
/// # Errors
/// If the database fails.
pub async fn identified_since(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    epoch: i64,
    last: u32,
) -> Result<UserSet> {
    let users = sqlx::query_scalar!(
        "SELECT user_no FROM directory_user
         WHERE workspace_id = $1 AND epoch > $2 AND identified_epoch IS NOT NULL AND user_no <= $3
         ORDER BY user_no",
        workspace.0,
        epoch,
        i64::from(last),
    )
    .fetch_all(conn)
    .await?;
    Ok(users.into_iter().map(user_no).collect())
}
