//! What a result becomes on the wire: the one map from error kinds to gRPC codes.

use std::{collections::HashMap, future::Future};

use muster_domain::{
    credential::redacted,
    error::{Error, Kind},
};
use tonic::{Code, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use crate::intake;

/// The result of a unary rpc.
pub type RpcResult<T> = Result<Response<T>, Status>;

/// The domain of every `google.rpc.ErrorInfo` of Muster.
pub const ERROR_DOMAIN: &str = "muster";

/// Runs the body of a handler and turns its result into what goes on the wire.
///
/// # Errors
/// The status that the error stands for.
pub async fn respond<T>(body: impl Future<Output = Result<T, Error>>) -> RpcResult<T> {
    body.await.map(Response::new).map_err(status)
}

/// The status an error stands for, with its `google.rpc` details.
///
/// Whatever is not the caller's doing is logged here, once, under a request id that the caller gets
/// in its place.
pub fn status(error: Error) -> Status {
    let mut details = ErrorDetails::new();
    let mut room = MAX_DETAIL_BYTES;
    let mut metadata = HashMap::new();
    for (key, value) in &error.metadata {
        let value = shorten_list(&redacted(value), room);
        room = room.saturating_sub(key.len() + value.len());
        metadata.insert((*key).to_owned(), value);
    }
    details.set_error_info(error.reason, ERROR_DOMAIN, metadata);
    for violation in &error.fields {
        let (field, description) = (shorten(&violation.field), shorten(&violation.description));
        // The first one is always told: it fits in beside the facts.
        if !details.has_bad_request_violations() || field.len() + description.len() <= room {
            room = room.saturating_sub(field.len() + description.len());
            details.add_bad_request_violation(field, description);
        }
    }
    if let Some(wait) = error.retry_after {
        details.set_retry_info(Some(wait));
    }
    if let Some(source) = &error.source {
        let request_id = Uuid::now_v7().to_string();
        let cause = source.as_ref() as &dyn std::error::Error;
        match error.kind {
            Kind::Internal => tracing::error!(request_id, cause, reason = error.reason, "failed"),
            _ => tracing::warn!(request_id, cause, reason = error.reason, "failed"),
        }
        details.set_request_info(request_id, "");
    }
    Status::with_error_details(code(error.kind), shorten(&error.message), details)
}

/// Longest text of an error, in bytes.
const MAX_TEXT_BYTES: usize = 1_024;

/// Most bytes of facts and fields. A status travels in headers, of which clients refuse more than
/// 16 KiB: this and one field, in base64, beside a text of which every byte may take three.
const MAX_DETAIL_BYTES: usize = 5 * 1_024;

/// Cuts a list, whose entries stand on lines or between commas, after a whole entry; a last entry
/// `…` says that it goes on.
fn shorten_list(text: &str, most: usize) -> String {
    const MORE: &str = "…";
    if text.len() <= most {
        return text.to_owned();
    }
    let fits = &text[..text.floor_char_boundary(most.saturating_sub(MORE.len()))];
    match fits.rfind('\n').or_else(|| fits.rfind(',')) {
        Some(end) => format!("{}{MORE}", &fits[..=end]),
        None => format!("{fits}{MORE}"),
    }
}

/// Cuts a text that repeats something long of the request.
fn shorten(text: &str) -> String {
    let text = redacted(text);
    if text.len() <= MAX_TEXT_BYTES {
        return text.into_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX_TEXT_BYTES)])
}

/// What reading the next message of a client's stream failed with.
///
/// A message that cannot be read is the client's mistake, one that has no memory can be sent again;
/// everything else is a lost connection.
pub fn broken_stream(status: &Status) -> Error {
    let known = malformed(status).or_else(|| intake::refused(status));
    known.unwrap_or_else(|| {
        Error::new(
            Kind::Unavailable,
            "STREAM_BROKEN",
            "the stream ended before it was complete",
        )
    })
}

/// The error behind the status that tonic makes of a message it cannot read.
pub(crate) fn malformed(status: &Status) -> Option<Error> {
    let text = status.message();
    match status.code() {
        Code::Internal
            if text.starts_with("failed to decode Protobuf message")
                || text == "Missing request message." =>
        {
            let message = text.to_owned();
            Some(Error::new(
                Kind::InvalidArgument,
                "MALFORMED_MESSAGE",
                message,
            ))
        }
        Code::OutOfRange if text.contains("message length too large") => {
            let message = text.to_owned();
            Some(Error::new(
                Kind::ResourceExhausted,
                "MESSAGE_TOO_LARGE",
                message,
            ))
        }
        _ => None,
    }
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::Aborted => Code::Aborted,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::Internal => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_carry_reason_fields_and_retry() {
        let error = Error::field("name", "must not be empty")
            .with("limit", 255)
            .retry_after(std::time::Duration::from_secs(1));
        let status = status(error);
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("INVALID_FIELD", "muster")
        );
        assert_eq!(info.metadata["limit"], "255");
        let bad = details.bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, "name");
        assert!(details.retry_info().is_some());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let status = status(Error::not_found("workspace", "é".repeat(60_000)));
        assert!(status.message().len() < 1_100);
        assert!(status.message().ends_with("é…"));
    }

    #[test]
    fn a_status_fits_into_the_headers_that_clients_accept() {
        let cohorts: Vec<String> = (0..1_000)
            .map(|n| format!("tinyclues:cohort-{n}"))
            .collect();
        let mut error = Error::new(
            Kind::FailedPrecondition,
            "COHORT_TOO_OLD",
            "é".repeat(9_000),
        )
        .with("cohorts", cohorts.join("\n"))
        .with("others", "x".repeat(9_000));
        for n in 0..100 {
            let field = Error::field(format!("filter{n}").repeat(300), "é".repeat(9_000));
            error.fields.extend(field.fields);
        }
        let status = status(error);
        let headers = status.clone().into_http::<()>().into_parts().0.headers;
        let bytes = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 32);
        assert!(bytes.sum::<usize>() < 15 * 1_024);
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations.len(), 1);
        // A program that reads the list reads whole entries.
        let info = details.error_info().unwrap();
        let listed: Vec<&str> = info.metadata["cohorts"].lines().collect();
        let (more, listed) = listed.split_last().unwrap();
        assert_eq!(*more, "…");
        assert!(listed.len() > 100);
        assert!(
            listed
                .iter()
                .zip(&cohorts)
                .all(|(listed, cohort)| listed == cohort)
        );
    }

    #[test]
    fn a_list_is_cut_after_a_whole_entry() {
        assert_eq!(shorten_list("a,b\nc,d\ne", 8), "a,b\n…");
        assert_eq!(shorten_list("first,second,third", 16), "first,second,…");
        assert_eq!(shorten_list("first,second", 12), "first,second");
        assert_eq!(shorten_list("ééé", 5), "é…");
    }

    #[test]
    fn an_internal_cause_stays_inside() {
        let status = status(Error::internal("password=hunter2"));
        assert_eq!(status.code(), Code::Internal);
        assert!(!format!("{status:?}").contains("hunter2"));
        assert!(status.get_error_details().request_info().is_some());
    }
}
