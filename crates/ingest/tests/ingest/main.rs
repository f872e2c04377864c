//! The ingest server through real clients, on real Postgres.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking; the lint's exemption knows only test functions"
)]

mod at_once;
mod cohorts;
mod harness;
mod lists;
mod protocol;
mod together;
