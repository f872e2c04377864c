//! `muster serve`: some of the servers, on a database that `muster migrate` has prepared.

use std::{collections::BTreeSet, net::SocketAddr, num::NonZeroU32, path::PathBuf};

use muster_domain::network::Network;
use muster_listener::{Listener, Protocol, Tls, TlsFiles};
use muster_service::{attempts, traffic};
use muster_storage::{Role, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    command::connections::ConnectionArgs,
    database::{Database, DatabaseArgs},
    deployment::{self, Failure, Listeners, Server, Settings},
    error::{CliError, Result},
    global::Global,
    output::{self, remark},
    signals::Signals,
};

/// Which servers to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// The servers; the gRPC ones share a listener
    #[arg(required = true, value_name = "SERVER")]
    servers: Vec<Server>,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    serving: ServingArgs,
}

/// How to serve.
#[derive(Debug, clap::Args)]
pub(crate) struct ServingArgs {
    /// Address of the gRPC services [default: 127.0.0.1:7410, or a free port if that is taken]
    #[arg(
        long,
        env = "MUSTER_GRPC_LISTEN",
        value_name = "ADDRESS",
        hide_env_values = true
    )]
    grpc_listen: Option<SocketAddr>,
    /// Address of the REST contract [default: 127.0.0.1:7411, or a free port if that is taken]
    #[arg(
        long,
        env = "MUSTER_REST_LISTEN",
        value_name = "ADDRESS",
        hide_env_values = true
    )]
    rest_listen: Option<SocketAddr>,
    /// File of the certificate to serve with, then those that lead to a root; read again when it changes
    #[arg(
        long,
        env = "MUSTER_SERVER_CERT",
        value_name = "FILE",
        requires = "server_key",
        hide_env_values = true
    )]
    server_cert: Option<PathBuf>,
    /// File of the private key of that certificate
    #[arg(
        long,
        env = "MUSTER_SERVER_KEY",
        value_name = "FILE",
        requires = "server_cert",
        hide_env_values = true
    )]
    server_key: Option<PathBuf>,
    /// File of the roots to which the certificates of gRPC clients must lead; without it they need none
    #[arg(
        long,
        env = "MUSTER_CLIENT_CA",
        value_name = "FILE",
        requires = "server_cert",
        hide_env_values = true
    )]
    client_ca: Option<PathBuf>,
    /// Serve without TLS also where others can listen in
    #[arg(long, env = "MUSTER_INSECURE", hide_env_values = true)]
    insecure: bool,
    #[command(flatten)]
    connections: ConnectionArgs,
    /// Address of the console [default: 127.0.0.1:7412, or a free port if that is taken]
    #[arg(
        long,
        env = "MUSTER_CONSOLE_LISTEN",
        value_name = "ADDRESS",
        hide_env_values = true
    )]
    console_listen: Option<SocketAddr>,
    /// URL under which partners reach the REST contract [default: where it listens]
    #[arg(
        long,
        env = "MUSTER_REST_PUBLIC_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    rest_public_url: Option<String>,
    /// REST requests an hour that one key may make
    #[arg(
        long,
        env = "MUSTER_REST_REQUESTS_PER_HOUR",
        value_name = "N",
        default_value = "250000",
        hide_env_values = true
    )]
    rest_requests_per_hour: NonZeroU32,
    /// Failed attempts to authenticate that one address or credential may make in a minute
    #[arg(
        long,
        env = "MUSTER_FAILED_ATTEMPTS",
        value_name = "N",
        default_value = "60",
        hide_env_values = true
    )]
    failed_attempts: NonZeroU32,
    /// Address or network whose failed attempts are not counted, such as a proxy's; repeatable
    #[arg(
        long,
        env = "MUSTER_UNCOUNTED_ADDRESSES",
        value_name = "NETWORK",
        value_delimiter = ',',
        default_values = ["127.0.0.0/8", "::1/128"],
        hide_env_values = true
    )]
    uncounted_addresses: Vec<Network>,
    /// gRPC calls in a second of one token, or of one partner in one workspace
    #[arg(
        long,
        env = "MUSTER_CALLS_PER_SECOND",
        value_name = "N",
        default_value = "2000",
        hide_env_values = true
    )]
    calls_per_second: NonZeroU32,
    /// gRPC calls in a second for one workspace
    #[arg(
        long,
        env = "MUSTER_WORKSPACE_CALLS_PER_SECOND",
        value_name = "N",
        default_value = "4000",
        hide_env_values = true
    )]
    workspace_calls_per_second: NonZeroU32,
    /// Identifiers to import or to change in a second of one token, or of one partner in one workspace
    #[arg(
        long,
        env = "MUSTER_IDENTIFIERS_PER_SECOND",
        value_name = "N",
        default_value = "5000000",
        hide_env_values = true
    )]
    identifiers_per_second: NonZeroU32,
    /// Identifiers to import or to change in a second for one workspace
    #[arg(
        long,
        env = "MUSTER_WORKSPACE_IDENTIFIERS_PER_SECOND",
        value_name = "N",
        default_value = "10000000",
        hide_env_values = true
    )]
    workspace_identifiers_per_second: NonZeroU32,
    /// gRPC calls that may be open at once; a workspace has half of them at most
    #[arg(
        long,
        env = "MUSTER_CONCURRENT_CALLS",
        value_name = "N",
        default_value = "1024",
        value_parser = at_least_two,
        hide_env_values = true
    )]
    concurrent_calls: NonZeroU32,
    /// Memory for messages of gRPC calls that arrive or are worked on, at least 32MiB, of which a
    /// workspace has half at most; as much again for the bodies of calls over REST
    #[arg(
        long,
        env = "MUSTER_MESSAGE_MEMORY",
        value_name = "SIZE",
        default_value = "256MiB",
        value_parser = crate::size::enough_for_messages,
        hide_env_values = true
    )]
    message_memory: usize,
    /// How long an import may rest before it expires
    #[arg(
        long,
        env = "MUSTER_IMPORT_EXPIRY",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = crate::when::duration,
        hide_env_values = true
    )]
    import_expiry: std::time::Duration,
    /// How long a resolution is kept
    #[arg(
        long,
        env = "MUSTER_RESOLUTION_RETENTION",
        value_name = "DURATION",
        default_value = "7d",
        value_parser = crate::when::duration,
        hide_env_values = true
    )]
    resolution_retention: std::time::Duration,
    /// How long former versions of cohorts can be looked into
    #[arg(
        long,
        env = "MUSTER_HISTORY_RETENTION",
        value_name = "DURATION",
        default_value = "400d",
        value_parser = crate::when::duration,
        hide_env_values = true
    )]
    history_retention: std::time::Duration,
    /// How long open calls may go on once Muster was told to stop
    #[arg(
        long,
        env = "MUSTER_GRACE",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = crate::when::duration,
        hide_env_values = true
    )]
    grace: std::time::Duration,
    /// How long a client may leave an open stream unread, or say nothing on it; at least 1s
    #[arg(
        long,
        env = "MUSTER_STREAM_IDLE",
        value_name = "DURATION",
        default_value = "2m",
        value_parser = crate::when::positive_duration,
        hide_env_values = true
    )]
    stream_idle: std::time::Duration,
    /// Memory for the identifiers of users, over all workspaces; 0 matches in the database alone
    #[arg(
        long,
        env = "MUSTER_IDENTITY_MEMORY",
        value_name = "SIZE",
        default_value = "2GiB",
        value_parser = crate::size::bytes,
        hide_env_values = true
    )]
    identity_memory: usize,
    /// Serve gRPC reflection
    #[arg(long, env = "MUSTER_REFLECTION", hide_env_values = true)]
    reflection: bool,
}

