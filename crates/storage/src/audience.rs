//! Reading audiences: the cohorts an evaluation starts from, and what is printed of its users.

use std::collections::HashMap;

use futures::TryStreamExt as _;

use muster_domain::{
    error::Error,
    identifier::{Identifier, IdentifierKind},
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Timestamp, WorkspaceId, directory::record, resolutions::CohortRead};

/// The current versions of cohorts, by partner and partner's id.
///
/// # Errors
/// If the database fails.
pub async fn cohorts_now(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    ids: &[Uuid],
) -> Result<Vec<CohortRead>> {
    Ok(sqlx::query_as!(
        CohortRead,
        r#"SELECT c.cohort_id AS id, c.partner, c.partner_cohort_id, c.name, c.version,
                  v.published_at AS "published_at?"
           FROM cohort c
           LEFT JOIN cohort_version v
             ON v.workspace_id = c.workspace_id AND v.cohort_id = c.cohort_id AND v.version = c.version
           WHERE c.workspace_id = $1 AND c.cohort_id = ANY($2)
           ORDER BY c.partner, c.partner_cohort_id"#,
        workspace.0,
        ids,
    )
    .fetch_all(conn)
    .await?)
}

/// The time by the clock of the database.
///
/// # Errors
/// If the database fails.
pub async fn now(conn: &mut PgConnection) -> Result<Timestamp> {
    Ok(sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#)
        .fetch_one(conn)
        .await?)
}

/// The current version of a cohort; 0 if it does not exist.
///
/// # Errors
/// If the database fails.
pub async fn cohort_version(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: Uuid,
) -> Result<i64> {
    let version = sqlx::query_scalar!(
        "SELECT version FROM cohort WHERE workspace_id = $1 AND cohort_id = $2",
        workspace.0,
        cohort,
    )
    .fetch_optional(conn)
    .await?;
    Ok(version.unwrap_or(0))
}

/// The external ids of the live ones among these users; `None` for an anonymous user.
///
/// # Errors
/// If the database fails.
pub async fn external_ids(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    users: &[u32],
) -> Result<HashMap<u32, Option<String>>> {
    let rows = sqlx::query!(
        "SELECT user_no, external_id FROM directory_user
         WHERE workspace_id = $1 AND user_no = ANY($2) AND state = 1",
        workspace.0,
        &to_sql(users),
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| Ok((from_sql(row.user_no)?, row.external_id)))
        .collect()
}

/// The aliases and devices of the first ones of these users, in the order of the list, each with
/// the place of its user in it; then how many users these are: as many as `max_bytes` of identifiers
/// allow, at least one. So memory is bounded, however many identifiers users have.
///
/// # Errors
/// If the database fails.
pub async fn aliases_and_devices(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    users: &[u32],
    max_bytes: usize,
) -> Result<(Vec<(usize, Identifier)>, usize)> {
    let mut found: Vec<(usize, Identifier)> = Vec::new();
    let mut bytes = 0;
    let mut rows = sqlx::query!(
        r#"SELECT wanted.place AS "place!", u.identifiers AS "identifiers!"
           FROM unnest($2::bigint[]) WITH ORDINALITY AS wanted (user_no, place)
           JOIN directory_user u ON u.workspace_id = $1 AND u.user_no = wanted.user_no
           WHERE u.identifiers IS NOT NULL
           ORDER BY wanted.place"#,
        workspace.0,
        &to_sql(users),
    )
    .fetch(conn);
    while let Some(row) = rows.try_next().await? {
        let place = usize::try_from(row.place - 1).map_err(Error::internal)?;
        bytes += row.identifiers.len();
        if bytes > max_bytes && !found.is_empty() {
            // The next call begins with this user.
            return Ok((found, place));
        }
        let identifiers = record::read(&row.identifiers).collect::<Result<Vec<_>>>()?;
        let mut wanted: Vec<_> = identifiers
            .into_iter()
            .filter(|identifier| identifier.kind != IdentifierKind::ExternalId)
            .collect();
        wanted.sort_unstable();
        found.extend(
            wanted
                .into_iter()
                .map(|identifier| (place, identifier.to_owned())),
        );
    }
    Ok((found, users.len()))
}

fn to_sql(users: &[u32]) -> Vec<i64> {
    users.iter().copied().map(i64::from).collect()
}

fn from_sql(user_no: i64) -> Result<u32> {
    Ok(u32::try_from(user_no).map_err(Error::internal)?)
}
