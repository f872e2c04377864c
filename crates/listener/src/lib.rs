//! How Muster listens: one accept loop for gRPC, REST and the console.
//!
//! The crate owns what happens to a connection before there is a request, and what bounds it
//! afterwards: TLS and its certificates, how many connections there may be and which one has to go,
//! how long a handshake, a head, a body and a silence may take, what an HTTP/2 peer may cost, and
//! the end, which is orderly up to a deadline. It must not know what a request means: no
//! credentials, no gRPC, no routes.
//!
//! Start at [`Listener::serve`]; `connection` is the life of one connection, `room` who gets in,
//! `frames` and `stalled` what hyper and h2 leave open, `tls` the certificates.

mod body;
mod connection;
mod frames;
mod limits;
mod local;
mod room;
mod serve;
mod stalled;
mod tls;

pub use body::{Body, BodyError};
pub use limits::Limits;
pub use local::Dialer;
pub use room::Stay;
pub use serve::Listener;
pub use tls::{Tls, TlsError, TlsFiles};

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, for REST and browsers.
    Http1,
    /// HTTP/2 without negotiation in clear text, for gRPC.
    Http2,
}

/// Where a request came from; every request has it among its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The address of the other end of the connection, which may be a proxy; `None` for a
    /// connection from within the process.
    pub address: Option<std::net::SocketAddr>,
    /// Whether it showed a certificate that the listener asked for and accepted.
    pub certified: bool,
}
