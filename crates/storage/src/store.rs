//! The pools of connections, and transactions that have a name.
//!
//! A server acts in a [`Role`] of its own, which may do little, and says of each transaction which
//! workspace it is about: row-level security shows it that one. Who forgets to say sees nothing.

use std::{
    collections::HashMap,
    io,
    ops::{Deref, DerefMut},
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use muster_domain::error::Kind;
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::runtime::Handle;

use crate::{
    Error, Result, Role, WorkspaceId,
    directory::DirectoryCache,
    roles,
    share::{Held, Shares},
    versions::CohortCache,
};

/// How a server uses the database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `postgres://…`
    pub url: String,
    /// Most connections held at once by the work of each server; four more look credentials up.
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

/// The database of a deployment, in one role; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    /// Of the connections in the pool.
    shares: Shares,
    pools: Arc<Pools>,
    directories: DirectoryCache,
    cohorts: CohortCache,
}

/// A pool for each role that was asked for.
#[derive(Debug)]
struct Pools {
    settings: Settings,
    options: PgConnectOptions,
    /// For short statements that wait for nobody, so that work which holds all of another pool,
    /// waiting for one lock, does not keep everybody out.
    credentials: PgPool,
    roles: Mutex<HashMap<Option<Role>, (PgPool, Shares)>>,
}

impl Store {
    /// Prepares the pools; connections are made when they are needed, so a server starts, and says
    /// what is wrong, also while the database is away. It acts as whoever the URL names, as
    /// migrations do; for servers there is [`acting_as`](Self::acting_as).
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
        let access = PgConnectOptions::clone(&options).options([("role", Role::Access.name())]);
        let pools = Pools {
            credentials: pool(settings, CREDENTIAL_CONNECTIONS, 1, access),
            settings: settings.clone(),
            options,
            roles: Mutex::default(),
        };
        let (pool, shares) = pools.of(None);
        Ok(Self {
            pool,
            shares,
            pools: Arc::new(pools),
            directories: DirectoryCache::default(),
            cohorts: CohortCache::default(),
        })
    }

    /// The same database in a role. Its connections begin in that role and come back to it, and
    /// each role has a pool of its own, so that no server takes the connections of another.
    #[must_use]
    pub fn acting_as(&self, role: Role) -> Self {
        let (pool, shares) = self.pools.of(Some(role));
        Self {
            pool,
            shares,
            pools: Arc::clone(&self.pools),
            directories: self.directories.clone(),
            cohorts: self.cohorts.clone(),
        }
    }

    /// A connection outside any transaction, for single statements about control tables. What
    /// belongs to a workspace is not seen by it: see [`read_in`](Self::read_in).
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
        Ok(self.pools.credentials.acquire().await?)
    }

    /// Begins a transaction about control tables; dropping it rolls back. What belongs to a
    /// workspace is neither seen nor written by it: see [`begin_in`](Self::begin_in).
    ///
    /// # Errors
    /// `UNAVAILABLE` if no connection is free in time.
    pub async fn begin(&self, name: &'static str) -> Result<Tx> {
        self.begin_with(name, "BEGIN".to_owned(), None).await
    }

    /// Begins a transaction that sees and writes what belongs to one workspace; dropping it rolls
    /// back.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no connection is free in time.
    pub async fn begin_in(&self, name: &'static str, workspace: WorkspaceId) -> Result<Tx> {
        self.enter(name, "BEGIN", workspace).await
    }

    /// As [`begin_in`](Self::begin_in); each statement waits at most so long for a lock.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no connection is free in time.
    pub async fn begin_waiting(
        &self,
        name: &'static str,
        workspace: WorkspaceId,
        at_most: Duration,
    ) -> Result<Tx> {
        // 0 would mean for ever.
        let millis = at_most.as_millis().max(1);
        let begin = format!("BEGIN; SET LOCAL lock_timeout = {millis}");
        self.enter(name, &begin, workspace).await
    }

    /// Begins a read-only transaction about one workspace, in which each statement sees what is
    /// committed by then; dropping it ends it.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no connection is free in time.
    pub async fn read_in(&self, name: &'static str, workspace: WorkspaceId) -> Result<Tx> {
        self.enter(name, "BEGIN READ ONLY", workspace).await
    }

    /// Begins a read-only transaction in which every statement sees one and the same snapshot, of
    /// control tables.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no connection is free in time.
    pub async fn snapshot(&self, name: &'static str) -> Result<Tx> {
        self.begin_with(name, SNAPSHOT.to_owned(), None).await
    }

    /// Begins a read-only transaction in which every statement sees one and the same snapshot, of
    /// one workspace.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no connection is free in time.
    pub async fn snapshot_in(&self, name: &'static str, workspace: WorkspaceId) -> Result<Tx> {
        self.enter(name, SNAPSHOT, workspace).await
    }

    /// Begins a transaction of a clean-up, which goes through all workspaces and may little else.
    ///
    /// # Errors
    /// `UNAVAILABLE` if no connection is free in time.
    pub(crate) async fn clean_up(&self, name: &'static str) -> Result<Tx> {
        self.acting_as(Role::Housekeeping).begin(name).await
    }

    /// Begins a transaction and enters a workspace until its end. The workspace has its share of the
    /// connections and no more, so that no other finds all of them taken by it.
    async fn enter(&self, name: &'static str, begin: &str, workspace: WorkspaceId) -> Result<Tx> {
        let patience = self.pool.options().get_acquire_timeout();
        let share = tokio::time::timeout(patience, self.shares.take(workspace)).await;
        let share = share.map_err(|_| sqlx::Error::PoolTimedOut)?;
        let WorkspaceId(number) = workspace;
        let begin = format!("{begin}; SET LOCAL muster.workspace = '{number}'");
        self.begin_with(name, begin, Some(share)).await
    }

    /// Begins a transaction to the end even if nobody waits for it any more.
    ///
    /// sqlx rolls back what is dropped once it has begun. A `BEGIN` that is dropped on its way to
    /// the database it forgets: the connection would go back to the pool inside an open
    /// transaction, and whatever used it next would read an old snapshot, or write what is never
    /// committed.
    async fn begin_with(
        &self,
        name: &'static str,
        begin: String,
        share: Option<Held>,
    ) -> Result<Tx> {
        let pool = self.pool.clone();
        let begin = async move {
            let mut left = pool.size();
            let begun = loop {
                // Several statements in one round trip; what they hold is a number or a name of ours.
                match pool.begin_with(AssertSqlSafe(begin.clone())).await {
                    // Nothing was begun on it: another one will do.
                    Err(error) if was_cut(&error) && left > 0 => left -= 1,
                    begun => break begun?,
                }
            };
            Ok(Tx::new(name, begun, share))
        };
        ToTheEnd(Some(begin.boxed())).await
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

    /// What this process knows of the cohorts of its workspaces.
    pub(crate) fn cohorts(&self) -> &CohortCache {
        &self.cohorts
    }

    /// Closes all connections, waiting for those in use.
    pub async fn close(&self) {
        self.pools.close().await;
    }
}

