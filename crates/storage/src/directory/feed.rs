//! What an index of a directory in memory is fed with: all live users, and what changed since.
//!
//! Nothing here needs one snapshot. An index that was read while the directory changed is right once
//! every user who was touched since the epoch before has been read again.

use futures::TryStreamExt as _;
use muster_domain::{
    error::Error,
    identifier::{Identifier, IdentifierRef},
};
use sqlx::PgConnection;

use super::{follow::user_no, record};
use crate::{Result, Store, WorkspaceId};

/// Which history of a directory its epochs count: not the same one before and after a database was
/// restored, or another server took over for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// When the database server was started.
    started_at: time::OffsetDateTime,
    /// The database, which may be swapped for a copy of it.
    database: sqlx::postgres::types::Oid,
    /// The table, which a restored dump has anew.
    table: sqlx::postgres::types::Oid,
}

impl History {
    pub(super) fn new(
        started_at: time::OffsetDateTime,
        database: sqlx::postgres::types::Oid,
        table: sqlx::postgres::types::Oid,
    ) -> Self {
        Self {
            started_at,
            database,
            table,
        }
    }

    #[cfg(test)]
    pub(crate) fn of_database(database: u32) -> Self {
        let oid = sqlx::postgres::types::Oid(database);
        Self::new(time::OffsetDateTime::UNIX_EPOCH, oid, oid)
    }
}

/// How far a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The history that the epoch is of.
    pub history: History,
    /// Counts the changes.
    pub epoch: i64,
    /// How many numbers have been given out.
    pub next_user_no: u64,
}

/// How far the directory is at this moment.
///
/// # Errors
/// If the database fails.
pub async fn position(conn: &mut PgConnection, workspace: WorkspaceId) -> Result<Position> {
    let row = sqlx::query!(
        r#"SELECT epoch, next_user_no, pg_postmaster_start_time() AS "started_at!",
                  (SELECT oid FROM pg_database WHERE datname = current_database()) AS "database!",
                  tableoid AS "table!"
           FROM directory WHERE workspace_id = $1"#,
        workspace.0,
    )
    .fetch_one(conn)
    .await?;
    Ok(Position {
        history: History::new(row.started_at, row.database, row.table),
        epoch: row.epoch,
        next_user_no: u64::try_from(row.next_user_no).map_err(Error::internal)?,
    })
}

/// A user who was touched, as the directory has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TouchedUser {
    /// The number.
    pub number: u32,
    /// Whether the first identifier is the external id that audiences print. Otherwise the user is
    /// anonymous, or no longer live.
    pub printed: bool,
    /// All identifiers: the printed one first, then by kind, label and id. Empty if the user is not
    /// live.
    pub identifiers: Vec<Identifier>,
}

/// Users who were touched after some point.
#[derive(Debug)]
pub struct Touched {
    /// How far the directory was when they were read.
    pub position: Position,
    /// They, in order.
    pub users: Vec<TouchedUser>,
    /// The point after the last one, if there may be more.
    pub more: Option<Point>,
}

/// A point in the changes of a directory: an epoch and the last user looked at of those it touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point(i64, i64);

impl Point {
    /// The end of an epoch.
    pub fn end_of(epoch: i64) -> Self {
        Self(epoch, i64::MAX)
    }
}

/// The first users who were touched after a point, in order, and all their identifiers, as of one
/// moment.
///
/// # Errors
/// If the database fails.
pub async fn touched_since(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    since: Point,
) -> Result<Touched> {
    /// As many as one change touches, more or less.
    const LIMIT: i64 = 10_000;
    let mut rows = sqlx::query!(
        // LIMIT keeps the planner on the index, whatever it believes of the numbers.
        r#"SELECT d.epoch, d.next_user_no, pg_postmaster_start_time() AS "started_at!",
                  (SELECT oid FROM pg_database WHERE datname = current_database()) AS "database!",
                  d.tableoid AS "table!", u.user_no AS "user_no?", u.epoch AS "touched_at?",
                  u.external_id, u.identifiers
           FROM directory d
           LEFT JOIN LATERAL (
               SELECT user_no, epoch, external_id, identifiers FROM directory_user
               WHERE workspace_id = $1 AND (epoch, user_no) > ($2, $3)
               ORDER BY epoch, user_no LIMIT $4
           ) AS u ON true
           WHERE d.workspace_id = $1
           ORDER BY u.epoch, u.user_no"#,
        workspace.0,
        since.0,
        since.1,
        LIMIT,
    )
    .fetch(conn);
    let mut position = None;
    let mut users: Vec<TouchedUser> = Vec::new();
    let mut last = since;
    while let Some(row) = rows.try_next().await? {
        position = Some(Position {
            history: History::new(row.started_at, row.database, row.table),
            epoch: row.epoch,
            next_user_no: u64::try_from(row.next_user_no).map_err(Error::internal)?,
        });
        let (Some(number), Some(touched_at)) = (row.user_no, row.touched_at) else {
            continue;
        };
        last = Point(touched_at, number);
        let mut identifiers = Vec::new();
        read_record(
            row.external_id.as_deref(),
            row.identifiers.as_deref(),
            &mut identifiers,
        )?;
        users.push(TouchedUser {
            number: user_no(number),
            printed: row.external_id.is_some(),
            identifiers: identifiers
                .into_iter()
                .map(IdentifierRef::to_owned)
                .collect(),
        });
    }
    let position = position.ok_or_else(|| Error::not_found("directory", "of the workspace"))?;
    let full = i64::try_from(users.len()).is_ok_and(|count| count >= LIMIT);
    Ok(Touched {
        position,
        more: full.then_some(last),
        users,
    })
}

