//! Batches of an open import, staged durably until it ends.

use std::time::Duration;

use muster_domain::import::{ImportDigest, Run, Unmatched, runs_from_bytes, runs_to_bytes};
use sqlx::PgConnection;

use super::{from_sql, interval, to_sql};
use crate::{Result, WorkspaceId};

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

/// Stores batches, which follow each other, at the end of an open import. Returns `false`, and stores
/// nothing, if the import is not open, not at their offset, or has another writer.
///
/// There is at least one.
///
/// # Errors
/// If the database fails.
pub async fn stage(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    import_id: &str,
    fence: i64,
    batches: &[Batch],
    expires_in: Duration,
) -> Result<bool> {
    let first_offset = batches.first().map_or(0, |batch| batch.first_offset);
    let last = batches.last().expect("there is at least one");
    let identifier_count = last.first_offset + last.identifier_count - first_offset;
    let moved = sqlx::query!(
        "UPDATE cohort_import
         SET next_offset = next_offset + $5, digest_state = $6, updated_at = now(),
             expires_at = now() + $7
         WHERE workspace_id = $1 AND import_id = $2 AND fence = $3 AND next_offset = $4
           AND state = 1",
        workspace.0,
        import_id,
        fence,
        to_sql(first_offset),
        to_sql(identifier_count),
        last.digest_state,
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
         SELECT $1, $2, *
         FROM unnest($3::bigint[], $4::integer[], $5::bytea[], $6::integer[], $7::integer[],
                     $8::integer[], $9::bytea[], $10::bigint[])",
        workspace.0,
        import_id,
        &column(batches, |batch| to_sql(batch.first_offset)),
        &column(batches, |batch| small(batch.identifier_count)),
        &column(batches, |batch| runs_to_bytes(&batch.runs)),
        &column(batches, |batch| small(batch.unmatched.unknown)),
        &column(batches, |batch| small(
            batch.unmatched.device_of_identified_user
        )),
        &column(batches, |batch| small(batch.unmatched.invalid)),
        &column(batches, |batch| batch.digest_state.clone()),
        &column(batches, |batch| batch.directory_epoch),
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

fn column<T>(batches: &[Batch], value: impl Fn(&Batch) -> T) -> Vec<T> {
    batches.iter().map(value).collect()
}

fn small(count: u64) -> i32 {
    i32::try_from(count).expect("a batch holds 10,000 identifiers at most")
}
