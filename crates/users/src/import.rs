//! A stream of batches of users.

use muster_domain::error::{Error, Result};
use muster_service::Caller;
use muster_storage::{
    Store, WorkspaceId,
    directory::{Likely, UserRecord},
};

use crate::{
    outcome::{Answer, Done, Entries, Outcome},
    upsert::upsert,
};

/// An open stream. It holds no connection while it waits for its client.
#[derive(Debug)]
pub(crate) struct Import {
    store: Store,
    pub(crate) caller: Caller,
    /// The workspace that the first batch named.
    workspace: Option<(String, WorkspaceId)>,
    /// As the last batch was, the next one is likely to be.
    likely: Likely,
}

impl Import {
    pub(crate) fn new(store: Store, caller: Caller) -> Self {
        Self {
            store,
            caller,
            workspace: None,
            likely: Likely::Anyone,
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
        &mut self,
        workspace: WorkspaceId,
        batch: Entries<UserRecord<'_>>,
    ) -> Result<Answer> {
        let mut tx = self.store.begin_in("import_users", workspace).await?;
        let answer = upsert(&mut tx, workspace, batch, self.likely).await?;
        tx.commit().await?;
        let mut outcomes = answer.outcomes.iter();
        let all_new = outcomes.all(|outcome| matches!(outcome, Outcome::Done(Done::Created, _)));
        self.likely = if all_new { Likely::New } else { Likely::Anyone };
        Ok(answer)
    }
}
