//! Merging users: one ends, the other survives with the identifiers of both.

use std::collections::HashMap;

use muster_domain::{identifier::IdentifierRef, user_set::UserSet};
use sqlx::PgConnection;

use super::{
    change::{Changed, lock, look_up, numbers},
    follow::user_no,
};
use crate::{Result, WorkspaceId};

/// A user to merge into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge<'a> {
    /// Any identifier of the user that ends.
    pub from: IdentifierRef<'a>,
    /// Any identifier of the user that survives.
    pub into: IdentifierRef<'a>,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// It was merged into this one.
    Merged(u32),
    /// Both lead to this one already.
    Unchanged(u32),
    /// No user has the identifier of the one that should end.
    FromNotFound,
    /// No user has the identifier of the one that should survive.
    IntoNotFound,
}

/// Merges users, in order: a later entry sees what an earlier one did. All identifiers are
/// well-formed.
///
/// An anonymous survivor takes on the external id of an identified user merged into it. Survivors
/// are stamped with the epoch, too: somebody matched by a device before may now be identified.
///
/// # Errors
/// If the database fails.
pub async fn merge(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    entries: &[Merge<'_>],
) -> Result<Changed<Merged>> {
    let mut directory = lock(conn, workspace).await?;
    let identifiers = entries.iter().flat_map(|entry| [entry.from, entry.into]);
    let known = look_up(conn, workspace, identifiers).await?;
    let mut plan = Plan {
        external_ids: external_ids(conn, workspace, &known.identified).await?,
        merged: HashMap::new(),
    };
    let outcomes = entries
        .iter()
        .map(|entry| {
            let Some(&from) = known.owners.get(&entry.from) else {
                return Merged::FromNotFound;
            };
            let Some(&into) = known.owners.get(&entry.into) else {
                return Merged::IntoNotFound;
            };
            plan.decide(from, into)
        })
        .collect();
    if !plan.merged.is_empty() {
        let epoch = directory.advance(conn, 0).await?;
        plan.write(conn, workspace, epoch).await?;
    }
    Ok(directory.changed(outcomes))
}

/// The external ids that audiences print for users.
async fn external_ids(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    users: &UserSet,
) -> Result<HashMap<u32, String>> {
    let rows = sqlx::query!(
        r#"SELECT user_no, external_id AS "external_id!" FROM directory_user
           WHERE workspace_id = $1 AND user_no = ANY ($2) AND external_id IS NOT NULL"#,
        workspace.0,
        &numbers(users),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (user_no(row.user_no), row.external_id))
        .collect())
}

/// What a list of merges comes to.
struct Plan {
    /// The external ids of the users concerned who are still live.
    external_ids: HashMap<u32, String>,
    /// The users that end, with those they were merged into, who may end in turn.
    merged: HashMap<u32, u32>,
}

impl Plan {
    fn decide(&mut self, from: u32, into: u32) -> Merged {
        let (from, into) = (self.survivor(from), self.survivor(into));
        if from == into {
            return Merged::Unchanged(into);
        }
        self.merged.insert(from, into);
        if let Some(external_id) = self.external_ids.remove(&from) {
            self.external_ids.entry(into).or_insert(external_id);
        }
        Merged::Merged(into)
    }

    fn survivor(&self, user: u32) -> u32 {
        let mut current = user;
        while let Some(&next) = self.merged.get(&current) {
            current = next;
        }
        current
    }

    async fn write(
        &self,
        conn: &mut PgConnection,
        workspace: WorkspaceId,
        epoch: i64,
    ) -> Result<()> {
        let from = numbers(self.merged.keys().copied());
        sqlx::query!(
            "UPDATE directory_user u
             SET state = 2, merged_into = merged.into_no, external_id = NULL, epoch = $4
             FROM unnest($2::bigint[], $3::bigint[]) AS merged (from_no, into_no)
             WHERE u.workspace_id = $1 AND u.user_no = merged.from_no",
            workspace.0,
            &from,
            &numbers(self.merged.values().copied()),
            epoch,
        )
        .execute(&mut *conn)
        .await?;
        let last = self.merged.keys().map(|&user| self.survivor(user));
        sqlx::query!(
            "UPDATE user_identifier i
             SET user_no = merged.into_no, epoch = $4
             FROM unnest($2::bigint[], $3::bigint[]) AS merged (from_no, into_no)
             WHERE i.workspace_id = $1 AND i.user_no = merged.from_no",
            workspace.0,
            &from,
            &numbers(last.clone()),
            epoch,
        )
        .execute(&mut *conn)
        .await?;
        let survivors: UserSet = last.collect();
        let external_ids: Vec<Option<&str>> = survivors
            .iter()
            .map(|user| self.external_ids.get(&user).map(String::as_str))
            .collect();
        sqlx::query!(
            "UPDATE directory_user u
             SET external_id = survivor.external_id, epoch = $4,
                 identified_epoch = CASE
                     WHEN survivor.external_id IS NOT NULL THEN coalesce(u.identified_epoch, $4)
                 END
             FROM unnest($2::bigint[], $3::text[]) AS survivor (user_no, external_id)
             WHERE u.workspace_id = $1 AND u.user_no = survivor.user_no",
            workspace.0,
            &numbers(&survivors),
            &external_ids as &[Option<&str>],
            epoch,
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}
