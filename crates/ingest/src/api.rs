//! The tonic trait: authenticate, convert, call, convert back.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use muster_domain::error::{Error, FieldContext as _, Result};
use muster_proto::ingest::v1::{self as pb, ingest_service_server::IngestService};
use muster_service::{
    Caller, Once, Page, RpcResult, admitted, once, respond,
    response::{broken_stream, status},
    wire::from_wire,
};
use muster_storage::{
    WorkspaceId,
    cohorts::{CohortKey, Selection},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Ingest,
    imports::{DEFAULT_REJECTED, MAX_REJECTED, Named, Wanted, preview_outdated},
    session::{self, Message},
    wire,
};

/// Answers that may wait for a slow reader.
const PENDING_REPLIES: usize = 16;

#[tonic::async_trait]
impl IngestService for Ingest {
    type IngestCohortStream =
        Pin<Box<dyn Stream<Item = Result<pb::IngestCohortResponse, Status>> + Send>>;

    async fn ingest_cohort(
        &self,
        request: Request<Streaming<pb::IngestCohortRequest>>,
    ) -> RpcResult<Self::IngestCohortStream> {
        let (caller, messages) = admitted(request);
        let reader = caller.clone();
        let messages = messages.map(move |message| {
            let message = message.map_err(|status| broken_stream(&status))?;
            let memory = reader.memory()?;
            Ok(Message::try_from(message)?.holding(memory))
        });
        let (replies, answers) = mpsc::channel(PENDING_REPLIES);
        tokio::spawn(session::run(self.clone(), caller, messages, replies));
        let answers =
            ReceiverStream::new(answers).map(|answer| answer.map(Into::into).map_err(status));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn upsert_cohort(
        &self,
        request: Request<pb::UpsertCohortRequest>,
    ) -> RpcResult<pb::UpsertCohortResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, slug) = self.workspace(&caller, &body.workspace).await?;
            let key = cohort_key(&caller, &body.partner, &body.cohort_id)?;
            check_mask(body.update_mask.as_ref())?;
            let id = &body.request_id;
            let first = once(
                &self.store,
                &caller,
                Some(workspace),
                "UpsertCohort",
                id,
                &body,
            )
            .await?;
            let mut first = match first {
                Once::Done(answer) => return Ok(answer),
                Once::First(first) => first,
            };
            let (cohort, created) = self
                .upsert_cohort(
                    first.tx(),
                    caller.by(),
                    workspace,
                    key,
                    &body.name,
                    &body.etag,
                )
                .await?;
            let answer = pb::UpsertCohortResponse {
                cohort: Some(wire::cohort(&slug, cohort.into(), None)),
                created,
            };
            first.commit(&answer).await?;
            Ok(answer)
        })
        .await
    }

    async fn get_cohort(
        &self,
        request: Request<pb::GetCohortRequest>,
    ) -> RpcResult<pb::GetCohortResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, slug) = self.workspace(&caller, &body.workspace).await?;
            let key = cohort_key(&caller, &body.partner, &body.cohort_id)?;
            let (cohort, members) = self.cohort(&caller, workspace, key).await?;
            Ok(pb::GetCohortResponse {
                cohort: Some(wire::cohort(&slug, cohort, Some(members))),
            })
        })
        .await
    }

    async fn list_cohorts(
        &self,
        request: Request<pb::ListCohortsRequest>,
    ) -> RpcResult<pb::ListCohortsResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, slug) = self.workspace(&caller, &body.workspace).await?;
            let page = Page::parse(body.page_size, &body.page_token)?;
            let partner = caller.partner(&body.partner)?;
            let selection = Selection {
                partner: Some(partner).filter(|partner| !partner.is_empty()),
                name_contains: &body.name_contains,
                include_archived: body.include_archived,
                order: wire::order(body.order()),
            };
            let (cohorts, next) = self.cohorts(workspace, selection, &page).await?;
            let cohorts = cohorts.into_iter();
            Ok(pb::ListCohortsResponse {
                cohorts: cohorts.map(|c| wire::cohort(&slug, c, None)).collect(),
                next_page_token: next,
            })
        })
        .await
    }

    async fn list_cohort_versions(
        &self,
        request: Request<pb::ListCohortVersionsRequest>,
    ) -> RpcResult<pb::ListCohortVersionsResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, _) = self.workspace(&caller, &body.workspace).await?;
            let key = cohort_key(&caller, &body.partner, &body.cohort_id)?;
            let page = Page::parse(body.page_size, &body.page_token)?;
            let (versions, next) = self.cohort_versions(&caller, workspace, key, &page).await?;
            Ok(pb::ListCohortVersionsResponse {
                versions: versions.into_iter().map(wire::version).collect(),
                next_page_token: next,
            })
        })
        .await
    }

    async fn archive_cohort(
        &self,
        request: Request<pb::ArchiveCohortRequest>,
    ) -> RpcResult<pb::ArchiveCohortResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, slug) = self.workspace(&caller, &body.workspace).await?;
            let key = cohort_key(&caller, &body.partner, &body.cohort_id)?;
            let id = &body.request_id;
            let first = once(
                &self.store,
                &caller,
                Some(workspace),
                "ArchiveCohort",
                id,
                &body,
            )
            .await?;
            let mut first = match first {
                Once::Done(answer) => return Ok(answer),
                Once::First(first) => first,
            };
            let cohort = self
                .archive_cohort(first.tx(), caller.by(), workspace, key, &body.etag)
                .await?;
            let answer = pb::ArchiveCohortResponse {
                cohort: Some(wire::cohort(&slug, cohort.into(), None)),
            };
            first.commit(&answer).await?;
            Ok(answer)
        })
        .await
    }

    async fn get_import(
        &self,
        request: Request<pb::GetImportRequest>,
    ) -> RpcResult<pb::GetImportResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, slug) = self.workspace(&caller, &body.workspace).await?;
            let wanted = Named::by(&caller, workspace, &body.partner, &body.import_id)?;
            let import = self.import(wanted).await?;
            Ok(pb::GetImportResponse {
                import: Some(wire::import(&slug, import)),
            })
        })
        .await
    }

    async fn list_imports(
        &self,
        request: Request<pb::ListImportsRequest>,
    ) -> RpcResult<pb::ListImportsResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, slug) = self.workspace(&caller, &body.workspace).await?;
            let page = Page::parse(body.page_size, &body.page_token)?;
            let since = body.since.as_ref().map(from_wire).transpose();
            let wanted = Wanted {
                partner: Some(caller.partner(&body.partner)?).filter(|name| !name.is_empty()),
                cohort_id: &body.cohort_id,
                state: wire::state(body.state()),
                since: since.field("since")?,
            };
            let (imports, next) = self.imports(workspace, wanted, &page).await?;
            let imports = imports.into_iter();
            Ok(pb::ListImportsResponse {
                imports: imports.map(|i| wire::import(&slug, i)).collect(),
                next_page_token: next,
            })
        })
        .await
    }

    async fn list_rejected_identifiers(
        &self,
        request: Request<pb::ListRejectedIdentifiersRequest>,
    ) -> RpcResult<pb::ListRejectedIdentifiersResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, _) = self.workspace(&caller, &body.workspace).await?;
            let (size, token) = (body.page_size, &body.page_token);
            let page = Page::parse_with(size, token, DEFAULT_REJECTED, MAX_REJECTED)?;
            let wanted = Named::by(&caller, workspace, &body.partner, &body.import_id)?;
            let (rejected, next) = self.rejected(wanted, &page).await?;
            Ok(pb::ListRejectedIdentifiersResponse {
                identifiers: rejected.into_iter().map(wire::rejected).collect(),
                next_page_token: next,
            })
        })
        .await
    }

    async fn confirm_import(
        &self,
        request: Request<pb::ConfirmImportRequest>,
    ) -> RpcResult<pb::ConfirmImportResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, _) = self.workspace(&caller, &body.workspace).await?;
            let wanted = Named::by(&caller, workspace, &body.partner, &body.import_id)?;
            let id = &body.request_id;
            let first = once(
                &self.store,
                &caller,
                Some(workspace),
                "ConfirmImport",
                id,
                &body,
            )
            .await?;
            let mut first = match first {
                Once::Done(answer) => return Ok(answer),
                Once::First(first) => first,
            };
            let Some(published) = self.confirm_import(first.tx(), &caller, wanted).await? else {
                drop(first);
                self.renew_preview(&caller, wanted).await?;
                return Err(preview_outdated());
            };
            let answer = pb::ConfirmImportResponse {
                committed: Some(published.into()),
            };
            first.commit(&answer).await?;
            Ok(answer)
        })
        .await
    }

    async fn abort_import(
        &self,
        request: Request<pb::AbortImportRequest>,
    ) -> RpcResult<pb::AbortImportResponse> {
        let (caller, body) = admitted(request);
        respond(async {
            let (workspace, slug) = self.workspace(&caller, &body.workspace).await?;
            let wanted = Named::by(&caller, workspace, &body.partner, &body.import_id)?;
            let id = &body.request_id;
            let first = once(
                &self.store,
                &caller,
                Some(workspace),
                "AbortImport",
                id,
                &body,
            )
            .await?;
            let mut first = match first {
                Once::Done(answer) => return Ok(answer),
                Once::First(first) => first,
            };
            let import = self.abort_import(first.tx(), &caller, wanted).await?;
            let answer = pb::AbortImportResponse {
                import: Some(wire::import(&slug, import)),
            };
            first.commit(&answer).await?;
            Ok(answer)
        })
        .await
    }
}

impl Ingest {
    /// The workspace a request names, with its slug.
    async fn workspace(&self, caller: &Caller, slug: &str) -> Result<(WorkspaceId, String)> {
        let id = caller.workspace(&self.store, slug).await?;
        let own = caller.bound_to.as_ref().map(|(_, own)| own.clone());
        Ok((id, own.unwrap_or_else(|| slug.to_owned())))
    }
}

fn cohort_key<'a>(
    caller: &'a Caller,
    partner: &'a str,
    cohort_id: &'a str,
) -> Result<CohortKey<'a>> {
    let partner = caller.partner(partner)?;
    muster_domain::name::check_slug(partner).field("partner")?;
    Ok(CohortKey {
        partner,
        partner_cohort_id: cohort_id,
    })
}

fn check_mask(mask: Option<&prost_types::FieldMask>) -> Result<()> {
    let unknown = mask.and_then(|mask| mask.paths.iter().find(|path| *path != "name"));
    match unknown {
        None => Ok(()),
        Some(path) => Err(Error::field(
            "update_mask",
            format!("{path:?} is not `name`"),
        )),
    }
}
