//! A gRPC listener with limits, credentials, health and an orderly end.

use http::Request;
use muster_listener::{Limits, Listener, Protocol};
use muster_storage::Store;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    service::{Routes, RoutesBuilder},
};
use tower::{Layer as _, Service};

use crate::{attempts, caller::AuthLayer, edge::Edge, traffic};

/// Largest message of a call that needs no credential: the name of something.
const STRANGERS_MESSAGE_BYTES: usize = 1_024;

/// What a listener allows.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// What connections may cost.
    pub limits: Limits,
    /// How often a caller may fail to authenticate.
    pub attempts: attempts::Settings,
    /// How much a caller may ask for.
    pub traffic: traffic::Settings,
    /// Whether to serve reflection.
    pub reflection: bool,
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
        routes.add_service(health_service.max_decoding_message_size(STRANGERS_MESSAGE_BYTES));
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
    pub async fn serve(
        mut self,
        listener: impl Into<Listener>,
        store: Store,
        settings: &Settings,
        descriptors: &'static [u8],
        shutdown: CancellationToken,
    ) {
        use tonic_health::ServingStatus::{NotServing, Serving};

        if settings.reflection {
            let reflection = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(descriptors)
                .build_v1()
                .expect("the descriptor set is our own");
            let reflection = reflection.max_decoding_message_size(STRANGERS_MESSAGE_BYTES);
            self.routes.add_service(reflection);
        }
        for name in ["", "muster"].into_iter().chain(self.names.iter().copied()) {
            self.health.set_service_status(name, Serving).await;
        }
        let routes = self.routes.routes().prepare();
        let door = AuthLayer::new(store, &settings.attempts, &settings.traffic);
        let services = Edge::new(door.layer(routes), descriptors);
        let limits = settings.limits.clone();
        let listener = listener.into();
        let serving = listener.serve(services, Protocol::Http2, limits, shutdown.clone());
        let (health, names) = (self.health, self.names);
        let end = async {
            shutdown.cancelled().await;
            for name in ["", "muster"].into_iter().chain(names) {
                health.set_service_status(name, NotServing).await;
            }
        };
        tokio::join!(serving, end);
    }
}
