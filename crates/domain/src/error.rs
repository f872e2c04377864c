//! The closed set of error kinds and the one error type that carries them to a caller.

use std::borrow::Cow;

/// What went wrong, from the caller's point of view.
///
/// Every error that leaves a server is one of these; the service crate maps them to gRPC codes and
/// the bridge maps gRPC codes to HTTP, each exhaustively and in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself is wrong, whatever the state of the system.
    InvalidArgument,
    /// The thing named does not exist, or the caller may not know that it does.
    NotFound,
    /// The thing to be created is already there.
    AlreadyExists,
    /// The request is well-formed but the system is in the wrong state for it.
    FailedPrecondition,
    /// A position lies past the valid range, for instance a gap in the offsets of an import.
    OutOfRange,
    /// The operation lost a race and may be tried again from its start.
    Aborted,
    /// The caller is known but lacks the scope.
    PermissionDenied,
    /// No valid credential was presented.
    Unauthenticated,
    /// A limit on rate or size was met.
    ResourceExhausted,
    /// A dependency is out of reach; the same call may succeed later.
    Unavailable,
    /// A defect or an unexpected state; details stay inside the server.
    Internal,
}

/// An error with a text for the caller and, apart from it, a cause that stays inside.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The kind, which decides the status code.
    pub kind: Kind,
    /// A stable, machine-readable reason such as `COHORT_ARCHIVED`.
    pub reason: &'static str,
    /// What the caller reads.
    pub message: Cow<'static, str>,
    /// Fields of the request that are wrong, by path, such as `filter.all_of[2].cohort.partner`.
    pub fields: Vec<FieldViolation>,
    /// Facts a program may act on, such as the expected offset.
    pub metadata: Vec<(&'static str, String)>,
    /// How long to wait before trying again, where that is known.
    pub retry_after: Option<std::time::Duration>,
    /// The internal cause: logged once where the error is handled, never sent.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// One wrong field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field, in proto names.
    pub field: String,
    /// What is wrong with it and, where there is one, the limit.
    pub description: String,
}

/// The result of everything that can be refused.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with a stable `reason` and a text for the caller.
    pub fn new(kind: Kind, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            reason,
            message: message.into(),
            fields: Vec::new(),
            metadata: Vec::new(),
            retry_after: None,
            source: None,
        }
    }

    /// `INVALID_ARGUMENT` for one field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        let violation = FieldViolation {
            field: field.into(),
            description: description.into(),
        };
        let message = format!("{}: {}", violation.field, violation.description);
        let mut error = Self::new(Kind::InvalidArgument, "INVALID_FIELD", message);
        error.fields.push(violation);
        error
    }

    /// `NOT_FOUND` for a thing of the given sort, such as `cohort`.
    ///
    /// Something the caller may not see answers exactly like something that does not exist, so both
    /// cases must be built here from what the caller sent.
    pub fn not_found(sort: &'static str, name: impl std::fmt::Display) -> Self {
        Self::new(
            Kind::NotFound,
            "NOT_FOUND",
            format!("{sort} {name:?} does not exist", name = name.to_string()),
        )
        .with("resource_type", sort)
    }

    /// `INTERNAL` from an unexpected cause; the caller sees only that it happened.
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let mut error = Self::new(Kind::Internal, "INTERNAL", "internal error");
        error.source = Some(source.into());
        error
    }

    /// Adds a fact a program may act on.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl std::fmt::Display) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// Says how long to wait before trying again.
    #[must_use]
    pub fn retry_after(mut self, wait: std::time::Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Puts `parent` in front of the path of every wrong field.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        for violation in &mut self.fields {
            violation.field = match violation.field.as_str() {
                "" => parent.to_owned(),
                path if path.starts_with('[') => format!("{parent}{path}"),
                path => format!("{parent}.{path}"),
            };
        }
        if let [only] = self.fields.as_slice() {
            self.message = format!("{}: {}", only.field, only.description).into();
        }
        self
    }
}

/// Names the field a value was parsed from.
pub trait FieldContext<T> {
    /// Puts `name` in front of the path of every wrong field.
    fn field(self, name: &str) -> Result<T>;
}

impl<T> FieldContext<T> for Result<T> {
    fn field(self, name: &str) -> Result<T> {
        self.map_err(|error| error.within(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_fields_name_the_whole_path() {
        let error = Error::field("", "must be 1 to 64 characters")
            .within("partner")
            .within("cohort")
            .within("[2]")
            .within("all_of")
            .within("filter");
        assert_eq!(error.fields[0].field, "filter.all_of[2].cohort.partner");
        assert_eq!(
            error.to_string(),
            "filter.all_of[2].cohort.partner: must be 1 to 64 characters"
        );
    }

    #[test]
    fn an_internal_error_says_nothing_to_the_caller() {
        let error = Error::internal(std::io::Error::other("password=hunter2"));
        assert_eq!(error.to_string(), "internal error");
    }
}
