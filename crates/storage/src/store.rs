//! The pools of connections, and transactions that have a name.

use std::{
    io,
    ops::{Deref, DerefMut},
    str::FromStr,
    time::{Duration, Instant},
};

use muster_domain::error::Kind;
use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{Error, Result, directory::DirectoryCache};

/// How a server uses the database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `postgres://…`
    pub url: String,
    /// Most connections held at once by work; four more look credentials up.
    pub max_connections: u32,
    /// How long a call waits for a free connection before it fails with `UNAVAILABLE`. Callers give
    /// up after 10 s, so this must be well below.
    pub acquire_timeout: Duration,
    /// How long a statement waits for a lock before it fails with `ABORTED`.
    pub lock_timeout: Duration,
    /// How long a statement may run before it fails with `UNAVAILABLE`.
    pub statement_timeout: Duration,
}

impl Settings {
    /// The defaults for a database.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 20,
            acquire_timeout: Duration::from_secs(2),
            lock_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(60),
        }
    }
}

/// Connections beside [`Settings::max_connections`] that only look credentials up.
const CREDENTIAL_CONNECTIONS: u32 = 4;

/// The database of a deployment; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    /// For short statements that wait for nobody, so that work which holds all of `pool`, waiting
    /// for one lock, does not keep everybody out.
    credentials: PgPool,
    directories: DirectoryCache,
}

impl Store {
    /// Prepares the pools; connections are made when they are needed, so a server starts, and says
    /// what is wrong, also while the database is away.
    ///
    /// # Errors
    /// If the URL is malformed.
    pub fn connect(settings: &Settings) -> Result<Self> {
        let millis = |duration: Duration| duration.as_millis().to_string();
        let options = PgConnectOptions::from_str(&settings.url)?
            .application_name("muster")
            .options([
                ("lock_timeout", millis(settings.lock_timeout)),
                ("statement_timeout", millis(settings.statement_timeout)),
                // A process that is frozen inside a transaction, or whose network is gone, holds
                // locks that others wait for. No work of ours pauses for so long.
                ("idle_in_transaction_session_timeout", "10000".to_owned()),
            ]);
        let pool = |max_connections, options| {
            PgPoolOptions::new()
                .max_connections(max_connections)
                .acquire_timeout(settings.acquire_timeout)
                .connect_lazy_with(options)
        };
        Ok(Self {
            pool: pool(settings.max_connections, options.clone()),
            credentials: pool(CREDENTIAL_CONNECTIONS, options),
            directories: DirectoryCache::default(),
        })
    }

    /// A connection outside any transaction, for single statements.
    ///
    /// # Errors
    /// `UNAVAILABLE` if none is free in time.
    pub async fn connection(&self) -> Result<PoolConnection<Postgres>> {
        Ok(self.pool.acquire().await?)
    }

    /// A connection to look credentials up with, free also while work waits for other connections.
    ///
    /// # Errors
    /// `UNAVAILABLE` if none is free in time.
    pub async fn credential_connection(&self) -> Result<PoolConnection<Postgres>> {
        Ok(self.credentials.acquire().await?)
    }

    /// Begins a transaction; dropping it rolls back.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no connection is free in time.
    pub async fn begin(&self, name: &'static str) -> Result<Tx> {
        let pool = self.pool.clone();
        begun(name, async move { pool.begin().await }).await
    }

    /// Begins a read-only transaction in which every statement sees one and the same snapshot.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no connection is free in time.
    pub async fn snapshot(&self, name: &'static str) -> Result<Tx> {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let pool = self.pool.clone();
        begun(name, async move { pool.begin_with(begin).await }).await
    }

