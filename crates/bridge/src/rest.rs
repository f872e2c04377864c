//! The partner-facing HTTP contract: `POST /partners/{partner}/cohorts` and `…/cohorts/users`.
//!
//! Read the modules in the order a request meets them: `server` (the listener), `routes` (what
//! happens to a call), `limit` (how many are allowed), `body` (what was sent), `answer` (every
//! status and message, in one place).
//!
//! What is wrong is told in this order: path and method (404, 405), media type and size (415, 413),
//! JSON (400), the shape of the credentials (401), the rate limit (429), then the credentials
//! themselves (401) and only after them the other fields (400). So nobody learns anything but
//! their own mistakes before they are authenticated, and a caller with bad credentials always sees
//! the 401, whatever else is wrong.

use std::{num::NonZeroU32, time::Duration};

use muster_client::Connection;
use muster_listener::Limits;

mod answer;
mod body;
#[doc(hidden)]
pub mod fuzzing;
mod limit;
mod routes;
mod server;
mod time_text;

pub use routes::router;
pub use server::serve;

/// Most identifiers in one call.
pub const MAX_IDENTIFIERS_PER_CALL: usize = 1_000;

/// What the endpoint needs to know.
#[derive(Debug, Clone)]
pub struct RestSettings {
    /// Where the servers are; its own credential, if any, is never used.
    pub connection: Connection,
    /// Calls that one key may make per hour; as many may come at once.
    pub requests_per_hour: NonZeroU32,
    /// Largest body, in bytes.
    pub max_body_bytes: usize,
    /// What the bodies of open calls may take in memory together, in bytes. A call for which there is
    /// no more is answered with 503.
    pub body_memory: usize,
    /// How long a call may take, from its head to its answer. Clients of the contract give up after
    /// 10 s, so it must be less.
    pub call_timeout: Duration,
    /// What connections may cost.
    pub limits: Limits,
}

impl RestSettings {
    /// The limits of the contract: 250,000 calls per hour, bodies up to 2 MiB, 8 s for a call; 256 MiB
    /// for bodies, and what every listener allows.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            requests_per_hour: const { NonZeroU32::new(250_000).expect("it is not 0") },
            max_body_bytes: 2 * 1024 * 1024,
            body_memory: 256 * 1024 * 1024,
            call_timeout: Duration::from_secs(8),
            limits: Limits::default(),
        }
    }
}
