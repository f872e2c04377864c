//! What connections may cost.

use std::time::Duration;

/// What a listener allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. When they are all taken, a new one takes the place of one that has no
    /// request open, if there is one: of those that never made a request the oldest, else the one
    /// that has been idle longest; else the place of one whose open requests are those of strangers
    /// ([`Stay`](crate::Stay)). If all are busy, the new one is closed.
    pub max_connections: usize,
    /// Connections at once from one address, by the same rule.
    pub max_connections_per_address: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long the head of a request may take: over HTTP/1 of every request, so that it also
    /// bounds how long an idle connection is kept; over HTTP/2 of the first.
    pub header_timeout: Duration,
    /// How long the body of a request may take as a whole, unless the service asks for it
    /// [without a deadline](crate::Body::without_deadline). Over HTTP/1 also how long a peer may take
    /// nothing of its answers; over HTTP/2 `keepalive` sees to that.
    pub body_timeout: Duration,
    /// How long a connection without an open request is kept.
    pub idle_timeout: Duration,
    /// How old a connection becomes before its peer is told to make another.
    pub connection_age: Duration,
    /// How long requests that are open then may go on.
    pub connection_grace: Duration,
    /// How long open requests may go on after the shutdown began.
    pub shutdown_grace: Duration,
    /// HTTP/2: streams a connection may have open at once.
    pub max_concurrent_streams: u32,
    /// HTTP/2: streams a peer may make us reset before the connection is closed.
    pub max_local_error_reset_streams: usize,
    /// HTTP/2: streams a peer may reset before we have looked at them.
    pub max_pending_accept_reset_streams: usize,
    /// Largest list of headers, in bytes.
    pub max_header_list_bytes: u32,
    /// HTTP/2: flow-control window of a stream, in bytes; the connection gets twice as much.
    pub window_bytes: u32,
    /// HTTP/2: how often a connection that says nothing is probed, and how long the answer may
    /// take.
    pub keepalive: Duration,
    /// HTTP/2: frames that move nothing, within [`FRAME_PERIOD`](Self::FRAME_PERIOD).
    pub max_empty_frames: u32,
}

impl Limits {
    /// The period of [`max_empty_frames`](Self::max_empty_frames).
    pub const FRAME_PERIOD: Duration = Duration::from_secs(10);
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1_024,
            max_connections_per_address: 1_024,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(5 * 60),
            connection_age: Duration::from_secs(60 * 60),
            connection_grace: Duration::from_secs(60 * 60),
            shutdown_grace: Duration::from_secs(10),
            max_concurrent_streams: 256,
            max_local_error_reset_streams: 256,
            max_pending_accept_reset_streams: 20,
            max_header_list_bytes: 16 * 1024,
            window_bytes: 4 * 1024 * 1024,
            keepalive: Duration::from_secs(20),
            max_empty_frames: 20_000,
        }
    }
}
