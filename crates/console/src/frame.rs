//! What stands around every page: title, navigation, notice, sign-out.

use std::sync::Arc;

use askama::Template;
use axum::response::{Html, IntoResponse, Response};

use crate::{assets, problem::Problem, session::Session};

/// The frame of one page.
pub(crate) struct Frame {
    /// What the page is about; the first part of the window's title.
    pub(crate) title: String,
    /// Which entry of the navigation the page belongs to.
    pub(crate) section: Section,
    /// Slug of the workspace the page is in.
    pub(crate) workspace: Option<String>,
    /// Whose page it is; `None` before the sign-in.
    pub(crate) session: Option<Arc<Session>>,
    /// What happened just before.
    pub(crate) notice: Option<Notice>,
    /// Without JavaScript, after how many seconds the page asks for itself again.
    pub(crate) refresh_seconds: Option<u32>,
    /// Scripts of this page, beside those of every page.
    pub(crate) scripts: &'static [&'static str],
}

/// An entry of a workspace's navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// None of them.
    None,
    /// What came in, and what waits for somebody.
    Home,
    /// What partners sent.
    Cohorts,
    /// Filters over cohorts, and who was targeted with them.
    Segments,
    /// Partners and their keys.
    Integrations,
}

impl Section {
    const ALL: [Self; 4] = [
        Self::Home,
        Self::Cohorts,
        Self::Segments,
        Self::Integrations,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Home => "Home",
            Self::Cohorts => "Cohorts",
            Self::Segments => "Segments",
            Self::Integrations => "Integrations",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::None | Self::Home => "",
            Self::Cohorts => "/cohorts",
            Self::Segments => "/segments",
            Self::Integrations => "/integrations",
        }
    }
}

/// Something to say once, above the next page.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    /// Whether it went as wished.
    pub(crate) good: bool,
    /// One sentence or two.
    pub(crate) text: String,
}

impl Notice {
    /// It went as wished.
    pub(crate) fn good(text: impl Into<String>) -> Self {
        Self {
            good: true,
            text: text.into(),
        }
    }

    /// It did not.
    pub(crate) fn bad(text: impl Into<String>) -> Self {
        Self {
            good: false,
            text: text.into(),
        }
    }
}

impl Frame {
    /// A frame without anything around.
    pub(crate) fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            section: Section::None,
            workspace: None,
            session: None,
            notice: None,
            refresh_seconds: None,
            scripts: &[],
        }
    }

    /// Proves, as the field `csrf` of a form, that the form is ours.
    pub(crate) fn csrf(&self) -> &str {
        self.session.as_ref().map_or("", |session| &session.csrf)
    }

    /// Path of a file.
    pub(crate) fn asset(&self, name: &str) -> String {
        assets::path(name)
    }

    /// The navigation of the workspace: title, path, and whether the page is there.
    pub(crate) fn entries(&self) -> Vec<(&'static str, String, bool)> {
        let Some(workspace) = &self.workspace else {
            return Vec::new();
        };
        let entry = |section: Section| {
            let path = format!("/w/{workspace}{}", section.path());
            (section.title(), path, section == self.section)
        };
        Section::ALL.map(entry).into()
    }
}

/// A page as an answer.
pub(crate) fn html(page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => Html(text).into_response(),
        Err(error) => Problem::internal(&error).into_response(),
    }
}
