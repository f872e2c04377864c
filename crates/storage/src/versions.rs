//! Cohort versions: logs of bitmaps, with a checkpoint now and then.
//!
//! The cohort at version V is the newest checkpoint at or before V with the deltas up to V applied.
//! Publishing inserts rows and bumps the version; it never rewrites the set. What was read last is
//! kept in memory ([`Store::members`]).

mod memory;
mod record;

pub(crate) use memory::CohortCache;
pub use record::{Version, list, recent};

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use muster_domain::{
    import::{Publication, Summary},
    user_set::{self, UserSet},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result, Store, Timestamp, WorkspaceId,
    imports::{interval, json},
};

/// Deltas may grow to this many bytes before a checkpoint is worth writing.
const MIN_DELTA_BYTES: i64 = 64 * 1024;

/// The users of a cohort at a version, as stored: possibly with some that are no longer live.
///
/// # Errors
/// If the database fails.
pub async fn stored(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: Uuid,
    version: i64,
) -> Result<UserSet> {
    let mut users = UserSet::new();
    bring_forward(conn, workspace, cohort, &mut users, 0..version).await?;
    Ok(users)
}

/// Brings the users of a cohort, as stored at the first version, to the last one. There is nobody in
/// version 0.
async fn bring_forward(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: Uuid,
    users: &mut UserSet,
    versions: Range<i64>,
) -> Result<()> {
    let rows = sqlx::query!(
        // The bounds of the versions twice: a range that is known beforehand is what the planner
        // uses an index for.
        r#"WITH newest AS (
               SELECT max(version) AS version FROM cohort_checkpoint
               WHERE workspace_id = $1 AND cohort_id = $2 AND version > $3 AND version <= $4
           )
           SELECT version AS "version!", members, NULL::bytea AS added, NULL::bytea AS removed
           FROM cohort_checkpoint
           WHERE workspace_id = $1 AND cohort_id = $2 AND version = (SELECT version FROM newest)
           UNION ALL
           SELECT version, NULL, added, removed
           FROM cohort_delta
           WHERE workspace_id = $1 AND cohort_id = $2 AND version > $3 AND version <= $4
             AND version > coalesce((SELECT version FROM newest), 0)
           ORDER BY 1"#,
        workspace.0,
        cohort,
        versions.start,
        versions.end,
    )
    .fetch_all(conn)
    .await?;
    // A checkpoint stands for all that was before it.
    if rows.first().is_some_and(|row| row.members.is_some()) {
        users.clear();
    }
    for row in &rows {
        if let Some(removed) = &row.removed {
            *users -= user_set::from_bytes(removed)?;
        }
        for added in row.members.iter().chain(&row.added) {
            *users |= user_set::from_bytes(added)?;
        }
    }
    Ok(())
}

/// What an import makes of a cohort.
#[derive(Debug, Clone, Copy)]
pub struct NewVersion<'a> {
    /// Internal id of the import.
    pub import: &'a str,
    /// The partner's id of it.
    pub import_id: &'a str,
    /// When the source says its data is from.
    pub source_time: Option<Timestamp>,
    /// The digest it is committed with.
    pub digest: &'a [u8],
    /// The change, relative to the version before.
    pub publication: &'a Publication,
}

