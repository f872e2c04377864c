//! The `muster` command as people and scripts run it: the real binary, on a real Postgres.
//!
//! Tests that do not stop or kill their Muster share one, each in a workspace of its own.

mod crash;
mod export;
mod harness;

mod resolve;
mod serve;
mod tour;
mod up;
mod users_import;
