//! Client side of Muster's gRPC services.
//!
//! [`Connection`] opens a channel and puts the caller's credential on every call; it hands out the
//! generated clients. The bridge, the command line and the tests all come in through here.

mod connection;

pub use connection::{Authenticated, Client, Connection, Credential};
