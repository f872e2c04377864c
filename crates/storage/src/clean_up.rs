//! When clean-ups may run: not after the clock of the database has jumped.
//!
//! Everything that is deleted by age is deleted by that clock. One that is wrong for a minute would
//! delete all that is kept, for ever. So every pass of every clean-up asks here for the time it may
//! go by. Passes come every minute; if the clock has moved otherwise since the last one, nothing is
//! cleaned up for a while, in which it can be put right.

use sqlx::PgConnection;
use time::Duration;

use crate::{Result, Store, Timestamp};

/// Two passes are usually less than this apart.
const USUAL: Duration = Duration::minutes(10);

/// The longest pause after a jump; shorter jumps pause for a tenth of their length.
const LONGEST_PAUSE: Duration = Duration::hours(24);

impl Store {
    /// The time by which a pass of a clean-up goes; `None` if nothing may be cleaned up now.
    ///
    /// If the clock had jumped and is back where it was, times that lie ahead of it are set to it: they
    /// were written meanwhile, and what they keep would never expire.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn clean_up_time(&self) -> Result<Option<Timestamp>> {
        let mut tx = self.begin("clean_up_time").await?;
        let last = sqlx::query!(
            "SELECT seen_at, paused_until, jumped_from FROM clean_up FOR NO KEY UPDATE"
        )
        .fetch_optional(&mut *tx)
        .await?;
        let now = sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#)
            .fetch_one(&mut *tx)
            .await?;
        let gap: Duration = match &last {
            Some(last) => now - last.seen_at,
            None => Duration::ZERO,
        };
        let mut paused_until = last.as_ref().and_then(|last| last.paused_until);
        let mut jumped_from: Option<Timestamp> = last.as_ref().and_then(|last| last.jumped_from);
        if gap.abs() > USUAL {
            let tenth: Duration = gap.abs() / 10_i32;
            let until = now.saturating_add(tenth.min(LONGEST_PAUSE));
            paused_until = Some(until);
            tracing::warn!(
                gap_seconds = gap.whole_seconds(),
                paused_until = %until,
                "the clock of the database jumped, or nothing ran for so long: clean-ups pause"
            );
        }
        let paused = paused_until.is_some_and(|until| until > now);
        jumped_from = match (jumped_from, &last) {
            (None, Some(last)) if gap.abs() > USUAL => Some(last.seen_at),
            (Some(from), Some(last)) if gap.abs() > USUAL => {
                // Earlier than that it is not where it was: then it may be wrong only now. And what
                // comes from behind, and goes far beyond, may have jumped ahead.
                let came_back = gap < Duration::ZERO
                    || last.seen_at < from && now < from.saturating_add(LONGEST_PAUSE);
                if came_back && now > from.saturating_sub(USUAL) {
                    put_back(&mut tx).await?;
                    None
                } else {
                    Some(from)
                }
            }
            _ if !paused => None,
            (from, _) => from,
        };
        sqlx::query!(
            "INSERT INTO clean_up (seen_at, paused_until, jumped_from) VALUES ($1, $2, $3)
             ON CONFLICT (singleton) DO UPDATE
             SET seen_at = excluded.seen_at, paused_until = excluded.paused_until,
                 jumped_from = excluded.jumped_from",
            now,
            paused_until,
            jumped_from,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok((!paused).then_some(now))
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
