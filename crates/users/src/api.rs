//! The service on the wire: each call is admitted, converted, done and converted back.

use futures::{
    TryStreamExt as _,
    stream::{BoxStream, StreamExt as _},
};
use muster_domain::error::Result;
use muster_proto::users::v1::{self as pb, user_service_server::UserService};
use muster_service::{
    Caller, Once, RpcResult, admitted, once,
    outlet::{self, Limits},
    respond,
    response::broken_stream,
    status,
};
use muster_storage::{Store, Tx, WorkspaceId, directory::Likely};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Settings,
    delete::delete,
    find::find,
    identify::identify,
    import::Import,
    merge::merge,
    outcome::Answer,
    upsert::upsert,
    wire::{self, Change},
};

/// The service.
#[derive(Debug)]
pub(crate) struct Api {
    store: Store,
    settings: Settings,
    shutdown: CancellationToken,
}

impl Api {
    pub(crate) fn new(store: Store, settings: Settings, shutdown: CancellationToken) -> Self {
        Self {
            store,
            settings,
            shutdown,
        }
    }

    /// Does `work` in one transaction, or gives the answer of the time it was done.
    async fn change<C: Change>(
        &self,
        caller: &Caller,
        body: &C,
        work: impl AsyncFnOnce(&mut Tx, WorkspaceId) -> Result<Answer>,
    ) -> Result<C::Answer> {
        let workspace = caller.workspace(&self.store, body.workspace()).await?;
        caller.count_identifiers(workspace, body.identifiers())?;
        let (method, request_id) = (C::METHOD, body.request_id());
        let once = once(
            &self.store,
            caller,
            Some(workspace),
            method,
            request_id,
            body,
        );
        let mut first = match once.await? {
            Once::Done(answer) => return Ok(answer),
            Once::First(first) => first,
        };
        let done = work(first.tx(), workspace).await?;
        let answer = wire::changed::<C>(workspace, done);
        first.commit(&answer).await?;
        Ok(answer)
    }
}

#[tonic::async_trait]
impl UserService for Api {
    type ImportUsersStream = BoxStream<'static, Result<pb::ImportUsersResponse, Status>>;

    async fn import_users(
        &self,
        request: Request<Streaming<pb::ImportUsersRequest>>,
    ) -> RpcResult<Self::ImportUsersStream> {
        let (caller, mut batches) = admitted(request);
        let mut import = Import::new(self.store.clone(), caller.clone());
        let limits = Limits {
            store: self.store.clone(),
            caller,
            shutdown: self.shutdown.clone(),
            idle_timeout: self.settings.idle_timeout,
            remedy: "batches that were answered are applied, send the others again",
        };
        let answers = outlet::stream(limits, |outlet| async move {
            loop {
                let message = outlet.wait(batches.message()).await?;
                let Some(batch) = message.map_err(|status| broken_stream(&status))? else {
                    return Ok(());
                };
                let _memory = import.caller.memory()?;
                let users = wire::batch(&batch.users)?;
                let workspace = import.workspace(&batch.workspace).await?;
                import
                    .caller
                    .count_identifiers(workspace, wire::identifiers_of(&batch.users))?;
                let answer = import.apply(workspace, users).await?;
                outlet.send(wire::imported(workspace, answer)).await?;
            }
        });
        Ok(Response::new(answers.map_err(status).boxed()))
    }

    async fn upsert_users(
        &self,
        request: Request<pb::UpsertUsersRequest>,
    ) -> RpcResult<pb::UpsertUsersResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let users = wire::users(&body.users)?;
            let work =
                async |tx: &mut Tx, workspace| upsert(tx, workspace, users, Likely::Anyone).await;
            self.change(&caller, &body, work).await
        })
        .await
    }

    async fn identify_users(
        &self,
        request: Request<pb::IdentifyUsersRequest>,
    ) -> RpcResult<pb::IdentifyUsersResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let entries = wire::identifications(&body.entries)?;
            let work = async |tx: &mut Tx, workspace| identify(tx, workspace, entries).await;
            self.change(&caller, &body, work).await
        })
        .await
    }

    async fn merge_users(
        &self,
        request: Request<pb::MergeUsersRequest>,
    ) -> RpcResult<pb::MergeUsersResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let entries = wire::merges(&body.entries)?;
            let work = async |tx: &mut Tx, workspace| merge(tx, workspace, entries).await;
            self.change(&caller, &body, work).await
        })
        .await
    }

    async fn delete_users(
        &self,
        request: Request<pb::DeleteUsersRequest>,
    ) -> RpcResult<pb::DeleteUsersResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let users = wire::identifiers(&body.users)?;
            let by = caller.by();
            let work = async |tx: &mut Tx, workspace| delete(tx, by, workspace, users).await;
            self.change(&caller, &body, work).await
        })
        .await
    }

    async fn find_user(
        &self,
        request: Request<pb::FindUserRequest>,
    ) -> RpcResult<pb::FindUserResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let name = wire::name(&body)?;
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            Ok(wire::found(find(&self.store, workspace, name).await?))
        })
        .await
    }
}
