//! Cohorts: their names and their current version. What is in them is in [`crate::versions`].

mod list;

pub use list::{Order, Position, Selection, list};

use muster_domain::error::{Error, Kind};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Timestamp, WorkspaceId};

/// A named set of users pushed by a partner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cohort {
    /// UUIDv7.
    pub id: Uuid,
    /// Slug of the partner.
    pub partner: String,
    /// The partner's id of the cohort.
    pub partner_cohort_id: String,
    /// Current name; the partner's id until a name arrives.
    pub name: String,
    /// Names it had before, newest first.
    pub former_names: Vec<String>,
    /// Counts changes of name and state: the etag.
    pub revision: i64,
    /// Version published last; 0 if none.
    pub version: i64,
    /// Live members when it was published.
    pub member_count: i64,
    /// When it was first met.
    pub created_at: Timestamp,
    /// When its last import was committed.
    pub imported_at: Option<Timestamp>,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

impl Cohort {
    /// Refuses a cohort that is archived.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`COHORT_ARCHIVED`).
    pub fn check_not_archived(&self) -> Result<()> {
        if self.archived_at.is_none() {
            return Ok(());
        }
        Err(Error::new(
            Kind::FailedPrecondition,
            "COHORT_ARCHIVED",
            format!(
                "cohort {:?} of {} is archived",
                self.partner_cohort_id, self.partner
            ),
        )
        .into())
    }
}

/// Names a cohort as its partner does.
#[derive(Debug, Clone, Copy)]
pub struct CohortKey<'a> {
    /// Slug of the partner.
    pub partner: &'a str,
    /// The partner's id of the cohort.
    pub partner_cohort_id: &'a str,
}

/// Creates a cohort, named by its id, unless it exists. Returns whether it created it.
///
/// # Errors
/// If the database fails.
pub async fn ensure(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    key: CohortKey<'_>,
) -> Result<bool> {
    let done = sqlx::query!(
        "INSERT INTO cohort (workspace_id, cohort_id, partner, partner_cohort_id, name)
         VALUES ($1, $2, $3, $4, $4)
         ON CONFLICT ON CONSTRAINT cohort_partner_cohort_id_unique DO NOTHING",
        workspace.0,
        Uuid::now_v7(),
        key.partner,
        key.partner_cohort_id,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Finds a cohort by the partner's id.
///
/// # Errors
/// If the database fails.
pub async fn find(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    key: CohortKey<'_>,
) -> Result<Option<Cohort>> {
    Ok(sqlx::query_as!(
        Cohort,
        "SELECT cohort_id AS id, partner, partner_cohort_id, name, former_names, revision, version,
                member_count, created_at, imported_at, archived_at
         FROM cohort WHERE workspace_id = $1 AND partner = $2 AND partner_cohort_id = $3",
        workspace.0,
        key.partner,
        key.partner_cohort_id,
    )
    .fetch_optional(conn)
    .await?)
}

/// Finds cohorts by internal id; those that do not exist are left out.
///
/// # Errors
/// If the database fails.
pub async fn find_all(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    ids: &[Uuid],
) -> Result<Vec<Cohort>> {
    Ok(sqlx::query_as!(
        Cohort,
        "SELECT cohort_id AS id, partner, partner_cohort_id, name, former_names, revision, version,
                member_count, created_at, imported_at, archived_at
         FROM cohort WHERE workspace_id = $1 AND cohort_id = ANY($2)",
        workspace.0,
        ids,
    )
    .fetch_all(conn)
    .await?)
}

/// Locks a cohort until the transaction ends: its versions, its name and its state wait.
///
/// # Errors
/// `ABORTED` (`COHORT_LOCKED`) if another transaction holds it for longer than the lock timeout.
pub async fn lock(conn: &mut PgConnection, workspace: WorkspaceId, id: Uuid) -> Result<Cohort> {
    let locked = sqlx::query_as!(
        Cohort,
        "SELECT cohort_id AS id, partner, partner_cohort_id, name, former_names, revision, version,
                member_count, created_at, imported_at, archived_at
         FROM cohort WHERE workspace_id = $1 AND cohort_id = $2 FOR NO KEY UPDATE",
        workspace.0,
        id,
    )
    .fetch_one(conn)
    .await;
    locked.map_err(|cause| {
        let code = cause.as_database_error().and_then(|error| error.code());
        if code.as_deref() == Some("55P03") {
            return Error::new(
                Kind::Aborted,
                "COHORT_LOCKED",
                "the cohort is held by another import; try again",
            )
            .into();
        }
        cause.into()
    })
}

/// The cohorts of a partner, archived or not, whose current name is exactly this.
///
/// # Errors
/// If the database fails.
pub async fn named(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    partner: &str,
    name: &str,
) -> Result<Vec<Cohort>> {
    Ok(sqlx::query_as!(
        Cohort,
        "SELECT cohort_id AS id, partner, partner_cohort_id, name, former_names, revision, version,
                member_count, created_at, imported_at, archived_at
         FROM cohort WHERE workspace_id = $1 AND partner = $2 AND name = $3
         ORDER BY cohort_id DESC",
        workspace.0,
        partner,
        name,
    )
    .fetch_all(conn)
    .await?)
}

/// Gives a cohort a name; the one it had joins its former names, of which 100 are kept, unless that
/// was only its id.
///
/// # Errors
/// If the database fails.
pub async fn rename(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
    name: &str,
) -> Result<()> {
    sqlx::query!(
        "UPDATE cohort
         SET name = $3, revision = revision + 1,
             former_names = CASE
                 WHEN name = partner_cohort_id THEN array_remove(former_names, $3)
                 ELSE (array_prepend(name, array_remove(array_remove(former_names, name), $3)))[1:100]
             END
         WHERE workspace_id = $1 AND cohort_id = $2 AND name <> $3",
        workspace.0,
        id,
        name,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Archives a cohort; an archived one stays as it is.
///
/// # Errors
/// If the database fails.
pub async fn archive(conn: &mut PgConnection, workspace: WorkspaceId, id: Uuid) -> Result<()> {
    sqlx::query!(
        "UPDATE cohort SET archived_at = now(), revision = revision + 1
         WHERE workspace_id = $1 AND cohort_id = $2 AND archived_at IS NULL",
        workspace.0,
        id,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The names of the segments, not archived, that use a cohort.
///
/// # Errors
/// If the database fails.
pub async fn used_by(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar!(
        "SELECT s.name FROM segment_cohort u
         JOIN segment s ON s.workspace_id = u.workspace_id AND s.segment_id = u.segment_id
         WHERE u.workspace_id = $1 AND u.cohort_id = $2 AND s.archived_at IS NULL
         ORDER BY s.name",
        workspace.0,
        id,
    )
    .fetch_all(conn)
    .await?)
}

/// The latest source time of the imports published into a cohort.
///
/// # Errors
/// If the database fails.
pub async fn applied_source_time(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
) -> Result<Option<Timestamp>> {
    Ok(sqlx::query_scalar!(
        "SELECT applied_source_time FROM cohort WHERE workspace_id = $1 AND cohort_id = $2",
        workspace.0,
        id,
    )
    .fetch_one(conn)
    .await?)
}
