//! The accept loop.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
    sync::mpsc::Receiver,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tower::Service;

use crate::{
    Body, Dialer, Limits, Peer, Protocol, Tls,
    connection::Serving,
    local,
    room::{Activity, Room},
};

/// How long to wait after a failed accept: out of file descriptors is the usual cause, and trying
/// again at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a full listener says so in the log.
const FULL_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Where connections come from: an address, in clear or with TLS, and perhaps this process.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
    local: Option<Receiver<DuplexStream>>,
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self {
            tcp,
            tls: None,
            local: None,
        }
    }
}

impl Listener {
    /// The same, with TLS if it is given.
    #[must_use]
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// Opens it to this process.
    pub fn dialer(&mut self) -> Dialer {
        let (dialer, receiver) = local::channel();
        self.local = Some(receiver);
        dialer
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// Serves connections until `shutdown`, then lets open requests end for as long as
    /// [`Limits::shutdown_grace`], and cuts off the rest.
    pub async fn serve<S, B>(
        mut self,
        service: S,
        protocol: Protocol,
        limits: Limits,
        shutdown: CancellationToken,
    ) where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _following =
            (self.tls.clone()).map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.follow())));
        let limits = Arc::new(limits);
        let room = Room::new(&limits);
        let mut full = Full::default();
        let mut connections = JoinSet::new();
        let serving = |peer: Option<SocketAddr>, activity: &Arc<Activity>| Serving {
            service: service.clone(),
            protocol,
            limits: Arc::clone(&limits),
            activity: Arc::clone(activity),
            peer: Peer {
                address: peer,
                certified: false,
            },
            stop: shutdown.clone(),
        };
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // Only so that those that ended do not pile up.
                Some(_) = connections.join_next() => {}
                // First come those that are let in whatever the crowd outside.
                stream = next(&mut self.local) => {
                    connections.spawn(serving(None, &Activity::new()).run(stream, None));
                }
                accepted = accept(&self.tcp) => match accepted {
                    Ok((stream, address)) => {
                        let activity = Activity::new();
                        let Some(place) = room.enter(address.ip(), &activity) else {
                            full.refused();
                            continue;
                        };
                        let serving = serving(Some(address), &activity);
                        let tls = self.tls.clone();
                        connections.spawn(async move {
                            serving.run(stream, tls).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // Refuse new connections at once, so that a load balancer goes elsewhere.
        drop((self.tcp, self.local));
        let drained = async { while connections.join_next().await.is_some() {} };
        if timeout(limits.shutdown_grace, drained).await.is_err() {
            let open = connections.len();
            tracing::warn!(open, "cut off connections that did not end in time");
        }
        connections.shutdown().await;
    }
}

async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, address) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, address))
}

async fn next(local: &mut Option<Receiver<DuplexStream>>) -> DuplexStream {
    if let Some(receiver) = local
        && let Some(stream) = receiver.recv().await
    {
        return stream;
    }
    // Nobody is left who could come.
    *local = None;
    std::future::pending().await
}

/// Tells of refused connections, but not of each.
#[derive(Default)]
struct Full {
    refused: u64,
    told: Option<Instant>,
}

impl Full {
    fn refused(&mut self) {
        self.refused += 1;
        if self
            .told
            .is_none_or(|told| told.elapsed() > FULL_LOG_INTERVAL)
        {
            tracing::warn!(
                refused = self.refused,
                "closed new connections: all are busy"
            );
            *self = Self {
                refused: 0,
                told: Some(Instant::now()),
            };
        }
    }
}
