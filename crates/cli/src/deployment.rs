//! The servers of a deployment, composed into one process.
//!
//! [`Servers`] says which; [`run`] runs them until they are told to stop or one of them dies, which
//! takes the others down with it: a process that serves half of what it should is worse than one
//! that is restarted. The four gRPC servers share a listener but know nothing of each other, and
//! the bridge and the console go through a gRPC client also here.

use std::{collections::BTreeSet, io, net::SocketAddr, num::NonZeroU32, time::Duration};

use muster_bridge::rest::RestSettings;
use muster_client::Connection;
use muster_identity::Identities;
use muster_listener::{Limits, Listener};
use muster_service::{
    attempts,
    server::{Services, Settings as GrpcSettings},
    traffic,
};
use muster_storage::{Role, Store};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// One of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Server {
    /// Data import keys, workspaces, partners, tokens, audit.
    Keys,
    /// The user directory.
    Users,
    /// Cohorts and imports.
    Ingest,
    /// Segments and audiences.
    Segments,
    /// The partner-facing REST contract.
    Bridge,
    /// The web pages.
    Console,
}

impl Server {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Keys,
        Self::Users,
        Self::Ingest,
        Self::Segments,
        Self::Bridge,
        Self::Console,
    ];

    /// The role it acts in; bridge and console need no database.
    pub fn role(self) -> Option<Role> {
        match self {
            Self::Keys => Some(Role::Keys),
            Self::Users => Some(Role::Users),
            Self::Ingest => Some(Role::Ingest),
            Self::Segments => Some(Role::Segments),
            Self::Bridge | Self::Console => None,
        }
    }

    /// Whether it only calls the gRPC servers, and needs no database.
    pub fn is_client(self) -> bool {
        matches!(self, Self::Bridge | Self::Console)
    }
}

/// What a process serves, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which servers.
    pub servers: BTreeSet<Server>,
    /// Whether to serve gRPC reflection.
    pub reflection: bool,
    /// URL under which partners reach the REST contract; `None` for where it listens.
    pub rest_public_url: Option<String>,
    /// The gRPC services that bridge and console call; `None` for those of this process.
    pub upstream: Option<Connection>,
    /// Requests an hour that one partner may send for one workspace over REST.
    pub rest_requests_per_hour: NonZeroU32,
    /// What is held in memory of the directories that are matched against and streamed.
    pub identity: muster_identity::Settings,
    /// How the ingest server treats imports.
    pub ingest: muster_ingest::Settings,
    /// How long a resolution is kept.
    pub resolution_retention: Duration,
    /// How long a client may let an audience or a stream of users rest; for imports of cohorts see
    /// `ingest`.
    pub stream_idle: Duration,
    /// What connections may cost, for each listener.
    pub limits: Limits,
    /// How often a caller may fail to authenticate.
    pub attempts: attempts::Settings,
    /// How much a caller of gRPC may ask for.
    pub traffic: traffic::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            servers: BTreeSet::from(Server::ALL),
            reflection: false,
            rest_public_url: None,
            upstream: None,
            rest_requests_per_hour: const { NonZeroU32::new(250_000).expect("it is not 0") },
            identity: muster_identity::Settings::default(),
            ingest: muster_ingest::Settings::default(),
            resolution_retention: Duration::from_secs(7 * 24 * 60 * 60),
            stream_idle: Duration::from_secs(120),
            limits: Limits::default(),
            attempts: attempts::Settings::default(),
            traffic: traffic::Settings::default(),
        }
    }
}

/// Listeners, bound before anything is served so that a taken port is told at once.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For the gRPC services, if any are served.
    pub grpc: Option<Listener>,
    /// For the REST contract, if it is served.
    pub rest: Option<Listener>,
    /// For the console, if it is served.
    pub console: Option<Listener>,
}

impl Listeners {
    /// The URL of the gRPC services.
    pub fn grpc_url(&self) -> Option<String> {
        url(self.grpc.as_ref())
    }

    /// The URL of the REST contract.
    pub fn rest_url(&self) -> Option<String> {
        url(self.rest.as_ref())
    }

    /// The URL of the console.
    pub fn console_url(&self) -> Option<String> {
        url(self.console.as_ref())
    }
}

fn url(listener: Option<&Listener>) -> Option<String> {
    let address: SocketAddr = listener?.local_addr().ok()?;
    Some(format!("{}://{address}", listener?.scheme()))
}

