//! The segment-query server as its callers meet it: a real server on a loopback port, a real client,
//! a real Postgres. Users and cohorts are seeded as the other servers would leave them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod audience;
mod check;
mod counts;
mod demands;
mod deployment;
mod diff;
mod interruption;
mod saved;
mod warm_up;
mod withheld;
