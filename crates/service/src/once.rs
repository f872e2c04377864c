//! Idempotent mutations: the answer to a `request_id` is given again, the work is not done again.

use std::net::IpAddr;

use muster_domain::{
    error::{Error, FieldContext as _, Result},
    name,
};
use muster_storage::{
    Store, Tx, WorkspaceId, credentials,
    requests::{Attempt, Mutation, RequestKey},
};
use prost::Message;
use uuid::Uuid;

use crate::{Caller, caller::credential_invalid};

/// A mutation that is done for the first time, or has been done.
#[derive(Debug)]
pub enum Once<R> {
    /// Do it in this transaction, then [`First::commit`].
    First(Box<First>),
    /// It was done; this was the answer.
    Done(R),
}

/// A mutation that is done for the first time.
#[derive(Debug)]
pub struct First {
    mutation: Mutation,
    credential: Uuid,
    peer: Option<IpAddr>,
}

/// Begins the mutation `method` of a workspace, or of the whole deployment.
///
/// # Errors
/// `INVALID_ARGUMENT` on `request_id` if it is malformed or came with another request before.
pub async fn once<R: Message + Default>(
    store: &Store,
    caller: &Caller,
    workspace: Option<WorkspaceId>,
    method: &'static str,
    request_id: &str,
    request: &impl Message,
) -> Result<Once<R>> {
    let key = request_key(caller, workspace, method, request_id)?;
    match store.mutation(key, &request.encode_to_vec()).await? {
        Attempt::First(mutation) => Ok(Once::First(Box::new(First {
            mutation,
            credential: caller.credential,
            peer: caller.peer,
        }))),
        Attempt::Replay(answer) => Ok(Once::Done(
            R::decode(answer.as_slice()).map_err(Error::internal)?,
        )),
    }
}

/// The answer to a mutation that was done before, where there is work to do ahead of its
/// transaction; [`once`] still decides.
///
/// # Errors
/// `INVALID_ARGUMENT` on `request_id` if it is malformed or came with another request before.
pub async fn answered<R: Message + Default>(
    store: &Store,
    caller: &Caller,
    workspace: Option<WorkspaceId>,
    method: &'static str,
    request_id: &str,
    request: &impl Message,
) -> Result<Option<R>> {
    let key = request_key(caller, workspace, method, request_id)?;
    match store.answered(key, &request.encode_to_vec()).await? {
        Some(answer) => Ok(Some(R::decode(answer.as_slice()).map_err(Error::internal)?)),
        None => Ok(None),
    }
}

fn request_key<'a>(
    caller: &'a Caller,
    workspace: Option<WorkspaceId>,
    method: &'static str,
    request_id: &'a str,
) -> Result<RequestKey<'a>> {
    name::check_label(request_id).field("request_id")?;
    Ok(RequestKey {
        workspace,
        actor: &caller.actor,
        method,
        request_id,
    })
}

impl First {
    /// The transaction to do the work in.
    pub fn tx(&mut self) -> &mut Tx {
        &mut self.mutation.tx
    }

    /// Makes the change durable together with its answer, which must hold no secret and no
    /// identifier of a person.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` (`CREDENTIAL_INVALID`) if the caller's credential was revoked meanwhile;
    /// if the database fails.
    pub async fn commit(mut self, answer: &impl Message) -> Result<()> {
        // The work may have waited for others a good while.
        let (credential, peer) = (self.credential, self.peer);
        if !credentials::is_active(self.tx(), credential, peer).await? {
            return Err(credential_invalid());
        }
        self.commit_held(answer).await
    }

    /// As [`commit`](Self::commit), where the transaction holds the credential
    /// ([`credentials::hold`]): the work may have been its end.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn commit_held(self, answer: &impl Message) -> Result<()> {
        Ok(self.mutation.commit(&answer.encode_to_vec()).await?)
    }
}
