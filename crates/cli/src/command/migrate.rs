//! `muster migrate`: brings the database schema up to the version of this build.

use std::path::PathBuf;

use muster_storage::Store;

use crate::{
    command::up::operator_token,
    database::{Database, DatabaseArgs},
    error::{CliError, Result},
    global::Global,
    output,
    signals::Signals,
};

/// Which database to migrate.
#[derive(Debug, clap::Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Also write a token that may do everything to this file, unless it holds one that is accepted
    #[arg(long, value_name = "FILE")]
    operator_token_file: Option<PathBuf>,
}

impl Migrate {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        // A private Postgres must not be left behind by Ctrl-C.
        let mut signals = Signals::listen()?;
        let stopped = || CliError::Failed("stopped; what was not applied yet is not".to_owned());
        let database = tokio::select! {
            opened = Database::open(&self.database, global) => opened?,
            () = signals.next() => return Err(stopped()),
        };
        let migrated = tokio::select! {
            migrated = self.migrate(&database.store) => migrated,
            () = signals.next() => Err(stopped()),
        };
        database.close(&mut signals).await?;
        output::migrated(global.output, &migrated?)
    }

    async fn migrate(&self, store: &Store) -> Result<Vec<i64>> {
        let applied = store.migrate().await?;
        if let Some(file) = &self.operator_token_file {
            operator_token(store, file).await?;
        }
        Ok(applied)
    }
}
