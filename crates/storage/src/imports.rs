//! Imports: opened, staged batch by batch, then finished one way or another.

use std::time::Duration;

use muster_domain::{
    error::Error,
    import::{ImportDigest, Mode, Run, Summary, Unmatched, runs_from_bytes, runs_to_bytes},
};
use sqlx::{PgConnection, postgres::types::PgInterval};
use uuid::Uuid;

use crate::{Result, Store, Timestamp, WorkspaceId};

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum State {
    /// Takes batches.
    Open = 1,
    /// Complete, but would remove more members than allowed without confirmation.
    AwaitingConfirmation = 2,
    /// Published.
    Committed = 3,
    /// Ended on request.
    Aborted = 4,
    /// Abandoned and cleaned up.
    Expired = 5,
}

impl State {
    fn from_code(code: i16) -> Self {
        [
            Self::Open,
            Self::AwaitingConfirmation,
            Self::Committed,
            Self::Aborted,
            Self::Expired,
        ]
        .into_iter()
        .find(|state| *state as i16 == code)
        .expect("a check constraint keeps it in range")
    }
}

/// One upload into a cohort.
#[derive(Debug, Clone)]
pub struct Import {
    /// Chosen by the client.
    pub id: String,
    /// Internal id of the cohort.
    pub cohort: Uuid,
    /// Slug of the partner.
    pub partner: String,
    /// The partner's id of the cohort.
    pub partner_cohort_id: String,
    /// Adds and removes, or the full list.
    pub mode: Mode,
    /// How far it is.
    pub state: State,
    /// The number of the writer that has it open.
    pub fence: i64,
    /// Identifiers durably received.
    pub next_offset: u64,
    /// SHA-256 over them, not yet finished; empty once the import takes no more batches, because it
    /// may hold the end of the last identifier.
    pub digest_state: Vec<u8>,
    /// When the source says its data is from.
    pub source_time: Option<Timestamp>,
    /// Whether to refuse it if a later source time was published.
    pub refuse_if_older: bool,
    /// Share of the members that a replacement may remove without confirmation.
    pub max_removed_fraction: Option<f64>,
    /// Who opened it.
    pub created_by: String,
    /// When it was opened.
    pub created_at: Timestamp,
    /// When it last made progress.
    pub updated_at: Timestamp,
    /// When it expires unless it makes progress; `None` once finished.
    pub expires_at: Option<Timestamp>,
    /// The digest it was committed with.
    pub digest: Option<Vec<u8>>,
    /// What it did, or would do.
    pub summary: Option<Summary>,
    /// Cohort version that a preview is relative to.
    pub preview_version: Option<i64>,
    /// Version it published.
    pub version: Option<i64>,
}

struct Row {
    id: String,
    cohort: Uuid,
    partner: String,
    partner_cohort_id: String,
    mode: i16,
    state: i16,
    fence: i64,
    next_offset: i64,
    digest_state: Vec<u8>,
    source_time: Option<Timestamp>,
    refuse_if_older: bool,
    max_removed_fraction: Option<f64>,
    created_by: String,
    created_at: Timestamp,
    updated_at: Timestamp,
    expires_at: Option<Timestamp>,
    digest: Option<Vec<u8>>,
    summary: Option<serde_json::Value>,
    preview_version: Option<i64>,
    version: Option<i64>,
}

impl TryFrom<Row> for Import {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        let summary = row.summary.map(serde_json::from_value).transpose();
        Ok(Self {
            id: row.id,
            cohort: row.cohort,
            partner: row.partner,
            partner_cohort_id: row.partner_cohort_id,
            mode: match row.mode {
                1 => Mode::Delta,
                _ => Mode::Replace,
            },
            state: State::from_code(row.state),
            fence: row.fence,
            next_offset: from_sql(row.next_offset),
            digest_state: row.digest_state,
            source_time: row.source_time,
            refuse_if_older: row.refuse_if_older,
            max_removed_fraction: row.max_removed_fraction,
            created_by: row.created_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
            expires_at: row.expires_at,
            digest: row.digest,
            summary: summary.map_err(Error::internal)?,
            preview_version: row.preview_version,
            version: row.version,
        })
    }
}

/// An import to open.
#[derive(Debug, Clone, Copy)]
pub struct NewImport<'a> {
    /// Chosen by the client.
    pub id: &'a str,
    /// Internal id of the cohort.
    pub cohort: Uuid,
    /// Adds and removes, or the full list.
    pub mode: Mode,
    /// When the source says its data is from.
    pub source_time: Option<Timestamp>,
    /// Whether to refuse it if a later source time was published.
    pub refuse_if_older: bool,
    /// Share of the members that a replacement may remove without confirmation.
    pub max_removed_fraction: Option<f64>,
    /// Who opens it.
    pub created_by: &'a str,
}

