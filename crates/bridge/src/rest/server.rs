//! Serving the contract.

use muster_listener::{Listener, Protocol};
use tokio_util::sync::CancellationToken;

use super::{RestSettings, router};

/// Serves the contract on `listener`, over HTTP/1.1, until `shutdown`, then lets calls in progress
/// end, for as long as the settings allow, and cuts off the rest.
pub async fn serve(
    listener: impl Into<Listener>,
    settings: RestSettings,
    shutdown: CancellationToken,
) {
    let limits = settings.limits.clone();
    let listener = listener.into();
    listener
        .serve(router(settings), Protocol::Http1, limits, shutdown)
        .await;
}

#[cfg(test)]
mod tests;
