//! Which workspace to work in.

use askama::Template;
use axum::response::{IntoResponse, Redirect, Response};
use muster_proto::keys::v1::{ListWorkspacesRequest, Workspace};

use crate::{
    frame::{self, Frame},
    problem::Problem,
    session::Visit,
};

#[derive(Template)]
#[template(path = "workspaces.html")]
struct Page {
    frame: Frame,
    workspaces: Vec<Workspace>,
    more: bool,
}

/// The workspaces that the token reaches; if it is one, that one at once.
pub(crate) async fn show(visit: Visit) -> Result<Response, Problem> {
    let request = ListWorkspacesRequest {
        page_size: 1_000,
        ..ListWorkspacesRequest::default()
    };
    let mut integrations = visit.connection.integrations();
    let answer = integrations.list_workspaces(request).await?.into_inner();
    if let [only] = &answer.workspaces[..]
        && answer.next_page_token.is_empty()
    {
        return Ok(Redirect::to(&format!("/w/{}", only.workspace)).into_response());
    }
    Ok(frame::html(&Page {
        frame: visit.frame("Workspaces"),
        workspaces: answer.workspaces,
        more: !answer.next_page_token.is_empty(),
    }))
}