/// Creates an import unless its id is taken. Returns whether it created it.
///
/// # Errors
/// If the database fails.
pub async fn insert(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    new: &NewImport<'_>,
    expires_in: Duration,
) -> Result<bool> {
    let done = sqlx::query!(
        "INSERT INTO cohort_import (workspace_id, import_id, cohort_id, mode, digest_state,
                                    source_time, refuse_if_older, max_removed_fraction, created_by,
                                    expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + $10)
         ON CONFLICT DO NOTHING",
        workspace.0,
        new.id,
        new.cohort,
        new.mode as i16,
        ImportDigest::default().state(),
        new.source_time,
        new.refuse_if_older,
        new.max_removed_fraction,
        new.created_by,
        interval(expires_in),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Locks an import until the transaction ends.
///
/// # Errors
/// `NOT_FOUND`.
pub async fn lock(conn: &mut PgConnection, workspace: WorkspaceId, id: &str) -> Result<Import> {
    sqlx::query!(
        r#"SELECT 1 AS "one!" FROM cohort_import
           WHERE workspace_id = $1 AND import_id = $2 FOR NO KEY UPDATE"#,
        workspace.0,
        id,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let found = find(conn, workspace, id).await?;
    Ok(found.ok_or_else(|| Error::not_found("import", id))?)
}

/// Finds an import.
///
/// # Errors
/// If the database fails.
pub async fn find(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: &str,
) -> Result<Option<Import>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT import_id AS id, i.cohort_id AS cohort, c.partner, c.partner_cohort_id, mode, state,
                fence, next_offset, digest_state, source_time, refuse_if_older,
                max_removed_fraction, created_by, i.created_at, updated_at, expires_at, digest,
                summary, preview_version, i.version
         FROM cohort_import i
         JOIN cohort c ON c.workspace_id = i.workspace_id AND c.cohort_id = i.cohort_id
         WHERE i.workspace_id = $1 AND import_id = $2",
        workspace.0,
        id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(TryInto::try_into).transpose()?)
}

/// Which imports to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    /// Only this partner's.
    pub partner: Option<&'a str>,
    /// Only this cohort's.
    pub cohort: Option<Uuid>,
    /// Only those in this state.
    pub state: Option<State>,
}

/// A page of imports, newest first, older than one.
///
/// # Errors
/// If the database fails.
pub async fn list(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    selection: Selection<'_>,
    before: Option<(Timestamp, &str)>,
    limit: i64,
) -> Result<Vec<Import>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT import_id AS id, i.cohort_id AS cohort, c.partner, c.partner_cohort_id, mode, state,
                fence, next_offset, digest_state, source_time, refuse_if_older,
                max_removed_fraction, created_by, i.created_at, updated_at, expires_at, digest,
                summary, preview_version, i.version
         FROM cohort_import i
         JOIN cohort c ON c.workspace_id = i.workspace_id AND c.cohort_id = i.cohort_id
         WHERE i.workspace_id = $1
           AND ($2::text IS NULL OR c.partner = $2)
           AND ($3::uuid IS NULL OR i.cohort_id = $3)
           AND ($4::smallint IS NULL OR state = $4)
           AND ($5::timestamptz IS NULL OR (i.created_at, import_id) < ($5, $6))
         ORDER BY i.created_at DESC, import_id DESC LIMIT $7",
        workspace.0,
        selection.partner,
        selection.cohort,
        selection.state.map(|state| state as i16),
        before.map(|(created_at, _)| created_at),
        before.map(|(_, id)| id),
        limit,
    )
    .fetch_all(conn)
    .await?;
    let imports: Result<Vec<Import>, Error> = rows.into_iter().map(TryInto::try_into).collect();
    Ok(imports?)
}

/// Takes an open import over from whoever wrote it; returns the new writer's fence.
///
/// # Errors
/// If the database fails.
pub async fn take_over(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: &str,
    expires_in: Duration,
) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        "UPDATE cohort_import SET fence = fence + 1, expires_at = now() + $3
         WHERE workspace_id = $1 AND import_id = $2 RETURNING fence",
        workspace.0,
        id,
        interval(expires_in),
    )
    .fetch_one(conn)
    .await?)
}

/// A batch, resolved to users.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Identifiers of the import before it.
    pub first_offset: u64,
    /// Identifiers in it.
    pub identifier_count: u64,
    /// Whom they matched.
    pub runs: Vec<Run>,
    /// How many matched nobody.
    pub unmatched: Unmatched,
    /// SHA-256 over the import up to its end, not yet finished.
    pub digest_state: Vec<u8>,
    /// Directory epoch before it was matched.
    pub directory_epoch: i64,
}

