//! Transport, from outside: the real `muster` with TLS, honest callers, and peers that speak to it
//! with bytes written by hand.
//!
//! `deployment` is the process under test with its certificates, a caller that must be served all
//! the while, and the memory of the process; `frames` writes and reads HTTP/2. `tls` has the promises
//! about certificates; `busy` peers that send much, `messages` what they can say of messages, `memory`
//! what these take, `slow` peers that send little, `connections` how many there may be and for how long.

#![expect(clippy::unwrap_used, reason = "helpers of tests belong to tests")]

mod busy;
mod certificates;
mod connections;
mod deployment;
mod frames;
mod memory;
mod messages;
mod slow;
mod tls;
