//! The cohort-ingest server.
//!
//! It receives cohorts through the import protocol and keeps their names and imports. Read
//! [`session`] for the protocol as a stream, [`batch`] for how identifiers become users,
//! [`publish`] for the one place where a cohort changes; `api` and `wire` are the only modules that
//! know protobuf.

mod api;
mod batch;
mod cohorts;
mod imports;
mod open;
mod publish;
mod session;
mod wire;

use std::time::Duration;

use muster_domain::import::MAX_BATCH_BYTES;
use muster_proto::ingest::v1::ingest_service_server::IngestServiceServer;
use muster_service::server::Services;
use muster_storage::Store;
use tokio_util::sync::CancellationToken;

/// How the server treats imports.
#[derive(Debug, Clone)]
pub struct Settings {
    /// An import that makes no progress for so long expires.
    pub import_expiry: Duration,
    /// Rejected identifiers are listed for so long after their import ended.
    pub rejected_retention: Duration,
    /// Former versions of cohorts can be looked into for so long.
    pub history_retention: Duration,
    /// A stream on which the client says nothing for so long is ended; the import stays open.
    pub idle_timeout: Duration,
    /// How often an idle stream checks that its credential is still accepted.
    pub credential_check: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            import_expiry: DAY,
            rejected_retention: 30 * DAY,
            history_retention: 400 * DAY,
            idle_timeout: Duration::from_secs(120),
            credential_check: Duration::from_millis(500),
        }
    }
}

/// The server; cheap to clone.
#[derive(Debug, Clone)]
struct Ingest {
    store: Store,
    settings: Settings,
    shutdown: CancellationToken,
}

/// Adds the service to a listener. Open streams end when `shutdown` is cancelled; their imports can
/// be resumed.
pub fn register(
    services: &mut Services,
    store: Store,
    settings: Settings,
    shutdown: CancellationToken,
) {
    /// Room for the envelope around a batch of the largest size.
    const ENVELOPE_BYTES: usize = 1024;
    let ingest = Ingest {
        store,
        settings,
        shutdown,
    };
    services.add(
        IngestServiceServer::new(ingest)
            .max_decoding_message_size(MAX_BATCH_BYTES + ENVELOPE_BYTES),
    );
}

/// Cleans up abandoned imports and old history, once a minute, until `shutdown`.
///
/// A failure is logged and tried again a minute later: nothing depends on it but disk space.
pub async fn housekeeping(store: Store, settings: Settings, shutdown: CancellationToken) {
    const PERIOD: Duration = Duration::from_secs(60);
    loop {
        if let Err(error) = clean_up(&store, &settings).await {
            let cause = &error as &dyn std::error::Error;
            tracing::warn!(cause, "could not clean up imports and history");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn clean_up(store: &Store, settings: &Settings) -> muster_storage::Result<()> {
    let expired = store.clean_up_imports(settings.rejected_retention).await?;
    if expired > 0 {
        tracing::info!(expired, "abandoned imports expired");
    }
    let forgotten = store.forget_history(settings.history_retention).await?;
    if forgotten > 0 {
        tracing::info!(forgotten, "forgot old versions of cohorts");
    }
    Ok(())
}
