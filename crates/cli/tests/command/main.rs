//! The `muster` command as people and scripts run it: the real binary, on a real Postgres.
//!
//! Tests that do not stop or kill their Muster share one, each in a workspace of its own.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod administration;
mod backup;
mod crash;
mod database;
mod export;
mod harness;
mod marketing;
mod readable;
mod resolve;
mod secrets;
mod serve;
mod up;
mod usage;
mod users_import;
