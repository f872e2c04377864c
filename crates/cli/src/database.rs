//! The database a server runs on: one the operator names, or a private one in the data directory.

use std::{path::PathBuf, time::Duration};

use muster_launcher::{Cluster, Config};
use muster_storage::{Settings, Store, schema};

use crate::{
    error::{CliError, Result},
    global::Global,
    output::remark,
    signals::Signals,
};

/// Which database to use.
#[derive(Debug, clap::Args)]
pub(crate) struct DatabaseArgs {
    /// Postgres to use instead of a private one, as postgres://USER:PASSWORD@HOST/DATABASE
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
    /// Directory of Postgres' programs [default: from PATH or where Debian has them]
    #[arg(
        long,
        env = "MUSTER_PG_BIN",
        value_name = "DIR",
        hide_env_values = true
    )]
    pg_bin: Option<PathBuf>,
    /// Connections to the database that each server holds at most, beside 4 for credentials
    #[arg(
        long,
        env = "MUSTER_DATABASE_CONNECTIONS",
        value_name = "N",
        default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(2..=1000),
        hide_env_values = true
    )]
    database_connections: u32,
}

/// How long connections in use may hold up the end.
const CLOSING: Duration = Duration::from_secs(2);

/// A database, with the private cluster that holds it, if any.
pub(crate) struct Database {
    pub(crate) store: Store,
    cluster: Option<Cluster>,
}

impl Database {
    /// Connects to the database named, or starts the private one.
    pub(crate) async fn open(args: &DatabaseArgs, global: &Global) -> Result<Self> {
        let (url, cluster) = match &args.database_url {
            Some(url) if !url.is_empty() => (url.clone(), None),
            _ => {
                let cluster = start(args, global).await?;
                (cluster.url(schema::DATABASE), Some(cluster))
            }
        };
        let settings = Settings {
            max_connections: args.database_connections,
            ..Settings::new(url)
        };
        let store = Store::connect(&settings)?;
        Ok(Self { store, cluster })
    }

    /// Whether the database is a private one.
    pub(crate) fn is_private(&self) -> bool {
        self.cluster.is_some()
    }

    /// Resolves when the private cluster is down for good; never for a database of the operator's,
    /// which may come back.
    pub(crate) async fn failed(&mut self) -> CliError {
        match &mut self.cluster {
            Some(cluster) => CliError::Failed(cluster.failed().await.to_string()),
            None => std::future::pending().await,
        }
    }

    /// Closes the connections and stops the private cluster; at once if there is another signal.
    pub(crate) async fn close(self, signals: &mut Signals) -> Result<()> {
        let Self { store, cluster } = self;
        let orderly = async {
            // What still works after the grace period is cut off.
            let _ = tokio::time::timeout(CLOSING, store.close()).await;
            match cluster {
                Some(cluster) => cluster.stop().await.map_err(failed),
                None => Ok(()),
            }
        };
        tokio::select! {
            closed = orderly => closed,
            () = signals.next() => Err(CliError::stopped_at_once()),
        }
    }
}

async fn start(args: &DatabaseArgs, global: &Global) -> Result<Cluster> {
    let directory = global.data_dir();
    remark(&format!(
        "starting a private Postgres in {}",
        directory.display()
    ));
    let config = Config {
        pg_bin: args.pg_bin.clone(),
        ..Config::new(directory)
    };
    let cluster = Cluster::start(config).await.map_err(failed)?;
    schema::create_database(&cluster.url("postgres")).await?;
    Ok(cluster)
}

/// How the launcher's errors are told.
pub(crate) fn failed(error: muster_launcher::Error) -> CliError {
    CliError::Failed(error.to_string())
}

impl From<muster_storage::Error> for CliError {
    fn from(error: muster_storage::Error) -> Self {
        let error = muster_domain::error::Error::from(error);
        match &error.source {
            Some(cause) => Self::Failed(format!("{error}: {cause}")),
            None => Self::Failed(error.to_string()),
        }
    }
}
