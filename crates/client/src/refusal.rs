//! What a server says when it refuses a call, decoded from `google.rpc` details.

use std::{collections::HashMap, error::Error as _, time::Duration};

use muster_domain::error::FieldViolation;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The `ErrorInfo` domain of our servers; details of anybody else in between are not for us.
const DOMAIN: &str = "muster";

/// Why a call failed, in a form a program can act on.
///
/// A call that never reached a server, or whose answer got lost, is a refusal, too: with an empty
/// reason and usually [`Code::Unavailable`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}{}", in_brackets(.reason))]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// Stable and machine-readable, such as `COHORT_ARCHIVED`; empty if no server of ours spoke.
    pub reason: String,
    /// What the server says to the caller.
    pub message: String,
    /// Fields of the request that are wrong, by path.
    pub fields: Vec<FieldViolation>,
    /// Facts to act on, such as `expected_offset`.
    pub metadata: HashMap<String, String>,
    /// What the operator finds it in the log by; empty if no server of ours spoke.
    pub request_id: String,
    /// How long the server asks to wait before the next try.
    pub retry_after: Option<Duration>,
    /// Whether the failure arose on this side of the wire: no connection, or one that broke.
    pub connection_lost: bool,
}

fn in_brackets(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    }
}

impl Refusal {
    /// A failure that this side noticed, with a code, a reason (possibly empty) and a text.
    pub(crate) fn local(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            fields: Vec::new(),
            metadata: HashMap::new(),
            request_id: String::new(),
            retry_after: None,
            connection_lost: false,
        }
    }

    /// Whether the same call may succeed later, so that a resumable one is worth resuming.
    pub fn is_transient(&self) -> bool {
        match self.code {
            Code::Unavailable | Code::DeadlineExceeded => true,
            // A lost race. A fenced writer must not fight back, and an outdated etag stays outdated.
            Code::Aborted => !matches!(self.reason.as_str(), "WRITER_FENCED" | "ETAG_MISMATCH"),
            // Without a time to wait it is a limit on size.
            Code::ResourceExhausted => self.retry_after.is_some(),
            // Our servers never send these on purpose: a proxy or a broken connection speaks.
            Code::Cancelled | Code::Unknown => self.reason.is_empty(),
            Code::Internal => self.connection_lost,
            _ => self.reason == "COHORT_LOCKED",
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details
            .error_info()
            .filter(|info| info.domain == DOMAIN)
            .cloned();
        let (reason, metadata) = info.map_or_else(Default::default, |i| (i.reason, i.metadata));
        let fields = details.bad_request().map_or_else(Vec::new, |bad| {
            let violations = bad.field_violations.iter();
            let convert = |v: &tonic_types::FieldViolation| FieldViolation {
                field: v.field.clone(),
                description: v.description.clone(),
            };
            violations.map(convert).collect()
        });
        Self {
            code: status.code(),
            reason,
            message: message(&status),
            fields,
            metadata,
            request_id: details
                .request_info()
                .map_or_else(String::new, |info| info.request_id.clone()),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            // tonic keeps the cause only of statuses it made itself.
            connection_lost: status.source().is_some(),
        }
    }
}

/// What a status says; where the call never reached a server, why: the outer layers only say
/// "transport error", the innermost says what the system said.
fn message(status: &Status) -> String {
    let mut innermost = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        innermost = error.to_string();
        cause = error.source();
    }
    match innermost.as_str() {
        "" => format!("the server answered {}", status.code().description()),
        _ => innermost,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn status(code: Code, domain: &str, reason: &str) -> Status {
        let metadata = HashMap::from([("expected_offset".to_owned(), "7".to_owned())]);
        let mut details = ErrorDetails::with_error_info(reason, domain, metadata);
        details.add_bad_request_violation("batch.offset", "must be 7");
        Status::with_error_details(code, "no", details)
    }

    #[test]
    fn details_are_decoded() {
        let refusal = Refusal::from(status(Code::OutOfRange, DOMAIN, "OFFSET_GAP"));
        assert_eq!(refusal.reason, "OFFSET_GAP");
        assert_eq!(refusal.metadata["expected_offset"], "7");
        assert_eq!(refusal.fields[0].field, "batch.offset");
        assert_eq!(refusal.to_string(), "no (OFFSET_GAP)");
    }

    #[test]
    fn reasons_of_other_domains_are_not_ours() {
        let refusal = Refusal::from(status(Code::Unauthenticated, "proxy", "CREDENTIAL_INVALID"));
        assert_eq!(refusal.reason, "");
    }

    #[test]
    fn only_what_may_pass_is_transient() {
        let transient = |code, reason| Refusal::from(status(code, DOMAIN, reason)).is_transient();
        assert!(transient(Code::Unavailable, "DATABASE_UNAVAILABLE"));
        assert!(transient(Code::Aborted, "CONFLICT"));
        assert!(transient(Code::FailedPrecondition, "COHORT_LOCKED"));
        assert!(!transient(Code::Aborted, "WRITER_FENCED"));
        assert!(!transient(Code::Internal, "INTERNAL"));
        assert!(!transient(Code::ResourceExhausted, "BATCH_TOO_LARGE"));
        for code in [
            Code::InvalidArgument,
            Code::NotFound,
            Code::Unauthenticated,
            Code::PermissionDenied,
            Code::FailedPrecondition,
            Code::OutOfRange,
        ] {
            assert!(!transient(code, "ANY"), "{code:?}");
        }
        assert!(Refusal::from(Status::from_error("broken pipe".into())).is_transient());
    }
}
