//! The two services on the wire: each call is admitted, converted, done and converted back.

mod integration;
mod key;

use muster_domain::error::Result;
use muster_service::{Caller, Once, caller::credential_invalid, once};
use muster_storage::{Store, Tx, WorkspaceId, credentials};
use prost::Message;

use crate::{Settings, wire::Kept};

/// Both services.
#[derive(Debug)]
pub(crate) struct Api {
    store: Store,
    settings: Settings,
}

/// A call that changes something.
struct Call<'a, M> {
    caller: &'a Caller,
    workspace: Option<WorkspaceId>,
    method: &'static str,
    request_id: &'a str,
    body: &'a M,
}

impl Api {
    pub(crate) fn new(store: Store, settings: Settings) -> Self {
        Self { store, settings }
    }

    /// Does `work` in one transaction, or gives the answer of the time it was done; that one without
    /// the secret, which is kept nowhere.
    async fn mutate<R: Kept + Clone>(
        &self,
        call: Call<'_, impl Message>,
        work: impl AsyncFnOnce(&mut Tx) -> Result<R>,
    ) -> Result<R> {
        let Call {
            caller,
            workspace,
            method,
            request_id,
            body,
        } = call;
        let mut first = match once(&self.store, caller, workspace, method, request_id, body).await?
        {
            Once::Done(answer) => return Ok(answer),
            Once::First(first) => first,
        };
        // Nobody can make themselves a credential while theirs is being revoked: either this is
        // refused, or the revocation waits for it, and who revoked sees it in the lists.
        if !credentials::hold(first.tx(), caller.credential, caller.peer).await? {
            return Err(credential_invalid());
        }
        let answer = work(first.tx()).await?;
        let mut kept = answer.clone();
        kept.forget_secret();
        first.commit_held(&kept).await?;
        Ok(answer)
    }
}
