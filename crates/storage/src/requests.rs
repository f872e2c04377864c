//! Idempotency: answers to mutations, by the id that the caller gave the request.

use muster_domain::error::Error;
use sha2::{Digest as _, Sha256};

use crate::{Result, Store, Timestamp, Tx, WorkspaceId};

/// What makes a call the same call.
#[derive(Debug, Clone, Copy)]
pub struct RequestKey<'a> {
    /// The workspace concerned; `None` for the whole deployment.
    pub workspace: Option<WorkspaceId>,
    /// Who calls.
    pub actor: &'a str,
    /// The rpc.
    pub method: &'static str,
    /// Chosen by the caller; empty means that the call is not to be remembered.
    pub request_id: &'a str,
}

impl RequestKey<'_> {
    /// The workspace that its answer is kept under; there is none with the number 0.
    fn entered(&self) -> WorkspaceId {
        self.workspace.unwrap_or(WorkspaceId(0))
    }
}

/// A mutation that is done for the first time, or has been done.
#[derive(Debug)]
pub enum Attempt {
    /// Do it in this transaction, then [`Mutation::commit`].
    First(Mutation),
    /// It was done: the encoded answer of that time.
    Replay(Vec<u8>),
}

/// A transaction that remembers the answer to a request.
#[derive(Debug)]
pub struct Mutation {
    /// The transaction to do the work in.
    pub tx: Tx,
    remembered: Option<Remembered>,
}

#[derive(Debug)]
struct Remembered {
    workspace_id: i64,
    actor: String,
    method: &'static str,
    request_id: String,
}

impl Store {
    /// Begins a mutation, unless the same one was done within 24 hours.
    ///
    /// `request` is the encoded request. Of two concurrent calls with one id the second waits for
    /// the first and gets its answer.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` on `request_id` if it came with another request before.
    pub async fn mutation(&self, key: RequestKey<'_>, request: &[u8]) -> Result<Attempt> {
        let mut tx = self.begin_in(key.method, key.entered()).await?;
        if key.request_id.is_empty() {
            let remembered = None;
            return Ok(Attempt::First(Mutation { tx, remembered }));
        }
        let WorkspaceId(workspace_id) = key.entered();
        let fingerprint = Sha256::digest(request);
        let inserted = sqlx::query!(
            "INSERT INTO request_log (workspace_id, actor, method, request_id, fingerprint)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            workspace_id,
            key.actor,
            key.method,
            key.request_id,
            fingerprint.as_slice(),
        )
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if inserted == 1 {
            let remembered = Some(Remembered {
                workspace_id,
                actor: key.actor.to_owned(),
                method: key.method,
                request_id: key.request_id.to_owned(),
            });
            return Ok(Attempt::First(Mutation { tx, remembered }));
        }
        let earlier = sqlx::query!(
            r#"SELECT fingerprint, response AS "response!" FROM request_log
               WHERE workspace_id = $1 AND actor = $2 AND method = $3 AND request_id = $4"#,
            workspace_id,
            key.actor,
            key.method,
            key.request_id,
        )
        .fetch_one(&mut *tx)
        .await?;
        replay(&earlier.fingerprint, request, earlier.response).map(Attempt::Replay)
    }

    /// The encoded answer to a mutation that was done within 24 hours, if it was.
    ///
    /// For mutations with work to do before their transaction: [`mutation`](Self::mutation) still
    /// decides, this spares the work.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` on `request_id` if it came with another request before.
    pub async fn answered(&self, key: RequestKey<'_>, request: &[u8]) -> Result<Option<Vec<u8>>> {
        if key.request_id.is_empty() {
            return Ok(None);
        }
        let mut connection = self.read_in(key.method, key.entered()).await?;
        let earlier = sqlx::query!(
            r#"SELECT fingerprint, response AS "response!" FROM request_log
               WHERE workspace_id = $1 AND actor = $2 AND method = $3 AND request_id = $4"#,
            key.entered().0,
            key.actor,
            key.method,
            key.request_id,
        )
        .fetch_optional(&mut *connection)
        .await?;
        let Some(earlier) = earlier else {
            return Ok(None);
        };
        replay(&earlier.fingerprint, request, earlier.response).map(Some)
    }

    /// Forgets answers that are older than 24 hours by `now`. Returns how many.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn forget_requests(&self, now: Timestamp) -> Result<u64> {
        let mut tx = self.clean_up("forget_requests").await?;
        let forgotten = sqlx::query!(
            "DELETE FROM request_log WHERE created_at < $1::timestamptz - interval '24 hours'",
            now
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(forgotten.rows_affected())
    }
}

/// The earlier answer, if it was to this request.
fn replay(fingerprint: &[u8], request: &[u8], answer: Vec<u8>) -> Result<Vec<u8>> {
    if fingerprint == Sha256::digest(request).as_slice() {
        Ok(answer)
    } else {
        Err(Error::field("request_id", "was used for a different request before").into())
    }
}

impl Mutation {
    /// Makes the change durable together with its answer, which must hold no secret.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn commit(mut self, response: &[u8]) -> Result<()> {
        if let Some(remembered) = &self.remembered {
            sqlx::query!(
                "UPDATE request_log SET response = $5
                 WHERE workspace_id = $1 AND actor = $2 AND method = $3 AND request_id = $4",
                remembered.workspace_id,
                remembered.actor,
                remembered.method,
                remembered.request_id,
                response,
            )
            .execute(&mut *self.tx)
            .await?;
        }
        self.tx.commit().await
    }
}
