//! `IntegrationService`.

use muster_proto::keys::v1::{self as pb, integration_service_server::IntegrationService};
use muster_service::{Page, RpcResult, admitted, respond};
use muster_storage::audit::Filter;
use tonic::Request;

use super::{Api, Call};
use crate::{access, audit, integration, partner_keys, partners, tokens, wire, workspaces};

#[tonic::async_trait]
impl IntegrationService for Api {
    async fn create_workspace(
        &self,
        request: Request<pb::CreateWorkspaceRequest>,
    ) -> RpcResult<pb::CreateWorkspaceResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            access::whole_deployment(&caller, &self.store).await?;
            let (slug, shown) = wire::named("workspace", &body.workspace, &body.display_name)?;
            let call = Call {
                caller: &caller,
                workspace: None,
                method: "create_workspace",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let workspace = workspaces::create(tx, caller.by(), slug, shown).await?;
                let workspace = Some(wire::workspace(workspace));
                Ok(pb::CreateWorkspaceResponse { workspace })
            })
            .await
        })
        .await
    }

    async fn list_workspaces(
        &self,
        request: Request<pb::ListWorkspacesRequest>,
    ) -> RpcResult<pb::ListWorkspacesResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let page = wire::page_by_slug(body.page_size, &body.page_token)?;
            let mut connection = self.store.connection().await?;
            let (found, next) = workspaces::list(&mut connection, &caller, &page).await?;
            Ok(pb::ListWorkspacesResponse {
                workspaces: wire::all(found, wire::workspace),
                next_page_token: next,
            })
        })
        .await
    }

    async fn create_partner(
        &self,
        request: Request<pb::CreatePartnerRequest>,
    ) -> RpcResult<pb::CreatePartnerResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            access::whole_deployment(&caller, &self.store).await?;
            let (slug, shown) = wire::named("partner", &body.partner, &body.display_name)?;
            let call = Call {
                caller: &caller,
                workspace: None,
                method: "create_partner",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let partner = partners::create(tx, caller.by(), slug, shown).await?;
                let partner = Some(wire::partner(partner));
                Ok(pb::CreatePartnerResponse { partner })
            })
            .await
        })
        .await
    }

    async fn list_partners(
        &self,
        request: Request<pb::ListPartnersRequest>,
    ) -> RpcResult<pb::ListPartnersResponse> {
        respond(async {
            // Whoever is bound to a workspace sees them all, too, to enable one.
            let (_, body) = admitted(request);
            let page = wire::page_by_slug(body.page_size, &body.page_token)?;
            let mut connection = self.store.connection().await?;
            let (found, next) = partners::list(&mut connection, &page).await?;
            Ok(pb::ListPartnersResponse {
                partners: wire::all(found, wire::partner),
                next_page_token: next,
            })
        })
        .await
    }

    async fn enable_partner(
        &self,
        request: Request<pb::EnablePartnerRequest>,
    ) -> RpcResult<pb::EnablePartnerResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            let call = Call {
                caller: &caller,
                workspace: Some(workspace),
                method: "enable_partner",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                partners::enable(tx, caller.by(), workspace, &body.partner).await?;
                Ok(pb::EnablePartnerResponse {})
            })
            .await
        })
        .await
    }

    async fn disable_partner(
        &self,
        request: Request<pb::DisablePartnerRequest>,
    ) -> RpcResult<pb::DisablePartnerResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            let call = Call {
                caller: &caller,
                workspace: Some(workspace),
                method: "disable_partner",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                partners::disable(tx, caller.by(), workspace, &body.partner).await?;
                Ok(pb::DisablePartnerResponse {})
            })
            .await
        })
        .await
    }

    async fn create_partner_api_key(
        &self,
        request: Request<pb::CreatePartnerApiKeyRequest>,
    ) -> RpcResult<pb::CreatePartnerApiKeyResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            access::whole_deployment(&caller, &self.store).await?;
            let label = wire::label(&body.label)?;
            let from = wire::allowed_addresses(&body.allowed_addresses)?;
            let call = Call {
                caller: &caller,
                workspace: None,
                method: "create_partner_api_key",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let by = caller.by();
                let issued = partner_keys::create(tx, by, &body.partner, &label, &from).await?;
                Ok(wire::created_partner_key(issued))
            })
            .await
        })
        .await
    }

    async fn list_partner_api_keys(
        &self,
        request: Request<pb::ListPartnerApiKeysRequest>,
    ) -> RpcResult<pb::ListPartnerApiKeysResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            access::whole_deployment(&caller, &self.store).await?;
            let page = Page::parse(body.page_size, &body.page_token)?;
            let mut connection = self.store.connection().await?;
            let (found, next) = partner_keys::list(&mut connection, &body.partner, &page).await?;
            Ok(pb::ListPartnerApiKeysResponse {
                keys: wire::all(found, wire::partner_api_key),
                next_page_token: next,
            })
        })
        .await
    }

    async fn revoke_partner_api_key(
        &self,
        request: Request<pb::RevokePartnerApiKeyRequest>,
    ) -> RpcResult<pb::RevokePartnerApiKeyResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            access::whole_deployment(&caller, &self.store).await?;
            let call = Call {
                caller: &caller,
                workspace: None,
                method: "revoke_partner_api_key",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let (by, id) = (caller.by(), &body.key_id);
                let key = partner_keys::revoke(tx, by, &body.partner, id).await?;
                let key = Some(wire::partner_api_key(key));
                Ok(pb::RevokePartnerApiKeyResponse { key })
            })
            .await
        })
        .await
    }

    async fn get_integration(
        &self,
        request: Request<pb::GetIntegrationRequest>,
    ) -> RpcResult<pb::GetIntegrationResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = caller.workspace(&self.store, &body.workspace).await?;
            let (store, settings) = (&self.store, &self.settings);
            let found = integration::get(store, settings, workspace, &body.partner).await?;
            Ok(wire::integration(found))
        })
        .await
    }

    async fn create_service_token(
        &self,
        request: Request<pb::CreateServiceTokenRequest>,
    ) -> RpcResult<pb::CreateServiceTokenResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            // Empty means every workspace here, also for a caller that has only one.
            let workspace = match body.workspace.as_str() {
                "" => None,
                named => Some(caller.workspace(&self.store, named).await?),
            };
            let new = wire::new_token(&body)?;
            tokens::check_grant(&self.store, &caller, workspace, &new).await?;
            let call = Call {
                caller: &caller,
                workspace,
                method: "create_service_token",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let issued = tokens::create(tx, &caller, workspace, &new).await?;
                Ok(wire::created_token(issued))
            })
            .await
        })
        .await
    }

    async fn list_service_tokens(
        &self,
        request: Request<pb::ListServiceTokensRequest>,
    ) -> RpcResult<pb::ListServiceTokensResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = access::listed(&caller, &self.store, &body.workspace).await?;
            let page = Page::parse(body.page_size, &body.page_token)?;
            let mut connection = self.store.connection().await?;
            let (found, next) = tokens::list(&mut connection, workspace, &page).await?;
            Ok(pb::ListServiceTokensResponse {
                tokens: wire::all(found, wire::service_token),
                next_page_token: next,
            })
        })
        .await
    }

    async fn revoke_service_token(
        &self,
        request: Request<pb::RevokeServiceTokenRequest>,
    ) -> RpcResult<pb::RevokeServiceTokenResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let call = Call {
                caller: &caller,
                workspace: access::own(&caller),
                method: "revoke_service_token",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let token = tokens::revoke(tx, &caller, &body.token_id).await?;
                let token = Some(wire::service_token(token));
                Ok(pb::RevokeServiceTokenResponse { token })
            })
            .await
        })
        .await
    }

    async fn restrict_service_token(
        &self,
        request: Request<pb::RestrictServiceTokenRequest>,
    ) -> RpcResult<pb::RestrictServiceTokenResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let from = wire::allowed_addresses(&body.allowed_addresses)?;
            let call = Call {
                caller: &caller,
                workspace: access::own(&caller),
                method: "restrict_service_token",
                request_id: &body.request_id,
                body: &body,
            };
            self.mutate(call, async |tx| {
                let token = tokens::restrict(tx, &caller, &body.token_id, &from).await?;
                let token = Some(wire::service_token(token));
                Ok(pb::RestrictServiceTokenResponse { token })
            })
            .await
        })
        .await
    }

    async fn list_audit_events(
        &self,
        request: Request<pb::ListAuditEventsRequest>,
    ) -> RpcResult<pb::ListAuditEventsResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let workspace = access::listed(&caller, &self.store, &body.workspace).await?;
            let filter = Filter {
                workspace,
                ..wire::audit_filter(&body)?
            };
            let page = Page::parse(body.page_size, &body.page_token)?;
            let mut connection = self.store.connection().await?;
            let (found, next) = audit::list(&mut connection, filter, &page).await?;
            Ok(pb::ListAuditEventsResponse {
                events: wire::all(found, wire::audit_event),
                next_page_token: next,
            })
        })
        .await
    }
}
