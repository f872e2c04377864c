//! For tests only: a private Postgres for each test process, a fresh database for each test.
//!
//! The first test that asks starts the cluster and migrates a template; every database is cloned
//! from it, so tests never see each other. The cluster ends with the process, however that ends.

pub mod process;

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use muster_launcher::TemporaryCluster;
use muster_storage::{Settings, Store, WorkspaceId};
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
    administer(
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
        administer(&cluster, "CREATE DATABASE migrated").await;
        let settings = Settings::new(cluster.url("migrated"));
        let store = Store::connect(&settings).expect("the URL is well-formed");
        store.migrate().await.expect("the migrations apply");
        // Postgres clones only a database that nobody is connected to.
        store.close().await;
    });
    cluster
}

async fn administer(cluster: &TemporaryCluster, statement: &str) {
    let mut connection = PgConnection::connect(&cluster.url("postgres"))
        .await
        .expect("the cluster accepts connections");
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(&mut connection)
        .await
        .expect("the statement is well-formed");
    connection.close().await.expect("the connection is sound");
}

/// Runs plain SQL, as an administrator would.
///
/// # Panics
/// If the database refuses it.
pub async fn execute(connection: &mut PgConnection, statement: &'static str) {
    sqlx::raw_sql(statement)
        .execute(connection)
        .await
        .expect("the statement is well-formed");
}

/// Runs plain SQL that answers one number.
///
/// # Panics
/// If the database refuses it or it answers something else.
pub async fn number(connection: &mut PgConnection, query: &'static str) -> i64 {
    sqlx::query_scalar(query)
        .fetch_one(connection)
        .await
        .expect("the query answers one number")
}

/// Fills a directory: users 0 to `count` are identified, with external id `u-N` and alias
/// `mail:a-N` and device `i-N`; as many more are anonymous, with device `d-N` and alias
/// `mail:b-N`.
///
/// # Panics
/// If the database refuses it.
pub async fn seed_users(connection: &mut PgConnection, workspace: WorkspaceId, count: u32) {
    for statement in [
        "UPDATE directory SET epoch = epoch + 1, next_user_no = 2 * $2::bigint WHERE workspace_id = $1",
        r"INSERT INTO directory_user
              (workspace_id, user_no, external_id, identifiers, epoch, identified_epoch)
          SELECT $1, n, 'u-' || n, E'2mail\ta-' || n || E'\n3i-' || n, 1, 1
          FROM generate_series(0, $2 - 1) n
          UNION ALL SELECT $1, $2 + n, NULL, E'2mail\tb-' || n || E'\n3d-' || n, 1, NULL
          FROM generate_series(0, $2 - 1) n",
        r"INSERT INTO user_identifier (workspace_id, key, user_no)
          SELECT $1, identifier_key(line), user_no
          FROM directory_user,
               regexp_split_to_table(concat_ws(E'\n', '1' || external_id, identifiers), E'\n') AS line
          WHERE workspace_id = $1 AND $2 > 0",
    ] {
        sqlx::query(statement)
            .bind(workspace.0)
            .bind(i64::from(count))
            .execute(&mut *connection)
            .await
            .expect("the workspace is empty");
    }
}
