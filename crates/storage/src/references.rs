//! What filters refer to: from names and partners' ids to internal ids, and back.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Timestamp, WorkspaceId, resolutions::CohortRead};

/// A cohort as a filter may refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Internal id.
    pub id: Uuid,
    /// Slug of the partner.
    pub partner: String,
    /// The partner's id of the cohort.
    pub partner_cohort_id: String,
    /// Current name.
    pub name: String,
    /// Whether it is archived.
    pub archived: bool,
    /// Current version; 0 if nothing was imported.
    pub version: i64,
    /// When that version was published.
    pub published_at: Option<Timestamp>,
}

impl From<Candidate> for CohortRead {
    fn from(candidate: Candidate) -> Self {
        Self {
            id: candidate.id,
            partner: candidate.partner,
            partner_cohort_id: candidate.partner_cohort_id,
            name: candidate.name,
            version: candidate.version,
            published_at: candidate.published_at,
        }
    }
}

/// The cohorts with these partners' ids: `partners[i]` goes with `ids[i]`.
///
/// # Errors
/// If the database fails.
pub async fn cohorts_by_id(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    partners: &[&str],
    ids: &[&str],
) -> Result<Vec<Candidate>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_as!(
        Candidate,
        r#"SELECT DISTINCT c.cohort_id AS id, c.partner, c.partner_cohort_id, c.name,
                  (c.archived_at IS NOT NULL) AS "archived!", c.version,
                  v.published_at AS "published_at?"
           FROM cohort c
           JOIN unnest($2::text[], $3::text[]) AS wanted (partner, id)
             ON c.partner = wanted.partner AND c.partner_cohort_id = wanted.id
           LEFT JOIN cohort_version v
             ON v.workspace_id = c.workspace_id AND v.cohort_id = c.cohort_id AND v.version = c.version
           -- Said twice, so that the cohorts are found by id before they are joined.
           WHERE c.workspace_id = $1 AND c.partner = ANY ($2) AND c.partner_cohort_id = ANY ($3)"#,
        workspace.0,
        partners as &[&str],
        ids as &[&str],
    )
    .fetch_all(conn)
    .await?)
}

/// The cohorts, not archived, with these current names: `partners[i]` goes with `names[i]`.
///
/// # Errors
/// If the database fails.
pub async fn cohorts_by_name(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    partners: &[&str],
    names: &[&str],
) -> Result<Vec<Candidate>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_as!(
        Candidate,
        r#"SELECT DISTINCT c.cohort_id AS id, c.partner, c.partner_cohort_id, c.name,
                  false AS "archived!", c.version, v.published_at AS "published_at?"
           FROM cohort c
           JOIN unnest($2::text[], $3::text[]) AS wanted (partner, name)
             ON c.partner = wanted.partner AND c.name = wanted.name
           LEFT JOIN cohort_version v
             ON v.workspace_id = c.workspace_id AND v.cohort_id = c.cohort_id AND v.version = c.version
           WHERE c.workspace_id = $1 AND c.archived_at IS NULL
           ORDER BY c.cohort_id"#,
        workspace.0,
        partners as &[&str],
        names as &[&str],
    )
    .fetch_all(conn)
    .await?)
}

/// Keeps cohorts from being archived until the transaction ends. Returns the partners' ids of those
/// that are archived already.
///
/// # Errors
/// `ABORTED` if another transaction holds one for longer than the lock timeout.
pub async fn hold_cohorts(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    ids: &[Uuid],
) -> Result<Vec<String>> {
    // In one order, so that two of these cannot wait for each other.
    let held = sqlx::query!(
        r#"SELECT partner_cohort_id, (archived_at IS NOT NULL) AS "archived!"
           FROM cohort WHERE workspace_id = $1 AND cohort_id = ANY($2)
           ORDER BY cohort_id FOR SHARE"#,
        workspace.0,
        ids,
    )
    .fetch_all(conn)
    .await?;
    let archived = held.into_iter().filter(|cohort| cohort.archived);
    Ok(archived.map(|cohort| cohort.partner_cohort_id).collect())
}

/// What people call a cohort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CohortName {
    /// Internal id.
    pub id: Uuid,
    /// Slug of the partner.
    pub partner: String,
    /// The partner's id of the cohort.
    pub partner_cohort_id: String,
    /// Current name.
    pub name: String,
    /// Whether the name leads to this cohort and to no other.
    pub unambiguous: bool,
}

/// The names of cohorts.
///
/// # Errors
/// If the database fails.
pub async fn cohort_names(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    ids: &[Uuid],
) -> Result<Vec<CohortName>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_as!(
        CohortName,
        r#"WITH wanted AS (
               SELECT cohort_id, partner, partner_cohort_id, name, archived_at
               FROM cohort WHERE workspace_id = $1 AND cohort_id = ANY($2)
           ), named AS (
               SELECT partner, name, count(*) AS cohorts
               FROM cohort
               WHERE workspace_id = $1 AND archived_at IS NULL
                 AND (partner, name) IN (SELECT partner, name FROM wanted)
               GROUP BY partner, name
           )
           SELECT w.cohort_id AS id, w.partner, w.partner_cohort_id, w.name,
                  (w.archived_at IS NULL AND n.cohorts = 1) AS "unambiguous!"
           FROM wanted w LEFT JOIN named n ON n.partner = w.partner AND n.name = w.name"#,
        workspace.0,
        ids,
    )
    .fetch_all(conn)
    .await?)
}

/// What people call a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentName {
    /// Its id.
    pub id: Uuid,
    /// Current name.
    pub name: String,
    /// Whether it is archived: then the name does not lead to it.
    pub archived: bool,
}

/// The names of segments.
///
/// # Errors
/// If the database fails.
pub async fn segment_names(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    ids: &[Uuid],
) -> Result<Vec<SegmentName>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_as!(
        SegmentName,
        r#"SELECT segment_id AS id, name, (archived_at IS NOT NULL) AS "archived!"
           FROM segment WHERE workspace_id = $1 AND segment_id = ANY($2)"#,
        workspace.0,
        ids,
    )
    .fetch_all(conn)
    .await?)
}

/// The segments, not archived, with these names.
///
/// # Errors
/// If the database fails.
pub async fn segments_by_name(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    names: &[&str],
) -> Result<Vec<SegmentName>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    Ok(sqlx::query_as!(
        SegmentName,
        r#"SELECT segment_id AS id, name, false AS "archived!"
           FROM segment WHERE workspace_id = $1 AND name = ANY($2) AND archived_at IS NULL"#,
        workspace.0,
        names as &[&str],
    )
    .fetch_all(conn)
    .await?)
}
