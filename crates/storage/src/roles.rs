//! The roles that servers act in: what each may do, the database enforces.

use muster_domain::error::{Error, Kind};
use sqlx::{Connection as _, PgConnection};

use crate::{Result, Store};

/// What somebody may do in the database. None can log in: a connection takes one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Looks credentials up, for every server.
    Access,
    /// Writes credentials and control tables; reads the audit trail.
    Keys,
    /// Writes the user directory.
    Users,
    /// Reads the user directory, for an index of it in memory.
    Directory,
    /// Writes cohorts and imports.
    Ingest,
    /// Writes segments and resolutions.
    Segments,
    /// Deletes by age, through all workspaces.
    Housekeeping,
    /// Reads everything.
    Backup,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Access,
        Self::Keys,
        Self::Users,
        Self::Directory,
        Self::Ingest,
        Self::Segments,
        Self::Housekeeping,
        Self::Backup,
    ];

    /// Its name in Postgres.
    pub fn name(self) -> &'static str {
        match self {
            Self::Access => "muster_access",
            Self::Keys => "muster_keys",
            Self::Users => "muster_users",
            Self::Directory => "muster_directory",
            Self::Ingest => "muster_ingest",
            Self::Segments => "muster_segments",
            Self::Housekeeping => "muster_housekeeping",
            Self::Backup => "muster_backup",
        }
    }
}

impl Store {
    /// Makes the roles unless they are there, and lets whoever the URL names act in them. They
    /// belong to the whole cluster.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`ROLES_MISSING`) if that needs an administrator.
    pub async fn create_roles(&self) -> Result<()> {
        let mut connection = self.dial(&[]).await?;
        create(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// Grants the roles what they may do on the schema of this build, and nothing else.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn grant_privileges(&self) -> Result<()> {
        let mut connection = self.dial(&[]).await?;
        grant(&mut connection).await?;
        Ok(connection.close().await?)
    }

    /// Makes sure that this store can act in its role.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`ROLES_MISSING`) with what to do about it.
    pub async fn check_role(&self) -> Result<()> {
        Ok(self.dial(&[]).await?.close().await?)
    }
}

pub(crate) async fn create(conn: &mut PgConnection) -> Result<()> {
    let made = sqlx::raw_sql(include_str!("roles/roles.sql")).execute(conn);
    match made.await {
        Err(cause) if refused(&cause) => Err(missing(cause).into()),
        made => Ok(made.map(drop)?),
    }
}

/// Whether it failed because a role is not there or may not be taken on.
pub(crate) fn refused(cause: &sqlx::Error) -> bool {
    let code = cause.as_database_error().and_then(|error| error.code());
    // Invalid parameter value, insufficient privilege, undefined object.
    matches!(code.as_deref(), Some("22023" | "42501" | "42704"))
}

pub(crate) fn missing(cause: sqlx::Error) -> Error {
    let mut error = Error::new(
        Kind::FailedPrecondition,
        "ROLES_MISSING",
        "the roles of the servers are missing, or this login may not act in them: an administrator \
         has to create and grant them, see docs/operations.md",
    );
    error.source = Some(cause.into());
    error
}

pub(crate) async fn grant(conn: &mut PgConnection) -> Result<()> {
    let mut tx = conn.begin().await?;
    // Two at once would change the same rows of the catalogue.
    sqlx::raw_sql("LOCK TABLE _sqlx_migrations IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *tx)
        .await?;
    sqlx::raw_sql(include_str!("roles/privileges.sql"))
        .execute(&mut *tx)
        .await?;
    Ok(tx.commit().await?)
}
