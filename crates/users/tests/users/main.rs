//! The user directory server, through a real client on loopback, on a real Postgres.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod access;
mod finding;
mod harness;
mod people;
mod stream;
mod writing;
