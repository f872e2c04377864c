//! The audit trail: who changed what.

use muster_domain::error::Result;
use muster_service::Page;
use muster_storage::{
    Connection, Timestamp, WorkspaceId,
    audit::{self, Event},
};

/// The events to list.
#[derive(Debug)]
pub(crate) struct Window {
    /// At or after this moment.
    pub(crate) start: Option<Timestamp>,
    /// Before this moment.
    pub(crate) end: Option<Timestamp>,
}

/// A page of events, newest first: of one workspace, or of the whole deployment.
///
/// # Errors
/// If the database fails.
pub(crate) async fn list(
    conn: &mut Connection,
    workspace: Option<WorkspaceId>,
    window: &Window,
    page: &Page<i64>,
) -> Result<(Vec<Event>, String)> {
    let (start, end) = (window.start, window.end);
    let mut found = audit::list(conn, workspace, start, end, page.after, page.limit()).await?;
    let next = page.cut(&mut found, |last| last.event_id);
    Ok((found, next))
}
