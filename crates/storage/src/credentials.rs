//! Credentials: service tokens, data import keys and partner API keys.
//!
//! The three kinds share one table and one life: created, perhaps rotated, used, expired or
//! revoked. Only the SHA-256 of a secret is stored.

use std::net::IpAddr;

use muster_domain::{
    credential::{Digest, Kind, Secret},
    network::Network,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Timestamp, WorkspaceId};

/// A credential, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// UUIDv7.
    pub id: Uuid,
    /// Which kind.
    pub kind: Kind,
    /// The only workspace it works for, with its slug; `None` for a service token of all
    /// workspaces and for partner API keys.
    pub workspace: Option<(WorkspaceId, String)>,
    /// The partner of a data import key or partner API key.
    pub partner: Option<String>,
    /// What a service token may do.
    pub scopes: Vec<String>,
    /// Networks that it is accepted from; none means from everywhere.
    pub allowed_addresses: Vec<String>,
    /// What a person called it.
    pub label: String,
    /// The recognisable ends of the secret.
    pub hint: String,
    /// What it is found by.
    pub digest: Digest,
    /// Whether it is accepted.
    pub state: State,
    /// Whether its workspace has enabled its partner, without which a data import key is not accepted;
    /// false where it does not have both.
    pub partner_enabled: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it stops being accepted; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// The credential that a rotation put in its place.
    pub replaced_by: Option<Uuid>,
    /// When it was last used, to about a minute.
    pub last_used_at: Option<Timestamp>,
    /// Whether that is less than a minute ago, so that a further use needs no note.
    pub used_just_now: bool,
}

impl Credential {
    /// How the audit trail and imports name it, such as `data_import_key:0195…`.
    pub fn actor(&self) -> String {
        format!("{}:{}", noun(self.kind), self.id)
    }

    /// Whether it is accepted from an address.
    pub fn is_allowed_from(&self, peer: Option<IpAddr>) -> bool {
        is_allowed(&self.allowed_addresses, peer)
    }
}

/// Whether networks hold an address; none at all hold every one. Who comes from nowhere that is
/// known is in no network.
fn is_allowed(networks: &[String], peer: Option<IpAddr>) -> bool {
    let holds = |network: &String| match (network.parse::<Network>(), peer) {
        (Ok(network), Some(peer)) => network.contains(peer),
        _ => false,
    };
    networks.is_empty() || networks.iter().any(holds)
}

/// What the audit trail calls a kind of credential.
pub fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::ServiceToken => "service_token",
        Kind::DataImportKey => "data_import_key",
        Kind::PartnerApiKey => "partner_api_key",
    }
}

/// Whether a credential is accepted, by the clock of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Accepted.
    Active,
    /// Refused since its expiry.
    Expired,
    /// Refused since it was revoked.
    Revoked,
}

/// A credential to create.
#[derive(Debug)]
pub struct NewCredential<'a> {
    /// Its secret, which also says its kind.
    pub secret: &'a Secret,
    /// The only workspace it works for.
    pub workspace: Option<WorkspaceId>,
    /// The partner it belongs to.
    pub partner: Option<&'a str>,
    /// What a service token may do.
    pub scopes: &'a [String],
    /// Networks that it is accepted from, in their usual form; none means from everywhere.
    pub allowed_addresses: &'a [String],
    /// What to call it.
    pub label: &'a str,
    /// Who creates it.
    pub created_by: &'a str,
    /// When it stops being accepted.
    pub expires_at: Option<Timestamp>,
}

struct Row {
    credential_id: Uuid,
    kind: i16,
    workspace_id: Option<i64>,
    slug: Option<String>,
    partner: Option<String>,
    scopes: Vec<String>,
    allowed_addresses: Vec<String>,
    label: String,
    digest: Vec<u8>,
    hint: String,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    replaced_by: Option<Uuid>,
    last_used_at: Option<Timestamp>,
    used_just_now: bool,
    expired: bool,
    partner_enabled: bool,
}

/// Selects credentials as a [`Row`] each.
macro_rules! credentials {
    ($condition:literal, $($argument:expr),* $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"SELECT credential_id, kind, workspace_id, partner, scopes, label, digest, hint, created_at,
                      expires_at, revoked_at, replaced_by, last_used_at,
                      (SELECT slug FROM workspace w WHERE w.workspace_id = c.workspace_id) AS slug,
                      allowed_addresses::text[] AS "allowed_addresses!",
                      coalesce(expires_at <= clock_timestamp(), false) AS "expired!",
                      coalesce(last_used_at > now() - interval '1 minute', false) AS "used_just_now!",
                      EXISTS (
                          SELECT FROM workspace_partner w
                          WHERE w.workspace_id = c.workspace_id AND w.partner = c.partner
                      ) AS "partner_enabled!"
               FROM credential c
               "# + $condition,
            $($argument),*
        )
    };
}

