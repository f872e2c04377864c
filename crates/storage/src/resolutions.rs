//! Resolutions: segments evaluated at one snapshot and kept for a while.
//!
//! An expired resolution does not exist, whether it has been deleted yet or not.

use std::time::Duration;

use muster_domain::{
    error::Error,
    user_set::{self, UserSet},
};
use sqlx::{PgConnection, postgres::types::PgInterval};
use uuid::Uuid;

use crate::{Result, Timestamp, WorkspaceId};

/// A kept resolution, without its users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// UUIDv7.
    pub id: Uuid,
    /// The segment it was made from; `None` for an inline filter.
    pub segment: Option<Uuid>,
    /// The filter as people read it, as it was.
    pub filter_text: String,
    /// Users in it.
    pub user_count: u64,
    /// Who asked for it.
    pub created_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it is forgotten.
    pub expires_at: Timestamp,
}

/// A cohort as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CohortRead {
    /// Internal id.
    pub id: Uuid,
    /// Slug of the partner.
    pub partner: String,
    /// The partner's id of the cohort.
    pub partner_cohort_id: String,
    /// Name at that time.
    pub name: String,
    /// Version read; 0 if nothing had been imported.
    pub version: i64,
    /// When that version was published.
    pub published_at: Option<Timestamp>,
}

/// A resolution to keep.
#[derive(Debug)]
pub struct NewResolution<'a> {
    /// The segment it is made from; `None` for an inline filter.
    pub segment: Option<Uuid>,
    /// The filter as people read it.
    pub filter_text: &'a str,
    /// The users in it.
    pub users: &'a UserSet,
    /// Epoch of the directory it was evaluated against.
    pub directory_epoch: i64,
    /// The cohorts it was evaluated from.
    pub cohorts: &'a [CohortRead],
    /// Who asks for it.
    pub created_by: &'a str,
    /// How long it is kept.
    pub retention: Duration,
}

struct Row {
    resolution_id: Uuid,
    segment_id: Option<Uuid>,
    filter_text: String,
    user_count: i64,
    created_by: String,
    created_at: Timestamp,
    expires_at: Timestamp,
}

impl From<Row> for Resolution {
    fn from(row: Row) -> Self {
        Self {
            id: row.resolution_id,
            segment: row.segment_id,
            filter_text: row.filter_text,
            user_count: u64::try_from(row.user_count).expect("it was written from a u64"),
            created_by: row.created_by,
            created_at: row.created_at,
            expires_at: row.expires_at,
        }
    }
}

/// Keeps a resolution. Returns its id.
///
/// # Errors
/// If the database fails.
pub async fn insert(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    new: &NewResolution<'_>,
) -> Result<Uuid> {
    let id = Uuid::now_v7();
    let retention = PgInterval::try_from(new.retention).map_err(Error::internal)?;
    let user_count = i64::try_from(new.users.len()).expect("there are 2³² users at most");
    sqlx::query!(
        "INSERT INTO resolution (workspace_id, resolution_id, segment_id, filter_text, user_count,
                                 directory_epoch, created_by, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8::interval)",
        workspace.0,
        id,
        new.segment,
        new.filter_text,
        user_count,
        new.directory_epoch,
        new.created_by,
        retention,
    )
    .execute(&mut *conn)
    .await?;
    insert_cohorts(conn, workspace, id, new.cohorts).await?;
    // One statement for each part: together they may be hundreds of MiB.
    for part in user_set::split(new.users) {
        sqlx::query!(
            "INSERT INTO resolution_part (workspace_id, resolution_id, part, members)
             VALUES ($1, $2, $3, $4)",
            workspace.0,
            id,
            i32::try_from(part.number).expect("there are 512 parts at most"),
            part.bytes,
        )
        .execute(&mut *conn)
        .await?;
    }
    Ok(id)
}

