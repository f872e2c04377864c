//! When clean-ups may run: not after the clock of the database has jumped.
//!
//! Everything that is deleted by age is deleted by that clock. One that is wrong for a minute would
//! delete all that is kept, for ever. So every pass of every clean-up asks here for the time it may
//! go by. Passes come every minute; if the clock has moved otherwise since the last one, nothing is
//! cleaned up for a while, in which it can be put right.

use sqlx::PgConnection;

use crate::{Result, Store, Timestamp};

impl Store {
    /// The time by which a pass of a clean-up goes; `None` if nothing may be cleaned up now.
    ///
    /// If the clock was put back, times that lie ahead of it now are set to it: they were written
    /// while it was wrong, and what they keep would never expire.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn clean_up_time(&self) -> Result<Option<Timestamp>> {
        let mut tx = self.begin("clean_up_time").await?;
        let last = sqlx::query_scalar!("SELECT seen_at FROM clean_up FOR NO KEY UPDATE")
            .fetch_optional(&mut *tx)
            .await?;
        let pass = sqlx::query!(
            r#"INSERT INTO clean_up AS c (seen_at) VALUES (clock_timestamp())
               ON CONFLICT (singleton) DO UPDATE
               SET seen_at = excluded.seen_at,
                   paused_until = CASE
                       WHEN greatest(excluded.seen_at - c.seen_at, c.seen_at - excluded.seen_at)
                            > interval '10 minutes'
                       THEN excluded.seen_at + least(
                           greatest(excluded.seen_at - c.seen_at, c.seen_at - excluded.seen_at) / 10,
                           interval '24 hours'
                       )
                       ELSE c.paused_until
                   END
               RETURNING seen_at, paused_until,
                         coalesce(paused_until > seen_at, false) AS "paused!""#
        )
        .fetch_one(&mut *tx)
        .await?;
        let gap = last.map_or(time::Duration::ZERO, |last| pass.seen_at - last);
        if gap.abs() > time::Duration::minutes(10) {
            tracing::warn!(
                gap_seconds = gap.whole_seconds(),
                paused_until = pass.paused_until.map(tracing::field::display),
                "the clock of the database jumped, or nothing ran for so long: clean-ups pause"
            );
        }
        if gap < -time::Duration::minutes(10) {
            put_back(&mut tx).await?;
        }
        tx.commit().await?;
        Ok((!pass.paused).then_some(pass.seen_at))
    }
}

/// Sets times that lie ahead of the clock to the clock.
async fn put_back(conn: &mut PgConnection) -> Result<()> {
    sqlx::query!(
        "UPDATE cohort_import
         SET updated_at = now(), expires_at = now() + (expires_at - updated_at)
         WHERE updated_at > now()"
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "UPDATE resolution
         SET created_at = now(), expires_at = now() + (expires_at - created_at)
         WHERE created_at > now()"
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!("UPDATE request_log SET created_at = now() WHERE created_at > now()")
        .execute(&mut *conn)
        .await?;
    sqlx::query!("UPDATE cohort_version SET published_at = now() WHERE published_at > now()")
        .execute(&mut *conn)
        .await?;
    sqlx::query!("UPDATE cohort SET imported_at = now() WHERE imported_at > now()")
        .execute(&mut *conn)
        .await?;
    sqlx::query!("UPDATE credential SET last_used_at = now() WHERE last_used_at > now()")
        .execute(conn)
        .await?;
    Ok(())
}
