//! Computations that last: milliseconds on a million users, in which no other call would be served.

use std::time::Duration;

use muster_domain::error::{Error, Kind, Result};

/// Runs a computation on a thread that may be held up.
///
/// # Errors
/// `UNAVAILABLE` (`SHUTTING_DOWN`) if the process ends before it has begun.
pub async fn compute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| {
        if error.is_cancelled() {
            shutting_down("try again")
        } else {
            Error::internal(error)
        }
    })
}

/// What ends a call when the server ends; `remedy` says what the client does about it.
pub fn shutting_down(remedy: &str) -> Error {
    let message = format!("the server is shutting down; {remedy}");
    Error::new(Kind::Unavailable, "SHUTTING_DOWN", message).retry_after(Duration::from_secs(1))
}