/// Half of one call would be none.
fn at_least_two(text: &str) -> std::result::Result<NonZeroU32, String> {
    match text.parse() {
        Ok(number @ 2..) => Ok(NonZeroU32::new(number).expect("it is two or more")),
        _ => Err("must be a number, 2 or more".to_owned()),
    }
}

const GRPC_PORT: u16 = 7410;
const REST_PORT: u16 = 7411;
const CONSOLE_PORT: u16 = 7412;

impl ServingArgs {
    /// The settings of a process that serves these.
    pub(crate) fn settings(&self, servers: BTreeSet<Server>) -> Settings {
        let defaults = Settings::default();
        Settings {
            servers,
            reflection: self.reflection,
            rest_public_url: self.rest_public_url.clone(),
            rest_requests_per_hour: self.rest_requests_per_hour,
            identity: muster_identity::Settings {
                memory_bytes: self.identity_memory,
                ..defaults.identity
            },
            ingest: muster_ingest::Settings {
                import_expiry: self.import_expiry,
                history_retention: self.history_retention,
                idle_timeout: self.stream_idle,
                ..defaults.ingest
            },
            resolution_retention: self.resolution_retention,
            stream_idle: self.stream_idle,
            limits: self.connections.limits(self.grace),
            attempts: attempts::Settings {
                per_minute: self.failed_attempts,
                uncounted_from: self.uncounted_addresses.clone(),
            },
            traffic: traffic::Settings {
                calls_per_second: self.calls_per_second,
                workspace_calls_per_second: self.workspace_calls_per_second,
                identifiers_per_second: self.identifiers_per_second,
                workspace_identifiers_per_second: self.workspace_identifiers_per_second,
                concurrent_calls: self.concurrent_calls,
                message_bytes: self.message_memory,
            },
            upstream: None,
        }
    }

