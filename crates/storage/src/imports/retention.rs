//! How imports end that nobody ends, and when ended ones are forgotten.

use std::time::Duration;

use super::interval;
use crate::{Result, Store, Timestamp};

/// Imports that one transaction of a clean-up touches at most.
const CLEAN_UP_PAGE: i64 = 1_000;

impl Store {
    /// Ends imports that were abandoned by `now`. Returns how many.
    ///
    /// # Errors
    /// If the database fails; what was done before stays done.
    pub async fn expire_imports(&self, now: Timestamp) -> Result<u64> {
        let mut expired = 0;
        loop {
            let mut tx = self.clean_up("expire_imports").await?;
            let done = sqlx::query!(
                "WITH expired AS (
                     SELECT workspace_id, import_id FROM cohort_import
                     WHERE state IN (1, 2) AND expires_at <= $2
                     ORDER BY expires_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
                 ), batches AS (
                     DELETE FROM import_batch b USING expired e
                     WHERE b.workspace_id = e.workspace_id AND b.import_id = e.import_id
                 ), rejected AS (
                     DELETE FROM import_rejected r USING expired e
                     WHERE r.workspace_id = e.workspace_id AND r.import_id = e.import_id
                 )
                 UPDATE cohort_import i
                 SET state = 5, digest_state = '', updated_at = $2, expires_at = NULL,
                     summary = NULL
                 FROM expired e
                 WHERE i.workspace_id = e.workspace_id AND i.import_id = e.import_id",
                CLEAN_UP_PAGE,
                now,
            )
            .execute(&mut *tx)
            .await?
            .rows_affected();
            tx.commit().await?;
            expired += done;
            if done == 0 {
                return Ok(expired);
            }
        }
    }

    /// Forgets imports, with their rejected identifiers, that ended longer before `now` than
    /// `retention`.
    /// Returns how many.
    ///
    /// # Errors
    /// If the database fails; what was done before stays done.
    pub async fn forget_imports(&self, now: Timestamp, retention: Duration) -> Result<u64> {
        let mut forgotten = 0;
        loop {
            let mut tx = self.clean_up("forget_imports").await?;
            let done = sqlx::query!(
                "DELETE FROM cohort_import i
                 USING (
                     SELECT workspace_id, import_id FROM cohort_import
                     WHERE state IN (3, 4, 5) AND updated_at < $3::timestamptz - $1::interval
                     ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED
                 ) old
                 WHERE i.workspace_id = old.workspace_id AND i.import_id = old.import_id",
                interval(retention),
                CLEAN_UP_PAGE,
                now,
            )
            .execute(&mut *tx)
            .await?
            .rows_affected();
            tx.commit().await?;
            forgotten += done;
            if done == 0 {
                return Ok(forgotten);
            }
        }
    }
}
