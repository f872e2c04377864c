//! Imports: opened, staged batch by batch, then finished one way or another.

mod retention;
mod staging;

pub use staging::{Batch, batches, digests_around, stage};

use std::time::Duration;

use muster_domain::{
    error::Error,
    import::{ImportDigest, Mode, Summary},
};
use sqlx::{PgConnection, postgres::types::PgInterval};
use uuid::Uuid;

use crate::{Result, Timestamp, WorkspaceId, cohorts::Cohort};

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
    /// Internal id.
    pub id: String,
    /// Chosen by the client; unique for the partner.
    pub partner_import_id: String,
    /// Internal id of the cohort.
    pub cohort: Uuid,
    /// Slug of the partner.
    pub partner: String,
    /// The partner's id of the cohort.
    pub partner_cohort_id: String,
    /// Current name of the cohort.
    pub cohort_name: String,
    /// Adds and removes, or the full list.
    pub mode: Mode,
    /// How far it is.
    pub state: State,
    /// The number of the writer that has it open.
    pub fence: i64,
    /// Identifiers durably received.
    pub next_offset: u64,
    /// SHA-256 over them, not yet finished; empty once the import takes no more batches.
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
    /// Version it published.
    pub version: Option<i64>,
}

struct Row {
    id: String,
    partner_import_id: String,
    cohort: Uuid,
    partner: String,
    partner_cohort_id: String,
    cohort_name: String,
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
    version: Option<i64>,
}

impl TryFrom<Row> for Import {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        let summary = row.summary.map(serde_json::from_value).transpose();
        Ok(Self {
            id: row.id,
            partner_import_id: row.partner_import_id,
            cohort: row.cohort,
            partner: row.partner,
            partner_cohort_id: row.partner_cohort_id,
            cohort_name: row.cohort_name,
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
            version: row.version,
        })
    }
}

/// An import to open.
#[derive(Debug, Clone, Copy)]
pub struct NewImport<'a> {
    /// Chosen by the client; unique for the partner.
    pub partner_import_id: &'a str,
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

/// Creates imports into a cohort, each unless the partner has one with its id. Returns those it
/// created, by place; nobody else sees them until the transaction ends.
///
/// # Errors
/// If the database fails.
pub async fn insert(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: &Cohort,
    new: &[NewImport<'_>],
    expires_in: Duration,
) -> Result<Vec<Option<Import>>> {
    let ids: Vec<String> = new.iter().map(|_| Uuid::now_v7().to_string()).collect();
    let digest_state = ImportDigest::default().state();
    let partner_import_ids: Vec<&str> = new.iter().map(|new| new.partner_import_id).collect();
    let modes: Vec<i16> = new.iter().map(|new| new.mode as i16).collect();
    let source_times: Vec<Option<Timestamp>> = new.iter().map(|new| new.source_time).collect();
    let refuse_if_older: Vec<bool> = new.iter().map(|new| new.refuse_if_older).collect();
    let fractions = new.iter().map(|new| new.max_removed_fraction);
    let fractions: Vec<Option<f64>> = fractions.collect();
    let created_by: Vec<&str> = new.iter().map(|new| new.created_by).collect();
    let rows = sqlx::query!(
        // In one order, so that two of these cannot wait for each other.
        "INSERT INTO cohort_import (workspace_id, cohort_id, partner, digest_state, expires_at,
                                    import_id, partner_import_id, mode, source_time,
                                    refuse_if_older, max_removed_fraction, created_by)
         SELECT $1, $2, $3, $4, now() + $5, new.*
         FROM unnest($6::text[], $7::text[], $8::smallint[], $9::timestamptz[], $10::boolean[],
                     $11::double precision[], $12::text[])
              AS new (import_id, partner_import_id, mode, source_time, refuse_if_older,
                      max_removed_fraction, created_by)
         ORDER BY partner_import_id
         ON CONFLICT ON CONSTRAINT cohort_import_partner_import_id_unique DO NOTHING
         RETURNING import_id, created_at, expires_at",
        workspace.0,
        cohort.id,
        cohort.partner,
        digest_state,
        interval(expires_in),
        &ids,
        &partner_import_ids as &[&str],
        &modes,
        &source_times as &[Option<Timestamp>],
        &refuse_if_older,
        &fractions as &[Option<f64>],
        &created_by as &[&str],
    )
    .fetch_all(conn)
    .await?;
    let imports = new.iter().zip(ids).map(|(new, id)| {
        let row = rows.iter().find(|row| row.import_id == id)?;
        Some(Import {
            id,
            partner_import_id: new.partner_import_id.to_owned(),
            cohort: cohort.id,
            partner: cohort.partner.clone(),
            partner_cohort_id: cohort.partner_cohort_id.clone(),
            cohort_name: cohort.name.clone(),
            mode: new.mode,
            state: State::Open,
            fence: 1,
            next_offset: 0,
            digest_state: digest_state.clone(),
            source_time: new.source_time,
            refuse_if_older: new.refuse_if_older,
            max_removed_fraction: new.max_removed_fraction,
            created_by: new.created_by.to_owned(),
            created_at: row.created_at,
            updated_at: row.created_at,
            expires_at: row.expires_at,
            digest: None,
            summary: None,
            version: None,
        })
    });
    Ok(imports.collect())
}

