//! `KeyService`.

use muster_proto::keys::v1::{self as pb, key_service_server::KeyService};
use muster_service::{Page, RpcResult, admitted, respond};
use tonic::Request;

use super::{Api, Call};
use crate::{keys, wire};

#[tonic::async_trait]
impl KeyService for Api {
    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> RpcResult<pb::CreateKeyResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            let new = wire::new_key(&body)?;
            let call = Call {
                caller: &caller,
                workspace: Some(workspace),
                method: "create_key",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let issued = keys::create(tx, caller.by(), workspace, &new).await?;
                Ok(wire::created_key(issued))
            })
            .await
        })
        .await
    }

    async fn get_key(&self, request: Request<pb::GetKeyRequest>) -> RpcResult<pb::GetKeyResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            let mut connection = self.store.connection().await?;
            let key = keys::get(&mut connection, workspace, &body.key_id).await?;
            let key = Some(wire::data_import_key(key));
            Ok(pb::GetKeyResponse { key })
        })
        .await
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> RpcResult<pb::ListKeysResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            let page = Page::parse(body.page_size, &body.page_token)?;
            let partner = wire::filter(&body.partner);
            let mut connection = self.store.connection().await?;
            let (found, next) = keys::list(&mut connection, workspace, partner, &page).await?;
            Ok(pb::ListKeysResponse {
                keys: wire::all(found, wire::data_import_key),
                next_page_token: next,
            })
        })
        .await
    }

    async fn revoke_key(
        &self,
        request: Request<pb::RevokeKeyRequest>,
    ) -> RpcResult<pb::RevokeKeyResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            let call = Call {
                caller: &caller,
                workspace: Some(workspace),
                method: "revoke_key",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let key = keys::revoke(tx, caller.by(), workspace, &body.key_id).await?;
                let key = Some(wire::data_import_key(key));
                Ok(pb::RevokeKeyResponse { key })
            })
            .await
        })
        .await
    }

    async fn restrict_key(
        &self,
        request: Request<pb::RestrictKeyRequest>,
    ) -> RpcResult<pb::RestrictKeyResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            let from = wire::allowed_addresses(&body.allowed_addresses)?;
            let call = Call {
                caller: &caller,
                workspace: Some(workspace),
                method: "restrict_key",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let (by, id) = (caller.by(), &body.key_id);
                let key = keys::restrict(tx, by, workspace, id, &from).await?;
                let key = Some(wire::data_import_key(key));
                Ok(pb::RestrictKeyResponse { key })
            })
            .await
        })
        .await
    }

    async fn rotate_key(
        &self,
        request: Request<pb::RotateKeyRequest>,
    ) -> RpcResult<pb::RotateKeyResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            let overlap = wire::overlap(body.overlap.as_ref())?;
            let call = Call {
                caller: &caller,
                workspace: Some(workspace),
                method: "rotate_key",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let (by, id) = (caller.by(), &body.key_id);
                let rotated = keys::rotate(tx, by, workspace, id, overlap).await?;
                Ok(wire::rotated_key(rotated))
            })
            .await
        })
        .await
    }
}