impl From<Row> for Credential {
    fn from(row: Row) -> Self {
        Self {
            id: row.credential_id,
            kind: match row.kind {
                1 => Kind::ServiceToken,
                2 => Kind::DataImportKey,
                _ => Kind::PartnerApiKey,
            },
            workspace: row.workspace_id.map(WorkspaceId).zip(row.slug),
            partner: row.partner,
            scopes: row.scopes,
            allowed_addresses: row.allowed_addresses,
            label: row.label,
            hint: row.hint,
            digest: <[u8; 32]>::try_from(row.digest)
                .expect("the table has no others")
                .into(),
            state: match (row.revoked_at, row.expired) {
                (Some(_), _) => State::Revoked,
                (None, true) => State::Expired,
                (None, false) => State::Active,
            },
            partner_enabled: row.partner_enabled,
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            replaced_by: row.replaced_by,
            last_used_at: row.last_used_at,
            used_just_now: row.used_just_now,
        }
    }
}

fn code(kind: Kind) -> i16 {
    match kind {
        Kind::ServiceToken => 1,
        Kind::DataImportKey => 2,
        Kind::PartnerApiKey => 3,
    }
}

/// Creates a credential.
///
/// # Errors
/// If the database fails.
pub async fn insert(conn: &mut PgConnection, new: &NewCredential<'_>) -> Result<Credential> {
    let kind = new.secret.kind();
    let id = Uuid::now_v7();
    let digest = new.secret.digest();
    sqlx::query!(
        "INSERT INTO credential (credential_id, kind, workspace_id, partner, scopes, label, digest,
                                 hint, created_by, expires_at, allowed_addresses)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text[]::cidr[])",
        id,
        code(kind),
        new.workspace.map(|id| id.0),
        new.partner,
        new.scopes,
        new.label,
        digest.as_bytes().as_slice(),
        format!("mst_{}_…{}", kind.tag(), new.secret.hint()),
        new.created_by,
        new.expires_at,
        new.allowed_addresses,
    )
    .execute(&mut *conn)
    .await?;
    let created = find(conn, kind, id).await?;
    Ok(created.expect("the row was inserted in this transaction"))
}

