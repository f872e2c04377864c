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
        /// Only actions that begin so, such as cohort. or data_import_key.revoke
        #[arg(
            long,
            value_name = "PREFIX",
            default_value = "",
            hide_default_value = true
        )]
        action: String,
        /// Only what this actor did, such as service_token:ID
        #[arg(
            long,
            value_name = "ACTOR",
            default_value = "",
            hide_default_value = true
        )]
        actor: String,
        /// Only what was done to this resource, such as cohort:PARTNER/ID
        #[arg(
            long,
            value_name = "RESOURCE",
            default_value = "",
            hide_default_value = true
        )]
        resource: String,
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
            action,
            actor,
            resource,
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
                    action_prefix: action.clone(),
                    actor: actor.clone(),
                    resource: resource.clone(),
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