/// Why a deployment ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A task ended although nobody asked it to.
    #[error("the {0} ended by itself")]
    Ended(&'static str),
    /// A listener failed.
    #[error("the {0} failed: {1}")]
    Failed(&'static str, String),
    /// A task panicked.
    #[error("a task panicked: {0}")]
    Panicked(String),
}

type Task = (&'static str, Result<(), String>);

/// Does what the first callers of servers would wait for. A start waits 5 s for it at most, and does
/// not depend on it.
pub async fn warm_up(store: &Store, servers: &BTreeSet<Server>) {
    const PATIENCE: Duration = Duration::from_secs(5);
    if !servers.contains(&Server::Segments) {
        return;
    }
    match timeout(PATIENCE, muster_segments::warm_up(store)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let cause = &error as &dyn std::error::Error;
            tracing::warn!(cause, "the first calls will be slower");
        }
        Err(_) => tracing::warn!("the database is slow, and the first calls will be"),
    }
}

/// Runs servers until `shutdown`, then until they have ended or their grace period is over.
///
/// # Errors
/// If a server, or a task beside it, ends before the shutdown.
pub async fn run(
    settings: Settings,
    store: Option<Store>,
    mut listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let mut tasks: JoinSet<Task> = JoinSet::new();
    let own_grpc = listeners.grpc.as_mut().map(|listener| {
        let dialer = listener.dialer();
        let dial = move || {
            let dialer = dialer.clone();
            async move { dialer.connect().await }
        };
        Connection::within(dial, None)
    });
    let rest_public_url = settings.rest_public_url.clone();
    let rest_public_url = rest_public_url.or_else(|| listeners.rest_url());
    if let (Some(listener), Some(store)) = (listeners.grpc, store) {
        spawn_grpc(
            &mut tasks,
            &settings,
            store,
            listener,
            rest_public_url.unwrap_or_default(),
            &shutdown,
        );
    }
    let upstream = settings.upstream.clone().or(own_grpc);
    if let Some(listener) = listeners.console {
        let console = serve_console(
            settings.limits.clone(),
            upstream.clone(),
            listener,
            shutdown.clone(),
        );
        tasks.spawn(async move { ("console", console.await.map_err(|e| e.to_string())) });
    }
    if let Some(listener) = listeners.rest {
        let bridge = serve_bridge(settings, upstream, listener, shutdown.clone());
        tasks.spawn(async move { ("REST bridge", bridge.await.map_err(|e| e.to_string())) });
    }
    while let Some(ended) = tasks.join_next().await {
        let failure = match ended {
            Ok((_, Ok(()))) if shutdown.is_cancelled() => continue,
            Ok((name, Ok(()))) => Failure::Ended(name),
            Ok((name, Err(error))) => Failure::Failed(name, error),
            Err(error) => Failure::Panicked(error.to_string()),
        };
        shutdown.cancel();
        while tasks.join_next().await.is_some() {}
        return Err(failure);
    }
    Ok(())
}

fn spawn_grpc(
    tasks: &mut JoinSet<Task>,
    settings: &Settings,
    store: Store,
    listener: Listener,
    rest_public_url: String,
    shutdown: &CancellationToken,
) {
    let serves = |server| settings.servers.contains(&server);
    let mut services = Services::default();
    if serves(Server::Keys) {
        let keys = muster_keys::Settings { rest_public_url };
        muster_keys::register(&mut services, store.clone(), keys);
        let work = muster_keys::housekeeping(store.clone(), shutdown.clone());
        tasks.spawn(after_start("keys housekeeping", shutdown, work));
    }
    if serves(Server::Users) {
        let users = muster_users::Settings {
            idle_timeout: settings.stream_idle,
        };
        muster_users::register(&mut services, store.clone(), users, shutdown.clone());
    }
    let identities = Identities::new(store.clone(), settings.identity.clone());
    if serves(Server::Ingest) || serves(Server::Segments) {
        let (identities, stop) = (identities.clone(), shutdown.clone());
        tasks.spawn(async move {
            identities.keep_current(stop).await;
            ("identity index", Ok(()))
        });
    }
    if serves(Server::Ingest) {
        let ingest = settings.ingest.clone();
        muster_ingest::register(
            &mut services,
            store.clone(),
            identities.clone(),
            ingest.clone(),
            shutdown.clone(),
        );
        let work = muster_ingest::housekeeping(store.clone(), ingest, shutdown.clone());
        tasks.spawn(after_start("ingest housekeeping", shutdown, work));
    }
    if serves(Server::Segments) {
        let segments = muster_segments::Settings {
            resolution_retention: settings.resolution_retention,
            idle_timeout: settings.stream_idle,
            ..Default::default()
        };
        muster_segments::register(&mut services, identities, segments, shutdown.clone());
        let work = muster_segments::housekeeping(store.clone(), shutdown.clone());
        tasks.spawn(after_start("segments housekeeping", shutdown, work));
    }
    let grpc = GrpcSettings {
        reflection: settings.reflection,
        limits: settings.limits.clone(),
        attempts: settings.attempts.clone(),
        traffic: settings.traffic.clone(),
    };
    let stop = shutdown.clone();
    tasks.spawn(async move {
        let descriptors = muster_proto::FILE_DESCRIPTOR_SET;
        services
            .serve(listener, store, &grpc, descriptors, stop)
            .await;
        ("gRPC server", Ok(()))
    });
}

/// Work that leaves the database to the callers who have waited for the start.
fn after_start(
    name: &'static str,
    shutdown: &CancellationToken,
    work: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = Task> + Send + 'static {
    const PAUSE: Duration = Duration::from_millis(250);
    let stopped = shutdown.clone().cancelled_owned();
    async move {
        // Once it is stopped, the work ends by itself.
        let _ = timeout(PAUSE, stopped).await;
        work.await;
        (name, Ok(()))
    }
}

async fn serve_console(
    limits: Limits,
    upstream: Option<Connection>,
    listener: Listener,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let connection = upstream.ok_or_else(|| io::Error::other("no gRPC endpoint to call"))?;
    let console = muster_console::Settings {
        limits,
        ..muster_console::Settings::new(connection)
    };
    muster_console::serve(listener, console, shutdown).await;
    Ok(())
}

async fn serve_bridge(
    settings: Settings,
    upstream: Option<Connection>,
    listener: Listener,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let connection = upstream.ok_or_else(|| io::Error::other("no gRPC endpoint to call"))?;
    let rest = RestSettings {
        requests_per_hour: settings.rest_requests_per_hour,
        body_memory: settings.traffic.message_bytes,
        limits: settings.limits,
        ..RestSettings::new(connection)
    };
    muster_bridge::rest::serve(listener, rest, shutdown).await;
    Ok(())
}
