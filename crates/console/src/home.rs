//! What came in today, and what waits for somebody.

use askama::Template;
use axum::response::Response;

use crate::{
    frame::{self, Frame, Section},
    problem::Problem,
    session::Visitor,
};

#[derive(Template)]
#[template(path = "home.html")]
struct Page {
    frame: Frame,
}

/// The first page of a workspace.
pub(crate) async fn show(visitor: Visitor) -> Result<Response, Problem> {
    Ok(frame::html(&Page {
        frame: visitor.frame("Home", Section::Home),
    }))
}
