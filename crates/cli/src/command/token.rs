//! `muster token`: the credentials of internal callers.

use muster_domain::network::Network;
use muster_proto::keys::v1 as pb;
use prost_types::Timestamp;

use super::key::AllowedFrom;
use crate::{
    error::{Result, required},
    page::Limit,
    session::{Session, request_id},
    when,
};

/// The verbs of `muster token`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Token {
    /// Create a token; its secret is shown once
    Create {
        /// What to call it
        #[arg(value_name = "LABEL")]
        label: String,
        /// What it may do, such as segments:read, or * for everything; repeatable
        #[arg(long = "scope", value_name = "SCOPE", required = true)]
        scopes: Vec<String>,
        /// When it stops being accepted: a time, a date, or from now such as 90d [default: never]
        #[arg(long, value_name = "WHEN", value_parser = when::ahead)]
        expires: Option<Timestamp>,
        /// Make it work for every workspace, even if --workspace or MUSTER_WORKSPACE names one
        #[arg(long)]
        all_workspaces: bool,
        /// Accept it only from these addresses or networks, such as 192.0.2.0/24; repeatable [default: from everywhere]
        #[arg(long = "allow-from", value_name = "NETWORK")]
        allow_from: Vec<Network>,
    },
    /// List the tokens, newest first; with --workspace only those bound to it
    List {
        /// List the tokens of every workspace, even if --workspace or MUSTER_WORKSPACE names one
        #[arg(long)]
        all_workspaces: bool,
        #[command(flatten)]
        limit: Limit,
    },
    /// Say from where a token is accepted; also for what is open with it
    Restrict {
        /// Id of the token
        #[arg(value_name = "TOKEN_ID")]
        token_id: String,
        #[command(flatten)]
        from: AllowedFrom,
    },
    /// Revoke a token
    Revoke {
        /// Id of the token
        #[arg(value_name = "TOKEN_ID")]
        token_id: String,
    },
}

impl Token {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Create {
                label,
                scopes,
                expires,
                all_workspaces,
                allow_from,
            } => {
                let request = pb::CreateServiceTokenRequest {
                    workspace: session.any_workspace(all_workspaces),
                    label,
                    scopes,
                    expire_time: expires,
                    request_id: request_id(),
                    allowed_addresses: allow_from.iter().map(Network::to_string).collect(),
                };
                create(session, request).await
            }
            Self::List {
                all_workspaces,
                limit,
            } => list(session, session.any_workspace(all_workspaces), limit).await,
            Self::Restrict { token_id, from } => restrict(session, token_id, &from).await,
            Self::Revoke { token_id } => revoke(session, token_id).await,
        }
    }
}

async fn create(session: &Session, request: pb::CreateServiceTokenRequest) -> Result<()> {
    let mut client = session.connection.integrations();
    let created = session
        .call(async || client.create_service_token(request.clone()).await)
        .await?;
    let token = required(created.token)?;
    session.output.show_secret(&token, &created.secret, &[])
}

async fn list(session: &Session, workspace: String, limit: Limit) -> Result<()> {
    let mut client = session.connection.integrations();
    let tokens = limit
        .collect(async |page_size, page_token| {
            let request = pb::ListServiceTokensRequest {
                workspace: workspace.clone(),
                page_size,
                page_token,
            };
            let page = session
                .call(async || client.list_service_tokens(request.clone()).await)
                .await?;
            Ok((page.tokens, page.next_page_token))
        })
        .await?;
    session.output.list(&tokens)
}

async fn restrict(session: &Session, token_id: String, from: &AllowedFrom) -> Result<()> {
    let request = pb::RestrictServiceTokenRequest {
        token_id,
        allowed_addresses: from.networks(),
        request_id: request_id(),
    };
    let mut client = session.connection.integrations();
    let restricted = session
        .call(async || client.restrict_service_token(request.clone()).await)
        .await?;
    session.output.show(&required(restricted.token)?)
}

async fn revoke(session: &Session, token_id: String) -> Result<()> {
    let request = pb::RevokeServiceTokenRequest {
        token_id,
        request_id: request_id(),
    };
    let mut client = session.connection.integrations();
    let revoked = session
        .call(async || client.revoke_service_token(request.clone()).await)
        .await?;
    session.output.show(&required(revoked.token)?)
}
