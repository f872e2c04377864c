//! `muster migrate`: brings the database schema up to the version of this build.

use crate::{
    database::{Database, DatabaseArgs},
    error::Result,
    global::Global,
    output,
};

/// Which database to migrate.
#[derive(Debug, clap::Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    database: DatabaseArgs,
}

impl Migrate {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let database = Database::open(&self.database, global).await?;
        let applied = database.store.migrate().await;
        database.close().await?;
        let applied = applied?;
        output::migrated(global.output, &applied)
    }
}
