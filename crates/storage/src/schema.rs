//! The schema version: migrating, and refusing to run on a schema this build does not know.

use std::collections::BTreeMap;

use muster_domain::error::{Error, Kind};
use sqlx::{
    Connection as _, PgConnection,
    migrate::{Migrate, MigrateError, Migrator},
};

use crate::{Result, Store, roles};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// What a migration changes on the way: nothing is too long for it, but nobody is kept waiting for
/// it either. If the migrator is killed, its session ends with it.
const SESSION: [(&str, &str); 2] = [
    ("statement_timeout", "0"),
    ("client_connection_check_interval", "1000"),
];

impl Store {
    /// Brings the schema up to the version of this build, and grants the roles of the servers what
    /// they may do on it. Two migrators at once do no harm: one waits for the other, as long as that
    /// takes. Returns the versions it applied. Dropping the future ends it; a migration that was
    /// begun is then not applied.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`SCHEMA_VERSION`) if the schema is newer than this build or an applied
    /// migration is not the one this build knows; (`MIGRATION_FAILED`) if one does not apply;
    /// (`ROLES_MISSING`) if the roles of the servers need an administrator.
    pub async fn migrate(&self) -> Result<Vec<i64>> {
        let mut connection = self.dial(&SESSION).await?;
        // While a statement waits for a table, whoever wants that table waits behind it: for that
        // the limit of all sessions holds, but not for another migrator.
        sqlx::raw_sql("SET lock_timeout = 0")
            .execute(&mut connection)
            .await?;
        connection.lock().await.map_err(migration_failed)?;
        sqlx::raw_sql("RESET lock_timeout")
            .execute(&mut connection)
            .await?;
        let before = applied(&mut connection).await?;
        known(&before)?;
        roles::create(&mut connection).await?;
        // This takes the lock once more, which a session may.
        MIGRATIONS
            .run_direct(None, &mut connection, false)
            .await
            .map_err(migration_failed)?;
        roles::grant(&mut connection).await?;
        let after = applied(&mut connection).await?;
        // The lock ends with the session.
        connection.close().await?;
        Ok(after
            .into_keys()
            .filter(|version| !before.contains_key(version))
            .collect())
    }

    /// Makes sure that the schema is the one of this build.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`SCHEMA_VERSION`) with what to do about it.
    pub async fn check_schema(&self) -> Result<()> {
        let mut connection = self.dial(&[]).await?;
        let applied = applied(&mut connection).await?;
        connection.close().await?;
        known(&applied)?;
        let expected = newest();
        match applied.keys().max() {
            Some(&found) if found == expected => Ok(()),
            found => Err(wrong_version(format!(
                "the database schema is at version {}, this build needs {expected}: run `muster migrate`",
                found.copied().unwrap_or_default(),
            ))
            .into()),
        }
    }
}

/// Versions and checksums of the migrations that were applied.
async fn applied(connection: &mut PgConnection) -> Result<BTreeMap<i64, Vec<u8>>> {
    let migrated =
        sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "migrated!""#)
            .fetch_one(&mut *connection)
            .await?;
    if !migrated {
        return Ok(BTreeMap::new());
    }
    let applied = connection
        .list_applied_migrations("_sqlx_migrations")
        .await
        .map_err(|cause| match cause {
            MigrateError::Execute(cause) => crate::Error::from(cause),
            other => Error::internal(other).into(),
        })?;
    Ok(applied
        .into_iter()
        .map(|migration| (migration.version, migration.checksum.into_owned()))
        .collect())
}

fn migration_failed(cause: MigrateError) -> Error {
    let text = "the database could not be migrated";
    let mut error = Error::new(Kind::FailedPrecondition, "MIGRATION_FAILED", text);
    error.source = Some(cause.into());
    error
}

/// Refuses migrations, as version and checksum, that this build does not know: those of a backup,
/// before it is restored.
///
/// # Errors
/// `FAILED_PRECONDITION` (`SCHEMA_VERSION`).
pub fn check_known(applied: &[(i64, Vec<u8>)]) -> Result<()> {
    known(&applied.iter().cloned().collect())
}

fn newest() -> i64 {
    MIGRATIONS
        .iter()
        .map(|migration| migration.version)
        .max()
        .expect("there are migrations")
}

/// Refuses a schema that a newer or a different build has written.
fn known(applied: &BTreeMap<i64, Vec<u8>>) -> Result<()> {
    for (version, checksum) in applied {
        match MIGRATIONS.iter().find(|known| known.version == *version) {
            Some(known) if known.checksum.as_ref() == checksum => {}
            Some(_) => {
                return Err(wrong_version(format!(
                    "migration {version} of the database schema is not the one this build knows"
                ))
                .into());
            }
            None => {
                return Err(wrong_version(format!(
                    "the database schema is at version {version}, this build knows up to {}: run a newer build",
                    newest()
                ))
                .into());
            }
        }
    }
    Ok(())
}

fn wrong_version(message: String) -> Error {
    Error::new(Kind::FailedPrecondition, "SCHEMA_VERSION", message)
}

/// Name of the database in a private cluster.
pub const DATABASE: &str = "muster";

/// Creates the database [`DATABASE`] in a cluster unless it is there; `maintenance` is the URL of
/// any other database of the cluster.
///
/// # Errors
/// If the cluster is out of reach.
pub async fn create_database(maintenance: &str) -> Result<()> {
    let mut connection = PgConnection::connect(maintenance).await?;
    let exists = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS "exists!""#,
        DATABASE,
    )
    .fetch_one(&mut connection)
    .await?;
    if !exists {
        sqlx::raw_sql("CREATE DATABASE muster")
            .execute(&mut connection)
            .await?;
    }
    connection.close().await?;
    Ok(())
}
