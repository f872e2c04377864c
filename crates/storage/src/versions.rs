//! Cohort versions: logs of bitmaps, with a checkpoint now and then.
//!
//! The cohort at version V is the newest checkpoint at or before V with the deltas up to V applied.
//! Publishing inserts rows and bumps the version; it never rewrites the set.

mod record;

pub use record::{Version, list, recent};

use std::{collections::BTreeSet, time::Duration};

use muster_domain::{
    import::Publication,
    user_set::{self, UserSet},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Store, Timestamp, WorkspaceId, imports::interval};

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
    let mut set = UserSet::new();
    let checkpoint = sqlx::query!(
        r#"SELECT version, members FROM cohort_checkpoint
           WHERE workspace_id = $1 AND cohort_id = $2 AND version = (
               SELECT max(version) FROM cohort_checkpoint
               WHERE workspace_id = $1 AND cohort_id = $2 AND version <= $3
           )"#,
        workspace.0,
        cohort,
        version,
    )
    .fetch_all(&mut *conn)
    .await?;
    for part in &checkpoint {
        set |= user_set::from_bytes(&part.members)?;
    }
    let deltas = sqlx::query!(
        "SELECT added, removed FROM cohort_delta
         WHERE workspace_id = $1 AND cohort_id = $2 AND version > $3 AND version <= $4
         ORDER BY version",
        workspace.0,
        cohort,
        checkpoint.first().map_or(0, |part| part.version),
        version,
    )
    .fetch_all(conn)
    .await?;
    for delta in &deltas {
        set -= user_set::from_bytes(&delta.removed)?;
        set |= user_set::from_bytes(&delta.added)?;
    }
    Ok(set)
}

/// Publishes a new version of a cohort, which the caller has locked, and returns its number.
///
/// # Errors
/// If the database fails.
pub async fn publish(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: Uuid,
    import_id: &str,
    source_time: Option<Timestamp>,
    publication: &Publication,
) -> Result<i64> {
    let (parts, added, removed) = delta_parts(publication);
    let bytes: usize = added.iter().chain(&removed).map(Vec::len).sum();
    let summary = &publication.summary;
    let head = sqlx::query!(
        "UPDATE cohort
         SET version = version + 1, imported_at = clock_timestamp(),
             delta_bytes = delta_bytes + $3,
             applied_source_time = greatest(applied_source_time, $4),
             member_count = $5
         WHERE workspace_id = $1 AND cohort_id = $2
         RETURNING version, delta_bytes, checkpoint_bytes",
        workspace.0,
        cohort,
        int(bytes),
        source_time,
        count(summary.members_after),
    )
    .fetch_one(&mut *conn)
    .await?;
    sqlx::query!(
        "INSERT INTO cohort_version (workspace_id, cohort_id, version, import_id, published_at,
                                     member_count, added_count, removed_count, received_count,
                                     matched_count)
         SELECT workspace_id, cohort_id, version, $3, imported_at, member_count, $4, $5, $6, $7
         FROM cohort WHERE workspace_id = $1 AND cohort_id = $2",
        workspace.0,
        cohort,
        import_id,
        count(summary.members_added),
        count(summary.members_removed),
        count(summary.received),
        count(summary.outcomes.matched()),
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "INSERT INTO cohort_delta (workspace_id, cohort_id, version, part, added, removed)
         SELECT $1, $2, $3, part, added, removed
         FROM unnest($4::integer[], $5::bytea[], $6::bytea[]) AS delta (part, added, removed)",
        workspace.0,
        cohort,
        head.version,
        &parts,
        &added,
        &removed,
    )
    .execute(&mut *conn)
    .await?;
    // Written when what there is to read weighs half more than the set, so that reading a cohort costs
    // little more than the set itself, and writing it is amortised. The first version of a cohort is
    // its own checkpoint.
    let set_bytes = int(publication.members.serialized_size());
    let read_bytes = head.checkpoint_bytes + head.delta_bytes;
    if head.delta_bytes > MIN_DELTA_BYTES && read_bytes > set_bytes + set_bytes / 2 {
        checkpoint(conn, workspace, cohort, head.version, &publication.members).await?;
    }
    Ok(head.version)
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

/// The change of a publication as parallel columns: part, added, removed.
fn delta_parts(publication: &Publication) -> (Vec<i32>, Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let empty = user_set::to_bytes(&UserSet::new());
    let mut parts = std::collections::BTreeMap::new();
    for part in user_set::split(&publication.added) {
        parts.insert(part.number, (part.bytes, empty.clone()));
    }
    for part in user_set::split(&publication.removed) {
        let entry = parts.entry(part.number);
        entry.or_insert_with(|| (empty.clone(), empty.clone())).1 = part.bytes;
    }
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for (number, (added, removed)) in parts {
        columns.0.push(part_number(number));
        columns.1.push(added);
        columns.2.push(removed);
    }
    columns
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
