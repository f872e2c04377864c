//! The user directory server: the people and devices a workspace knows.
//!
//! Owns `UserService`: writing users one batch after the other or a thousand at a time, identifying,
//! merging, erasing and finding them. It must know nothing of cohorts and segments; what a change
//! means for them follows from the epochs that the storage crate stamps.
//!
//! A call comes in at `api`, which admits it and converts with `wire`; only those two name protobuf
//! types. There is a module for each operation: it takes the entries of a request apart into those
//! that are well-formed and those that are not, has the storage crate apply the former in one
//! transaction, and says in words what became of each.
//!
//! [`register`] adds the service to a listener.

mod api;
mod delete;
mod find;
mod identify;
mod import;
mod merge;
mod outcome;
mod upsert;
mod wire;

use std::time::Duration;

use muster_proto::users::v1::user_service_server::UserServiceServer;
use muster_service::server::Services;
use muster_storage::{Role, Store};
use tokio_util::sync::CancellationToken;

/// Largest message, in bytes: a thousand merges of the longest aliases fit, and a batch that is
/// somewhat too large is told its limit.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a client may let an open import stream rest: neither send nor read.
    pub idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(120),
        }
    }
}

/// Adds `UserService` to a listener. Open import streams end when `shutdown` is cancelled.
pub fn register(
    services: &mut Services,
    store: Store,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let api = api::Api::new(store.acting_as(Role::Users), settings, shutdown);
    services.add(UserServiceServer::new(api).max_decoding_message_size(MAX_MESSAGE_BYTES));
}
