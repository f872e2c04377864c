//! What hostile peers do to a listener: real frames, over real sockets, against the real binary.
//!
//! Each case is bounded in count and time, stays on loopback, and shows three things: the peer is
//! cut off, the server's memory stays where it was, and others are served meanwhile.

mod floods;
mod http2;
mod server;
mod slow;
mod tls;
