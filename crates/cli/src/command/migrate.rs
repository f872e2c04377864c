//! `muster migrate`: brings the database schema up to the version of this build.

use crate::{
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
        let applied = tokio::select! {
            applied = database.store.migrate() => applied.map_err(CliError::from),
            () = signals.next() => Err(stopped()),
        };
        database.close().await?;
        let applied = applied?;
        output::migrated(global.output, &applied)
    }
}