/// Publishes the next versions of a cohort, which the caller has locked, and returns the number of
/// the first one. There is at least one; `members` are in the cohort after the last. With it the
/// imports are committed; their batches, if any were staged, can be
/// [dropped](crate::imports::drop_batches).
///
/// # Errors
/// If the database fails.
pub async fn publish(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: Uuid,
    new: &[NewVersion<'_>],
    members: &UserSet,
) -> Result<i64> {
    let deltas = Deltas::of(new);
    let column = |count_of: fn(&Summary) -> u64| -> Vec<i64> {
        let summaries = new.iter().map(|new| &new.publication.summary);
        summaries.map(|summary| count(count_of(summary))).collect()
    };
    let imports: Vec<&str> = new.iter().map(|new| new.import).collect();
    let import_ids: Vec<&str> = new.iter().map(|new| new.import_id).collect();
    let digests: Vec<&[u8]> = new.iter().map(|new| new.digest).collect();
    let summaries = new.iter().map(|new| json(&new.publication.summary));
    let summaries: Vec<serde_json::Value> = summaries.collect();
    // One statement: each is a round trip that the next import into the cohort waits for.
    let head = sqlx::query!(
        r#"WITH head AS (
               UPDATE cohort
               SET version = version + $3, imported_at = clock_timestamp(),
                   delta_bytes = delta_bytes + $4,
                   applied_source_time = greatest(applied_source_time, $5),
                   member_count = $6
               WHERE workspace_id = $1 AND cohort_id = $2
               RETURNING version - $3 AS before, imported_at, delta_bytes, checkpoint_bytes
           ), new AS (
               SELECT *
               FROM unnest($7::text[], $8::text[], $9::bytea[], $10::jsonb[], $11::bigint[],
                           $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[])
                    WITH ORDINALITY AS new (import, import_id, digest, summary, members, added,
                                            removed, received, matched, nth)
           ), counted AS (
               INSERT INTO cohort_version (workspace_id, cohort_id, version, import_id,
                                           published_at, member_count, added_count, removed_count,
                                           received_count, matched_count)
               SELECT $1, $2, head.before + new.nth, new.import_id, head.imported_at, new.members,
                      new.added, new.removed, new.received, new.matched
               FROM head, new
           ), changed AS (
               INSERT INTO cohort_delta (workspace_id, cohort_id, version, part, added, removed)
               SELECT $1, $2, head.before + delta.nth, delta.part, delta.added, delta.removed
               FROM head, unnest($16::bigint[], $17::integer[], $18::bytea[], $19::bytea[])
                          AS delta (nth, part, added, removed)
           ), committed AS (
               UPDATE cohort_import import
               SET state = 3, digest_state = '', next_offset = new.received, digest = new.digest,
                   summary = new.summary, version = head.before + new.nth,
                   updated_at = head.imported_at, expires_at = NULL
               FROM head, new
               -- Ids made at about the same time are neighbours in the index. Without the range, a
               -- planner that knows nothing of a young table reads all imports of the workspace.
               WHERE import.workspace_id = $1 AND import.import_id BETWEEN $20 AND $21
                 AND import.import_id = new.import
           )
           SELECT before AS "before!", delta_bytes, checkpoint_bytes FROM head"#,
        workspace.0,
        cohort,
        int(new.len()),
        int(deltas.bytes()),
        new.iter().filter_map(|new| new.source_time).max(),
        count(members.len()),
        &imports as &[&str],
        &import_ids as &[&str],
        &digests as &[&[u8]],
        &summaries,
        &column(|summary| summary.members_after),
        &column(|summary| summary.members_added),
        &column(|summary| summary.members_removed),
        &column(|summary| summary.received),
        &column(|summary| summary.outcomes.matched()),
        &deltas.nth,
        &deltas.part,
        &deltas.added,
        &deltas.removed,
        imports.iter().min(),
        imports.iter().max(),
    )
    .fetch_one(&mut *conn)
    .await?;
    // Written when what there is to read weighs half more than the set, so that reading a cohort costs
    // little more than the set itself, and writing it is amortised. The first version of a cohort is
    // its own checkpoint.
    let set_bytes = int(members.serialized_size());
    let read_bytes = head.checkpoint_bytes + head.delta_bytes;
    if head.delta_bytes > MIN_DELTA_BYTES && read_bytes > set_bytes + set_bytes / 2 {
        let version = head.before + int(new.len());
        checkpoint(conn, workspace, cohort, version, members).await?;
    }
    Ok(head.before + 1)
}

