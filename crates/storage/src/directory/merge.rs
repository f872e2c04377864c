//! Merging users: one ends, the other survives with the identifiers of both.

use std::collections::{BTreeMap, HashMap};

use muster_domain::{identifier::IdentifierRef, user_set::UserSet};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    change::{Changed, lock, look_up, numbers},
    follow::user_no,
    record::{append, key, read_all},
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
        users: rows(conn, workspace, known.owners.values().copied().collect()).await?,
        merged: HashMap::new(),
        moved: Vec::new(),
    };
    let outcomes = entries
        .iter()
        .map(|entry| {
            let Some(&from) = known.owners.get(&entry.from) else {
                return Ok(Merged::FromNotFound);
            };
            let Some(&into) = known.owners.get(&entry.into) else {
                return Ok(Merged::IntoNotFound);
            };
            plan.decide(from, into)
        })
        .collect::<Result<_>>()?;
    if !plan.merged.is_empty() {
        let epoch = directory.advance(conn, 0).await?;
        plan.write(conn, workspace, epoch).await?;
    }
    Ok(directory.changed(outcomes))
}

/// The rows of users.
async fn rows(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    users: UserSet,
) -> Result<HashMap<u32, Row>> {
    let rows = sqlx::query!(
        "SELECT user_no, external_id, identifiers FROM directory_user
         WHERE workspace_id = $1 AND user_no = ANY ($2)",
        workspace.0,
        &numbers(&users),
    )
    .fetch_all(conn)
    .await?;
    let rows = rows.into_iter().map(|row| {
        let user = user_no(row.user_no);
        let (external_id, identifiers) = (row.external_id, row.identifiers.unwrap_or_default());
        (
            user,
            Row {
                external_id,
                identifiers,
            },
        )
    });
    Ok(rows.collect())
}

/// The identifiers of a user.
#[derive(Default)]
struct Row {
    /// The external id that audiences print.
    external_id: Option<String>,
    /// The lines of the others.
    identifiers: String,
}

impl Row {
    /// Takes on the identifiers of another user. The external id is kept, if there is one.
    fn take(&mut self, other: Row) {
        match other.external_id {
            Some(external_id) if self.external_id.is_some() => {
                append(
                    &mut self.identifiers,
                    IdentifierRef::external_id(&external_id),
                );
            }
            Some(external_id) => self.external_id = Some(external_id),
            None => {}
        }
        if !self.identifiers.is_empty() && !other.identifiers.is_empty() {
            self.identifiers.push('\n');
        }
        self.identifiers.push_str(&other.identifiers);
    }
}

/// What a list of merges comes to.
struct Plan {
    /// The users concerned who are still live, as they will be.
    users: HashMap<u32, Row>,
    /// The users that end, with those they were merged into, who may end in turn.
    merged: HashMap<u32, u32>,
    /// The keys of the identifiers of users that end, each with the user that had it.
    moved: Vec<(Uuid, u32)>,
}

impl Plan {
    fn decide(&mut self, from: u32, into: u32) -> Result<Merged> {
        let (from, into) = (self.survivor(from), self.survivor(into));
        if from == into {
            return Ok(Merged::Unchanged(into));
        }
        self.merged.insert(from, into);
        let ended = self.users.remove(&from).unwrap_or_default();
        for identifier in read_all(ended.external_id.as_deref(), Some(&ended.identifiers)) {
            self.moved.push((key(identifier?), from));
        }
        self.users.entry(into).or_default().take(ended);
        Ok(Merged::Merged(into))
    }

    fn survivor(&self, user: u32) -> u32 {
        let mut current = user;
        while let Some(&next) = self.merged.get(&current) {
            current = next;
        }
        current
    }

    async fn write(
        self,
        conn: &mut PgConnection,
        workspace: WorkspaceId,
        epoch: i64,
    ) -> Result<()> {
        sqlx::query!(
            "UPDATE directory_user u
             SET state = 2, merged_into = merged.into_no, external_id = NULL, identifiers = NULL,
                 epoch = $4
             FROM unnest($2::bigint[], $3::bigint[]) AS merged (from_no, into_no)
             WHERE u.workspace_id = $1 AND u.user_no = merged.from_no",
            workspace.0,
            &numbers(self.merged.keys().copied()),
            &numbers(self.merged.values().copied()),
            epoch,
        )
        .execute(&mut *conn)
        .await?;
        // Whoever was moved several times ends up with the last survivor.
        let moved: BTreeMap<Uuid, u32> = self
            .moved
            .iter()
            .map(|(key, user)| (*key, self.survivor(*user)))
            .collect();
        let (keys, users): (Vec<Uuid>, Vec<u32>) = moved.into_iter().unzip();
        sqlx::query!(
            "UPDATE user_identifier i
             SET user_no = moved.user_no
             FROM unnest($2::uuid[], $3::bigint[]) AS moved (key, user_no)
             WHERE i.workspace_id = $1 AND i.key = moved.key",
            workspace.0,
            &keys,
            &numbers(users),
        )
        .execute(&mut *conn)
        .await?;
        let survivors: UserSet = self
            .merged
            .keys()
            .map(|user| self.survivor(*user))
            .collect();
        let rows: Vec<&Row> = survivors.iter().map(|user| &self.users[&user]).collect();
        let external_ids: Vec<Option<&str>> =
            rows.iter().map(|row| row.external_id.as_deref()).collect();
        let identifiers: Vec<&str> = rows.iter().map(|row| row.identifiers.as_str()).collect();
        sqlx::query!(
            "UPDATE directory_user u
             SET external_id = survivor.external_id, identifiers = nullif(survivor.identifiers, ''),
                 epoch = $5,
                 identified_epoch = CASE
                     WHEN survivor.external_id IS NOT NULL THEN coalesce(u.identified_epoch, $5)
                 END
             FROM unnest($2::bigint[], $3::text[], $4::text[])
                  AS survivor (user_no, external_id, identifiers)
             WHERE u.workspace_id = $1 AND u.user_no = survivor.user_no",
            workspace.0,
            &numbers(&survivors),
            &external_ids as &[Option<&str>],
            &identifiers as &[&str],
            epoch,
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}
