//! A database as a whole: what is in it, who uses it, and whether what is in it is sound. For
//! backups, which must not be restored over anything, and are worth nothing unless they can be read.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, WorkspaceId, versions};

/// Major version of the Postgres that serves the database.
///
/// # Errors
/// If the database fails.
pub async fn server_major(conn: &mut PgConnection) -> Result<u32> {
    let number = sqlx::query_scalar!(
        r#"SELECT current_setting('server_version_num')::integer AS "number!""#
    )
    .fetch_one(conn)
    .await?;
    Ok(u32::try_from(number / 10_000).unwrap_or(0))
}

/// Tables, views and sequences that somebody has made here, with their sizes in bytes; those of
/// extensions do not count.
///
/// # Errors
/// If the database fails.
pub async fn relations(conn: &mut PgConnection) -> Result<Vec<(String, u64)>> {
    let rows = sqlx::query!(
        r#"SELECT n.nspname || '.' || c.relname AS "name!", pg_table_size(c.oid) AS "bytes!"
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
             AND n.nspname NOT IN ('pg_catalog', 'information_schema')
             AND n.nspname NOT LIKE 'pg\_toast%' AND n.nspname NOT LIKE 'pg\_temp%'
             AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
           ORDER BY 1"#
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.name, u64::try_from(row.bytes).unwrap_or(0)))
        .collect())
}

/// Whether row-level security confines its tables to a workspace, as it does not in old schemas.
///
/// # Errors
/// If the database fails.
pub async fn is_isolated(conn: &mut PgConnection) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM pg_class WHERE relforcerowsecurity) AS "isolated!""#
    )
    .fetch_one(conn)
    .await?)
}

/// Who else is connected to the database, for people.
///
/// # Errors
/// If the database fails.
pub async fn other_clients(conn: &mut PgConnection) -> Result<Vec<String>> {
    let clients = sqlx::query_scalar!(
        r#"SELECT coalesce(nullif(application_name, ''), 'unnamed') || ' (process ' || pid || ')'
                  AS "client!"
           FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()
             AND backend_type = 'client backend'
           ORDER BY pid"#
    )
    .fetch_all(conn)
    .await?;
    Ok(clients)
}

/// Has Postgres look at the tables, so that it plans well with what was just filled in.
///
/// # Errors
/// If the database fails.
pub async fn analyze(conn: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("SET statement_timeout = 0; ANALYZE")
        .execute(conn)
        .await?;
    Ok(())
}

/// What a database holds, and what is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Tenants.
    pub workspaces: u64,
    /// Live users.
    pub users: u64,
    /// Cohorts, archived ones among them.
    pub cohorts: u64,
    /// Members of the current versions of the cohorts.
    pub members: u64,
    /// Imports that can go on.
    pub open_imports: u64,
    /// What does not agree, for people; empty if all is well.
    pub problems: Vec<String>,
}

/// Reads the current version of every cohort and compares it with what was counted when it was
/// published; checks that open imports have all batches they have acknowledged, and that all
/// identifiers of the others are accounted for.
///
/// # Errors
/// If the database fails.
pub async fn check(conn: &mut PgConnection) -> Result<Contents> {
    let counted = sqlx::query!(
        r#"SELECT (SELECT count(*) FROM workspace) AS "workspaces!",
                  (SELECT count(*) FROM directory_user WHERE state = 1) AS "users!",
                  (SELECT count(*) FROM cohort_import WHERE state IN (1, 2)) AS "open_imports!""#
    )
    .fetch_one(&mut *conn)
    .await?;
    let mut contents = Contents {
        workspaces: size(counted.workspaces),
        users: size(counted.users),
        open_imports: size(counted.open_imports),
        ..Contents::default()
    };
    let mut after = (i64::MIN, Uuid::nil());
    loop {
        let page = sqlx::query!(
            r#"SELECT c.workspace_id, c.cohort_id, c.version, v.member_count AS "member_count?"
               FROM cohort c LEFT JOIN cohort_version v USING (workspace_id, cohort_id, version)
               WHERE (c.workspace_id, c.cohort_id) > ($1, $2)
               ORDER BY c.workspace_id, c.cohort_id LIMIT 1000"#,
            after.0,
            after.1,
        )
        .fetch_all(&mut *conn)
        .await?;
        let Some(last) = page.last() else { break };
        after = (last.workspace_id, last.cohort_id);
        for cohort in page {
            contents.cohorts += 1;
            let workspace = WorkspaceId(cohort.workspace_id);
            let members = match cohort.version {
                0 => 0,
                version => {
                    let set = versions::stored(conn, workspace, cohort.cohort_id, version);
                    set.await?.len()
                }
            };
            contents.members += members;
            if cohort.version != 0 && cohort.member_count.map(size) != Some(members) {
                contents.problems.push(format!(
                    "version {} of cohort {} has {members} members, not {:?}",
                    cohort.version, cohort.cohort_id, cohort.member_count
                ));
            }
        }
    }
    let incomplete = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM cohort_import i
           WHERE state IN (1, 2) AND next_offset <> (
               SELECT coalesce(sum(identifier_count), 0) FROM import_batch b
               WHERE b.workspace_id = i.workspace_id AND b.import_id = i.import_id
           )"#
    )
    .fetch_one(&mut *conn)
    .await?;
    if incomplete != 0 {
        let problem = format!("{incomplete} open imports lack batches that were acknowledged");
        contents.problems.push(problem);
    }
    let unaccounted = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM cohort_import
           WHERE state = 3 AND (summary ->> 'received')::bigint <> (
               SELECT sum(value::bigint) FROM jsonb_each_text(summary -> 'outcomes')
           )"#
    )
    .fetch_one(&mut *conn)
    .await?;
    if unaccounted != 0 {
        let problem = format!("{unaccounted} imports do not account for what they received");
        contents.problems.push(problem);
    }
    Ok(contents)
}

fn size(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
