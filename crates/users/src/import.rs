//! A stream of batches of users.

use std::{future::Future, time::Duration};

use muster_domain::error::{Error, Kind, Result};
use muster_service::Caller;
use muster_storage::{Store, WorkspaceId, directory::UserRecord};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::{
    outcome::{Answer, Entries},
    upsert::upsert,
};

/// How often an open stream checks that its credential is still accepted.
const CREDENTIAL_CHECK: Duration = Duration::from_millis(500);

/// An open stream. It holds no connection while it waits for its client.
#[derive(Debug)]
pub(crate) struct Import {
    store: Store,
    caller: Caller,
    shutdown: CancellationToken,
    check: Interval,
    /// The workspace that the first batch named.
    workspace: Option<(String, WorkspaceId)>,
}

impl Import {
    pub(crate) fn new(store: Store, caller: Caller, shutdown: CancellationToken) -> Self {
        let first = Instant::now() + CREDENTIAL_CHECK;
        let mut check = interval_at(first, CREDENTIAL_CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            store,
            caller,
            shutdown,
            check,
            workspace: None,
        }
    }

    /// Waits for the client to send something.
    ///
    /// # Errors
    /// If the server shuts down or the credential is not accepted any more; neither is starved by a
    /// client that always has something to send.
    pub(crate) async fn wait<T>(&mut self, message: impl Future<Output = T>) -> Result<T> {
        tokio::pin!(message);
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(shutting_down()),
                _ = self.check.tick() => self.caller.check_active(&self.store).await?,
                message = &mut message => return Ok(message),
            }
        }
    }

    /// The workspace of the stream, which a batch may name again.
    pub(crate) async fn workspace(&mut self, slug: &str) -> Result<WorkspaceId> {
        match &self.workspace {
            Some((first, id)) if slug.is_empty() || slug == first => Ok(*id),
            Some(_) => Err(Error::field(
                "workspace",
                "must be empty or the same as in the first request",
            )),
            None => {
                let id = self.caller.workspace(&self.store, slug).await?;
                self.workspace = Some((slug.to_owned(), id));
                Ok(id)
            }
        }
    }

    /// Applies a batch in one transaction.
    pub(crate) async fn apply(
        &self,
        workspace: WorkspaceId,
        batch: Entries<UserRecord<'_>>,
    ) -> Result<Answer> {
        let mut tx = self.store.begin("import_users").await?;
        let answer = upsert(&mut tx, workspace, batch).await?;
        tx.commit().await?;
        Ok(answer)
    }
}

fn shutting_down() -> Error {
    Error::new(
        Kind::Unavailable,
        "SHUTTING_DOWN",
        "the server shuts down; batches that were answered are applied, send the others again",
    )
}
