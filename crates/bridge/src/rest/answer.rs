//! Every status and message of the contract, each in one place.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use muster_client::Refusal;
use muster_domain::credential::redacted;
use serde_json::json;
use tonic::Code;
use uuid::Uuid;

/// How long to wait before the next try where nobody says more, in seconds.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why a call was not carried out.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Problem {
    /// No such path.
    NotFound,
    /// The path is known but wants a POST.
    MethodNotAllowed,
    /// The content type says it is not JSON.
    NotJson,
    /// The body is larger than this many bytes.
    BodyTooLarge(usize),
    /// The body did not arrive in time.
    BodyTooSlow,
    /// The body broke off.
    BodyBroken,
    /// The body is not well-formed, or not an object.
    Malformed(String),
    /// `partner_api_key` is missing or wrong.
    PartnerApiKey,
    /// `client_secret` is missing or wrong.
    ClientSecret,
    /// The workspace has not enabled the partner.
    PartnerNotEnabled,
    /// `cohort_id` is missing or no string that can be an id.
    CohortId,
    /// `cohort_changes` has a wrong shape.
    CohortChanges,
    /// More identifiers than a call may have.
    TooManyIdentifiers,
    /// `name` is missing, empty or no string.
    Name,
    /// `name` is a string but cannot be a name.
    NameUnusable(String),
    /// `created_at` is missing or no time.
    CreatedAt,
    /// A field that only the server could judge.
    Field(String),
    /// The cohort is archived.
    Archived,
    /// The cohort is held by another import.
    Locked(Option<Duration>),
    /// The key has no calls left.
    RateLimited(Duration),
    /// Nothing was applied, or it is not known; the call may be made again.
    Unavailable(Option<Duration>),
    /// A defect; the log has the rest under this id.
    Internal(Uuid),
}

impl Problem {
    /// What a refusal of the servers means to a client of the contract.
    ///
    /// What happens by contention becomes 423, 429 or 503, which clients retry; they drop every
    /// other 4xx.
    pub(super) fn from_refusal(refusal: &Refusal) -> Self {
        let wait = refusal.retry_after;
        match (refusal.code, refusal.reason.as_str()) {
            // The second where the cohort itself, or its name, is what is being written.
            (_, "COHORT_LOCKED" | "LOCKED") => Self::Locked(wait),
            (_, "COHORT_ARCHIVED") => Self::Archived,
            (Code::Unauthenticated | Code::PermissionDenied, reason) => match reason {
                "PARTNER_API_KEY_INVALID" => Self::PartnerApiKey,
                "PARTNER_NOT_ENABLED" => Self::PartnerNotEnabled,
                // Whatever else is the matter with it, such a secret does not open this door.
                _ => Self::ClientSecret,
            },
            (Code::ResourceExhausted, _) => Self::RateLimited(wait.unwrap_or(DEFAULT_RETRY_AFTER)),
            (Code::InvalidArgument, _) => Self::Field(field_message(refusal)),
            _ if refusal.is_transient() => Self::Unavailable(wait),
            _ => {
                let id = Uuid::now_v7();
                tracing::error!(request_id = %id, code = ?refusal.code, %refusal, "unexpected refusal");
                Self::Internal(id)
            }
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_)
            | Self::BodyBroken
            | Self::CohortId
            | Self::CohortChanges
            | Self::TooManyIdentifiers
            | Self::Name
            | Self::NameUnusable(_)
            | Self::CreatedAt
            | Self::Field(_)
            | Self::Archived => StatusCode::BAD_REQUEST,
            Self::PartnerApiKey | Self::ClientSecret | Self::PartnerNotEnabled => {
                StatusCode::UNAUTHORIZED
            }
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Locked(_) => StatusCode::LOCKED,
            Self::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn message(&self) -> Cow<'static, str> {
        match self {
            Self::CohortId => "`cohort_id` must be a valid string".into(),
            Self::CohortChanges => "`cohort_changes` must be an array of objects each with key \
                `user_ids` and/or `device_ids` mapping to an array of strings, or an `aliases` \
                object"
                .into(),
            Self::TooManyIdentifiers => "Only 1,000 `user_ids`, `device_ids`, and `aliases` are \
                allowed per request"
                .into(),
            Self::Name => "`name` must be a non-empty string".into(),
            Self::CreatedAt => "`created_at` must be a valid time as an ISO-8601 string".into(),
            Self::PartnerApiKey => "Invalid Partner API key".into(),
            Self::ClientSecret => "Invalid client secret".into(),
            Self::PartnerNotEnabled => "Partner not enabled for client".into(),
            Self::Locked(_) => "Resource locked".into(),

            Self::NotFound => "No such resource".into(),
            Self::MethodNotAllowed => "This resource only accepts POST".into(),
            Self::NotJson => "The body must be JSON: set `content-type: application/json`".into(),
            Self::BodyTooLarge(limit) => format!("The body is larger than {limit} bytes").into(),
            Self::BodyTooSlow => "The body did not arrive in time".into(),
            Self::BodyBroken => "The body ended before its announced length".into(),
            Self::Malformed(detail) => format!("The body must be a JSON object: {detail}").into(),
            Self::NameUnusable(detail) => format!("`name` {detail}").into(),
            Self::Field(detail) => detail.clone().into(),
            Self::Archived => "The cohort is archived and takes no more changes".into(),
            Self::RateLimited(_) => "Too many requests: try again later".into(),
            Self::Unavailable(_) => "The service is not available: try again later".into(),
            Self::Internal(id) => format!("Internal error; request id {id}").into(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Locked(wait) | Self::Unavailable(wait) => {
                Some(wait.unwrap_or(DEFAULT_RETRY_AFTER))
            }
            Self::RateLimited(wait) => Some(*wait),
            _ => None,
        }
    }
}

/// Names the field of the contract, or says what the server said.
fn field_message(refusal: &Refusal) -> String {
    match refusal.fields.first() {
        Some(violation) => format!("`{}` {}", violation.field, violation.description),
        None => refusal.message.clone(),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Json(json!({ "message": redacted(&self.message()) }));
        let mut response = (self.status(), body).into_response();
        if let Some(wait) = self.retry_after() {
            // Whole seconds, rounded up: a client that comes back too early is refused again.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let value = HeaderValue::from(seconds.max(1));
            response.headers_mut().insert(RETRY_AFTER, value);
        }
        response
    }
}

#[cfg(test)]
mod tests;
