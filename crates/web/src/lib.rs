//! Serving HTTP/1.1: connections are accepted up to a limit, bounded in how slow they may be, and
//! drained at the end.
//!
//! The partners' REST contract and the console are served by it. It knows nothing of either: what
//! is served is a router, and how, a few [`Limits`]. gRPC has a listener of its own in `service`.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// How long to wait after a failed accept: out of file descriptors is the usual cause, and trying
/// again at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How patient a listener is.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a client may take to send the head of a request; also how long an idle connection
    /// is kept.
    pub header_timeout: Duration,
    /// Most connections at once; more wait to be accepted.
    pub max_connections: usize,
    /// How long calls in progress may go on once the shutdown began.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    /// 30 s for a head, 1,024 connections, 10 s to drain.
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            max_connections: 1_024,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves `router` on `listener` until `shutdown`, then lets calls in progress end, for as long as
/// [`Limits::drain_timeout`], and cuts off the rest.
///
/// It speaks HTTP/1.1 in clear; TLS belongs to a proxy in front. `axum::serve` would do, but sets
/// no bound on how long a client may take for the head of a request, and the version detection
/// that HTTP/2 on the same port needs has none, either.
///
/// # Errors
/// None at present: a failed accept is logged and tried again.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout);
    let room = Arc::new(Semaphore::new(limits.max_connections));
    let service = TowerToHyperService::new(router);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            // Only so that those that ended do not pile up.
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection = http.serve_connection(TokioIo::new(stream), service.clone());
                let connection = graceful.watch(connection);
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection ended badly");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Refuse new connections at once, so that a load balancer goes elsewhere.
    drop(listener);
    if tokio::time::timeout(limits.drain_timeout, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            open = connections.len(),
            "cut off connections that did not end in time"
        );
    }
    connections.shutdown().await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await;
    let permit = permit.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

#[cfg(test)]
mod tests;
