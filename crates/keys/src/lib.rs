//! The key-management server: who may talk to a Muster deployment.
//!
//! Owns data import keys, partner API keys and service tokens, the workspaces and partners they
//! belong to, and the audit trail of all that. It must know nothing of users, cohorts and segments.
//!
//! A call comes in at `api`, which admits it and converts with `wire`; what it does is in the module
//! of its noun. Only those two name protobuf types. Every mutation happens once per `request_id`,
//! leaves its audit event in its own transaction, and waits out, or is refused by, a revocation of
//! the caller's own credential.
//!
//! [`register`] adds the services to a listener; [`bootstrap_operator`] makes the first credential
//! of a deployment; [`housekeeping`] forgets what is needed no longer.

mod access;
mod api;
mod audit;
mod credential;
mod integration;
mod keys;
mod operator;
mod partner_keys;
mod partners;
mod tokens;
mod wire;
mod workspaces;

use std::{sync::Arc, time::Duration};

use muster_proto::keys::v1::{
    integration_service_server::IntegrationServiceServer, key_service_server::KeyServiceServer,
};
use muster_service::server::Services;
use muster_storage::{Role, Store};
use tokio_util::sync::CancellationToken;

pub use operator::bootstrap_operator;

/// Largest request, in bytes; no field of any is longer than a kilobyte.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// What the operator decides about this server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where partners reach the REST contract, such as `https://muster.example.com`.
    pub rest_public_url: String,
}

/// Adds `KeyService` and `IntegrationService` to a listener.
pub fn register(services: &mut Services, store: Store, settings: Settings) {
    let api = Arc::new(api::Api::new(store.acting_as(Role::Keys), settings));
    services.add(
        KeyServiceServer::from_arc(Arc::clone(&api)).max_decoding_message_size(MAX_REQUEST_BYTES),
    );
    services
        .add(IntegrationServiceServer::from_arc(api).max_decoding_message_size(MAX_REQUEST_BYTES));
}

/// Forgets the answers to old requests, now and every minute, until `shutdown`.
///
/// A failure is logged and tried again a minute later: nothing depends on it but disk space.
pub async fn housekeeping(store: Store, shutdown: CancellationToken) {
    let mut minutes = tokio::time::interval(Duration::from_secs(60));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = minutes.tick() => {}
        }
        let forgotten = async {
            match store.clean_up_time().await? {
                Some(now) => store.forget_requests(now).await,
                None => Ok(0),
            }
        };
        match forgotten.await {
            Ok(forgotten) => tracing::debug!(forgotten, "forgot the answers to old requests"),
            Err(error) => {
                let cause = &error as &dyn std::error::Error;
                tracing::warn!(cause, "could not forget the answers to old requests");
            }
        }
    }
}
