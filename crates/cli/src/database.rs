//! The database a server runs on: one the operator names, or a private one in the data directory.

use std::{path::PathBuf, time::Duration};

use muster_launcher::{Cluster, Config};
use muster_storage::{Settings, Store, schema};

use crate::{
    error::{CliError, Result},
    global::Global,
    output::remark,
    postgres_tools::Target,
    signals::Signals,
};

/// Which database to use.
#[derive(Debug, clap::Args)]
pub(crate) struct PlaceArgs {
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
}

impl PlaceArgs {
    /// The URL given; an empty variable counts as none.
    fn url(&self) -> Option<&str> {
        self.database_url.as_deref().filter(|url| !url.is_empty())
    }
}

/// Which database a server uses, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct DatabaseArgs {
    #[command(flatten)]
    place: PlaceArgs,
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
        let (url, cluster) = match args.place.url() {
            Some(url) => (url.to_owned(), None),
            None => {
                let cluster = start(&args.place, global).await?;
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

/// A database as Postgres' own programs work with it, whole.
pub(crate) struct Place {
    pub(crate) store: Store,
    pub(crate) target: Target,
    pg_bin: Option<PathBuf>,
    cluster: Option<Cluster>,
}

impl Place {
    /// A database with something in it, which servers may be using: the one named, or the private
    /// one, started if nobody runs it.
    pub(crate) async fn existing(args: &PlaceArgs, global: &Global) -> Result<Self> {
        if let Some(url) = args.url() {
            return Self::at(url, args, None);
        }
        let directory = global.data_dir();
        if !muster_launcher::has_cluster(&directory) {
            return Err(CliError::Failed(format!(
                "there is no private Postgres in {}: name the data directory (--data-dir) or the \
                 database (--database-url)",
                directory.display()
            )));
        }
        match Cluster::start(config(args, global)).await {
            Ok(cluster) => Self::at(&cluster.url(schema::DATABASE), args, Some(cluster)),
            Err(muster_launcher::Error::InUse { .. }) => {
                let url = muster_launcher::url(&directory, schema::DATABASE).map_err(failed)?;
                Self::at(&url, args, None)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The database named, or the private one, made if it is not there and started; nobody else may
    /// run it.
    pub(crate) async fn exclusive(args: &PlaceArgs, global: &Global) -> Result<Self> {
        match args.url() {
            Some(url) => Self::at(url, args, None),
            None => {
                let cluster = start(args, global).await?;
                Self::at(&cluster.url(schema::DATABASE), args, Some(cluster))
            }
        }
    }

    fn at(url: &str, args: &PlaceArgs, cluster: Option<Cluster>) -> Result<Self> {
        let settings = Settings {
            max_connections: 2,
            // Nobody is kept waiting by it, and all of a large database is to be read.
            statement_timeout: Duration::ZERO,
            ..Settings::new(url)
        };
        Ok(Self {
            store: Store::connect(&settings)?,
            target: Target::new(url),
            pg_bin: args.pg_bin.clone(),
            cluster,
        })
    }

    /// One of Postgres' programs, fit for a server of this major version.
    pub(crate) fn tool(&self, name: &str, server: u32) -> Result<PathBuf> {
        muster_launcher::client_program(name, self.pg_bin.as_deref(), server).map_err(failed)
    }

    /// Closes the connections and stops the private cluster, if it was started here.
    pub(crate) async fn close(self, signals: &mut Signals) -> Result<()> {
        let (store, cluster) = (self.store, self.cluster);
        Database { store, cluster }.close(signals).await
    }
}

fn config(args: &PlaceArgs, global: &Global) -> Config {
    Config {
        pg_bin: args.pg_bin.clone(),
        ..Config::new(global.data_dir())
    }
}

async fn start(args: &PlaceArgs, global: &Global) -> Result<Cluster> {
    let directory = global.data_dir();
    remark(&format!(
        "starting a private Postgres in {}",
        directory.display()
    ));
    let cluster = Cluster::start(config(args, global)).await.map_err(failed)?;
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