    /// TLS of a listener; only gRPC asks clients for a certificate, as partners have none.
    fn tls(&self, protocol: Protocol) -> Result<Option<Tls>> {
        let (Some(certificate), Some(key)) = (&self.server_cert, &self.server_key) else {
            return Ok(None);
        };
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: match protocol {
                Protocol::Http2 => self.client_ca.clone(),
                Protocol::Http1 => None,
            },
        };
        let tls = Tls::load(files, protocol);
        tls.map(Some)
            .map_err(|error| CliError::Failed(error.to_string()))
    }

    /// Binds an address, and says how it is spoken to.
    async fn listen(
        &self,
        address: Option<SocketAddr>,
        default_port: u16,
        protocol: Protocol,
    ) -> Result<Listener> {
        let tls = self.tls(protocol)?;
        if let Some(address) = address
            && tls.is_none()
            && !self.insecure
            && !address.ip().to_canonical().is_loopback()
        {
            return Err(CliError::Usage(format!(
                "others can listen in on {address}: give --server-cert and --server-key, or \
                 --insecure if a proxy with TLS is in front or the network is trusted"
            )));
        }
        let listener = bind(address, default_port).await?;
        Ok(Listener::from(listener).with_tls(tls))
    }

    /// Binds what these servers listen on.
    pub(crate) async fn bind(&self, servers: &BTreeSet<Server>) -> Result<Listeners> {
        let grpc = servers.iter().any(|server| !server.is_client());
        let rest = servers.contains(&Server::Bridge);
        let console = servers.contains(&Server::Console);
        Ok(Listeners {
            grpc: match grpc {
                true => Some(
                    self.listen(self.grpc_listen, GRPC_PORT, Protocol::Http2)
                        .await?,
                ),
                false => None,
            },
            rest: match rest {
                true => Some(
                    self.listen(self.rest_listen, REST_PORT, Protocol::Http1)
                        .await?,
                ),
                false => None,
            },
            console: match console {
                true => Some(
                    self.listen(self.console_listen, CONSOLE_PORT, Protocol::Http1)
                        .await?,
                ),
                false => None,
            },
        })
    }
}

async fn bind(address: Option<SocketAddr>, default_port: u16) -> Result<TcpListener> {
    let failed = |address: SocketAddr, error: std::io::Error| {
        CliError::Failed(format!("cannot listen on {address}: {error}"))
    };
    if let Some(address) = address {
        let listener = TcpListener::bind(address).await;
        return listener.map_err(|error| failed(address, error));
    }
    let usual = SocketAddr::from(([127, 0, 0, 1], default_port));
    if let Ok(listener) = TcpListener::bind(usual).await {
        return Ok(listener);
    }
    remark(&format!("port {default_port} is taken; using a free one"));
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = TcpListener::bind(free).await;
    listener.map_err(|error| failed(free, error))
}

impl Serve {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        muster_service::telemetry::init();
        let mut signals = Signals::listen()?;
        let servers: BTreeSet<Server> = self.servers.iter().copied().collect();
        let mut settings = self.serving.settings(servers.clone());
        let mut database = None;
        if servers.iter().any(|server| !server.is_client()) {
            let opened = tokio::select! {
                opened = Database::open(&self.database, global) => opened?,
                () = signals.next() => return Ok(()),
            };
            let checked = tokio::select! {
                checked = check(&opened.store, &servers) => Some(checked),
                () = signals.next() => None,
            };
            let Some(Ok(())) = checked else {
                let closed = opened.close(&mut signals).await;
                checked.transpose()?;
                return closed;
            };
            database = Some(opened);
        } else {
            let endpoint = global.endpoint().map_err(CliError::from)?;
            settings.upstream = Some(global.connect(&endpoint, None)?);
        }
        let store = database.as_ref().map(|database| database.store.clone());
        if let Some(store) = &store {
            deployment::warm_up(store, &servers).await;
        }
        let listeners = self.serving.bind(&servers).await?;
        output::ready(global.output, &listeners, None)?;
        let shutdown = CancellationToken::new();
        let ended = serve(
            settings,
            store,
            listeners,
            &mut signals,
            &mut database,
            &shutdown,
        )
        .await;
        if let Some(database) = database {
            database.close(&mut signals).await?;
        }
        ended
    }
}

/// Runs servers until a signal asks them to end, or something they need is gone for good.
pub(crate) async fn serve(
    settings: Settings,
    store: Option<Store>,
    listeners: Listeners,
    signals: &mut Signals,
    database: &mut Option<Database>,
    shutdown: &CancellationToken,
) -> Result<()> {
    let mut running = std::pin::pin!(deployment::run(
        settings,
        store,
        listeners,
        shutdown.clone()
    ));
    let database_failed = async {
        match database {
            Some(database) => database.failed().await,
            None => std::future::pending().await,
        }
    };
    let told = tokio::select! {
        ended = &mut running => return ended.map_err(failed),
        () = signals.next() => Ok(()),
        error = database_failed => Err(error),
    };
    tracing::info!("stopping; a second signal does not wait");
    shutdown.cancel();
    tokio::select! {
        ended = running => told.and(ended.map_err(failed)),
        () = signals.next() => {
            // Not to be closed in order any more: this stops a private Postgres at once.
            drop(database.take());
            Err(CliError::stopped_at_once())
        }
    }
}

fn failed(failure: Failure) -> CliError {
    CliError::Failed(failure.to_string())
}

/// Makes sure that the servers find the schema they know and can act in their roles.
async fn check(store: &Store, servers: &BTreeSet<Server>) -> Result<()> {
    store.check_schema().await?;
    let roles = servers.iter().filter_map(|server| server.role());
    for role in roles.chain([Role::Access, Role::Directory, Role::Housekeeping]) {
        store.acting_as(role).check_role().await?;
    }
    Ok(())
}
