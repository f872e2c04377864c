//! Identifiers of an import that had no effect, with their position; not capped.

use std::collections::HashSet;

use futures::TryStreamExt as _;
use muster_domain::{
    error::Error,
    identifier::{Identifier, IdentifierKind, IdentifierRef},
    import::{Effect, MAX_BATCH_IDENTIFIERS},
};
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Timestamp, WorkspaceId};

/// Why an identifier had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Reason {
    /// No user has it.
    Unknown = 1,
    /// It is a device of an identified user.
    DeviceOfIdentifiedUser = 2,
    /// It is malformed.
    Invalid = 3,
}

impl Reason {
    fn from_code(code: i16) -> Option<Self> {
        [Self::Unknown, Self::DeviceOfIdentifiedUser, Self::Invalid]
            .into_iter()
            .find(|reason| *reason as i16 == code)
    }
}

/// An identifier that had no effect, to be stored.
#[derive(Debug, Clone, Copy)]
pub struct Rejection<'a> {
    /// Position in the upload, from 0.
    pub position: u64,
    /// Why.
    pub reason: Reason,
    /// What it should have done.
    pub effect: Effect,
    /// As it was sent.
    pub identifier: IdentifierRef<'a>,
}

/// An identifier that had no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Position in the upload, from 0.
    pub position: u64,
    /// Why.
    pub reason: Reason,
    /// What it should have done.
    pub effect: Effect,
    /// As it was sent; `None` if it was erased since with its user.
    pub identifier: Option<Identifier>,
}

