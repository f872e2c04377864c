//! The key-management server as its callers meet it: over the wire, on a real Postgres.

mod input;
mod keys;
mod partners;
mod retries;
mod support;
mod tokens;
mod trail;
