//! The rpcs: find out who calls, convert, call, convert back.

use futures::{StreamExt as _, stream::BoxStream};
use muster_domain::error::{Error, Result};
use muster_identity::Identities;
use muster_proto::segments::v1::{
    self as pb, segment_service_server::SegmentService as SegmentServiceApi,
};
use muster_service::{
    Caller, Once, Page, RpcResult, admitted, once, outlet::Limits, respond, status,
};
use muster_storage::{Role, Store, WorkspaceId};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::{
    Settings, audience, check, diff,
    evaluation::Turns,
    resolutions, segments,
    wire::{self, Audience},
};

/// `muster.segments.v1.SegmentService`.
#[derive(Debug)]
pub(crate) struct Api {
    store: Store,
    identities: Identities,
    settings: Settings,
    turns: Turns,
    shutdown: CancellationToken,
}

/// The workspace of a request.
struct Scope {
    id: WorkspaceId,
    slug: String,
}

impl Api {
    pub(crate) fn new(
        identities: Identities,
        settings: Settings,
        shutdown: CancellationToken,
    ) -> Self {
        let turns = Turns::new(settings.concurrent_evaluations, settings.evaluation_wait);
        Self {
            store: identities.store().acting_as(Role::Segments),
            identities,
            settings,
            turns,
            shutdown,
        }
    }

    async fn workspace(&self, caller: &Caller, named: &str) -> Result<Scope> {
        let id = caller.workspace(&self.store, named).await?;
        let slug = match &caller.bound_to {
            Some((_, own)) => own.clone(),
            None => named.to_owned(),
        };
        Ok(Scope { id, slug })
    }

    fn limits(&self, caller: Caller, remedy: &'static str) -> Limits {
        Limits {
            store: self.store.clone(),
            caller,
            shutdown: self.shutdown.clone(),
            idle_timeout: self.settings.idle_timeout,
            remedy,
        }
    }
}