    /// Makes a connection outside the pools, with further settings, and says why if it cannot: the
    /// pools only say that they had none in time. A database that is starting is waited for as the
    /// pools do.
    ///
    /// # Errors
    /// `UNAVAILABLE` with the place of the database and, as the source, what went wrong.
    pub(crate) async fn dial(&self, settings: &[(&str, &str)]) -> Result<PgConnection> {
        let options = self.pool.connect_options();
        let options = PgConnectOptions::clone(&options).options(settings.iter().copied());
        let patience = self.pool.options().get_acquire_timeout();
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let connecting = PgConnection::connect_with(&options);
            let cause = match tokio::time::timeout_at(deadline, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(cause)) => cause,
                Err(_) => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {patience:?}"),
                )
                .into(),
            };
            let again = tokio::time::Instant::now() + Duration::from_millis(100);
            if again >= deadline || !is_starting(&cause) {
                return Err(out_of_reach(&options, cause).into());
            }
            tokio::time::sleep_until(again).await;
        }
    }

    /// What this process knows of the directories of its workspaces.
    pub(crate) fn directories(&self) -> &DirectoryCache {
        &self.directories
    }

    /// Closes all connections, waiting for those in use.
    pub async fn close(&self) {
        tokio::join!(self.pool.close(), self.credentials.close());
    }
}

/// Whether a connection failed as it does while a database starts.
fn is_starting(cause: &sqlx::Error) -> bool {
    match cause {
        sqlx::Error::Io(cause) => matches!(
            cause.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        ),
        // "The database system is starting up"; too many connections.
        sqlx::Error::Database(cause) => {
            matches!(cause.code().as_deref(), Some("57P03" | "53300"))
        }
        _ => false,
    }
}

/// For the operator: where the database was looked for; never the password.
fn out_of_reach(options: &PgConnectOptions, cause: sqlx::Error) -> muster_domain::error::Error {
    let place = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let mut error = muster_domain::error::Error::new(
        Kind::Unavailable,
        "DATABASE_UNAVAILABLE",
        format!("no connection to the database at {place}"),
    );
    error.source = Some(cause.into());
    error
}

/// Begins a transaction to the end even if nobody waits for it any more.
///
/// sqlx rolls back what is dropped once it has begun. A `BEGIN` that is dropped on its way to the
/// database it forgets: the connection would go back to the pool inside an open transaction, and
/// whatever used it next would read an old snapshot, or write what is never committed.
async fn begun(
    name: &'static str,
    begin: impl Future<Output = sqlx::Result<sqlx::Transaction<'static, Postgres>>> + Send + 'static,
) -> Result<Tx> {
    match tokio::spawn(begin).await {
        Ok(begun) => Ok(Tx::new(name, begun?)),
        Err(error) => Err(muster_domain::error::Error::internal(error).into()),
    }
}

/// A transaction with a name; dropping it rolls back.
#[derive(Debug)]
pub struct Tx {
    name: &'static str,
    begun: Instant,
    inner: sqlx::Transaction<'static, Postgres>,
}

/// A transaction that takes longer is worth a line in the log.
const SLOW: Duration = Duration::from_secs(1);

impl Tx {
    fn new(name: &'static str, inner: sqlx::Transaction<'static, Postgres>) -> Self {
        Self {
            name,
            begun: Instant::now(),
            inner,
        }
    }

    /// Limits how long each statement of this transaction waits for a lock.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn wait_for_locks(&mut self, at_most: Duration) -> Result<()> {
        let millis = at_most.as_millis().to_string();
        sqlx::query!("SELECT set_config('lock_timeout', $1, true)", millis)
            .fetch_one(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Makes the changes durable.
    ///
    /// # Errors
    /// `UNAVAILABLE` (`COMMIT_UNKNOWN`) if the database went away before it said so: the change may
    /// or may not be durable, and asking again with the same ids tells.
    pub async fn commit(self) -> Result<()> {
        self.inner.commit().await.map_err(Error::from_commit)?;
        let took = self.begun.elapsed();
        if took > SLOW {
            tracing::warn!(transaction = self.name, ?took, "slow transaction");
        }
        Ok(())
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}
