//! What happens to a call: read, authenticated, carried out over gRPC, answered.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Json, Router,
    body::Body as HttpBody,
    extract::{Path, Request, State, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::BytesMut;
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use muster_client::{
    Connection, Credential, Refusal,
    upload::{Outcome, Upload},
};
use muster_domain::{
    import::{Mode, Summary},
    name,
};
use muster_listener::Peer;
use muster_proto::ingest::v1::{GetCohortRequest, UpsertCohortRequest};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tonic::Code;
use tower_http::catch_panic::CatchPanicLayer;
use uuid::Uuid;

use super::{
    RestSettings,
    answer::Problem,
    body::{Body, ChangeCohort, Credentials, NameCohort},
    limit::{Limits, Standing},
};

/// A cohort to ask for where only the credentials matter and the caller's own is unusable. If a
/// cohort is called so, nothing changes: its existence is neither told nor altered.
const ANY_COHORT: &str = "credential-check";

/// The contract's endpoints.
///
/// Every answer is JSON and carries the `x-ratelimit-` headers, also those of unknown paths and of
/// panics; one to a caller who presented no key shows an untouched limit.
pub fn router(settings: RestSettings) -> Router {
    let memory = settings.body_memory.min(Semaphore::MAX_PERMITS);
    let endpoint = Arc::new(Endpoint {
        limits: Limits::new(settings.requests_per_hour),
        memory: Arc::new(Semaphore::new(memory)),
        settings,
    });
    Router::new()
        .route("/partners/{partner}/cohorts", post(name_cohort))
        .route("/partners/{partner}/cohorts/users", post(change_cohort))
        .fallback(async || Problem::NotFound)
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(after_panic))
        .layer(axum::middleware::map_response_with_state(
            Arc::clone(&endpoint),
            async |State(endpoint): State<Arc<Endpoint>>, mut response: Response| {
                endpoint.limits.untouched().put_on(&mut response);
                response
            },
        ))
        .with_state(endpoint)
}

struct Endpoint {
    settings: RestSettings,
    limits: Limits,
    /// For the bodies of calls, by byte.
    memory: Arc<Semaphore>,
}

/// A caller whose credentials look like credentials, and whose call counts.
struct Caller {
    partner: String,
    connection: Connection,
    deadline: Instant,
    body: Body,
    /// Of its body, until the answer is known: what was read from it is as large.
    _memory: Option<OwnedSemaphorePermit>,
}

type PartnerPath = Result<Path<String>, PathRejection>;

async fn name_cohort(
    State(endpoint): State<Arc<Endpoint>>,
    partner: PartnerPath,
    request: Request,
) -> Response {
    endpoint
        .answer(
            "name_cohort",
            partner,
            request,
            async |mut caller| match std::mem::take(&mut caller.body).into_name_cohort() {
                Ok(call) => caller.name_cohort(call).await,
                Err(problem) => caller.refuse(problem).await,
            },
        )
        .await
}

async fn change_cohort(
    State(endpoint): State<Arc<Endpoint>>,
    partner: PartnerPath,
    request: Request,
) -> Response {
    endpoint
        .answer(
            "change_cohort",
            partner,
            request,
            async |mut caller| match std::mem::take(&mut caller.body).into_change_cohort() {
                Ok(call) => caller.change_cohort(call).await,
                Err(problem) => caller.refuse(problem).await,
            },
        )
        .await
}

impl Endpoint {
    /// Admits the caller, carries the call out and writes the one log line of it.
    async fn answer(
        &self,
        call: &'static str,
        partner: PartnerPath,
        request: Request,
        carry_out: impl AsyncFnOnce(Caller) -> Result<Value, Problem>,
    ) -> Response {
        let began = Instant::now();
        let (standing, result) = match self.admit(partner, request).await {
            Err(problem) => (None, Err(problem)),
            Ok((standing, Err(wait))) => (Some(standing), Err(Problem::RateLimited(wait))),
            Ok((standing, Ok(caller))) => (Some(standing), carry_out(caller).await),
        };
        let mut response = match result {
            Ok(body) => (StatusCode::CREATED, Json(body)).into_response(),
            Err(problem) => problem.into_response(),
        };
        if let Some(standing) = standing {
            standing.put_on(&mut response);
        }
        let (status, took) = (response.status().as_u16(), began.elapsed());
        tracing::info!(call, status, took_ms = took.as_millis() as u64, "answered");
        response
    }

    /// Reads the body and counts the call against its key.
    async fn admit(
        &self,
        partner: PartnerPath,
        request: Request,
    ) -> Result<(Standing, Result<Caller, std::time::Duration>), Problem> {
        let deadline = Instant::now() + self.settings.call_timeout;
        // A partner that cannot exist is told like one that does not.
        let Path(partner) = partner.map_err(|_| Problem::NotFound)?;
        let peer = request.extensions().get::<Peer>();
        let address = peer.and_then(|peer| peer.address).map(|peer| peer.ip());
        let (body, memory) = self.read(request, deadline).await?;
        let credentials = body.credentials()?;
        name::check_slug(&partner).map_err(|_| Problem::PartnerApiKey)?;
        let (standing, allowed) = self.limits.count(&partner, &credentials.client_secret);
        let connection = connection(&self.settings.connection, &credentials, address)?;
        let caller = Caller {
            partner,
            connection,
            deadline,
            body,
            _memory: memory,
        };
        Ok((standing, allowed.map(|()| caller)))
    }