async fn checkpoint(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: Uuid,
    version: i64,
    members: &UserSet,
) -> Result<()> {
    let parts = user_set::split(members);
    // An empty set has no parts: its deltas keep standing for it.
    if parts.is_empty() {
        return Ok(());
    }
    let bytes: usize = parts.iter().map(|part| part.bytes.len()).sum();
    let numbers: Vec<i32> = parts.iter().map(|part| part_number(part.number)).collect();
    let members: Vec<Vec<u8>> = parts.into_iter().map(|part| part.bytes).collect();
    sqlx::query!(
        "INSERT INTO cohort_checkpoint (workspace_id, cohort_id, version, part, members)
         SELECT $1, $2, $3, part, members
         FROM unnest($4::integer[], $5::bytea[]) AS checkpoint (part, members)",
        workspace.0,
        cohort,
        version,
        &numbers,
        &members,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "UPDATE cohort SET checkpoint_version = $3, checkpoint_bytes = $4, delta_bytes = 0
         WHERE workspace_id = $1 AND cohort_id = $2",
        workspace.0,
        cohort,
        version,
        int(bytes),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The changes of some versions, cut into parts, as parallel columns.
#[derive(Default)]
struct Deltas {
    /// Which of the versions, from 1.
    nth: Vec<i64>,
    part: Vec<i32>,
    added: Vec<Vec<u8>>,
    removed: Vec<Vec<u8>>,
}

impl Deltas {
    fn of(new: &[NewVersion<'_>]) -> Self {
        let empty = user_set::to_bytes(&UserSet::new());
        let mut deltas = Self::default();
        for (nth, new) in (1..).zip(new) {
            let mut parts = BTreeMap::new();
            for part in user_set::split(&new.publication.added) {
                parts.insert(part.number, (part.bytes, empty.clone()));
            }
            for part in user_set::split(&new.publication.removed) {
                let entry = parts.entry(part.number);
                entry.or_insert_with(|| (empty.clone(), empty.clone())).1 = part.bytes;
            }
            for (number, (added, removed)) in parts {
                deltas.nth.push(nth);
                deltas.part.push(part_number(number));
                deltas.added.push(added);
                deltas.removed.push(removed);
            }
        }
        deltas
    }

    fn bytes(&self) -> usize {
        self.added.iter().chain(&self.removed).map(Vec::len).sum()
    }
}

/// How a user last came into a cohort or left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastChange {
    /// The version that did it.
    pub version: i64,
    /// When it was published.
    pub published_at: Timestamp,
    /// Whether it added the user.
    pub added: bool,
}

/// What the log of a cohort says about some users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// This is the last that happened to one of them.
    Changed(LastChange),
    /// Nothing happened to any, as far as deltas are kept.
    Untouched,
    /// Nothing happened to any in the newest deltas; there are more than are looked through.
    TooLong,
}

/// Deltas that a search for a change looks through before it gives up.
const MAX_LOOKED_BACK: usize = 2_000;

/// The last version up to `version` that added or removed any of some users, as far as deltas are
/// kept and the search is worth it.
///
/// # Errors
/// If the database fails.
pub async fn last_change(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: Uuid,
    version: i64,
    users: &UserSet,
) -> Result<History> {
    /// Deltas looked through at a time, so that memory is bounded.
    const PAGE: usize = 32;
    let parts: BTreeSet<u32> = users.iter().map(user_set::part_of).collect();
    let parts: Vec<i32> = parts.into_iter().map(part_number).collect();
    let mut below = (version + 1, 0);
    let mut looked_through = 0;
    while looked_through < MAX_LOOKED_BACK {
        let deltas = sqlx::query!(
            "SELECT version, part, published_at, added, removed
             FROM cohort_delta JOIN cohort_version USING (workspace_id, cohort_id, version)
             WHERE workspace_id = $1 AND cohort_id = $2 AND (version, part) < ($3, $4)
               AND part = ANY($5)
             ORDER BY version DESC, part DESC LIMIT $6",
            workspace.0,
            cohort,
            below.0,
            below.1,
            &parts,
            int(PAGE),
        )
        .fetch_all(&mut *conn)
        .await?;
        for delta in &deltas {
            let added = !user_set::from_bytes(&delta.added)?.is_disjoint(users);
            if added || !user_set::from_bytes(&delta.removed)?.is_disjoint(users) {
                return Ok(History::Changed(LastChange {
                    version: delta.version,
                    published_at: delta.published_at,
                    added,
                }));
            }
        }
        looked_through += deltas.len();
        match deltas.last() {
            Some(last) if deltas.len() == PAGE => below = (last.version, last.part),
            _ => return Ok(History::Untouched),
        }
    }
    Ok(History::TooLong)
}

impl Store {
    /// Forgets the history of cohorts that is older than `retention` and not needed to read the
    /// current version: deltas up to the newest checkpoint, and earlier checkpoints. What a version
    /// counted stays. Returns how many deltas it forgot.
    ///
    /// # Errors
    /// If the database fails; what was done before stays done.
    pub async fn forget_history(&self, now: Timestamp, retention: Duration) -> Result<u64> {
        /// Rows that one transaction removes at most.
        const PAGE: i64 = 1_000;
        let mut forgotten = 0;
        loop {
            let mut tx = self.clean_up("forget_history").await?;
            let done = sqlx::query!(
                "DELETE FROM cohort_delta WHERE (workspace_id, cohort_id, version, part) IN (
                     SELECT d.workspace_id, d.cohort_id, d.version, d.part
                     FROM cohort_delta d
                     JOIN cohort_version v USING (workspace_id, cohort_id, version)
                     JOIN cohort c ON c.workspace_id = d.workspace_id AND c.cohort_id = d.cohort_id
                     WHERE d.version <= c.checkpoint_version
                       AND v.published_at < $3::timestamptz - $1::interval
                     LIMIT $2
                 )",
                interval(retention),
                PAGE,
                now,
            )
            .execute(&mut *tx)
            .await?
            .rows_affected();
            tx.commit().await?;
            forgotten += done;
            if done == 0 {
                break;
            }
        }
        let mut tx = self.clean_up("forget_history").await?;
        sqlx::query!(
            "DELETE FROM cohort_checkpoint k USING cohort c, cohort_version v
             WHERE c.workspace_id = k.workspace_id AND c.cohort_id = k.cohort_id
               AND v.workspace_id = k.workspace_id AND v.cohort_id = k.cohort_id
               AND v.version = k.version AND k.version < c.checkpoint_version
               AND v.published_at < $2::timestamptz - $1::interval",
            interval(retention),
            now,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(forgotten)
    }
}

fn part_number(part: u32) -> i32 {
    i32::try_from(part).expect("there are 512 parts at most")
}

fn int(bytes: usize) -> i64 {
    i64::try_from(bytes).expect("memory is smaller than 2⁶³ bytes")
}

fn count(users: u64) -> i64 {
    i64::try_from(users).expect("nobody counts to 2⁶³")
}