/// The identifiers of a user in the order of a record: the one that audiences print first, then by
/// kind, label and id.
fn read_record<'a>(
    external_id: Option<&'a str>,
    lines: Option<&'a str>,
    identifiers: &mut Vec<IdentifierRef<'a>>,
) -> Result<()> {
    identifiers.clear();
    for identifier in record::read_all(external_id, lines) {
        identifiers.push(identifier?);
    }
    let printed = usize::from(external_id.is_some());
    identifiers[printed..].sort_unstable();
    Ok(())
}

impl Store {
    /// A connection of its own, outside the pools, for reading all of the directory of a workspace.
    ///
    /// # Errors
    /// `UNAVAILABLE` if the database cannot be reached.
    pub async fn feed_connection(&self, workspace: WorkspaceId) -> Result<PgConnection> {
        // The indices give the users of one workspace, and those who were touched in order. The
        // planner would rather read the whole table.
        self.dial(&[
            ("muster.workspace", &workspace.0.to_string()),
            ("statement_timeout", "0"),
            ("enable_seqscan", "off"),
            ("enable_sort", "off"),
        ])
        .await
    }
}

/// A live user as it is read in bulk, to be read by [`row`].
pub use bytes::Bytes as RawRow;

/// Hands the live users in a range of numbers to `take`, in any order.
///
/// # Errors
/// If the database fails, or `take` says so.
pub async fn copy_users(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    users: std::ops::Range<u64>,
    mut take: impl FnMut(RawRow) -> Result<()>,
) -> Result<()> {
    let statement = format!(
        "COPY (SELECT user_no, external_id, identifiers FROM directory_user
               WHERE workspace_id = {} AND user_no >= {} AND user_no < {} AND state = 1)
         TO STDOUT (FORMAT binary)",
        workspace.0, users.start, users.end,
    );
    // Page by page of the table, instead of going to one for each entry of the index. The operating
    // system sees that they follow each other and reads ahead, unless each is announced to it alone.
    sqlx::raw_sql("SET enable_indexscan = off; SET effective_io_concurrency = 0")
        .execute(&mut *conn)
        .await?;
    let mut rows = conn.copy_out_raw(&statement).await?;
    let mut first = true;
    while let Some(mut row) = rows.try_next().await? {
        if std::mem::take(&mut first) {
            skip_header(&mut row)?;
        }
        // The header may come alone; -1 in place of the number of fields ends the data.
        if row.is_empty() || row[..] == [0xff, 0xff] {
            continue;
        }
        take(row)?;
    }
    drop(rows);
    sqlx::raw_sql("RESET enable_indexscan; RESET effective_io_concurrency")
        .execute(conn)
        .await?;
    Ok(())
}

/// Signature, flags, and an extension of a length that it tells.
fn skip_header(bytes: &mut RawRow) -> Result<()> {
    const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
    const LENGTH_BYTES: usize = SIGNATURE.len() + 8;
    let header = bytes.get(..LENGTH_BYTES);
    let header = header.filter(|header| header.starts_with(SIGNATURE));
    let header = header.ok_or_else(unreadable)?;
    let extension = &header[SIGNATURE.len() + 4..];
    let extension = u32::from_be_bytes(extension.try_into().expect("4 bytes"));
    let end = LENGTH_BYTES + extension as usize;
    if bytes.len() < end {
        return Err(unreadable().into());
    }
    drop(bytes.split_to(end));
    Ok(())
}

/// Reads a row that [`copy_users`] handed out: the number of the user, whether the first identifier
/// is the external id that audiences print, and, into `identifiers`, all of them in the order of
/// [`TouchedUser::identifiers`].
///
/// # Errors
/// `INTERNAL` if it is not one.
pub fn row<'a>(raw: &'a RawRow, identifiers: &mut Vec<IdentifierRef<'a>>) -> Result<(u32, bool)> {
    let mut fields = Fields(raw);
    let parts = (|| {
        fields.expect(3u16.to_be_bytes())?;
        let user = i64::from_be_bytes(fields.next()??.try_into().ok()?);
        let external_id = fields.text()?;
        Some((u32::try_from(user).ok()?, external_id, fields.text()?))
    })();
    let (user, external_id, lines) = parts.ok_or_else(unreadable)?;
    read_record(external_id, lines, identifiers)?;
    Ok((user, external_id.is_some()))
}

/// The fields of a row: each its length in 4 bytes, big-endian, and its bytes. A length of -1 stands
/// for null.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn expect<const N: usize>(&mut self, bytes: [u8; N]) -> Option<()> {
        self.0 = self.0.strip_prefix(&bytes)?;
        Some(())
    }

    fn next(&mut self) -> Option<Option<&'a [u8]>> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        if *length == [0xff; 4] {
            return Some(None);
        }
        let (field, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        self.0 = rest;
        Some(Some(field))
    }

    fn text(&mut self) -> Option<Option<&'a str>> {
        match self.next()? {
            None => Some(None),
            Some(bytes) => Some(Some(str::from_utf8(bytes).ok()?)),
        }
    }
}

fn unreadable() -> Error {
    Error::internal("the database sent users in a form that was not asked for")
}
