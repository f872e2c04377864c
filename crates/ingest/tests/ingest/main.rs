//! The ingest server through real clients, on real Postgres.

mod cohorts;
mod harness;
mod protocol;
