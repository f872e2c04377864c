//! The audit trail: who changed what.

use muster_domain::error::Result;
use muster_service::Page;
use muster_storage::{
    Connection,
    audit::{self, Event, Filter},
};

/// A page of events, newest first.
///
/// # Errors
/// If the database fails.
pub(crate) async fn list(
    conn: &mut Connection,
    filter: Filter<'_>,
    page: &Page<i64>,
) -> Result<(Vec<Event>, String)> {
    let mut found = audit::list(conn, filter, page.after, page.limit()).await?;
    let next = page.cut(&mut found, |last| last.event_id);
    Ok((found, next))
}
