//! `muster integration`: the page a partner's data-operations team is handed.

use muster_proto::keys::v1 as pb;

use crate::{error::Result, session::Session};

/// The verbs of `muster integration`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Integration {
    /// Show whether a partner is enabled, the REST endpoint to hand to it, and its keys
    Show {
        /// Slug of the partner
        #[arg(long)]
        partner: String,
    },
}

impl Integration {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let Self::Show { partner } = self;
        let request = pb::GetIntegrationRequest {
            workspace: session.workspace()?,
            partner,
        };
        let mut client = session.connection.integrations();
        let integration = session
            .call(async || client.get_integration(request.clone()).await)
            .await?;
        session.output.show(&integration)?;
        if session.output.is_json() {
            return Ok(());
        }
        session.output.text("\n")?;
        session.output.list(&integration.keys)
    }
}
