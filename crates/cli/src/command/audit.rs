//! `muster audit`.

use muster_proto::keys::v1 as pb;
use prost_types::Timestamp;

use crate::{error::Result, page::Limit, session::Session, when};

/// The verbs of `muster audit`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Audit {
    /// List who changed what, newest first; with --workspace only there
    List {
        /// Only events since then: a time, a date, or ago such as 7d
        #[arg(long, value_name = "WHEN", value_parser = when::ago)]
        since: Option<Timestamp>,
        /// Only events before then: a time, a date, or ago such as 1h
        #[arg(long, value_name = "WHEN", value_parser = when::ago)]
        until: Option<Timestamp>,
        /// List the events of every workspace, even if --workspace or MUSTER_WORKSPACE names one
        #[arg(long)]
        all_workspaces: bool,
        #[command(flatten)]
        limit: Limit,
    },
}

impl Audit {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        let Self::List {
            since,
            until,
            all_workspaces,
            limit,
        } = self;
        let workspace = session.any_workspace(all_workspaces);
        let mut client = session.connection.integrations();
        let events = limit
            .collect(async |page_size, page_token| {
                let request = pb::ListAuditEventsRequest {
                    workspace: workspace.clone(),
                    start_time: since,
                    end_time: until,
                    page_size,
                    page_token,
                };
                let page = session
                    .call(async || client.list_audit_events(request.clone()).await)
                    .await?;
                Ok((page.events, page.next_page_token))
            })
            .await?;
        session.output.list(&events)
    }
}