/// Stores a batch at the end of an open import. Returns `false`, and stores nothing, if the import
/// is not open, not at that offset, or has another writer.
///
/// # Errors
/// If the database fails.
pub async fn stage(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    import_id: &str,
    fence: i64,
    batch: &Batch,
    expires_in: Duration,
) -> Result<bool> {
    let moved = sqlx::query!(
        "UPDATE cohort_import
         SET next_offset = next_offset + $5, digest_state = $6, updated_at = now(),
             expires_at = now() + $7
         WHERE workspace_id = $1 AND import_id = $2 AND fence = $3 AND next_offset = $4
           AND state = 1",
        workspace.0,
        import_id,
        fence,
        to_sql(batch.first_offset),
        to_sql(batch.identifier_count),
        batch.digest_state,
        interval(expires_in),
    )
    .execute(&mut *conn)
    .await?;
    if moved.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query!(
        "INSERT INTO import_batch (workspace_id, import_id, first_offset, identifier_count, runs,
                                   unknown, device_of_identified_user, invalid, digest_state,
                                   directory_epoch)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        workspace.0,
        import_id,
        to_sql(batch.first_offset),
        small(batch.identifier_count),
        runs_to_bytes(&batch.runs),
        small(batch.unmatched.unknown),
        small(batch.unmatched.device_of_identified_user),
        small(batch.unmatched.invalid),
        batch.digest_state,
        batch.directory_epoch,
    )
    .execute(conn)
    .await?;
    Ok(true)
}

/// Staged batches in order, from an offset on, a bounded number at a time.
///
/// # Errors
/// If the database fails.
pub async fn batches(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    import_id: &str,
    from_offset: u64,
) -> Result<Vec<Batch>> {
    /// A batch's bitmaps take 100 KB at most.
    const PAGE: i64 = 100;
    let rows = sqlx::query!(
        "SELECT first_offset, identifier_count, runs, unknown, device_of_identified_user, invalid,
                digest_state, directory_epoch
         FROM import_batch
         WHERE workspace_id = $1 AND import_id = $2 AND first_offset >= $3
         ORDER BY first_offset LIMIT $4",
        workspace.0,
        import_id,
        to_sql(from_offset),
        PAGE,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Batch {
                first_offset: from_sql(row.first_offset),
                identifier_count: from_sql(row.identifier_count.into()),
                runs: runs_from_bytes(&row.runs)?,
                unmatched: Unmatched {
                    unknown: from_sql(row.unknown.into()),
                    device_of_identified_user: from_sql(row.device_of_identified_user.into()),
                    invalid: from_sql(row.invalid.into()),
                },
                digest_state: row.digest_state,
                directory_epoch: row.directory_epoch,
            })
        })
        .collect()
}

/// The digest states before and after a staged batch that begins at an offset and holds so many
/// identifiers; `None` if there is no such batch.
///
/// # Errors
/// If the database fails.
pub async fn digests_around(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    import_id: &str,
    first_offset: u64,
    identifier_count: u64,
) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    let rows = sqlx::query!(
        "SELECT first_offset, digest_state FROM import_batch
         WHERE workspace_id = $1 AND import_id = $2
           AND (first_offset + identifier_count = $3
                OR (first_offset = $3 AND identifier_count = $4))
         ORDER BY first_offset",
        workspace.0,
        import_id,
        to_sql(first_offset),
        small(identifier_count),
    )
    .fetch_all(conn)
    .await?;
    let mut states = rows
        .into_iter()
        .map(|row| (row.first_offset, row.digest_state));
    let begins_here = |(offset, _): &(i64, _)| *offset == to_sql(first_offset);
    Ok(match (states.next(), states.next()) {
        (Some(batch), None) if first_offset == 0 && begins_here(&batch) => {
            Some((ImportDigest::default().state(), batch.1))
        }
        (Some(before), Some(batch)) if begins_here(&batch) => Some((before.1, batch.1)),
        _ => None,
    })
}

/// Records that an import was published.
///
/// # Errors
/// If the database fails.
pub async fn set_committed(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: &str,
    digest: &[u8],
    summary: &Summary,
    version: i64,
) -> Result<()> {
    sqlx::query!(
        "UPDATE cohort_import
         SET state = 3, digest_state = '', next_offset = $3, digest = $4, summary = $5, version = $6,
             updated_at = clock_timestamp(), expires_at = NULL, preview_version = NULL
         WHERE workspace_id = $1 AND import_id = $2",
        workspace.0,
        id,
        to_sql(summary.received),
        digest,
        json(summary),
        version,
    )
    .execute(&mut *conn)
    .await?;
    drop_batches(conn, workspace, id).await
}

