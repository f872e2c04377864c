//! The life of one connection: handshake, requests, and one of its several ends.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

use crate::{
    Body, Limits, Peer, Protocol, Tls, body::Answer, frames::Guarded, room::Activity,
    stalled::Watched,
};

/// How long a connection that nobody uses may take to end in order.
const FAREWELL: Duration = Duration::from_secs(2);

/// Largest head of an HTTP/1 request, in bytes, and how much of a body is read at a time.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;

/// Largest frame of HTTP/2 that a peer may send, in bytes. It is kept as it was read, with its head of 9
/// bytes: so it fills what an allocator hands out, where the usual 16 KiB take a quarter more than they hold.
/// Not larger, as memory is counted by frames, also where two messages share one.
const MAX_FRAME_BYTES: u32 = 32 * 1024 - 9;

/// Bytes in and out, in clear or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a connection needs to be served.
pub(crate) struct Serving<S> {
    pub(crate) service: S,
    pub(crate) protocol: Protocol,
    pub(crate) limits: Arc<Limits>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) peer: Peer,
    pub(crate) stop: CancellationToken,
}

impl<S, B> Serving<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Serves a connection until it ends.
    pub(crate) async fn run(mut self, stream: impl Stream, tls: Option<Tls>) {
        let evicted = self.activity.evicted.clone();
        let serving = async {
            match tls {
                None => self.speak(Box::new(stream)).await,
                Some(tls) => {
                    let handshake = TlsAcceptor::from(tls.config()).accept(stream);
                    match timeout(self.limits.handshake_timeout, handshake).await {
                        Ok(Ok(stream)) => {
                            // One that was not accepted has failed the handshake.
                            self.peer.certified = stream.get_ref().1.peer_certificates().is_some();
                            self.speak(Box::new(stream)).await;
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
                        Err(_) => tracing::debug!("a handshake took too long"),
                    }
                }
            }
        };
        tokio::select! {
            () = serving => {}
            // Dropped where it stands: nobody who may call has a request open on it.
            () = evicted.cancelled_owned() => {}
        }
    }

    async fn speak(self, stream: Box<dyn Stream>) {
        let limits = Arc::clone(&self.limits);
        let (activity, stop) = (Arc::clone(&self.activity), self.stop.clone());
        match self.protocol {
            Protocol::Http1 => {
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new())
                    .header_read_timeout(limits.header_timeout)
                    .max_buf_size(HTTP1_BUFFER_BYTES);
                let stream = TokioIo::new(Watched::new(stream, limits.body_timeout));
                let connection = http.serve_connection(stream, self);
                until_it_ends(connection, limits, activity, stop).await;
            }
            Protocol::Http2 => {
                let mut http = http2::Builder::new(TokioExecutor::new());
                http.timer(TokioTimer::new())
                    .max_concurrent_streams(limits.max_concurrent_streams)
                    .max_local_error_reset_streams(limits.max_local_error_reset_streams)
                    .max_pending_accept_reset_streams(limits.max_pending_accept_reset_streams)
                    .max_header_list_size(limits.max_header_list_bytes)
                    .initial_stream_window_size(limits.window_bytes)
                    .initial_connection_window_size(2 * limits.window_bytes)
                    .max_frame_size(MAX_FRAME_BYTES)
                    .keep_alive_interval(limits.keepalive)
                    .keep_alive_timeout(limits.keepalive);
                let stream = TokioIo::new(Guarded::new(stream, &limits));
                let connection = http.serve_connection(stream, self);
                until_it_ends(connection, limits, activity, stop).await;
            }
        }
    }
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Serving<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Answer<B>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let open = self.activity.begin();
        let within = self.limits.body_timeout;
        let mut request = request.map(|body| Body::new(body, within));
        request.extensions_mut().insert(self.peer);
        match self.protocol {
            // Short, and ended if it is not.
            Protocol::Http1 => open.stay().grant(),
            Protocol::Http2 => {
                request.extensions_mut().insert(open.stay());
            }
        }
        let answer = self.service.clone().oneshot(request);
        async move {
            let answer = answer.await.map_err(Into::into)?;
            Ok(answer.map(|body| Answer::new(body, open)))
        }
        .boxed()
    }
}

/// Drives a connection until it ends, by itself or because it rested too long, became too old, or
/// the listener stops; the latter leaves the deadline to the listener.
fn until_it_ends<C>(
    connection: C,
    limits: Arc<Limits>,
    activity: Arc<Activity>,
    stop: CancellationToken,
) -> BoxFuture<'static, ()>
where
    C: GracefulConnection + Send + 'static,
    C::Error: std::fmt::Display + Send,
{
    async move {
        let mut connection = pin!(connection);
        let age = tokio::time::sleep(limits.connection_age);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = stop.cancelled_owned() => None,
            () = rested(Arc::clone(&limits), activity) => {
                return farewell(connection, FAREWELL).await;
            }
            () = age => return farewell(connection, limits.connection_grace).await,
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%error, "a connection ended badly"),
            None => {
                connection.as_mut().graceful_shutdown();
                // How it ends does not matter any more.
                let _ = connection.await;
            }
        }
    }
    .boxed()
}

/// Tells the peer to go, and gives it some time.
async fn farewell<C: GracefulConnection>(mut connection: Pin<&mut C>, time: Duration) {
    connection.as_mut().graceful_shutdown();
    let _ = timeout(time, connection).await;
}

/// Waits until the connection has had no request open for too long.
async fn rested(limits: Arc<Limits>, activity: Arc<Activity>) {
    loop {
        let state = activity.state();
        let patience = match state.asked {
            true => limits.idle_timeout,
            false => limits.header_timeout,
        };
        let rest_began = match state.open {
            0 => state.idle_since,
            _ => Instant::now(),
        };
        let over = rest_began + patience;
        if over <= Instant::now() {
            return;
        }
        sleep_until(over).await;
    }
}
