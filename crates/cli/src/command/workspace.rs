//! `muster workspace`.

use muster_proto::keys::v1 as pb;

use crate::{
    error::{Result, required},
    page::Limit,
    session::{Session, request_id},
};

/// The verbs of `muster workspace`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Workspace {
    /// Create a workspace
    Create {
        /// Its slug: 1 to 64 of a-z, 0-9, '-' and '_'; never changes
        #[arg(value_name = "SLUG")]
        slug: String,
        /// What people call it [default: the slug]
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
    },
    /// List the workspaces, by slug
    List {
        #[command(flatten)]
        limit: Limit,
    },
}

impl Workspace {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Create { slug, name } => create(session, slug, name).await,
            Self::List { limit } => list(session, limit).await,
        }
    }
}

async fn create(session: &Session, slug: String, name: String) -> Result<()> {
    let request = pb::CreateWorkspaceRequest {
        workspace: slug,
        display_name: name,
        request_id: request_id(),
    };
    let mut client = session.connection.integrations();
    let created = session
        .call(async || client.create_workspace(request.clone()).await)
        .await?;
    session.output.show(&required(created.workspace)?)
}

async fn list(session: &Session, limit: Limit) -> Result<()> {
    let mut client = session.connection.integrations();
    let workspaces = limit
        .collect(async |page_size, page_token| {
            let request = pb::ListWorkspacesRequest {
                page_size,
                page_token,
            };
            let page = session
                .call(async || client.list_workspaces(request.clone()).await)
                .await?;
            Ok((page.workspaces, page.next_page_token))
        })
        .await?;
    session.output.list(&workspaces)
}
