//! A gRPC listener with limits, credentials, health and an orderly end.

use std::{future::Future, time::Duration};

use futures::future::BoxFuture;
use http::{Request, Response};
use muster_storage::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    service::{Routes, RoutesBuilder},
    transport::server::TcpIncoming,
};
use tower::{Layer, Service};

use crate::{caller::AuthLayer, response};

/// What a listener allows.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Streams a connection may have open at once.
    pub max_concurrent_streams: u32,
    /// Streams a peer may make us reset before the connection is closed.
    pub max_local_error_reset_streams: usize,
    /// Largest header list, in bytes.
    pub max_header_list_bytes: u32,
    /// Flow-control window of a stream, in bytes; the connection gets four times as much.
    pub window_bytes: u32,
    /// How often an idle connection is probed, and how long the answer may take.
    pub keepalive: Duration,
    /// How long open calls may go on after the shutdown began.
    pub grace: Duration,
    /// Whether to serve reflection.
    pub reflection: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 256,
            max_local_error_reset_streams: 256,
            max_header_list_bytes: 16 * 1024,
            window_bytes: 4 * 1024 * 1024,
            keepalive: Duration::from_secs(20),
            grace: Duration::from_secs(10),
            reflection: false,
        }
    }
}

/// The services that one listener serves.
pub struct Services {
    routes: RoutesBuilder,
    health: tonic_health::server::HealthReporter,
    names: Vec<&'static str>,
}

impl Default for Services {
    fn default() -> Self {
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut routes = Routes::builder();
        routes.add_service(health_service);
        Self {
            routes,
            health,
            names: Vec::new(),
        }
    }
}

impl Services {
    /// Adds a service.
    pub fn add<S>(&mut self, service: S)
    where
        S: Service<Request<Body>, Error = std::convert::Infallible>
            + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes.add_service(service);
    }

    /// Serves them until `shutdown`, then for at most the grace period.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(
        mut self,
        listener: TcpListener,
        store: Store,
        settings: &Settings,
        descriptors: &'static [u8],
        shutdown: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        use tonic_health::ServingStatus::{NotServing, Serving};

        if settings.reflection {
            let reflection = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(descriptors)
                .build_v1()
                .expect("the descriptor set is our own");
            self.routes.add_service(reflection);
        }
        for name in ["", "muster"].into_iter().chain(self.names.iter().copied()) {
            self.health.set_service_status(name, Serving).await;
        }
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(settings.max_concurrent_streams)
            .http2_max_local_error_reset_streams(Some(settings.max_local_error_reset_streams))
            .http2_max_header_list_size(settings.max_header_list_bytes)
            .initial_stream_window_size(settings.window_bytes)
            .initial_connection_window_size(4 * settings.window_bytes)
            .http2_keepalive_interval(Some(settings.keepalive))
            .http2_keepalive_timeout(Some(settings.keepalive))
            .layer(MalformedLayer)
            .layer(AuthLayer::new(store))
            .add_routes(self.routes.routes())
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        let (health, names) = (self.health, self.names);
        let deadline = async {
            shutdown.cancelled().await;
            for name in ["", "muster"].into_iter().chain(names) {
                health.set_service_status(name, NotServing).await;
            }
            tokio::time::sleep(settings.grace).await;
        };
        // A graceful shutdown waits for every open stream, possibly for ever: hence the deadline.
        first(serving, deadline).await.unwrap_or(Ok(()))
    }
}

/// The output of `work`, or `None` if `deadline` is over first.
async fn first<T>(work: impl Future<Output = T>, deadline: impl Future<Output = ()>) -> Option<T> {
    tokio::select! {
        output = work => Some(output),
        () = deadline => None,
    }
}

/// Turns what tonic answers to a message it cannot read, `INTERNAL` or `OUT_OF_RANGE`, into what it
/// is: the caller's mistake.
#[derive(Debug, Clone)]
struct MalformedLayer;

impl<S> Layer<S> for MalformedLayer {
    type Service = Malformed<S>;

    fn layer(&self, inner: S) -> Malformed<S> {
        Malformed { inner }
    }
}

#[derive(Debug, Clone)]
struct Malformed<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Malformed<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(match tonic::Status::from_header_map(answer.headers()) {
                Some(status) => match response::malformed(&status) {
                    Some(error) => response::status(error).into_http(),
                    None => answer,
                },
                None => answer,
            })
        })
    }
}
