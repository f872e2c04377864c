//! The cohort-ingest server.
//!
//! It receives cohorts through the import protocol and keeps their names and imports. Read
//! [`session`] for the protocol as a stream, [`upload`] for how its batches are taken, [`matching`]
//! for how identifiers become users, [`batch`] for how they are staged, [`publish`] for the one place
//! where a cohort changes, [`at_once`] for small imports; `api` and `wire` are the only modules that
//! know protobuf.

mod api;
mod at_once;
mod batch;
mod cohorts;
mod gate;
mod imports;
mod matching;
mod open;
mod publish;
mod session;
mod upload;
mod wire;

use std::time::Duration;

use muster_domain::import::MAX_BATCH_BYTES;
use muster_identity::Identities;
use muster_proto::ingest::v1::ingest_service_server::IngestServiceServer;
use muster_service::server::Services;
use muster_storage::{Role, Store};
use tokio_util::sync::CancellationToken;

use crate::{at_once::Group, gate::Gate};

/// How the server treats imports.
#[derive(Debug, Clone)]
pub struct Settings {
    /// An import that makes no progress for so long expires.
    pub import_expiry: Duration,
    /// An import is remembered, with its rejected identifiers, for so long after it ended.
    pub import_retention: Duration,
    /// Former versions of cohorts can be looked into for so long.
    pub history_retention: Duration,
    /// A stream on which the client says nothing for so long is ended; the import stays open.
    pub idle_timeout: Duration,
    /// How long an import waits for another one that is publishing into the same cohort.
    pub cohort_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            import_expiry: DAY,
            import_retention: 30 * DAY,
            history_retention: 400 * DAY,
            idle_timeout: Duration::from_secs(120),
            cohort_wait: Duration::from_secs(5),
        }
    }
}

/// The server; cheap to clone.
#[derive(Debug, Clone)]
struct Ingest {
    store: Store,
    identities: Identities,
    settings: Settings,
    gate: Gate,
    group: Group,
    shutdown: CancellationToken,
}

/// Adds the service to a listener. Open streams end when `shutdown` is cancelled; their imports can
/// be resumed.
pub fn register(
    services: &mut Services,
    store: Store,
    identities: Identities,
    settings: Settings,
    shutdown: CancellationToken,
) {
    /// Room for the envelope around a batch of the largest size.
    const ENVELOPE_BYTES: usize = 1024;
    let ingest = Ingest {
        store: store.acting_as(Role::Ingest),
        identities,
        settings,
        gate: Gate::default(),
        group: Group::default(),
        shutdown,
    };
    services.add(
        IngestServiceServer::new(ingest)
            .max_decoding_message_size(MAX_BATCH_BYTES + ENVELOPE_BYTES),
    );
}

/// Expires abandoned imports every minute and forgets what is old every hour, until `shutdown`.
///
/// A failure is logged and tried again: nothing depends on it but disk space.
pub async fn housekeeping(store: Store, settings: Settings, shutdown: CancellationToken) {
    let mut minutes = tokio::time::interval(Duration::from_secs(60));
    let mut hours = tokio::time::interval(Duration::from_secs(60 * 60));
    loop {
        let (what, done) = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = minutes.tick() => ("abandoned imports expired", expire(&store).await),
            _ = hours.tick() => ("forgot what is old", forget(&store, &settings).await),
        };
        match done {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "{what}"),
            Err(error) => {
                let cause = &error as &dyn std::error::Error;
                tracing::warn!(cause, "could not clean up; trying again later");
            }
        }
    }
}

async fn expire(store: &Store) -> muster_storage::Result<u64> {
    match store.clean_up_time().await? {
        Some(now) => store.expire_imports(now).await,
        None => Ok(0),
    }
}

async fn forget(store: &Store, settings: &Settings) -> muster_storage::Result<u64> {
    let Some(now) = store.clean_up_time().await? else {
        return Ok(0);
    };
    let imports = store.forget_imports(now, settings.import_retention).await?;
    Ok(imports
        + store
            .forget_history(now, settings.history_retention)
            .await?)
}
