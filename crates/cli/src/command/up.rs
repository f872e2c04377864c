//! `muster up`: everything in one process, on a private Postgres unless told otherwise.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use muster_domain::credential::{Kind, Secret};
use muster_storage::{
    Store,
    credentials::{self, State},
};
use tokio_util::sync::CancellationToken;

use crate::{
    command::serve::{ServingArgs, serve},
    database::{self, Database, DatabaseArgs},
    deployment::{self, Server},
    endpoints::Endpoints,
    error::{CliError, Result},
    global::Global,
    output::{self, remark},
    signals::Signals,
};

/// How to run everything.
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    serving: ServingArgs,
}

impl Up {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        muster_service::telemetry::init();
        let mut signals = Signals::listen()?;
        let data_dir = absolute(&global.data_dir())?;
        let database = tokio::select! {
            opened = Database::open(&self.database, global) => opened?,
            () = signals.next() => return Ok(()),
        };
        // A private Postgres has taken the directory already. Without one, too, there must not be two
        // that write the same endpoints and operator token.
        let _taken = match database.is_private() {
            true => None,
            false => Some(muster_launcher::lock(&data_dir).map_err(database::failed)?),
        };
        if database.is_private() {
            remark("Postgres is ready");
        }
        let store = database.store.clone();
        let mut database = Some(database);
        let ended = self
            .serve(global, &data_dir, store, &mut signals, &mut database)
            .await;
        // Whatever happened, later commands must not look for a Muster that is gone.
        let removed = Endpoints::remove(&data_dir);
        if let Some(database) = database {
            database.close(&mut signals).await?;
        }
        ended?;
        Ok(removed?)
    }

    async fn serve(
        &self,
        global: &Global,
        data_dir: &Path,
        store: Store,
        signals: &mut Signals,
        database: &mut Option<Database>,
    ) -> Result<()> {
        let token_file = data_dir.join("operator.token");
        // Either may have to wait for somebody else's lock, so a signal must be heard meanwhile.
        tokio::select! {
            prepared = prepare(&store, &token_file) => prepared?,
            () = signals.next() => return Ok(()),
        }
        let servers = BTreeSet::from(Server::ALL);
        deployment::warm_up(&store, &servers).await;
        let listeners = self.serving.bind(&servers).await?;
        let endpoints = Endpoints {
            grpc: listeners.grpc_url().expect("the gRPC listener is bound"),
            rest: listeners.rest_url(),
            console: listeners.console_url(),
            operator_token_file: Some(token_file.clone()),
        };
        endpoints.write(data_dir)?;
        output::ready(global.output, &listeners, Some(&token_file))?;
        let settings = self.serving.settings(servers);
        let shutdown = CancellationToken::new();
        serve(
            settings,
            Some(store),
            listeners,
            signals,
            database,
            &shutdown,
        )
        .await
    }
}

/// Brings the schema up to date and makes sure of the operator's token.
async fn prepare(store: &Store, token_file: &Path) -> Result<()> {
    let applied = store.migrate().await?;
    if !applied.is_empty() {
        remark(&format!("migrated the schema by {} steps", applied.len()));
    }
    if let Some(directory) = token_file.parent() {
        fs::create_dir_all(directory)
            .map_err(|error| CliError::Failed(format!("{}: {error}", directory.display())))?;
    }
    operator_token(store, token_file).await
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}

/// Puts the operator's token into a file, unless the one in it is still accepted.
pub(crate) async fn operator_token(store: &Store, path: &Path) -> Result<()> {
    let failed = |error| CliError::Failed(format!("{}: {error}", path.display()));
    if let Ok(text) = fs::read_to_string(path)
        && let Ok(secret) = Secret::parse(text.trim())
    {
        let mut connection = store.connection().await?;
        let found = credentials::find_by_digest(&mut connection, &secret.digest(), None).await?;
        let accepted = |found: &credentials::Credential| {
            found.kind == Kind::ServiceToken && found.state == State::Active
        };
        if found.iter().any(accepted) {
            return Ok(());
        }
    }
    let secret = muster_keys::bootstrap_operator(store)
        .await
        .map_err(|error| CliError::Failed(error.to_string()))?;
    // Written beside and renamed, so that no one reads half a token; only the owner may read it.
    let draft = path.with_extension("draft");
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&draft).map_err(failed)?;
    writeln!(file, "{}", secret.expose()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)
}