/// Records that an import is complete and waits for confirmation, with its preview.
///
/// # Errors
/// If the database fails.
pub async fn set_awaiting(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: &str,
    digest: &[u8],
    preview: &Summary,
    preview_version: i64,
    expires_in: Duration,
) -> Result<()> {
    sqlx::query!(
        "UPDATE cohort_import
         SET state = 2, digest_state = '', digest = $3, summary = $4, preview_version = $5, updated_at = now(),
             expires_at = now() + $6
         WHERE workspace_id = $1 AND import_id = $2",
        workspace.0,
        id,
        digest,
        json(preview),
        preview_version,
        interval(expires_in),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Ends an import without publishing it.
///
/// # Errors
/// If the database fails.
pub async fn set_aborted(conn: &mut PgConnection, workspace: WorkspaceId, id: &str) -> Result<()> {
    sqlx::query!(
        "UPDATE cohort_import
         SET state = 4, digest_state = '', updated_at = now(), expires_at = NULL, summary = NULL
         WHERE workspace_id = $1 AND import_id = $2",
        workspace.0,
        id,
    )
    .execute(&mut *conn)
    .await?;
    drop_batches(conn, workspace, id).await
}

async fn drop_batches(conn: &mut PgConnection, workspace: WorkspaceId, id: &str) -> Result<()> {
    sqlx::query!(
        "DELETE FROM import_batch WHERE workspace_id = $1 AND import_id = $2",
        workspace.0,
        id,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Imports that one transaction of a clean-up touches at most.
const CLEAN_UP_PAGE: i64 = 1_000;

impl Store {
    /// Ends imports that were abandoned. Returns how many.
    ///
    /// # Errors
    /// If the database fails; what was done before stays done.
    pub async fn expire_imports(&self) -> Result<u64> {
        let mut expired = 0;
        loop {
            let mut connection = self.connection().await?;
            let done = sqlx::query!(
                "WITH expired AS (
                     SELECT workspace_id, import_id FROM cohort_import
                     WHERE state IN (1, 2) AND expires_at <= now()
                     ORDER BY expires_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
                 ), batches AS (
                     DELETE FROM import_batch b USING expired e
                     WHERE b.workspace_id = e.workspace_id AND b.import_id = e.import_id
                 ), rejected AS (
                     DELETE FROM import_rejected r USING expired e
                     WHERE r.workspace_id = e.workspace_id AND r.import_id = e.import_id
                 )
                 UPDATE cohort_import i
                 SET state = 5, digest_state = '', updated_at = now(), expires_at = NULL,
                     summary = NULL
                 FROM expired e
                 WHERE i.workspace_id = e.workspace_id AND i.import_id = e.import_id",
                CLEAN_UP_PAGE,
            )
            .execute(&mut *connection)
            .await?
            .rows_affected();
            expired += done;
            if done == 0 {
                return Ok(expired);
            }
        }
    }

    /// Forgets imports, with their rejected identifiers, that ended longer ago than `retention`.
    /// Returns how many.
    ///
    /// # Errors
    /// If the database fails; what was done before stays done.
    pub async fn forget_imports(&self, retention: Duration) -> Result<u64> {
        let mut forgotten = 0;
        loop {
            let mut connection = self.connection().await?;
            let done = sqlx::query!(
                "DELETE FROM cohort_import i
                 USING (
                     SELECT workspace_id, import_id FROM cohort_import
                     WHERE state IN (3, 4, 5) AND updated_at < now() - $1::interval
                     ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED
                 ) old
                 WHERE i.workspace_id = old.workspace_id AND i.import_id = old.import_id",
                interval(retention),
                CLEAN_UP_PAGE,
            )
            .execute(&mut *connection)
            .await?
            .rows_affected();
            forgotten += done;
            if done == 0 {
                return Ok(forgotten);
            }
        }
    }
}

fn json(summary: &Summary) -> serde_json::Value {
    serde_json::to_value(summary).expect("a summary is plain data")
}

pub(crate) fn interval(duration: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
    }
}

fn to_sql(offset: u64) -> i64 {
    i64::try_from(offset).expect("nobody sends 2⁶³ identifiers")
}

fn from_sql(offset: i64) -> u64 {
    u64::try_from(offset).expect("offsets and counts are never negative")
}

fn small(count: u64) -> i32 {
    i32::try_from(count).expect("a batch holds 10,000 identifiers at most")
}
