//! What one would write in Postgres first: a directory with an index, and a row for each member.
//!
//! On the Postgres that Muster runs on, in a database beside its own.

use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::{Result, deployment::Deployment, muster::check, people};

/// Bytes that a `COPY` is fed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Ids that are matched by one statement.
const BATCH: usize = 10_000;

const TABLES: &str = "
    CREATE TABLE directory (user_no bigint NOT NULL, external_id text COLLATE \"C\" NOT NULL);
    CREATE TABLE staging (id text COLLATE \"C\" NOT NULL);
    CREATE TABLE member (
        cohort_id bigint NOT NULL,
        user_no bigint NOT NULL,
        PRIMARY KEY (cohort_id, user_no)
    )";

const DIFFERENCE: &str = "
    SELECT user_no FROM member WHERE cohort_id = 1
    EXCEPT
    SELECT user_no FROM member WHERE cohort_id = 2";

const AUDIENCE: &str = "
    SELECT d.user_no, d.external_id
    FROM member m JOIN directory d USING (user_no)
    WHERE m.cohort_id = 1
      AND NOT EXISTS (SELECT FROM member n WHERE n.cohort_id = 2 AND n.user_no = m.user_no)";

/// The database.
pub(crate) struct Rows {
    connection: PgConnection,
}

/// Ids as the text of a `COPY`, a line each.
#[derive(Debug)]
pub(crate) struct Lines {
    text: String,
    count: u64,
}

impl Lines {
    /// Of these ids.
    pub(crate) fn of(ids: &[String]) -> Self {
        let mut text = ids.join("\n");
        text.push('\n');
        Self {
            text,
            count: ids.len() as u64,
        }
    }
}

impl Rows {
    /// Creates it.
    ///
    /// # Errors
    /// Also if commits of this Postgres are not durable, for then nothing here could be compared.
    pub(crate) async fn create(deployment: &Deployment) -> Result<Self> {
        let mut postgres = deployment.database("postgres").await?;
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let query = format!("SHOW {setting}");
            let row = sqlx::query(AssertSqlSafe(query))
                .fetch_one(&mut postgres)
                .await?;
            if row.get::<String, _>(0) != "on" {
                return Err(format!("{setting} is not on").into());
            }
        }
        execute(&mut postgres, "CREATE DATABASE bench").await?;
        let mut rows = Self::open(deployment).await?;
        rows.execute(TABLES).await?;
        Ok(rows)
    }

    /// Connects to it again.
    pub(crate) async fn open(deployment: &Deployment) -> Result<Self> {
        let connection = deployment.database("bench").await?;
        Ok(Self { connection })
    }

    /// Which Postgres it is.
    pub(crate) async fn version(&mut self) -> Result<String> {
        let row = sqlx::query("SHOW server_version")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(row.get(0))
    }

    /// Fills the directory with the first so many people, and indexes it.
    pub(crate) async fn fill(&mut self, people: u32) -> Result<()> {
        let statement = "COPY directory (user_no, external_id) FROM STDIN";
        let mut copy = self.connection.copy_in_raw(statement).await?;
        let mut text = String::new();
        for person in 0..people {
            text.push_str(&format!("{person}\t{}\n", people::external_id(person)));
            if text.len() > CHUNK_BYTES {
                copy.send(text.as_bytes()).await?;
                text.clear();
            }
        }
        copy.send(text.as_bytes()).await?;
        copy.finish().await?;
        self.execute(
            "ALTER TABLE directory ADD PRIMARY KEY (user_no);
             CREATE UNIQUE INDEX ON directory (external_id)",
        )
        .await?;
        self.execute("VACUUM ANALYZE directory").await
    }

    /// Copies ids into a logged table without an index.
    pub(crate) async fn copy_in(&mut self, lines: &Lines) -> Result<Duration> {
        self.execute("TRUNCATE staging").await?;
        self.stage(lines).await
    }

    async fn stage(&mut self, lines: &Lines) -> Result<Duration> {
        let begun = Instant::now();
        let mut copy = self
            .connection
            .copy_in_raw("COPY staging (id) FROM STDIN")
            .await?;
        for chunk in lines.text.as_bytes().chunks(CHUNK_BYTES) {
            copy.send(chunk).await?;
        }
        let copied = copy.finish().await?;
        let took = begun.elapsed();
        check("rows copied in", copied, lines.count)?;
        Ok(took)
    }

    /// Copies the ids out that were copied in last.
    pub(crate) async fn copy_out(&mut self, expected: u64) -> Result<Duration> {
        let (count, took) = self.copy("COPY staging (id) TO STDOUT").await?;
        check("rows copied out", count, expected)?;
        Ok(took)
    }

    async fn copy(&mut self, statement: &str) -> Result<(u64, Duration)> {
        let begun = Instant::now();
        let mut copy = self.connection.copy_out_raw(statement).await?;
        let mut rows = 0;
        // Postgres sends each row as a piece of its own.
        while copy.try_next().await?.is_some() {
            rows += 1;
        }
        Ok((rows, begun.elapsed()))
    }

    /// Matches ids with the directory, ten thousand at a time.
    pub(crate) async fn join(&mut self, ids: &[String]) -> Result<Duration> {
        let begun = Instant::now();
        let mut found = 0;
        for batch in ids.chunks(BATCH) {
            let rows = sqlx::query(
                "SELECT d.user_no FROM unnest($1::text[]) AS sent (id)
                 JOIN directory d ON d.external_id = sent.id",
            );
            let rows = rows.bind(batch).fetch_all(&mut self.connection).await?;
            found += rows.len() as u64;
        }
        let took = begun.elapsed();
        check("ids joined", found, ids.len() as u64)?;
        Ok(took)
    }

    /// Copies ids in, and writes a row for each whom they match, in one transaction.
    pub(crate) async fn ingest(&mut self, cohort: i64, lines: &Lines) -> Result<Duration> {
        self.execute("TRUNCATE staging").await?;
        let delete = sqlx::query("DELETE FROM member WHERE cohort_id = $1").bind(cohort);
        delete.execute(&mut self.connection).await?;
        self.execute("VACUUM ANALYZE member").await?;
        let begun = Instant::now();
        self.execute("BEGIN").await?;
        self.stage(lines).await?;
        let insert = sqlx::query(
            "INSERT INTO member (cohort_id, user_no)
             SELECT $1, d.user_no FROM staging s JOIN directory d ON d.external_id = s.id",
        );
        let inserted = insert.bind(cohort).execute(&mut self.connection).await?;
        self.execute("COMMIT").await?;
        let took = begun.elapsed();
        check("members", inserted.rows_affected(), lines.count)?;
        self.execute("VACUUM ANALYZE member").await?;
        Ok(took)
    }

    /// Counts whoever is in the first cohort and not in the second.
    pub(crate) async fn count(&mut self) -> Result<(u64, Duration)> {
        let begun = Instant::now();
        let query = format!("SELECT count(*) FROM ({DIFFERENCE}) AS difference");
        let row = sqlx::query(AssertSqlSafe(query))
            .fetch_one(&mut self.connection)
            .await?;
        let count: i64 = row.get(0);
        Ok((u64::try_from(count)?, begun.elapsed()))
    }

    /// Reads them.
    pub(crate) async fn read(&mut self) -> Result<(u64, Duration)> {
        let statement = format!("COPY ({AUDIENCE}) TO STDOUT");
        let (count, took) = self.copy(&statement).await?;
        Ok((count, took))
    }

    /// Bytes of a row for each member, with its index.
    pub(crate) async fn bytes_per_member(&mut self) -> Result<f64> {
        self.number(
            "SELECT pg_total_relation_size('member')::float8 / greatest(count(*), 1) FROM member",
        )
        .await
    }

    /// Writes what is dirty, so that it disturbs none of what is measured next.
    pub(crate) async fn settle(&mut self) -> Result<()> {
        self.execute("CHECKPOINT").await
    }

    /// Bytes of WAL written since the cluster was made.
    pub(crate) async fn wal_bytes(&mut self) -> Result<f64> {
        self.number("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8")
            .await
    }

    async fn number(&mut self, query: &'static str) -> Result<f64> {
        let row = sqlx::query(query).fetch_one(&mut self.connection).await?;
        Ok(row.get(0))
    }

    async fn execute(&mut self, statement: &'static str) -> Result<()> {
        execute(&mut self.connection, statement).await
    }
}

/// Bytes that the members of a cohort take in Muster's own database.
pub(crate) async fn cohort_bytes(connection: &mut PgConnection, cohort: &str) -> Result<f64> {
    let row = sqlx::query(
        "WITH named AS (
             SELECT workspace_id, cohort_id FROM cohort WHERE partner_cohort_id = $1
         )
         SELECT (
             (SELECT coalesce(sum(octet_length(added) + octet_length(removed)), 0)
              FROM cohort_delta JOIN named USING (workspace_id, cohort_id))
             + (SELECT coalesce(sum(octet_length(members)), 0)
                FROM cohort_checkpoint JOIN named USING (workspace_id, cohort_id))
         )::float8",
    );
    Ok(row.bind(cohort).fetch_one(connection).await?.get(0))
}

/// Bytes of Muster's tables of users, with their indices.
pub(crate) async fn directory_bytes(connection: &mut PgConnection) -> Result<f64> {
    let row = sqlx::query(
        "SELECT (pg_total_relation_size('directory_user')
                 + pg_total_relation_size('user_identifier'))::float8",
    );
    Ok(row.fetch_one(connection).await?.get(0))
}

/// Runs statements of ours.
pub(crate) async fn execute(connection: &mut PgConnection, statement: &'static str) -> Result<()> {
    sqlx::raw_sql(statement).execute(connection).await?;
    Ok(())
}
