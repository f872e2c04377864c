//! `muster migrate`: brings the database schema up to the version of this build.

use std::path::PathBuf;

use muster_storage::Store;

use crate::{
    command::up::operator_token,
    database::{Database, DatabaseArgs},
    error::Result,
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
        let database = Database::open(&self.database, global).await?;
        let migrated = self.migrate(&database.store).await;
        database.close(&mut Signals::listen()?).await?;
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
