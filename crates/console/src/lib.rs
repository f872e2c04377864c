//! The console: web pages for the operators and marketers of a deployment.
//!
//! Server-rendered HTML that works with the keyboard and without JavaScript; small scripts of our
//! own add live numbers, copy buttons and times in the reader's zone. Everything is asked of the
//! gRPC services with the token that somebody signed in with: the console authenticates nobody
//! itself, and knows neither the storage nor the inside of a server.
//!
//! Read the modules in the order a request meets them: `routes` (what there is), `security` (what
//! every answer says to the browser), `session` (who asks, and that no other site made them), then
//! the module of a page. `frame` is what stands around every page, `problem` what stands there
//! instead when something is wrong, `view` how times are written.

use std::time::Duration;

use muster_client::Connection;
use muster_listener::{Limits, Listener, Protocol};
use tokio_util::sync::CancellationToken;

mod actors;
mod assets;
mod cohorts;
mod csv;
mod frame;
mod home;
mod integrations;
mod partners;
mod problem;
mod routes;
mod security;
mod segments;
mod session;
mod sign_in;
mod view;
mod workspaces;

pub use routes::router;

/// What the console needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the servers are; its own credential, if any, is never used.
    pub connection: Connection,
    /// What connections may cost.
    pub limits: Limits,
    /// How long a session lasts that nobody uses.
    pub session_idle: Duration,
    /// How long a session lasts at most.
    pub session_lifetime: Duration,
    /// How long a page may take to be made.
    pub page_timeout: Duration,
}

impl Settings {
    /// Sessions end after an hour without use and after 12 hours at the latest; a page has 30 s.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            limits: Limits::default(),
            session_idle: Duration::from_secs(60 * 60),
            session_lifetime: Duration::from_secs(12 * 60 * 60),
            page_timeout: Duration::from_secs(30),
        }
    }
}

/// Serves the console on `listener`, over HTTP/1.1, until `shutdown`, then lets calls in progress
/// end, for as long as the settings allow, and cuts off the rest.
pub async fn serve(listener: impl Into<Listener>, settings: Settings, shutdown: CancellationToken) {
    let limits = settings.limits.clone();
    let listener = listener.into();
    listener
        .serve(router(settings), Protocol::Http1, limits, shutdown)
        .await;
}
