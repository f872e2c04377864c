//! The way in of a fuzz target (`tests/fuzz`); not an interface.

use axum::response::IntoResponse as _;

use super::{MAX_IDENTIFIERS_PER_CALL, answer::Problem, body::Body};

/// Reads a body as each of the calls. Whatever is wrong with it is the caller's mistake.
///
/// # Panics
/// If it is taken for a mistake of ours, or more is read than a call may hold.
pub fn body(bytes: &[u8]) {
    let parsed = || Body::parse(bytes);
    let theirs = |problem: Problem| {
        let status = problem.into_response().status();
        assert!(status.is_client_error(), "{status}");
    };
    if let Err(problem) = parsed().and_then(|body| body.credentials()) {
        theirs(problem);
    }
    if let Err(problem) = parsed().and_then(Body::into_name_cohort) {
        theirs(problem);
    }
    match parsed().and_then(Body::into_change_cohort) {
        Ok(call) => assert!(call.changes.len() <= MAX_IDENTIFIERS_PER_CALL),
        Err(problem) => theirs(problem),
    }
}
