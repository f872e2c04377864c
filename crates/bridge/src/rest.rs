//! The partner-facing HTTP contract: `POST /partners/{partner}/cohorts` and `…/cohorts/users`.
//!
//! Read the modules in the order a request meets them: `routes` (what happens to a call), `limit` (how many are allowed), `body` (what was sent), `answer` (every
//! status and message, in one place).
//!
//! What is wrong is told in this order: path and method (404, 405), media type and size (415, 413),
//! JSON (400), the shape of the credentials (401), the rate limit (429), then the credentials
//! themselves (401) and only after them the other fields (400). So nobody learns anything but
//! their own mistakes before they are authenticated, and a caller with bad credentials always sees
//! the 401, whatever else is wrong.

use std::{io, num::NonZeroU32, time::Duration};

use muster_client::Connection;
use muster_web::Limits;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

mod answer;
mod body;
mod limit;
mod routes;
mod time_text;

pub use routes::router;

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
    /// How long a call may take, from its head to its answer. Clients of the contract give up after
    /// 10 s, so it must be less.
    pub call_timeout: Duration,
    /// How patient the listener is.
    pub connections: Limits,
}

impl RestSettings {
    /// The limits of the contract: 250,000 calls per hour, bodies up to 2 MiB, 8 s for a call.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            requests_per_hour: const { NonZeroU32::new(250_000).expect("it is not 0") },
            max_body_bytes: 2 * 1024 * 1024,
            call_timeout: Duration::from_secs(8),
            connections: Limits::default(),
        }
    }
}

/// Serves the contract on `listener` until `shutdown`, in clear over HTTP/1.1; TLS belongs to a proxy
/// in front.
///
/// # Errors
/// As [`muster_web::serve`].
pub async fn serve(
    listener: TcpListener,
    settings: RestSettings,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let limits = settings.connections.clone();
    muster_web::serve(listener, router(settings), &limits, shutdown).await
}
