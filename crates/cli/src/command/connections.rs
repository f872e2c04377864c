//! The flags that bound what connections may cost, on each listener.

use std::{num::NonZeroUsize, time::Duration};

use muster_listener::Limits;

use crate::when::positive_duration;

/// What connections may cost.
#[derive(Debug, clap::Args)]
pub(crate) struct ConnectionArgs {
    /// Connections at once, on each listener
    #[arg(
        long,
        env = "MUSTER_MAX_CONNECTIONS",
        value_name = "N",
        default_value = "1024",
        hide_env_values = true
    )]
    max_connections: NonZeroUsize,
    /// Connections at once from one address, on each listener [default: as many as there may be]
    #[arg(
        long,
        env = "MUSTER_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "N",
        hide_env_values = true
    )]
    max_connections_per_address: Option<NonZeroUsize>,
    /// How old a connection becomes before its peer is told to make another; open calls may then go on for as long again
    #[arg(
        long,
        env = "MUSTER_CONNECTION_AGE",
        value_name = "DURATION",
        default_value = "1h",
        value_parser = positive_duration,
        hide_env_values = true
    )]
    connection_age: Duration,
    /// How long a TLS handshake may take
    #[arg(
        long,
        env = "MUSTER_HANDSHAKE_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = positive_duration,
        hide_env_values = true
    )]
    handshake_timeout: Duration,
    /// How long the head of a request may take, and over HTTP/1 the silence between two
    #[arg(
        long,
        env = "MUSTER_HEADER_TIMEOUT",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = positive_duration,
        hide_env_values = true
    )]
    header_timeout: Duration,
    /// How long the message of a call that is no stream may take to arrive, over REST 8s at most, and how long a reader over HTTP/1 may take nothing of its answer
    #[arg(
        long,
        env = "MUSTER_REQUEST_TIMEOUT",
        value_name = "DURATION",
        default_value = "1m",
        value_parser = positive_duration,
        hide_env_values = true
    )]
    request_timeout: Duration,
    /// After which silence a gRPC peer is probed, and how long it then has to answer
    #[arg(
        long,
        env = "MUSTER_KEEPALIVE",
        value_name = "DURATION",
        default_value = "20s",
        value_parser = positive_duration,
        hide_env_values = true
    )]
    keepalive: Duration,
}

impl ConnectionArgs {
    /// The limits, with the time that calls have at a shutdown.
    pub(crate) fn limits(&self, shutdown_grace: Duration) -> Limits {
        let max_connections = self.max_connections.get();
        Limits {
            max_connections,
            max_connections_per_address: self
                .max_connections_per_address
                .map_or(max_connections, NonZeroUsize::get),
            handshake_timeout: self.handshake_timeout,
            header_timeout: self.header_timeout,
            body_timeout: self.request_timeout,
            connection_age: self.connection_age,
            connection_grace: self.connection_age,
            shutdown_grace,
            keepalive: self.keepalive,
            ..Limits::default()
        }
    }
}
