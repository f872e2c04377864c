//! The identifiers of an upload that had no effect, as a file.

use std::collections::VecDeque;

use axum::{
    body::{Body, Bytes},
    extract::Query,
    response::{IntoResponse, Response},
};
use futures::stream;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use muster_client::Connection;
use muster_proto::{
    ingest::v1::{
        Import, ListRejectedIdentifiersRequest, ListRejectedIdentifiersResponse,
        RejectedIdentifier, RejectionReason,
    },
    users::v1::{Alias, identifier::Kind},
};
use tonic::Status;

use super::{
    outcomes::last_upload,
    show::{Named, recent_imports},
    waiting,
};
use crate::{csv, problem::Problem, session::Visitor};

/// Identifiers that are asked for at a time.
const BATCH: i32 = 10_000;

/// A rejected identifier, as people read it.
pub(crate) struct Rejected {
    pub(crate) position: u64,
    /// Which sort it is; empty if it was erased.
    pub(crate) kind: &'static str,
    pub(crate) label: String,
    pub(crate) id: String,
    pub(crate) reason: &'static str,
    pub(crate) removal: bool,
}

impl From<RejectedIdentifier> for Rejected {
    fn from(rejected: RejectedIdentifier) -> Self {
        let reason = match rejected.reason() {
            RejectionReason::Unknown => "unknown",
            RejectionReason::DeviceOfIdentifiedUser => "device of an identified user",
            RejectionReason::Invalid => "malformed",
            RejectionReason::Unspecified => "",
        };
        let (kind, label, id) = match rejected.identifier.and_then(|it| it.kind) {
            Some(Kind::ExternalId(id)) => ("external id", String::new(), id),
            Some(Kind::Alias(Alias { label, name })) => ("alias", label, name),
            Some(Kind::DeviceId(id)) => ("device", String::new(), id),
            None => ("", String::new(), String::new()),
        };
        Self {
            position: rejected.position,
            kind,
            label,
            id,
            reason,
            removal: rejected.removal,
        }
    }
}

impl Rejected {
    fn line(&self, import_id: &str) -> String {
        let position = self.position.to_string();
        let effect = if self.removal { "remove" } else { "add" };
        let cells = [import_id, &position, effect, self.reason, self.kind];
        csv::line(cells.into_iter().chain([&*self.label, &*self.id]))
    }
}

/// A page of them.
pub(crate) async fn page(
    servers: &Connection,
    request: ListRejectedIdentifiersRequest,
) -> Result<ListRejectedIdentifiersResponse, Status> {
    let listed = servers.ingest().list_rejected_identifiers(request).await?;
    Ok(listed.into_inner())
}

/// Those of one import.
pub(crate) async fn of_import(
    visitor: Visitor,
    Query(named): Query<Named>,
) -> Result<Response, Problem> {
    let import = waiting::find(&visitor, &named.partner, &named.id).await?;
    Ok(download(&visitor, [import]))
}

/// Those of the last upload into a cohort.
pub(crate) async fn of_upload(
    visitor: Visitor,
    Query(named): Query<Named>,
) -> Result<Response, Problem> {
    let imports = recent_imports(&visitor, &named).await?;
    let upload = last_upload(&imports).into_iter().rev();
    Ok(download(&visitor, upload.cloned()))
}

/// A file that is made while it is read. If it breaks off, the browser is told: it never looks
/// complete.
fn download(visitor: &Visitor, imports: impl IntoIterator<Item = Import>) -> Response {
    let pending = imports
        .into_iter()
        .map(|import| ListRejectedIdentifiersRequest {
            workspace: visitor.workspace.clone(),
            partner: import.partner,
            import_id: import.import_id,
            page_size: BATCH,
            page_token: String::new(),
        });
    let head = csv::line([
        "import", "position", "effect", "reason", "kind", "label", "id",
    ]);
    let begin = (
        visitor.connection().clone(),
        Some(head),
        pending.collect::<VecDeque<_>>(),
    );
    let rows = stream::try_unfold(begin, async |(servers, head, mut pending)| {
        if let Some(head) = head {
            return Ok::<_, Status>(Some((Bytes::from(head), (servers, None, pending))));
        }
        let Some(mut request) = pending.pop_front() else {
            return Ok(None);
        };
        let listed = page(&servers, request.clone()).await?;
        let rejected = listed.identifiers.into_iter().map(Rejected::from);
        let lines: String = rejected.map(|it| it.line(&request.import_id)).collect();
        if !listed.next_page_token.is_empty() {
            request.page_token = listed.next_page_token;
            pending.push_front(request);
        }
        Ok(Some((Bytes::from(lines), (servers, None, pending))))
    });
    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8"),
        (CONTENT_DISPOSITION, "attachment; filename=\"rejected.csv\""),
    ];
    (headers, Body::from_stream(rows)).into_response()
}

#[cfg(test)]
mod tests {
    use muster_proto::users::v1::Identifier;

    use super::*;

    #[test]
    fn a_line_has_the_identifier_as_it_came_unless_it_is_a_formula() {
        let line = |kind| {
            let rejected = RejectedIdentifier {
                position: 7,
                identifier: kind,
                reason: RejectionReason::Unknown.into(),
                removal: true,
            };
            Rejected::from(rejected).line("imp,1")
        };
        let alias = Alias {
            label: "news".to_owned(),
            name: "=cmd()".to_owned(),
        };
        let alias = Identifier {
            kind: Some(Kind::Alias(alias)),
        };
        assert_eq!(
            line(Some(alias)),
            "\"imp,1\",\"7\",\"remove\",\"unknown\",\"alias\",\"news\",\"'=cmd()\"\r\n"
        );
        assert_eq!(
            line(None),
            "\"imp,1\",\"7\",\"remove\",\"unknown\",\"\",\"\",\"\"\r\n"
        );
    }
}
