//! Pages of cohorts, in the orders that people ask for.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::Cohort;
use crate::{Result, WorkspaceId};

/// Which cohorts to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    /// Only this partner's.
    pub partner: Option<&'a str>,
    /// Only those whose current or a former name, or whose id, contains this text literally,
    /// whatever the case.
    pub name_contains: &'a str,
    /// Archived ones, too.
    pub include_archived: bool,
    /// How to order them.
    pub order: Order,
}

/// How cohorts are ordered; those that are equal in it, by id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Last created first.
    #[default]
    Newest,
    /// By name, whatever the case.
    Name,
    /// Most members first, as counted at the last version.
    Largest,
    /// Last imported first.
    LastImport,
    /// Longest without an import first, counted from the creation if there was none.
    Stalest,
}

/// Where a cohort stands in an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The order.
    pub order: Order,
    /// For [`Order::Name`].
    name: String,
    /// For the orders by a number: ascending.
    rank: i64,
    id: Uuid,
}

impl Position {
    /// Where a cohort stands.
    pub fn of(cohort: &Cohort, order: Order) -> Self {
        let imported_at = cohort.imported_at.unwrap_or(cohort.created_at);
        let imported_at = i64::try_from(imported_at.unix_timestamp_nanos() / 1_000)
            .expect("the database keeps microseconds in 64 bits");
        Self {
            order,
            name: match order {
                Order::Name => cohort.name.clone(),
                _ => String::new(),
            },
            rank: match order {
                Order::Newest | Order::Name => 0,
                Order::Largest => -cohort.member_count,
                Order::LastImport => -imported_at,
                Order::Stalest => imported_at,
            },
            id: cohort.id,
        }
    }
}

/// A page of cohorts in their order, after the position of one.
///
/// # Errors
/// If the database fails.
pub async fn list(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    selection: Selection<'_>,
    after: Option<&Position>,
    limit: i64,
) -> Result<Vec<Cohort>> {
    match selection.order {
        Order::Newest => newest(conn, workspace, selection, after, limit).await,
        Order::Name => by_name(conn, workspace, selection, after, limit).await,
        Order::Largest | Order::LastImport | Order::Stalest => {
            by_rank(conn, workspace, selection, after, limit).await
        }
    }
}

async fn newest(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    selection: Selection<'_>,
    after: Option<&Position>,
    limit: i64,
) -> Result<Vec<Cohort>> {
    // Names hold no control characters, so a line feed keeps them apart.
    Ok(sqlx::query_as!(
        Cohort,
        r"SELECT cohort_id AS id, partner, partner_cohort_id, name, former_names, revision, version,
                 member_count, created_at, imported_at, archived_at
          FROM cohort
          WHERE workspace_id = $1
            AND ($2::text IS NULL OR partner = $2)
            AND ($3 = '' OR position(
                    lower($3) IN lower(concat_ws(E'\n', name, partner_cohort_id,
                                                 array_to_string(former_names, E'\n')))
                ) > 0)
            AND ($4 OR archived_at IS NULL)
            AND ($5::uuid IS NULL OR cohort_id < $5)
          ORDER BY cohort_id DESC LIMIT $6",
        workspace.0,
        selection.partner,
        selection.name_contains,
        selection.include_archived,
        after.map(|position| position.id),
        limit,
    )
    .fetch_all(conn)
    .await?)
}

async fn by_name(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    selection: Selection<'_>,
    after: Option<&Position>,
    limit: i64,
) -> Result<Vec<Cohort>> {
    Ok(sqlx::query_as!(
        Cohort,
        r"SELECT cohort_id AS id, partner, partner_cohort_id, name, former_names, revision, version,
                 member_count, created_at, imported_at, archived_at
          FROM cohort
          WHERE workspace_id = $1
            AND ($2::text IS NULL OR partner = $2)
            AND ($3 = '' OR position(
                    lower($3) IN lower(concat_ws(E'\n', name, partner_cohort_id,
                                                 array_to_string(former_names, E'\n')))
                ) > 0)
            AND ($4 OR archived_at IS NULL)
            AND ($5::text IS NULL OR (lower(name), cohort_id) > (lower($5), $6::uuid))
          ORDER BY lower(name), cohort_id LIMIT $7",
        workspace.0,
        selection.partner,
        selection.name_contains,
        selection.include_archived,
        after.map(|position| position.name.as_str()),
        after.map(|position| position.id),
        limit,
    )
    .fetch_all(conn)
    .await?)
}

/// Sorts all cohorts of the workspace, which takes milliseconds for 10,000; an index on what every
/// import changes would cost each of them more.
async fn by_rank(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    selection: Selection<'_>,
    after: Option<&Position>,
    limit: i64,
) -> Result<Vec<Cohort>> {
    let (by_size, sign) = match selection.order {
        Order::Largest => (true, -1),
        Order::LastImport => (false, -1),
        Order::Newest | Order::Name | Order::Stalest => (false, 1),
    };
    Ok(sqlx::query_as!(
        Cohort,
        r"SELECT id, partner, partner_cohort_id, name, former_names, revision, version,
                 member_count, created_at, imported_at, archived_at
          FROM (
              SELECT cohort_id AS id, partner, partner_cohort_id, name, former_names, revision,
                     version, member_count, created_at, imported_at, archived_at,
                     $5::bigint * CASE
                         WHEN $6 THEN member_count
                         ELSE (extract(epoch FROM coalesce(imported_at, created_at))
                               * 1000000)::bigint
                     END AS rank
              FROM cohort
              WHERE workspace_id = $1
                AND ($2::text IS NULL OR partner = $2)
                AND ($3 = '' OR position(
                        lower($3) IN lower(concat_ws(E'\n', name, partner_cohort_id,
                                                     array_to_string(former_names, E'\n')))
                    ) > 0)
                AND ($4 OR archived_at IS NULL)
          ) ranked
          WHERE $7::bigint IS NULL OR (rank, id) > ($7, $8::uuid)
          ORDER BY rank, id LIMIT $9",
        workspace.0,
        selection.partner,
        selection.name_contains,
        selection.include_archived,
        sign,
        by_size,
        after.map(|position| position.rank),
        after.map(|position| position.id),
        limit,
    )
    .fetch_all(conn)
    .await?)
}
