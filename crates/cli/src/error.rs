//! What goes wrong, how it is told, and the exit code it ends with.

use std::{io, process::ExitCode};

use muster_client::Refusal;
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    endpoints::EndpointsError,
    output::{self, Format, json},
};

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The server refused, or could not be reached.
    #[error("{}", refusal.message)]
    Refused {
        /// What it said.
        refusal: Box<Refusal>,
        /// Whom was asked.
        endpoint: String,
    },
    /// The command line asks for something that cannot be done as written.
    #[error("{0}")]
    Usage(String),
    /// Something else went wrong.
    #[error("{0}")]
    Failed(String),
    /// The result has been printed and speaks for itself; it only has to show in the exit code.
    #[error("the operation was done in part")]
    Partial,
    /// Whoever read the output has gone: `| head`.
    #[error("the output was closed")]
    OutputClosed,
    /// No Muster was found.
    #[error(transparent)]
    Endpoints(#[from] EndpointsError),
}

/// The result of a command.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

impl From<io::Error> for CliError {
    /// For errors of standard output; errors of files are told with their names.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Failed(format!("standard output: {error}"))
        }
    }
}

impl From<csv::Error> for CliError {
    fn from(error: csv::Error) -> Self {
        match error.into_kind() {
            csv::ErrorKind::Io(error) => error.into(),
            other => Self::Failed(format!("cannot write CSV: {other:?}")),
        }
    }
}

impl CliError {
    /// The end after a second signal.
    pub(crate) fn stopped_at_once() -> Self {
        Self::Failed("stopped without waiting".to_owned())
    }

    /// 2 where the command line is to blame, 1 otherwise.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// Tells it on standard error, as text or as one JSON object.
    pub(crate) fn report(&self, format: Format) {
        if matches!(self, Self::Partial | Self::OutputClosed) {
            return;
        }
        match format {
            Format::Table => output::remark(&self.text()),
            Format::Json => output::remark(&json!({ "error": self.json() }).to_string()),
        }
    }

    fn text(&self) -> String {
        let Self::Refused { refusal, endpoint } = self else {
            return format!("error: {self}");
        };
        let mut text = format!("error: {}", refusal_message(refusal, endpoint));
        if !refusal.reason.is_empty() {
            text.push_str(&format!(" ({})", refusal.reason));
        }
        for violation in &refusal.fields {
            let line = format!("{}: {}", violation.field, violation.description);
            // With a single wrong field the message says it all.
            if line != refusal.message {
                text.push_str(&format!("\n  {line}"));
            }
        }
        if let Some(delay) = refusal.retry_after {
            text.push_str(&format!("\n  try again in {:.1} s", delay.as_secs_f64()));
        }
        if !refusal.request_id.is_empty() {
            text.push_str(&format!("\n  request id: {}", refusal.request_id));
        }
        if let Some(hint) = hint(refusal.code) {
            text.push_str(&format!("\n  {hint}"));
        }
        text
    }

    fn json(&self) -> Value {
        let (code, message) = match self {
            Self::Refused { refusal, endpoint } => (
                json::snake_case(&format!("{:?}", refusal.code)),
                refusal_message(refusal, endpoint),
            ),
            Self::Usage(_) => ("usage".to_owned(), self.to_string()),
            Self::Endpoints(EndpointsError::NotRunning(_)) => {
                ("not_running".to_owned(), self.to_string())
            }
            _ => ("failed".to_owned(), self.to_string()),
        };
        let mut object = json!({ "code": code, "reason": null, "message": message, "fields": [] });
        if let Self::Refused { refusal, .. } = self {
            if !refusal.reason.is_empty() {
                object["reason"] = json!(refusal.reason);
                object["metadata"] = json!(refusal.metadata);
            }
            let fields = refusal.fields.iter();
            object["fields"] = fields
                .map(|v| json!({ "field": v.field, "description": v.description }))
                .collect();
            if let Some(delay) = refusal.retry_after {
                object["retry_after_seconds"] = json!(delay.as_secs_f64());
            }
            if !refusal.request_id.is_empty() {
                object["request_id"] = json!(refusal.request_id);
            }
        }
        object
    }
}

fn refusal_message(refusal: &Refusal, endpoint: &str) -> String {
    match refusal.connection_lost {
        true => format!("no connection to {endpoint}: {}", refusal.message),
        false => refusal.message.clone(),
    }
}

fn hint(code: Code) -> Option<&'static str> {
    match code {
        Code::Unauthenticated => {
            Some("the token is missing, mistyped, expired or revoked: see --token")
        }
        Code::Unimplemented => Some("the server does not offer this: is it an older version?"),
        _ => None,
    }
}

/// The message a response must carry by contract.
///
/// # Errors
/// If it is absent, which only a defect explains.
pub(crate) fn required<T>(field: Option<T>) -> Result<T> {
    field.ok_or_else(|| CliError::Failed("the server's answer is incomplete".to_owned()))
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn refused(message: &str, details: ErrorDetails) -> CliError {
        let status = Status::with_error_details(Code::InvalidArgument, message, details);
        CliError::Refused {
            refusal: Box::new(status.into()),
            endpoint: "http://h:1".to_owned(),
        }
    }

    #[test]
    fn a_refusal_names_its_reason_and_every_wrong_field() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info(
                "INVALID_FIELD",
                "muster",
                [("limit".to_owned(), "255".to_owned())],
            )
            .add_bad_request_violation("name", "must not be empty")
            .add_bad_request_violation("filter.all_of[2]", "is unknown");
        let error = refused("the request is wrong", details);
        let text = error.text();
        assert!(
            text.starts_with("error: the request is wrong (INVALID_FIELD)"),
            "{text}"
        );
        assert!(text.contains("\n  name: must not be empty"), "{text}");
        assert!(text.contains("\n  filter.all_of[2]: is unknown"), "{text}");
        let object = error.json();
        assert_eq!(object["code"], "invalid_argument");
        assert_eq!(object["reason"], "INVALID_FIELD");
        assert_eq!(object["metadata"]["limit"], "255");
        assert_eq!(object["fields"][1]["field"], "filter.all_of[2]");
    }

    #[test]
    fn a_single_wrong_field_is_told_once() {
        let details = ErrorDetails::with_bad_request_violation("name", "must not be empty");
        let text = refused("name: must not be empty", details).text();
        assert_eq!(text, "error: name: must not be empty");
    }

    #[test]
    fn only_the_command_line_is_answered_with_2() {
        let usage = CliError::Usage("x".to_owned()).exit_code();
        assert_eq!(format!("{usage:?}"), format!("{:?}", ExitCode::from(2)));
        let partial = CliError::Partial.exit_code();
        assert_eq!(format!("{partial:?}"), format!("{:?}", ExitCode::FAILURE));
    }
}