/// Locks an import, by its internal id, until the transaction ends.
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

/// Finds the import that a client names by the id it chose; of any partner if none is given.
///
/// # Errors
/// `NOT_FOUND`; `INVALID_ARGUMENT` (`IMPORT_AMBIGUOUS`) if several partners have one.
pub async fn named(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    partner: Option<&str>,
    partner_import_id: &str,
) -> Result<Import> {
    let found = sqlx::query_scalar!(
        "SELECT import_id FROM cohort_import
         WHERE workspace_id = $1 AND partner_import_id = $2 AND ($3::text IS NULL OR partner = $3)
         LIMIT 2",
        workspace.0,
        partner_import_id,
        partner,
    )
    .fetch_all(&mut *conn)
    .await?;
    let not_found = || Error::not_found("import", partner_import_id);
    match found.as_slice() {
        [] => Err(not_found().into()),
        [id] => Ok(find(conn, workspace, id).await?.ok_or_else(not_found)?),
        _ => {
            let problem = "is required: several partners have an import with this id";
            let mut ambiguous = Error::field("partner", problem);
            ambiguous.reason = "IMPORT_AMBIGUOUS";
            Err(ambiguous.into())
        }
    }
}

/// Finds an import by its internal id.
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
        "SELECT import_id AS id, partner_import_id, i.cohort_id AS cohort, c.partner, c.partner_cohort_id,
                c.name AS cohort_name, mode, state, fence, next_offset, digest_state, source_time, refuse_if_older,
                max_removed_fraction, created_by, i.created_at, updated_at, expires_at, digest,
                summary, i.version
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
    /// Only those opened at this time or later.
    pub since: Option<Timestamp>,
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
        "SELECT import_id AS id, partner_import_id, i.cohort_id AS cohort, c.partner, c.partner_cohort_id,
                c.name AS cohort_name, mode, state, fence, next_offset, digest_state, source_time, refuse_if_older,
                max_removed_fraction, created_by, i.created_at, updated_at, expires_at, digest,
                summary, i.version
         FROM cohort_import i
         JOIN cohort c ON c.workspace_id = i.workspace_id AND c.cohort_id = i.cohort_id
         WHERE i.workspace_id = $1
           AND ($2::text IS NULL OR c.partner = $2)
           AND ($3::uuid IS NULL OR i.cohort_id = $3)
           AND ($4::smallint IS NULL OR state = $4)
           AND ($5::timestamptz IS NULL OR i.created_at >= $5)
           AND ($6::timestamptz IS NULL OR (i.created_at, import_id) < ($6, $7))
         ORDER BY i.created_at DESC, import_id DESC LIMIT $8",
        workspace.0,
        selection.partner,
        selection.cohort,
        selection.state.map(|state| state as i16),
        selection.since,
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
    expires_in: Duration,
) -> Result<()> {
    sqlx::query!(
        "UPDATE cohort_import
         SET state = 2, digest_state = '', digest = $3, summary = $4, updated_at = now(),
             expires_at = now() + $5
         WHERE workspace_id = $1 AND import_id = $2",
        workspace.0,
        id,
        digest,
        json(preview),
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

/// Forgets the batches of an import that is finished.
///
/// # Errors
/// If the database fails.
pub async fn drop_batches(conn: &mut PgConnection, workspace: WorkspaceId, id: &str) -> Result<()> {
    sqlx::query!(
        "DELETE FROM import_batch WHERE workspace_id = $1 AND import_id = $2",
        workspace.0,
        id,
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) fn json(summary: &Summary) -> serde_json::Value {
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
