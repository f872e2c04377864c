//! Client side of Muster's gRPC services.
//!
//! [`Connection`] opens a channel and puts the caller's credential on every call; it hands out the
//! generated clients. [`upload`] is the import protocol with batches, resume and retries,
//! [`download`] an audience to its proven end, and [`Refusal`] is what a server says when it refuses
//! a call. The bridge, the command line and the tests all come in through here.
//!
//! For those who write a client in another language, `docs/import-protocol.md` has the protocol of an
//! import; it is also the documentation of [`upload::protocol`].

mod connection;
pub mod download;
mod health;
mod refusal;
mod retry;
pub mod upload;

pub use connection::{Authenticated, Client, Connection, Credential, Tls};
pub use health::Health;
pub use refusal::Refusal;
pub use retry::Retry;
