//! `muster key`: data import keys.

use std::time::Duration;

use muster_domain::network::Network;
use muster_proto::keys::v1 as pb;
use prost_types::Timestamp;

use crate::{
    error::{CliError, Result, required},
    output::{Noun, remark},
    page::Limit,
    session::{Session, request_id},
    when,
};

/// The verbs of `muster key`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Key {
    /// Create a key for a partner; its secret is shown once
    Create {
        /// Slug of the partner, enabled for the workspace
        #[arg(long)]
        partner: String,
        /// What to call it
        #[arg(long, default_value = "", hide_default_value = true)]
        label: String,
        /// When it stops being accepted: a time, a date, or from now such as 90d [default: never]
        #[arg(long, value_name = "WHEN", value_parser = when::ahead)]
        expires: Option<Timestamp>,
        /// Accept it only from these addresses or networks, such as 192.0.2.0/24; repeatable [default: from everywhere]
        #[arg(long = "allow-from", value_name = "NETWORK")]
        allow_from: Vec<Network>,
    },
    /// List the keys of the workspace, newest first
    List {
        /// Only this partner's
        #[arg(long, default_value = "", hide_default_value = true)]
        partner: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show one key
    Show(KeyName),
    /// Revoke a key: nothing sent with it is published from then on
    Revoke(KeyName),
    /// Say from where a key is accepted; also for what is open with it
    Restrict {
        #[command(flatten)]
        key: KeyName,
        #[command(flatten)]
        from: AllowedFrom,
    },
    /// Create a successor; both keys are accepted until the overlap ends
    Rotate {
        #[command(flatten)]
        key: KeyName,
        /// How long the old key stays accepted, up to 30d [default: 24h]
        #[arg(long, value_name = "DURATION", value_parser = when::duration)]
        overlap: Option<Duration>,
    },
}

/// Names a key.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyName {
    /// Id of the key
    #[arg(value_name = "KEY_ID")]
    key_id: String,
    /// Refuse if the key is not this partner's
    #[arg(long)]
    partner: Option<String>,
}

/// From where a credential is accepted from now on.
#[derive(Debug, clap::Args)]
#[group(required = true)]
pub(crate) struct AllowedFrom {
    /// Only from these addresses or networks, such as 192.0.2.0/24; repeatable
    #[arg(long, value_name = "NETWORK", conflicts_with = "anywhere")]
    allow_from: Vec<Network>,
    /// From everywhere
    #[arg(long)]
    anywhere: bool,
}

impl AllowedFrom {
    /// As the contract has it: none means everywhere.
    pub(crate) fn networks(&self) -> Vec<String> {
        self.allow_from.iter().map(Network::to_string).collect()
    }
}

impl Key {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Create {
                partner,
                label,
                expires,
                allow_from,
            } => {
                let request = pb::CreateKeyRequest {
                    workspace: session.workspace()?,
                    partner,
                    label,
                    expire_time: expires,
                    request_id: request_id(),
                    allowed_addresses: allow_from.iter().map(Network::to_string).collect(),
                };
                create(session, request).await
            }
            Self::List { partner, limit } => list(session, partner, limit).await,
            Self::Show(key) => {
                let key = find(session, &key).await?;
                session.output.show(&key)
            }
            Self::Revoke(key) => revoke(session, key).await,
            Self::Restrict { key, from } => restrict(session, key, &from).await,
            Self::Rotate { key, overlap } => rotate(session, key, overlap).await,
        }
    }
}

async fn create(session: &Session, request: pb::CreateKeyRequest) -> Result<()> {
    let mut client = session.connection.keys();
    let created = session
        .call(async || client.create_key(request.clone()).await)
        .await?;
    let key = required(created.key)?;
    session.output.show_secret(&key, &created.secret, &[])
}

async fn list(session: &Session, partner: String, limit: Limit) -> Result<()> {
    let workspace = session.workspace()?;
    let mut client = session.connection.keys();
    let keys = limit
        .collect(async |page_size, page_token| {
            let request = pb::ListKeysRequest {
                workspace: workspace.clone(),
                partner: partner.clone(),
                page_size,
                page_token,
            };
            let page = session
                .call(async || client.list_keys(request.clone()).await)
                .await?;
            Ok((page.keys, page.next_page_token))
        })
        .await?;
    session.output.list(&keys)
}

async fn find(session: &Session, name: &KeyName) -> Result<pb::DataImportKey> {
    let request = pb::GetKeyRequest {
        workspace: session.workspace()?,
        key_id: name.key_id.clone(),
    };
    let mut client = session.connection.keys();
    let found = session
        .call(async || client.get_key(request.clone()).await)
        .await?;
    let key = required(found.key)?;
    match &name.partner {
        Some(partner) if *partner != key.partner => Err(CliError::Failed(format!(
            "key {} belongs to partner {}, not to {partner}",
            key.key_id, key.partner
        ))),
        _ => Ok(key),
    }
}

/// Looks at the key first where a partner was given: the contract does not ask for it.
async fn check_partner(session: &Session, name: &KeyName) -> Result<()> {
    if name.partner.is_some() {
        find(session, name).await?;
    }
    Ok(())
}

async fn revoke(session: &Session, name: KeyName) -> Result<()> {
    check_partner(session, &name).await?;
    let request = pb::RevokeKeyRequest {
        workspace: session.workspace()?,
        key_id: name.key_id,
        request_id: request_id(),
    };
    let mut client = session.connection.keys();
    let revoked = session
        .call(async || client.revoke_key(request.clone()).await)
        .await?;
    session.output.show(&required(revoked.key)?)
}

async fn restrict(session: &Session, name: KeyName, from: &AllowedFrom) -> Result<()> {
    check_partner(session, &name).await?;
    let request = pb::RestrictKeyRequest {
        workspace: session.workspace()?,
        key_id: name.key_id,
        allowed_addresses: from.networks(),
        request_id: request_id(),
    };
    let mut client = session.connection.keys();
    let restricted = session
        .call(async || client.restrict_key(request.clone()).await)
        .await?;
    session.output.show(&required(restricted.key)?)
}

async fn rotate(session: &Session, name: KeyName, overlap: Option<Duration>) -> Result<()> {
    check_partner(session, &name).await?;
    let request = pb::RotateKeyRequest {
        workspace: session.workspace()?,
        key_id: name.key_id,
        overlap: overlap.map(when::wire),
        request_id: request_id(),
    };
    let mut client = session.connection.keys();
    let rotated = session
        .call(async || client.rotate_key(request.clone()).await)
        .await?;
    let key = required(rotated.key)?;
    let replaced = required(rotated.replaced_key)?.json();
    let more = [("replaced_key", replaced.clone())];
    session.output.show_secret(&key, &rotated.secret, &more)?;
    if !session.output.is_json() {
        remark(&format!(
            "the old key {} is accepted until {}",
            replaced["key_id"].as_str().unwrap_or_default(),
            when::to_the_second(replaced["expire_time"].as_str().unwrap_or_default())
        ));
    }
    Ok(())
}
