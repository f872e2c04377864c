//! Signing in with a token, and out again.

use std::sync::Arc;

use askama::Template;
use axum::{
    Extension, Form,
    extract::{Query, Request, State},
    response::{IntoResponse, Redirect, Response},
};
use http::{HeaderMap, Method, StatusCode, header::SET_COOKIE};
use muster_client::{Credential, Refusal};
use muster_domain::credential::{Kind, Secret};
use muster_listener::Peer;
use muster_proto::keys::v1::ListWorkspacesRequest;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tonic::Code;

use crate::{
    frame::{self, Frame},
    problem::Problem,
    routes::Console,
    security,
    session::{self, Visit},
};

/// Why somebody sees the sign-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Why {
    /// They asked for it, or for a page that needs it.
    #[default]
    NotSignedIn,
    /// They signed out.
    SignedOut,
    /// The servers no longer accept their token.
    TokenRefused,
}

#[derive(Deserialize)]
pub(crate) struct Asked {
    #[serde(default)]
    why: Why,
    /// Path to go to after it.
    #[serde(default)]
    next: String,
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct Page {
    frame: Frame,
    why: Why,
    next: String,
    error: String,
}

/// A path of our own, never an address elsewhere. Browsers read a backslash as a slash and skip
/// line breaks and tabs.
fn own_path(next: &str) -> &str {
    let elsewhere = next.starts_with("//") || next.contains(['\\', '\n', '\r', '\t']);
    if next.starts_with('/') && !elsewhere && !next.starts_with("/sign-in") {
        next
    } else {
        "/"
    }
}

fn encoded(path: &str) -> String {
    utf8_percent_encode(path, NON_ALPHANUMERIC).to_string()
}

/// Sends somebody who is not signed in to the sign-in, and from there back to what they asked for.
pub(crate) fn first(request: &Request, why: Why) -> Response {
    let path = request.uri().path_and_query();
    match (request.method(), path) {
        (&Method::GET, Some(path)) if why == Why::NotSignedIn && path.as_str() != "/" => {
            let next = encoded(path.as_str());
            Redirect::to(&format!("/sign-in?next={next}")).into_response()
        }
        _ => to(why),
    }
}

/// Sends somebody to the sign-in.
pub(crate) fn to(why: Why) -> Response {
    Redirect::to(match why {
        Why::NotSignedIn => "/sign-in",
        Why::SignedOut => "/sign-in?why=signed-out",
        Why::TokenRefused => "/sign-in?why=token-refused",
    })
    .into_response()
}

/// The page.
pub(crate) async fn show(Query(asked): Query<Asked>) -> Response {
    frame::html(&Page {
        frame: Frame::new("Sign in"),
        why: asked.why,
        next: own_path(&asked.next).to_owned(),
        error: String::new(),
    })
}

#[derive(Deserialize)]
pub(crate) struct Attempt {
    token: String,
    #[serde(default)]
    next: String,
}

/// Opens a session, under an id that nobody knew before, if the servers accept the token.
pub(crate) async fn sign_in(
    State(console): State<Arc<Console>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    Form(attempt): Form<Attempt>,
) -> Response {
    // Without this, another site could sign somebody in as somebody else.
    if !security::is_same_origin(&headers) {
        return Problem::forged().into_response();
    }
    let next = own_path(&attempt.next);
    let cookie = match console.admit(attempt.token.trim(), peer.as_deref()).await {
        Ok(cookie) => cookie,
        Err(error) => {
            let page = Page {
                frame: Frame::new("Sign in"),
                why: Why::NotSignedIn,
                next: next.to_owned(),
                error,
            };
            return (StatusCode::UNPROCESSABLE_ENTITY, frame::html(&page)).into_response();
        }
    };
    if let Some(before) = console.sessions.find(&headers) {
        console.sessions.end(&before);
    }
    let done = format!("/sign-in/done?next={}", encoded(next));
    ([(SET_COOKIE, cookie)], Redirect::to(&done)).into_response()
}

/// Where a sign-in leads: on, if the browser has kept the cookie.
pub(crate) async fn done(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    if console.sessions.find(&headers).is_some() {
        return Redirect::to(own_path(&asked.next)).into_response();
    }
    let page = Page {
        frame: Frame::new("Sign in"),
        why: Why::NotSignedIn,
        next: own_path(&asked.next).to_owned(),
        error:
            "The token was accepted, but your browser did not keep the session. Open the console \
                under https, or on the machine it runs on, and allow cookies."
                .to_owned(),
    };
    (StatusCode::UNPROCESSABLE_ENTITY, frame::html(&page)).into_response()
}

/// Ends the session, here and not only in the browser.
pub(crate) async fn sign_out(State(console): State<Arc<Console>>, visit: Visit) -> Response {
    console.sessions.end(&visit.session);
    let away = [(SET_COOKIE, session::no_cookie())];
    (away, to(Why::SignedOut)).into_response()
}

impl Console {
    /// Checks a token and opens a session for it; the attempt counts as coming from where the person
    /// is. The error is for the person.
    async fn admit(&self, token: &str, peer: Option<&Peer>) -> Result<http::HeaderValue, String> {
        let secret = Secret::parse(token).map_err(|error| {
            format!("This is not a token of Muster: {error}. Copy the whole of it.")
        })?;
        match secret.kind() {
            Kind::ServiceToken => {}
            Kind::DataImportKey => {
                return Err(
                    "This is a data import key: it is for the partner. Sign in with an \
                            operator or service token."
                        .to_owned(),
                );
            }
            Kind::PartnerApiKey => {
                return Err(
                    "This is a partner API key: it is for the partner. Sign in with an \
                            operator or service token."
                        .to_owned(),
                );
            }
        }
        let credential = Credential::bearer(token).map_err(|error| error.to_string())?;
        let servers = self.servers.with_credential(credential);
        let connection = session::presented(&servers, peer);
        let request = ListWorkspacesRequest {
            page_size: 1,
            ..ListWorkspacesRequest::default()
        };
        let asked = connection.integrations().list_workspaces(request).await;
        if let Err(status) = asked {
            let refusal = Refusal::from(status);
            return Err(match refusal.code {
                Code::Unauthenticated => {
                    "This token is not accepted. It may have expired or been revoked.".to_owned()
                }
                Code::PermissionDenied => {
                    "This token lacks the scope keys:read, which the console needs to know its \
                     workspaces."
                        .to_owned()
                }
                _ => format!("The servers cannot check the token now: {refusal}"),
            });
        }
        let hint = format!("mst_{}_…{}", secret.kind().tag(), secret.hint());
        Ok(self.sessions.open(servers, hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere_after_the_sign_in() {
        assert_eq!(
            own_path("/w/shop/cohorts?q=a&page=2"),
            "/w/shop/cohorts?q=a&page=2"
        );
        for evil in [
            "",
            "https://evil.example",
            "//evil.example",
            "/\\evil.example",
            "/\t/evil.example",
            "javascript:alert(1)",
            "/sign-in?next=/sign-in",
        ] {
            assert_eq!(own_path(evil), "/", "{evil:?}");
        }
    }
}
