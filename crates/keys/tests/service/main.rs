//! The key-management server as its callers meet it: over the wire, on a real Postgres.

#![expect(
    clippy::unwrap_used,
    reason = "clippy exempts test functions, not what they share"
)]

mod input;
mod keys;
mod partners;
mod retries;
mod support;
mod tokens;
mod trail;