/// Stores the rejected identifiers of a batch, by position.
///
/// # Errors
/// If the database fails.
pub async fn insert(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    import_id: &str,
    first_offset: u64,
    rejected: &[Rejection<'_>],
) -> Result<()> {
    if rejected.is_empty() {
        return Ok(());
    }
    let positions: Vec<i64> = rejected.iter().map(|r| to_sql(r.position)).collect();
    let reasons: Vec<i16> = rejected.iter().map(|r| r.reason as i16).collect();
    let effects: Vec<i16> = rejected.iter().map(|r| r.effect.code().into()).collect();
    let kinds: Vec<i16> = rejected
        .iter()
        .map(|r| r.identifier.kind.code().into())
        .collect();
    let labels: Vec<&[u8]> = rejected
        .iter()
        .map(|r| r.identifier.label.as_bytes())
        .collect();
    let ids: Vec<&[u8]> = rejected
        .iter()
        .map(|r| r.identifier.id.as_bytes())
        .collect();
    let hashes: Vec<u8> = ids.iter().flat_map(|id| hash(id)).collect();
    sqlx::query!(
        "INSERT INTO import_rejected (workspace_id, import_id, first_offset, positions, reasons,
                                      effects, kinds, labels, ids, hashes)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        workspace.0,
        import_id,
        to_sql(first_offset),
        &positions,
        &reasons,
        &effects,
        &kinds,
        &labels as &[&[u8]],
        &ids as &[&[u8]],
        &hashes,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What stands for an id where lists are searched; several ids may share it.
fn hash(id: &[u8]) -> [u8; 4] {
    *Sha256::digest(id)
        .first_chunk()
        .expect("a digest is longer than that")
}

/// Erases identifiers from the lists of a workspace; position, reason, effect and kind stay, so that
/// the accounting of those imports still adds up.
///
/// # Errors
/// If the database fails.
pub(crate) async fn forget(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    erased: &[IdentifierRef<'_>],
) -> Result<()> {
    let kinds: Vec<i16> = erased.iter().map(|i| i.kind.code().into()).collect();
    let labels: Vec<&[u8]> = erased.iter().map(|i| i.label.as_bytes()).collect();
    let ids: Vec<&[u8]> = erased.iter().map(|i| i.id.as_bytes()).collect();
    let wanted: HashSet<[u8; 4]> = ids.iter().map(|id| hash(id)).collect();
    let (mut imports, mut offsets) = (Vec::new(), Vec::new());
    {
        let mut lists = sqlx::query!(
            "SELECT import_id, first_offset, hashes FROM import_rejected WHERE workspace_id = $1",
            workspace.0,
        )
        .fetch(&mut *conn);
        while let Some(list) = lists.try_next().await? {
            let may_have = list.hashes.is_none_or(|hashes| {
                let mut hashes = hashes.as_chunks().0.iter();
                hashes.any(|hash| wanted.contains(hash))
            });
            if may_have {
                imports.push(list.import_id);
                offsets.push(list.first_offset);
            }
        }
    }
    if imports.is_empty() {
        return Ok(());
    }
    // Only lists that have one of them indeed are rewritten.
    sqlx::query!(
        "WITH erased (kind, label, id) AS MATERIALIZED (
             SELECT kind, label, id
             FROM unnest($2::smallint[], $3::bytea[], $4::bytea[]) AS erased (kind, label, id)
         ), concerned (import_id, first_offset) AS MATERIALIZED (
             SELECT DISTINCT r.import_id, r.first_offset
             FROM unnest($5::text[], $6::bigint[]) AS candidate (import_id, first_offset)
             JOIN import_rejected r USING (import_id, first_offset)
             CROSS JOIN LATERAL unnest(r.kinds, r.labels, r.ids) AS sent (kind, label, id)
             JOIN erased USING (kind, label, id)
             WHERE r.workspace_id = $1
         )
         UPDATE import_rejected r
         SET (labels, ids, hashes) = (
             SELECT array_agg(CASE WHEN erased.id IS NULL THEN sent.label END ORDER BY position),
                    array_agg(CASE WHEN erased.id IS NULL THEN sent.id END ORDER BY position),
                    string_agg(CASE WHEN erased.id IS NULL AND sent.id IS NOT NULL
                                    THEN substring(sha256(sent.id) FOR 4)
                                    ELSE '\\x00000000' END, '' ORDER BY position)
             FROM unnest(r.kinds, r.labels, r.ids)
                  WITH ORDINALITY AS sent (kind, label, id, position)
             LEFT JOIN erased USING (kind, label, id)
         )
         FROM concerned
         WHERE r.workspace_id = $1 AND r.import_id = concerned.import_id
           AND r.first_offset = concerned.first_offset",
        workspace.0,
        &kinds,
        &labels as &[&[u8]],
        &ids as &[&[u8]],
        &imports,
        &offsets,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// A stretch of the rejected identifiers of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// By position.
    pub identifiers: Vec<Rejected>,
    /// Whether it was cut because of its size, so that there may be more.
    pub more: bool,
}

/// Up to `limit` rejected identifiers of an import at or after a position; fewer if they are long,
/// since malformed ones may be, and an answer must not exceed what clients accept.
///
/// # Errors
/// If the database fails.
pub async fn list(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    import_id: &str,
    from_position: u64,
    limit: usize,
) -> Result<Stretch> {
    /// Stock gRPC clients accept 4 MiB.
    const MAX_BYTES: usize = 2 * 1024 * 1024;
    let mut identifiers = Vec::new();
    let mut bytes = 0;
    // The row that holds a position begins at most one batch before it.
    let batch = MAX_BATCH_IDENTIFIERS as u64;
    let mut from_offset = to_sql(from_position.saturating_add(1).saturating_sub(batch));
    while identifiers.len() < limit {
        let row = sqlx::query!(
            r#"SELECT first_offset, positions, reasons, effects, kinds,
                      labels AS "labels: Vec<Option<Vec<u8>>>", ids AS "ids: Vec<Option<Vec<u8>>>"
               FROM import_rejected
               WHERE workspace_id = $1 AND import_id = $2 AND first_offset >= $3
               ORDER BY first_offset LIMIT 1"#,
            workspace.0,
            import_id,
            from_offset,
        )
        .fetch_optional(&mut *conn)
        .await?;
        let Some(row) = row else { break };
        from_offset = row.first_offset.saturating_add(1);
        let (labels, ids) = (row.labels.into_iter(), row.ids.into_iter());
        let columns = row.positions.into_iter().zip(row.reasons).zip(row.effects);
        for ((((position, reason), effect), kind), (label, id)) in
            columns.zip(row.kinds).zip(labels.zip(ids))
        {
            let position = u64::try_from(position).map_err(Error::internal)?;
            if position < from_position || identifiers.len() == limit {
                continue;
            }
            bytes += id.as_ref().map_or(0, Vec::len) + label.as_ref().map_or(0, Vec::len);
            if bytes > MAX_BYTES && !identifiers.is_empty() {
                return Ok(Stretch {
                    identifiers,
                    more: true,
                });
            }
            identifiers.push(Rejected {
                position,
                reason: Reason::from_code(reason).ok_or_else(damaged)?,
                effect: code(effect, Effect::from_code)?,
                identifier: identifier(kind, label, id)?,
            });
        }
    }
    Ok(Stretch {
        identifiers,
        more: false,
    })
}

fn identifier(
    kind: i16,
    label: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
) -> Result<Option<Identifier>> {
    let Some(id) = id else { return Ok(None) };
    let text = |bytes| String::from_utf8(bytes).map_err(Error::internal);
    Ok(Some(Identifier {
        kind: code(kind, IdentifierKind::from_code)?,
        label: text(label.unwrap_or_default())?,
        id: text(id)?,
    }))
}

fn code<T>(code: i16, parse: impl Fn(u8) -> Option<T>) -> Result<T> {
    let value = u8::try_from(code).ok().and_then(parse);
    Ok(value.ok_or_else(damaged)?)
}

fn damaged() -> Error {
    Error::internal("damaged row of rejected identifiers")
}

/// A position from a forged page token may be out of range; nothing is there.
fn to_sql(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

/// An identifier that a cohort's import was sent, to be added, but that matched nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedAdd {
    /// The import, by the id that its client chose.
    pub import_id: String,
    /// The version it published.
    pub version: i64,
    /// When that was.
    pub published_at: Timestamp,
    /// Position in the upload, from 0.
    pub position: u64,
    /// Why.
    pub reason: Reason,
}

/// The newest rejection of an identifier by the imports of a cohort, up to a version.
///
/// # Errors
/// If the database fails.
pub async fn newest_add(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    cohort: Uuid,
    version: i64,
    identifier: IdentifierRef<'_>,
) -> Result<Option<RejectedAdd>> {
    // The test on the whole array comes first: taking an array apart costs far more.
    let row = sqlx::query!(
        r#"SELECT v.import_id, v.version, v.published_at, sent.position AS "position!",
                  sent.reason AS "reason!"
           FROM cohort_version v
           JOIN cohort_import i ON i.workspace_id = v.workspace_id AND i.cohort_id = v.cohort_id
                AND i.partner_import_id = v.import_id
           JOIN import_rejected r ON r.workspace_id = i.workspace_id AND r.import_id = i.import_id
           CROSS JOIN LATERAL unnest(r.positions, r.reasons, r.effects, r.kinds, r.labels, r.ids)
                AS sent (position, reason, effect, kind, label, id)
           WHERE v.workspace_id = $1 AND v.cohort_id = $2 AND v.version <= $3
             AND $6 = ANY(r.ids)
             AND sent.effect = 1 AND sent.kind = $4 AND sent.label = $5 AND sent.id = $6
           ORDER BY v.version DESC, sent.position DESC LIMIT 1"#,
        workspace.0,
        cohort,
        version,
        i16::from(identifier.kind.code()),
        identifier.label.as_bytes(),
        identifier.id.as_bytes(),
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(RejectedAdd {
        import_id: row.import_id,
        version: row.version,
        published_at: row.published_at,
        position: u64::try_from(row.position).map_err(Error::internal)?,
        reason: Reason::from_code(row.reason).ok_or_else(damaged)?,
    }))
}