async fn insert_cohorts(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    resolution: Uuid,
    cohorts: &[CohortRead],
) -> Result<()> {
    let ids: Vec<Uuid> = cohorts.iter().map(|c| c.id).collect();
    let partners: Vec<&str> = cohorts.iter().map(|c| c.partner.as_str()).collect();
    let partner_ids: Vec<&str> = cohorts
        .iter()
        .map(|c| c.partner_cohort_id.as_str())
        .collect();
    let names: Vec<&str> = cohorts.iter().map(|c| c.name.as_str()).collect();
    let versions: Vec<i64> = cohorts.iter().map(|c| c.version).collect();
    let published: Vec<Option<Timestamp>> = cohorts.iter().map(|c| c.published_at).collect();
    sqlx::query!(
        "INSERT INTO resolution_cohort (workspace_id, resolution_id, cohort_id, partner,
                                        partner_cohort_id, name, version, published_at)
         SELECT $1, $2, cohort_id, partner, partner_cohort_id, name, version, published_at
         FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::timestamptz[])
              AS read (cohort_id, partner, partner_cohort_id, name, version, published_at)",
        workspace.0,
        resolution,
        &ids,
        &partners as &[&str],
        &partner_ids as &[&str],
        &names as &[&str],
        &versions,
        &published as &[Option<Timestamp>],
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Finds a resolution that has not expired.
///
/// # Errors
/// If the database fails.
pub async fn find(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    id: Uuid,
) -> Result<Option<Resolution>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT resolution_id, segment_id, filter_text, user_count, created_by, created_at, expires_at
         FROM resolution
         WHERE workspace_id = $1 AND resolution_id = $2 AND expires_at > now()",
        workspace.0,
        id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(Into::into))
}

/// Which resolutions to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection {
    /// Only of this segment.
    pub segment: Option<Uuid>,
    /// Only those made at this time or later.
    pub since: Option<Timestamp>,
    /// Only those made before this time.
    pub until: Option<Timestamp>,
}

/// A page of resolutions that have not expired, newest first, older than one.
///
/// # Errors
/// If the database fails.
pub async fn list(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    selection: Selection,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Resolution>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT resolution_id, segment_id, filter_text, user_count, created_by, created_at, expires_at
         FROM resolution
         WHERE workspace_id = $1 AND expires_at > now()
           AND ($2::uuid IS NULL OR segment_id = $2)
           AND ($3::timestamptz IS NULL OR created_at >= $3)
           AND ($4::timestamptz IS NULL OR created_at < $4)
           AND ($5::uuid IS NULL OR resolution_id < $5)
         ORDER BY resolution_id DESC LIMIT $6",
        workspace.0,
        selection.segment,
        selection.since,
        selection.until,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// The cohorts that resolutions read: each with the resolution that read it, by partner and
/// partner's id.
///
/// # Errors
/// If the database fails.
pub async fn cohorts(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    resolutions: &[Uuid],
) -> Result<Vec<(Uuid, CohortRead)>> {
    let rows = sqlx::query!(
        "SELECT resolution_id, cohort_id, partner, partner_cohort_id, name, version, published_at
         FROM resolution_cohort WHERE workspace_id = $1 AND resolution_id = ANY($2)
         ORDER BY partner, partner_cohort_id",
        workspace.0,
        resolutions,
    )
    .fetch_all(conn)
    .await?;
    let read = rows.into_iter().map(|row| {
        let cohort = CohortRead {
            id: row.cohort_id,
            partner: row.partner,
            partner_cohort_id: row.partner_cohort_id,
            name: row.name,
            version: row.version,
            published_at: row.published_at,
        };
        (row.resolution_id, cohort)
    });
    Ok(read.collect())
}

/// The users of a resolution.
///
/// # Errors
/// If the database fails.
pub async fn users(conn: &mut PgConnection, workspace: WorkspaceId, id: Uuid) -> Result<UserSet> {
    let parts = sqlx::query_scalar!(
        "SELECT members FROM resolution_part WHERE workspace_id = $1 AND resolution_id = $2",
        workspace.0,
        id,
    )
    .fetch_all(conn)
    .await?;
    let mut users = UserSet::new();
    for part in parts {
        users |= user_set::from_bytes(&part)?;
    }
    Ok(users)
}

/// Deletes up to `limit` resolutions, of all workspaces, that have expired by `now`. Returns how many.
///
/// # Errors
/// If the database fails.
pub async fn delete_expired(conn: &mut PgConnection, now: Timestamp, limit: i64) -> Result<u64> {
    // What another server is deleting is left to it.
    let deleted = sqlx::query!(
        "DELETE FROM resolution WHERE (workspace_id, resolution_id) IN (
             SELECT workspace_id, resolution_id FROM resolution
             WHERE expires_at <= $2 ORDER BY expires_at LIMIT $1
             FOR UPDATE SKIP LOCKED
         )",
        limit,
        now,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}
