//! The partner bridge: what partners speak on one side, Muster's gRPC services on the other.
//!
//! - [`rest`] serves the partner-facing HTTP contract and carries each call out over gRPC, with the
//!   credentials of the caller.
//! - [`mod@export`] is the partner's side: it reads campaign audience files and sends each as a
//!   cohort, over gRPC or over the same HTTP contract.
//!
//! The bridge holds no state worth keeping and must know neither the storage nor the inside of a
//! server: it authenticates nobody itself but asks the servers.

pub mod export;
pub mod rest;
