//! The commands, a module a noun.
//!
//! A command that talks to a running Muster opens a [`Session`]; one that runs without (`up`,
//! `serve`, `migrate`, `backup`, `restore`) gets the [`Global`] flags. Adding a command is a module, a variant and an arm.

use crate::{error::Result, global::Global, session::Session};

mod audit;
mod backup;
mod cohort;
mod connections;
mod export;
mod import;
mod integration;
mod key;
mod migrate;
mod partner;
mod restore;
mod segment;
mod serve;
mod token;
mod up;
pub(crate) mod users;
mod workspace;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process, on a private Postgres
    Up(Box<up::Up>),
    /// Run some of the servers, on a database that is migrated
    Serve(Box<serve::Serve>),
    /// Bring the database schema up to the version of this build
    Migrate(migrate::Migrate),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Export(export::Export),
    /// Create and list workspaces, the tenants of a deployment
    #[command(subcommand)]
    Workspace(workspace::Workspace),
    /// Register partners, enable them for a workspace, manage their API keys
    #[command(subcommand)]
    Partner(partner::Partner),
    /// Manage data import keys, with which a partner pushes cohorts into a workspace
    #[command(subcommand)]
    Key(key::Key),
    /// Manage the service tokens of internal callers
    #[command(subcommand)]
    Token(token::Token),
    /// Show what to configure at a partner
    #[command(subcommand)]
    Integration(integration::Integration),
    /// Import, find, identify, merge and delete users
    #[command(subcommand)]
    Users(users::Users),
    /// Find, rename and archive cohorts
    #[command(subcommand)]
    Cohort(cohort::Cohort),
    /// Look into imports, confirm or abort them
    #[command(subcommand)]
    Import(import::Import),
    /// Manage segments; count, stream, compare and explain their audiences
    #[command(subcommand)]
    Segment(segment::Segment),
    /// Read who changed which credential or integration
    #[command(subcommand)]
    Audit(audit::Audit),
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        match self {
            Self::Up(command) => command.run(global).await,
            Self::Serve(command) => command.run(global).await,
            Self::Migrate(command) => command.run(global).await,
            Self::Backup(command) => command.run(global).await,
            Self::Restore(command) => command.run(global).await,
            Self::Export(command) => command.run(global).await,
            Self::Workspace(command) => command.run(&Session::open(global)?).await,
            Self::Partner(command) => command.run(&Session::open(global)?).await,
            Self::Key(command) => command.run(&Session::open(global)?).await,
            Self::Token(command) => command.run(&Session::open(global)?).await,
            Self::Integration(command) => command.run(&Session::open(global)?).await,
            Self::Users(command) => command.run(&Session::open(global)?).await,
            Self::Cohort(command) => command.run(&Session::open(global)?).await,
            Self::Import(command) => command.run(&Session::open(global)?).await,
            Self::Segment(command) => command.run(&Session::open(global)?).await,
            Self::Audit(command) => command.run(&Session::open(global)?).await,
        }
    }
}