#[tonic::async_trait]
impl SegmentServiceApi for Api {
    async fn create_segment(
        &self,
        request: Request<pb::CreateSegmentRequest>,
    ) -> RpcResult<pb::CreateSegmentResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let filter = wire::new_segment(&body)?;
            let (ws, id) = (Some(scope.id), &body.request_id);
            match once(&self.store, &caller, ws, "create_segment", id, &body).await? {
                Once::Done(answer) => Ok(answer),
                Once::First(mut first) => {
                    let created =
                        segments::create(first.tx(), scope.id, &body.name, &filter).await?;
                    let (tx, by) = (first.tx(), caller.by());
                    segments::record(tx, by, scope.id, "create", &created).await?;
                    let segment = Some(wire::segment(&scope.slug, &created)?);
                    let answer = pb::CreateSegmentResponse { segment };
                    first.commit(&answer).await?;
                    Ok(answer)
                }
            }
        })
        .await
    }

    async fn get_segment(
        &self,
        request: Request<pb::GetSegmentRequest>,
    ) -> RpcResult<pb::GetSegmentResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let segment = wire::segment_ref(body.segment.as_ref())?;
            let found = segments::get(&self.store, scope.id, &segment).await?;
            let segment = Some(wire::segment(&scope.slug, &found)?);
            Ok(pb::GetSegmentResponse { segment })
        })
        .await
    }

    async fn list_segments(
        &self,
        request: Request<pb::ListSegmentsRequest>,
    ) -> RpcResult<pb::ListSegmentsResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let page = Page::parse(body.page_size, &body.page_token)?;
            let wanted = wire::wanted_segments(&body)?;
            let (found, names, next_page_token) =
                segments::list(&self.store, scope.id, &wanted, &page).await?;
            let segments = wire::segments(&scope.slug, &found, &names)?;
            Ok(pb::ListSegmentsResponse {
                segments,
                next_page_token,
            })
        })
        .await
    }

    async fn update_segment(
        &self,
        request: Request<pb::UpdateSegmentRequest>,
    ) -> RpcResult<pb::UpdateSegmentResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let segment = wire::segment_ref(body.segment.as_ref())?;
            let change = wire::change(&body)?;
            let (ws, id) = (Some(scope.id), &body.request_id);
            match once(&self.store, &caller, ws, "update_segment", id, &body).await? {
                Once::Done(answer) => Ok(answer),
                Once::First(mut first) => {
                    let (tx, etag) = (first.tx(), &body.etag);
                    let changed = segments::update(tx, scope.id, &segment, &change, etag).await?;
                    segments::record(tx, caller.by(), scope.id, "update", &changed).await?;
                    let segment = Some(wire::segment(&scope.slug, &changed)?);
                    let answer = pb::UpdateSegmentResponse { segment };
                    first.commit(&answer).await?;
                    Ok(answer)
                }
            }
        })
        .await
    }

    async fn archive_segment(
        &self,
        request: Request<pb::ArchiveSegmentRequest>,
    ) -> RpcResult<pb::ArchiveSegmentResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let segment = wire::segment_ref(body.segment.as_ref())?;
            let (ws, id) = (Some(scope.id), &body.request_id);
            match once(&self.store, &caller, ws, "archive_segment", id, &body).await? {
                Once::Done(answer) => Ok(answer),
                Once::First(mut first) => {
                    let (tx, etag) = (first.tx(), &body.etag);
                    let archived = segments::archive(tx, scope.id, &segment, etag).await?;
                    segments::record(tx, caller.by(), scope.id, "archive", &archived).await?;
                    let segment = Some(wire::segment(&scope.slug, &archived)?);
                    let answer = pb::ArchiveSegmentResponse { segment };
                    first.commit(&answer).await?;
                    Ok(answer)
                }
            }
        })
        .await
    }

    async fn count_segment(
        &self,
        request: Request<pb::CountSegmentRequest>,
    ) -> RpcResult<pb::CountSegmentResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let (source, demands) = wire::count(&body, self.settings.visibility_timeout)?;
            let (store, turns) = (&self.store, &self.turns);
            let (user_count, cohorts) = turns.count(store, scope.id, &source, &demands).await?;
            Ok(pb::CountSegmentResponse {
                user_count,
                cohort_versions: wire::cohort_versions(cohorts),
            })
        })
        .await
    }

    async fn count_filters(
        &self,
        request: Request<pb::CountFiltersRequest>,
    ) -> RpcResult<pb::CountFiltersResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let (filters, demands) = wire::filters(&body, self.settings.visibility_timeout)?;
            let (store, turns) = (&self.store, &self.turns);
            let counted = turns.count_all(store, scope.id, &filters, &demands).await?;
            Ok(pb::CountFiltersResponse {
                counts: wire::filter_counts(&counted.filters, &counted.names)?,
                live_user_count: counted.live_users,
                cohort_versions: wire::cohort_versions(counted.cohorts),
            })
        })
        .await
    }

    type ResolveSegmentStream = BoxStream<'static, Result<pb::ResolveSegmentResponse, Status>>;

    async fn resolve_segment(
        &self,
        request: Request<pb::ResolveSegmentRequest>,
    ) -> RpcResult<Self::ResolveSegmentStream> {
        respond(async {
            let (caller, body) = admitted(request);
            let Scope { id, slug } = self.workspace(&caller, &body.workspace).await?;
            let body = wire::resolve(body, self.settings.visibility_timeout)?;
            let (resolution, users) = match &body.audience {
                Audience::Kept(kept) => {
                    resolutions::read_again(&self.store, &caller, id, *kept).await?
                }
                Audience::Now(source, demands) => {
                    let wanted = resolutions::Wanted {
                        workspace: id,
                        turns: &self.turns,
                        source,
                        demands,
                        request_id: &body.request_id,
                        defining: &body.defining,
                        retention: self.settings.resolution_retention,
                    };
                    resolutions::make(&self.store, &caller, wanted).await?
                }
            };
            let wanted = audience::Wanted {
                workspace: id,
                resolution,
                users,
                view: body.view,
                partition: body.partition,
                resume_token: body.resume_token,
            };
            let limits = self.limits(caller, "it can be resumed");
            let messages = audience::stream(self.identities.clone(), limits, wanted).await?;
            let message = move |message| wire::audience_message(&slug, message);
            Ok(messages
                .map(move |next| next.map(&message).map_err(status))
                .boxed())
        })
        .await
    }

    async fn get_resolution(
        &self,
        request: Request<pb::GetResolutionRequest>,
    ) -> RpcResult<pb::GetResolutionResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let id = resolutions::parse_id(&body.resolution_id, "resolution_id")?;
            let found = resolutions::get(&self.store, scope.id, id).await?;
            Ok(pb::GetResolutionResponse {
                resolution: Some(wire::resolution(&scope.slug, found)),
            })
        })
        .await
    }

    async fn list_resolutions(
        &self,
        request: Request<pb::ListResolutionsRequest>,
    ) -> RpcResult<pb::ListResolutionsResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let segment = wire::optional_segment_ref(body.segment.as_ref())?;
            let time = wire::period(&body)?;
            let page = Page::parse(body.page_size, &body.page_token)?;
            let (found, next_page_token) =
                resolutions::list(&self.store, scope.id, segment.as_ref(), time, &page).await?;
            let found = found.into_iter();
            Ok(pb::ListResolutionsResponse {
                resolutions: found.map(|it| wire::resolution(&scope.slug, it)).collect(),
                next_page_token,
            })
        })
        .await
    }

    type DiffResolutionsStream = BoxStream<'static, Result<pb::DiffResolutionsResponse, Status>>;

    async fn diff_resolutions(
        &self,
        request: Request<pb::DiffResolutionsRequest>,
    ) -> RpcResult<Self::DiffResolutionsStream> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let base = resolutions::parse_id(&body.base_resolution_id, "base_resolution_id")?;
            let target = resolutions::parse_id(&body.target_resolution_id, "target_resolution_id")?;
            let view = wire::view(body.view)?;
            let limits = self.limits(caller, "ask for it again");
            let identities = self.identities.clone();
            let messages = diff::stream(identities, limits, scope.id, (base, target), view).await?;
            Ok(messages
                .map(|next| next.map(wire::diff_message).map_err(status))
                .boxed())
        })
        .await
    }

    async fn check_membership(
        &self,
        request: Request<pb::CheckMembershipRequest>,
    ) -> RpcResult<pb::CheckMembershipResponse> {
        respond(async {
            let (caller, body) = admitted(request);
            let scope = self.workspace(&caller, &body.workspace).await?;
            let (subject, source) = wire::check(&body)?;
            let answer = check::check(&self.store, scope.id, &subject, &source).await?;
            Ok::<_, Error>(wire::checked(answer))
        })
        .await
    }
}
