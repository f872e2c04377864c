//! Client side of Muster's gRPC services.
//!
//! [`Connection`] opens a channel and puts the caller's credential on every call; it hands out the
//! generated clients. [`upload`] is the import protocol with batches, resume and retries, and
//! [`Refusal`] is what a server says when it refuses a call. The bridge, the command line and the
//! tests all come in through here.

mod connection;
mod refusal;
pub mod upload;

pub use connection::{Authenticated, Client, Connection, Credential};
pub use refusal::Refusal;