    async fn read(
        &self,
        request: Request,
        deadline: Instant,
    ) -> Result<(Body, Option<OwnedSemaphorePermit>), Problem> {
        if !may_be_json(request.headers()) {
            return Err(Problem::NotJson);
        }
        let collected = timeout_at(deadline, self.collect(request.into_body()));
        let (bytes, memory) = collected.await.map_err(|_| Problem::BodyTooSlow)??;
        Ok((Body::parse(&bytes)?, memory))
    }

    /// Nobody waits for memory, since those who wait would hold what the others wait for.
    async fn collect(
        &self,
        body: HttpBody,
    ) -> Result<(BytesMut, Option<OwnedSemaphorePermit>), Problem> {
        let limit = self.settings.max_body_bytes;
        let mut body = Limited::new(body, limit);
        let mut bytes = BytesMut::new();
        let mut held: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                true => Problem::BodyTooLarge(limit),
                false => Problem::BodyBroken,
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let more = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let more = Arc::clone(&self.memory).try_acquire_many_owned(more);
            let more = more.map_err(|_| Problem::Unavailable(None))?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok((bytes, held))
    }
}

/// Whether the media type is JSON, or missing: some clients send none.
fn may_be_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return true;
    };
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let media_type = text.split(';').next().unwrap_or_default().trim();
    matches!(media_type, "" | "application/json" | "text/json")
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

fn connection(
    servers: &Connection,
    credentials: &Credentials,
    address: Option<IpAddr>,
) -> Result<Connection, Problem> {
    let credential = Credential::partner(
        credentials.client_secret.expose(),
        credentials.partner_api_key.expose(),
    );
    // A secret consists of letters, digits and underscores, which a header can carry.
    let mut credential = credential.map_err(|_| Problem::ClientSecret)?;
    if let Some(address) = address {
        credential = credential.presented_from(address);
    }
    Ok(servers.with_credential(credential))
}

impl Caller {
    async fn name_cohort(&self, call: NameCohort) -> Result<Value, Problem> {
        let request = UpsertCohortRequest {
            partner: self.partner.clone(),
            cohort_id: call.cohort_id.clone(),
            name: call.name,
            source_time: Some(std::time::SystemTime::from(call.created_at).into()),
            ..UpsertCohortRequest::default()
        };
        let mut ingest = self.connection.ingest();
        self.ask(ingest.upsert_cohort(request)).await?;
        Ok(json!({ "message": "success", "cohort_id": call.cohort_id }))
    }

    async fn change_cohort(&self, call: ChangeCohort) -> Result<Value, Problem> {
        if call.changes.is_empty() {
            // How clients try their credentials: nothing is created.
            self.authenticate(&call.cohort_id).await?;
            return Ok(json!({ "message": "success", "cohort_id": call.cohort_id }));
        }
        let import_id = Uuid::now_v7().to_string();
        let upload = Upload::new("", &self.partner, &call.cohort_id, Mode::Delta, &import_id);
        let time_left = self.deadline.saturating_duration_since(Instant::now());
        let outcome = upload
            .run_pipelined(&self.connection, call.changes, time_left)
            .await
            .map_err(|refusal| Problem::from_refusal(&refusal))?;
        let Outcome::Committed {
            summary, version, ..
        } = outcome
        else {
            let id = Uuid::now_v7();
            tracing::error!(request_id = %id, import_id, "a delta awaits confirmation");
            return Err(Problem::Internal(id));
        };
        let mut body = json!({
            "message": "success",
            "cohort_id": call.cohort_id,
            "version": version,
            "import_id": import_id,
            "counts": counts(&summary),
        });
        if !call.minor.is_empty() {
            body["errors"] = json!(call.minor);
        }
        Ok(body)
    }

    /// Tells the problem of a body, unless the caller must be told first that nobody knows them.
    async fn refuse(&self, problem: Problem) -> Result<Value, Problem> {
        self.authenticate(ANY_COHORT).await?;
        Err(problem)
    }

    /// Checks the credentials alone, by asking for a cohort that need not exist.
    async fn authenticate(&self, cohort_id: &str) -> Result<(), Problem> {
        let request = GetCohortRequest {
            partner: self.partner.clone(),
            cohort_id: cohort_id.to_owned(),
            ..GetCohortRequest::default()
        };
        let mut ingest = self.connection.ingest();
        let call = async {
            match ingest.get_cohort(request).await {
                Err(status) if status.code() == Code::NotFound => Ok(()),
                other => other.map(|_| ()),
            }
        };
        self.ask(call).await
    }

    /// Waits for an answer of the servers as long as the client waits for ours.
    async fn ask<T>(
        &self,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, Problem> {
        match timeout_at(self.deadline, call).await {
            Ok(answer) => answer.map_err(|s| Problem::from_refusal(&Refusal::from(s))),
            Err(_) => Err(Problem::Unavailable(None)),
        }
    }
}

/// How many identifiers ended how; `received` is the sum of the others.
fn counts(summary: &Summary) -> Value {
    let mut counts = json!(summary.outcomes);
    counts["received"] = summary.received.into();
    counts
}

fn after_panic(panic: Box<dyn std::any::Any + Send>) -> Response {
    let id = Uuid::now_v7();
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    tracing::error!(request_id = %id, panic = text.unwrap_or_default(), "a call panicked");
    Problem::Internal(id).into_response()
}

#[cfg(test)]
mod tests;
