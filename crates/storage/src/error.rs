//! What can go wrong in the database, in domain terms.

use std::time::Duration;

use muster_domain::error::{Error as DomainError, Kind};
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// The result of every storage function.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal in domain terms, or a failure of the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule was broken.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The database refused or failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl From<Error> for DomainError {
    fn from(error: Error) -> Self {
        match error {
            Error::Domain(error) => error,
            Error::Database(error) => classify(error),
        }
    }
}

impl Error {
    /// What a failed commit means: that nothing was changed can no longer be said.
    pub(crate) fn from_commit(cause: sqlx::Error) -> Self {
        let mut error = classify(cause);
        if error.kind == Kind::Unavailable {
            error.reason = "COMMIT_UNKNOWN";
            error.message = "the database went away during the commit; whether it was done is \
                             unknown until the call is repeated"
                .into();
        }
        Self::Domain(error)
    }
}

/// How long a caller should wait before it tries a database that is out of reach again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Says what a database failure means to a caller.
fn classify(error: sqlx::Error) -> DomainError {
    let code = error
        .as_database_error()
        .and_then(|database| database.code())
        .unwrap_or_default();
    let (kind, reason, message) = match (&error, code.as_ref()) {
        // A text with a character Postgres cannot store, such as NUL; a time out of its range.
        (_, "22021" | "22P05" | "22008") => {
            return DomainError::new(
                Kind::InvalidArgument,
                "INVALID_VALUE",
                "a text holds a character that cannot be stored, or a time is out of range",
            );
        }
        // The server is a standby, or ended an idle transaction.
        (_, "25006" | "25P03") => UNAVAILABLE,
        // Lock timeout.
        (_, "55P03") => (
            Kind::Aborted,
            "LOCKED",
            "another change of the same thing is under way; try again",
        ),
        // Serialisation failure, deadlock.
        (_, "40001" | "40P01") => (
            Kind::Aborted,
            "CONFLICT",
            "the operation lost a race; try again",
        ),
        // Statement timeout.
        (_, "57014") => (
            Kind::Unavailable,
            "DATABASE_SLOW",
            "the database took too long; try again",
        ),
        // Disk full. Where the write-ahead log is concerned Postgres goes down instead.
        (_, "53100") => (
            Kind::Unavailable,
            "DATABASE_FULL",
            "the database has no space left; nothing was changed",
        ),
        // Every connection is in use, or none can be made: the pool does not say which.
        (sqlx::Error::PoolTimedOut, _) => (
            Kind::Unavailable,
            "DATABASE_UNAVAILABLE",
            "no connection to the database came free in time; nothing was changed",
        ),
        // Connection exceptions, insufficient resources (too many connections), operator
        // intervention (shutdown, crash), system errors.
        (_, code)
            if ["08", "53", "57", "58"]
                .iter()
                .any(|class| code.starts_with(class)) =>
        {
            UNAVAILABLE
        }
        (
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed,
            _,
        ) => UNAVAILABLE,
        // Postgres ended the session over something of its own, such as a full disk met while the
        // session began, which carries the code of an internal error.
        _ if ended_session(&error) => UNAVAILABLE,
        _ => return DomainError::internal(error),
    };
    let mut unavailable = DomainError::new(kind, reason, message).retry_after(RETRY_AFTER);
    unavailable.source = Some(error.into());
    unavailable
}

fn ended_session(error: &sqlx::Error) -> bool {
    let database = error.as_database_error();
    database
        .and_then(|database| database.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

const UNAVAILABLE: (Kind, &str, &str) = (
    Kind::Unavailable,
    "DATABASE_UNAVAILABLE",
    "the database is out of reach; nothing was changed",
);

/// Whether it is the violation of a named constraint.
pub(crate) fn violates(error: &sqlx::Error, name: &str) -> bool {
    let database = error.as_database_error();
    database.and_then(|database| database.constraint()) == Some(name)
}

/// Turns the violation of a named constraint into the error it stands for.
pub trait OnConstraint<T> {
    /// If the constraint `name` was violated, fails with `error` instead.
    fn on_constraint(self, name: &str, error: impl FnOnce() -> DomainError) -> Result<T>;
}

impl<T> OnConstraint<T> for Result<T, sqlx::Error> {
    fn on_constraint(self, name: &str, error: impl FnOnce() -> DomainError) -> Result<T> {
        self.map_err(|cause| {
            if violates(&cause, name) {
                error().into()
            } else {
                cause.into()
            }
        })
    }
}
