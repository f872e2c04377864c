//! For tests only: a private Postgres for each test process, a fresh database for each test.
//!
//! The first test that asks starts the cluster and migrates a template; every database is cloned
//! from it, so tests never see each other. The cluster ends with the process, however that ends.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use muster_launcher::TemporaryCluster;
use muster_storage::{Settings, Store};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

static CLUSTER: OnceLock<TemporaryCluster> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A fresh, migrated database; returns its URL.
///
/// # Panics
/// If Postgres cannot be started; the message says why.
pub async fn database() -> String {
    clone_of("migrated").await
}

/// A fresh database without any table; returns its URL.
///
/// # Panics
/// If Postgres cannot be started; the message says why.
pub async fn empty_database() -> String {
    clone_of("template0").await
}

/// A store on a fresh, migrated database.
///
/// # Panics
/// If Postgres cannot be started; the message says why.
pub async fn store() -> Store {
    Store::connect(&Settings::new(database().await)).expect("the URL is well-formed")
}

async fn clone_of(template: &str) -> String {
    let cluster = tokio::task::spawn_blocking(|| CLUSTER.get_or_init(start))
        .await
        .expect("the cluster starts");
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    execute(
        cluster,
        &format!("CREATE DATABASE {name} TEMPLATE {template}"),
    )
    .await;
    cluster.url(&name)
}

fn start() -> TemporaryCluster {
    let cluster = TemporaryCluster::start().expect("Postgres is installed and can be started");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    runtime.block_on(async {
        execute(&cluster, "CREATE DATABASE migrated").await;
        let settings = Settings::new(cluster.url("migrated"));
        let store = Store::connect(&settings).expect("the URL is well-formed");
        store.migrate().await.expect("the migrations apply");
        // Postgres clones only a database that nobody is connected to.
        store.close().await;
    });
    cluster
}

async fn execute(cluster: &TemporaryCluster, statement: &str) {
    let mut connection = PgConnection::connect(&cluster.url("postgres"))
        .await
        .expect("the cluster accepts connections");
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(&mut connection)
        .await
        .expect("the statement is well-formed");
    connection.close().await.expect("the connection is sound");
}
