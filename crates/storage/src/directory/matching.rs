//! Matching identifiers to users, in SQL, a batch at a time.
//!
//! This is the rule of the partner page: an external id matches the identified user with it, an
//! alias the user with it, a device id the user with it only while that user is anonymous.

use muster_domain::{
    identifier::{IdentifierKind, IdentifierRef},
    user_set::UserSet,
};
use sqlx::PgConnection;

use crate::{Result, WorkspaceId, directory::follow::user_no};

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
    let kinds: Vec<i16> = identifiers
        .iter()
        .map(|i| i16::from(i.kind.code()))
        .collect();
    let labels: Vec<&str> = identifiers.iter().map(|i| i.label).collect();
    let ids: Vec<&str> = identifiers.iter().map(|i| i.id).collect();
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
    for row in found {
        let index = usize::try_from(row.position - 1).expect("positions begin at 1");
        let user = user_no(row.user_no);
        matches[index] = if row.identified && identifiers[index].kind == IdentifierKind::DeviceId {
            Match::DeviceOfIdentifiedUser(user)
        } else {
            Match::User(user)
        };
    }
    Ok(matches)
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
