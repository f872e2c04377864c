//! `muster partner`, and the API keys of partners.

use muster_domain::network::Network;
use muster_proto::keys::v1 as pb;
use serde_json::json;

use crate::{
    error::{Result, required},
    page::Limit,
    session::{Session, request_id},
};

/// The verbs of `muster partner`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Partner {
    /// Register a partner with the deployment
    Create {
        /// Its slug: 1 to 64 of a-z, 0-9, '-' and '_'; stands in the REST path, never changes
        #[arg(value_name = "PARTNER")]
        partner: String,
        /// What people call it [default: the slug]
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
    },
    /// List the partners of the deployment, by slug
    List {
        #[command(flatten)]
        limit: Limit,
    },
    /// Let a partner push cohorts into the workspace
    Enable {
        /// Slug of the partner
        #[arg(value_name = "PARTNER")]
        partner: String,
    },
    /// Stop a partner from pushing into the workspace; its keys and cohorts stay
    Disable {
        /// Slug of the partner
        #[arg(value_name = "PARTNER")]
        partner: String,
    },
    /// Manage the API keys that say which partner calls the REST endpoint
    #[command(subcommand)]
    Key(ApiKey),
}

/// The verbs of `muster partner key`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ApiKey {
    /// Create an API key; its secret is shown once
    Create {
        /// Slug of the partner
        #[arg(value_name = "PARTNER")]
        partner: String,
        /// What to call it
        #[arg(long, default_value = "", hide_default_value = true)]
        label: String,
        /// Accept it only from these addresses or networks, such as 192.0.2.0/24; repeatable [default: from everywhere]
        #[arg(long = "allow-from", value_name = "NETWORK")]
        allow_from: Vec<Network>,
    },
    /// List the API keys of a partner, newest first
    List {
        /// Slug of the partner
        #[arg(value_name = "PARTNER")]
        partner: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Revoke an API key
    Revoke {
        /// Slug of the partner
        #[arg(value_name = "PARTNER")]
        partner: String,
        /// Id of the key
        #[arg(value_name = "KEY_ID")]
        key_id: String,
    },
}

impl Partner {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Create { partner, name } => create(session, partner, name).await,
            Self::List { limit } => list(session, limit).await,
            Self::Enable { partner } => enable(session, partner).await,
            Self::Disable { partner } => disable(session, partner).await,
            Self::Key(ApiKey::Create {
                partner,
                label,
                allow_from,
            }) => {
                let request = pb::CreatePartnerApiKeyRequest {
                    partner,
                    label,
                    request_id: request_id(),
                    allowed_addresses: allow_from.iter().map(Network::to_string).collect(),
                };
                create_key(session, request).await
            }
            Self::Key(ApiKey::List { partner, limit }) => list_keys(session, partner, limit).await,
            Self::Key(ApiKey::Revoke { partner, key_id }) => {
                revoke_key(session, partner, key_id).await
            }
        }
    }
}

async fn create(session: &Session, partner: String, name: String) -> Result<()> {
    let request = pb::CreatePartnerRequest {
        partner,
        display_name: name,
        request_id: request_id(),
    };
    let mut client = session.connection.integrations();
    let created = session
        .call(async || client.create_partner(request.clone()).await)
        .await?;
    session.output.show(&required(created.partner)?)
}

async fn list(session: &Session, limit: Limit) -> Result<()> {
    let mut client = session.connection.integrations();
    let partners = limit
        .collect(async |page_size, page_token| {
            let request = pb::ListPartnersRequest {
                page_size,
                page_token,
            };
            let page = session
                .call(async || client.list_partners(request.clone()).await)
                .await?;
            Ok((page.partners, page.next_page_token))
        })
        .await?;
    session.output.list(&partners)
}

async fn enable(session: &Session, partner: String) -> Result<()> {
    let request = pb::EnablePartnerRequest {
        workspace: session.workspace()?,
        partner,
        request_id: request_id(),
    };
    let mut client = session.connection.integrations();
    session
        .call(async || client.enable_partner(request.clone()).await)
        .await?;
    tell(session, &request.workspace, &request.partner, true)
}

async fn disable(session: &Session, partner: String) -> Result<()> {
    let request = pb::DisablePartnerRequest {
        workspace: session.workspace()?,
        partner,
        request_id: request_id(),
    };
    let mut client = session.connection.integrations();
    session
        .call(async || client.disable_partner(request.clone()).await)
        .await?;
    tell(session, &request.workspace, &request.partner, false)
}

fn tell(session: &Session, workspace: &str, partner: &str, enabled: bool) -> Result<()> {
    if session.output.is_json() {
        let state = json!({ "workspace": workspace, "partner": partner, "enabled": enabled });
        return session.output.json(&state);
    }
    let verb = if enabled { "enabled" } else { "disabled" };
    let line = format!("partner {partner} is {verb} for workspace {workspace}\n");
    session.output.text(&line)
}

async fn create_key(session: &Session, request: pb::CreatePartnerApiKeyRequest) -> Result<()> {
    let mut client = session.connection.integrations();
    let created = session
        .call(async || client.create_partner_api_key(request.clone()).await)
        .await?;
    let key = required(created.key)?;
    session.output.show_secret(&key, &created.secret, &[])
}

async fn list_keys(session: &Session, partner: String, limit: Limit) -> Result<()> {
    let mut client = session.connection.integrations();
    let keys = limit
        .collect(async |page_size, page_token| {
            let request = pb::ListPartnerApiKeysRequest {
                partner: partner.clone(),
                page_size,
                page_token,
            };
            let page = session
                .call(async || client.list_partner_api_keys(request.clone()).await)
                .await?;
            Ok((page.keys, page.next_page_token))
        })
        .await?;
    session.output.list(&keys)
}

async fn revoke_key(session: &Session, partner: String, key_id: String) -> Result<()> {
    let request = pb::RevokePartnerApiKeyRequest {
        partner,
        key_id,
        request_id: request_id(),
    };
    let mut client = session.connection.integrations();
    let revoked = session
        .call(async || client.revoke_partner_api_key(request.clone()).await)
        .await?;
    session.output.show(&required(revoked.key)?)
}