impl Pools {
    fn of(&self, role: Option<Role>) -> (PgPool, Shares) {
        let mut roles = self.roles.lock().expect("no panic while locked");
        let of_role = roles.entry(role).or_insert_with(|| {
            let options = PgConnectOptions::clone(&self.options);
            let options = match role {
                // Of the session itself, so that it is also what a reset goes back to.
                Some(role) => options.options([("role", role.name())]),
                None => options,
            };
            let connections = self.settings.max_connections;
            let shares = Shares::halves(usize::try_from(connections).unwrap_or(usize::MAX));
            // So that the first call of a server does not wait for one to be made.
            let ready = u32::from(role.is_some());
            let pool = pool(&self.settings, connections, ready, options);
            (pool, shares)
        });
        of_role.clone()
    }

    async fn close(&self) {
        let pools: Vec<PgPool> = {
            let roles = self.roles.lock().expect("no panic while locked");
            let of_roles = roles.values().map(|(pool, _)| pool);
            let all = of_roles.chain([&self.credentials]);
            all.cloned().collect()
        };
        // Each refuses new work from here on; then those in use are waited for.
        let closing: Vec<_> = pools.iter().map(|pool| pool.close()).collect();
        for closed in closing {
            closed.await;
        }
    }
}

/// `ready` connections are kept also while nobody needs them.
fn pool(
    settings: &Settings,
    max_connections: u32,
    ready: u32,
    options: PgConnectOptions,
) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .min_connections(ready)
        .acquire_timeout(settings.acquire_timeout)
        // A connection is looked at whenever it comes back. Another look before each use would be a
        // round trip for every transaction, which copes with a dead one by itself.
        .test_before_acquire(false)
        .before_acquire(|connection, metadata| {
            Box::pin(async move {
                if metadata.idle_for > UNTRIED {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

/// A connection that was idle for longer is tried before it is used: the database may have been
/// restarted meanwhile.
const UNTRIED: Duration = Duration::from_millis(100);

const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Whether a connection was found dead: closed from afar, or ended by an administrator or a crash of
/// the database.
fn was_cut(cause: &sqlx::Error) -> bool {
    match cause {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(cause) => {
            matches!(cause.code().as_deref(), Some("57P01" | "57P02"))
        }
        _ => false,
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
    if roles::refused(&cause) {
        return roles::missing(cause);
    }
    let mut error = muster_domain::error::Error::new(
        Kind::Unavailable,
        "DATABASE_UNAVAILABLE",
        format!("no connection to the database at {place}"),
    );
    error.source = Some(cause.into());
    error
}

/// Goes on in the background if nobody waits for it any more.
///
/// To spawn it in any case would cost a wake-up of another thread for each transaction.
struct ToTheEnd<T: Send + 'static>(Option<BoxFuture<'static, T>>);

impl<T: Send + 'static> Future for ToTheEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let work = self.0.as_mut().expect("it is not polled after its end");
        let done = ready!(work.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(done)
    }
}

impl<T: Send + 'static> Drop for ToTheEnd<T> {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

/// A transaction with a name; dropping it rolls back.
#[derive(Debug)]
pub struct Tx {
    name: &'static str,
    begun: Instant,
    inner: sqlx::Transaction<'static, Postgres>,
    /// Of its workspace. Dropped after the transaction, whose connection it is for.
    _share: Option<Held>,
}

/// A transaction that takes longer is worth a line in the log.
const SLOW: Duration = Duration::from_secs(1);

impl Tx {
    fn new(
        name: &'static str,
        inner: sqlx::Transaction<'static, Postgres>,
        share: Option<Held>,
    ) -> Self {
        Self {
            _share: share,
            name,
            begun: Instant::now(),
            inner,
        }
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
