//! A replacement that waits for somebody: what it would do, and what they decide.

use axum::{
    Form,
    response::{IntoResponse, Redirect, Response},
};
use muster_client::Refusal;
use muster_proto::ingest::v1::{
    AbortImportRequest, ConfirmImportRequest, GetImportRequest, Import, ImportSummary,
};
use serde::Deserialize;

use super::{import_path, path};
use crate::{
    frame::Notice,
    problem::Problem,
    session::Visitor,
    view::{Count, Share, When},
};

/// An import that awaits confirmation.
pub(crate) struct Waiting {
    pub(crate) import: Import,
    preview: ImportSummary,
}

impl Waiting {
    pub(crate) fn new(mut import: Import) -> Self {
        Self {
            preview: import.summary.take().unwrap_or_default(),
            import,
        }
    }

    pub(crate) fn since(&self) -> When {
        When::from(&self.import.update_time)
    }

    pub(crate) fn until(&self) -> When {
        When::from(&self.import.expire_time)
    }

    pub(crate) fn before(&self) -> Count {
        Count(self.preview.members_before)
    }

    pub(crate) fn after(&self) -> Count {
        Count(self.preview.members_after)
    }

    pub(crate) fn joining(&self) -> Count {
        Count(self.preview.members_added)
    }

    pub(crate) fn leaving(&self) -> Count {
        Count(self.preview.members_removed)
    }

    pub(crate) fn share_leaving(&self) -> Share {
        Share {
            part: self.preview.members_removed,
            whole: self.preview.members_before,
        }
    }
}

/// The import named.
pub(crate) async fn find(
    visitor: &Visitor,
    partner: &str,
    import_id: &str,
) -> Result<Import, Problem> {
    let request = GetImportRequest {
        workspace: visitor.workspace.clone(),
        partner: partner.to_owned(),
        import_id: import_id.to_owned(),
    };
    let found = visitor.connection().ingest().get_import(request).await?;
    found.into_inner().import.ok_or_else(Problem::not_found)
}

#[derive(Deserialize)]
pub(crate) struct Decision {
    partner: String,
    id: String,
}

/// Publishes it, unless more people would leave by now than the person saw.
pub(crate) async fn confirm(
    visitor: Visitor,
    Form(decision): Form<Decision>,
) -> Result<Response, Problem> {
    let import = find(&visitor, &decision.partner, &decision.id).await?;
    let request = ConfirmImportRequest {
        workspace: visitor.workspace.clone(),
        partner: decision.partner.clone(),
        import_id: decision.id.clone(),
        // Deciding the same twice changes nothing by itself.
        request_id: String::new(),
    };
    let mut client = visitor.connection().ingest();
    let done = client.confirm_import(request).await;
    let notice = match done.map_err(Refusal::from) {
        Ok(done) => {
            let committed = done.into_inner().committed.unwrap_or_default();
            let summary = committed.summary.unwrap_or_default();
            Notice::good(format!(
                "The replacement is published as version {}: {} left, {} joined.",
                committed.version,
                Count(summary.members_removed),
                Count(summary.members_added),
            ))
        }
        Err(refusal) if refusal.reason == "PREVIEW_OUTDATED" => Notice::bad(
            "Nothing was published: the cohort has changed since, and more people would leave than \
             you saw. Look at the new preview.",
        ),
        Err(refusal) if refusal.reason == "IMPORT_NOT_AWAITING_CONFIRMATION" => {
            return Ok(decided(&visitor, &import));
        }
        Err(refusal) => return Err(refusal.into()),
    };
    visitor.session().notify(notice);
    Ok(to_cohort(&visitor, &import))
}

/// Ends it; nothing of it is published. Also for an import that still runs.
pub(crate) async fn abort(
    visitor: Visitor,
    Form(decision): Form<Decision>,
) -> Result<Response, Problem> {
    let import = find(&visitor, &decision.partner, &decision.id).await?;
    let request = AbortImportRequest {
        workspace: visitor.workspace.clone(),
        partner: decision.partner.clone(),
        import_id: decision.id.clone(),
        // Deciding the same twice changes nothing by itself.
        request_id: String::new(),
    };
    let done = visitor.connection().ingest().abort_import(request).await;
    match done.map_err(Refusal::from) {
        Ok(_) => {
            let text = "The import is aborted: nothing of it is published.";
            visitor.session().notify(Notice::good(text));
            Ok(to_cohort(&visitor, &import))
        }
        Err(refusal) if refusal.reason == "IMPORT_FINISHED" => Ok(decided(&visitor, &import)),
        Err(refusal) => Err(refusal.into()),
    }
}

fn decided(visitor: &Visitor, import: &Import) -> Response {
    let text = "Nothing was done: the import had ended by then. This is how.";
    visitor.session().notify(Notice::bad(text));
    let to = import_path(&visitor.workspace, &import.partner, &import.import_id);
    Redirect::to(&to).into_response()
}

fn to_cohort(visitor: &Visitor, import: &Import) -> Response {
    let to = path(&visitor.workspace, &import.partner, &import.cohort_id);
    Redirect::to(&to).into_response()
}