/// Finds the credential of a secret by its digest, and that of another one if there is one, in any
/// order, as they are at one moment.
///
/// # Errors
/// If the database fails.
pub async fn find_by_digest(
    conn: &mut PgConnection,
    digest: &Digest,
    other: Option<&Digest>,
) -> Result<Vec<Credential>> {
    let rows = credentials!(
        // Two values and no array, which a planner takes for ten: it would plan the statement anew for
        // each call, which takes longer than the look-up.
        "WHERE digest IN ($1, $2)",
        digest.as_bytes().as_slice(),
        other.map(|other| other.as_bytes().as_slice()),
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// Finds a credential by kind and id.
///
/// # Errors
/// If the database fails.
pub async fn find(conn: &mut PgConnection, kind: Kind, id: Uuid) -> Result<Option<Credential>> {
    let row = credentials!("WHERE kind = $1 AND credential_id = $2", code(kind), id)
        .fetch_optional(conn)
        .await?;
    Ok(row.map(Into::into))
}

/// A page of credentials of one kind, newest first: of a workspace, of a partner, older than one.
///
/// # Errors
/// If the database fails.
pub async fn list(
    conn: &mut PgConnection,
    kind: Kind,
    workspace: Option<WorkspaceId>,
    partner: Option<&str>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Credential>> {
    let rows = credentials!(
        r#"WHERE kind = $1
             AND ($2::bigint IS NULL OR workspace_id = $2)
             AND ($3::text IS NULL OR partner = $3)
             AND ($4::uuid IS NULL OR credential_id < $4)
           ORDER BY credential_id DESC LIMIT $5"#,
        code(kind),
        workspace.map(|id| id.0),
        partner,
        before,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// Revokes a credential; a revoked one stays as it is. Returns whether that changed anything.
///
/// Waits for transactions that hold the credential through [`hold`], so that once the revocation is
/// committed nothing is published with it.
///
/// # Errors
/// If the database fails.
pub async fn revoke(conn: &mut PgConnection, kind: Kind, id: Uuid) -> Result<bool> {
    let done = sqlx::query!(
        "UPDATE credential SET revoked_at = now()
         WHERE kind = $1 AND credential_id = $2 AND revoked_at IS NULL",
        code(kind),
        id,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// As [`find`], and keeps the credential from changing until the transaction ends.
///
/// # Errors
/// If the database fails.
pub async fn lock(conn: &mut PgConnection, kind: Kind, id: Uuid) -> Result<Option<Credential>> {
    let locked = sqlx::query_scalar!(
        "SELECT credential_id FROM credential WHERE kind = $1 AND credential_id = $2
         FOR NO KEY UPDATE",
        code(kind),
        id,
    )
    .fetch_optional(&mut *conn)
    .await?;
    // Read only now, so that a change this had to wait for is seen.
    match locked {
        Some(id) => find(conn, kind, id).await,
        None => Ok(None),
    }
}

/// Records that another credential takes the place of one, which is accepted for another `overlap`
/// (whole microseconds) or until its own expiry, whichever is earlier.
///
/// # Errors
/// If the database fails.
pub async fn replace(
    conn: &mut PgConnection,
    kind: Kind,
    id: Uuid,
    by: Uuid,
    overlap: time::Duration,
) -> Result<()> {
    // By the clock of the database, which also decides whether a credential has expired.
    sqlx::query!(
        "UPDATE credential
         SET replaced_by = $3, expires_at = least(expires_at, clock_timestamp() + $4::interval)
         WHERE kind = $1 AND credential_id = $2",
        code(kind),
        id,
        by,
        overlap as _,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether the credential is accepted now from an address, and its partner enabled if it is a data
/// import key. Keeps all that from changing until the transaction ends.
///
/// # Errors
/// If the database fails.
pub async fn hold(conn: &mut PgConnection, id: Uuid, peer: Option<IpAddr>) -> Result<bool> {
    let held = sqlx::query!(
        r#"SELECT allowed_addresses::text[] AS "allowed_addresses!",
                  (kind <> 2 OR EXISTS (
                      SELECT FROM workspace_partner w
                      WHERE w.workspace_id = c.workspace_id AND w.partner = c.partner
                      FOR SHARE
                  )) AS "enabled!"
           FROM credential c
           WHERE credential_id = $1 AND revoked_at IS NULL
             AND (expires_at IS NULL OR expires_at > clock_timestamp())
           FOR SHARE"#,
        id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(held.is_some_and(|held| held.enabled && is_allowed(&held.allowed_addresses, peer)))
}

/// Whether the credential is accepted now from an address, without keeping it so; see [`hold`].
///
/// # Errors
/// If the database fails.
pub async fn is_active(conn: &mut PgConnection, id: Uuid, peer: Option<IpAddr>) -> Result<bool> {
    let active = sqlx::query!(
        r#"SELECT allowed_addresses::text[] AS "allowed_addresses!",
                  (kind <> 2 OR EXISTS (
                      SELECT FROM workspace_partner w
                      WHERE w.workspace_id = c.workspace_id AND w.partner = c.partner
                  )) AS "enabled!"
           FROM credential c
           WHERE credential_id = $1 AND revoked_at IS NULL
             AND (expires_at IS NULL OR expires_at > clock_timestamp())"#,
        id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(active.is_some_and(|found| found.enabled && is_allowed(&found.allowed_addresses, peer)))
}

/// Sets the networks that a credential is accepted from, in their usual form.
///
/// Waits for transactions that hold the credential through [`hold`], as a revocation does.
///
/// # Errors
/// If the database fails.
pub async fn restrict(
    conn: &mut PgConnection,
    kind: Kind,
    id: Uuid,
    allowed_addresses: &[String],
) -> Result<()> {
    sqlx::query!(
        "UPDATE credential SET allowed_addresses = $3::text[]::cidr[]
         WHERE kind = $1 AND credential_id = $2",
        code(kind),
        id,
        &allowed_addresses[..],
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes that a credential was used, at most once a minute. Does not wait for a transaction that
/// holds the credential: that one notes it as well.
///
/// # Errors
/// If the database fails.
pub async fn touch(conn: &mut PgConnection, id: Uuid) -> Result<()> {
    sqlx::query!(
        "UPDATE credential SET last_used_at = now()
         WHERE credential_id = (
             SELECT credential_id FROM credential
             WHERE credential_id = $1
               AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
             FOR NO KEY UPDATE SKIP LOCKED
         )",
        id,
    )
    .execute(conn)
    .await?;
    Ok(())
}
