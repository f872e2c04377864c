//! Who is signed in: sessions in memory, found by a cookie, and checked before every page.
//!
//! A session lives in this process only. It is forgotten when the process ends, when somebody signs
//! out, after a while without use, and when the servers no longer accept its token.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, header::COOKIE, request::Parts};
use muster_client::Connection;
use muster_domain::name;
use muster_listener::Peer;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::{
    frame::{Frame, Notice, Section},
    problem::{self, Problem},
    routes::Console,
    security, sign_in,
};

/// `__Host-` makes browsers keep it for this host alone, over a safe connection only. Browsers count
/// plain HTTP to the own machine as safe.
const COOKIE_NAME: &str = "__Host-muster";

/// More sessions than this end those that were not used for the longest time.
const MAX_SESSIONS: usize = 10_000;

/// Largest form, in bytes.
const MAX_FORM_BYTES: usize = 1024 * 1024;

/// How long a secret waits to be shown.
const SECRET_PATIENCE: Duration = Duration::from_secs(120);

/// The open sessions, by the SHA-256 of their id.
pub(crate) struct Sessions {
    open: Mutex<HashMap<[u8; 32], Arc<Session>>>,
    idle: Duration,
    lifetime: Duration,
}

/// One person's session.
pub(crate) struct Session {
    key: [u8; 32],
    /// Goes into every form: no other site can read it.
    pub(crate) csrf: String,
    /// The recognisable end of the token.
    pub(crate) hint: String,
    /// The servers, with the token.
    pub(crate) connection: Connection,
    began: Instant,
    desk: Mutex<Desk>,
}

/// What lies ready for the next page, and when the last one was asked for.
struct Desk {
    seen: Instant,
    notice: Option<Notice>,
    secret: Option<NewSecret>,
}

/// A secret that was just made, until the page that shows it is asked for, once.
struct NewSecret {
    key_id: String,
    secret: String,
    made: Instant,
}

fn random() -> String {
    let mut random = [0; 32];
    getrandom::fill(&mut random).expect("the operating system gives randomness");
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A lock that was poisoned by a panic still guards sound data: nothing here is half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    pub(crate) fn new(idle: Duration, lifetime: Duration) -> Self {
        Self {
            open: Mutex::default(),
            idle,
            lifetime,
        }
    }

    /// Opens a session under a new id and returns the cookie that carries it.
    pub(crate) fn open(&self, connection: Connection, hint: String) -> HeaderValue {
        let id = random();
        let now = Instant::now();
        let session = Arc::new(Session {
            key: Sha256::digest(&id).into(),
            csrf: random(),
            hint,
            connection,
            began: now,
            desk: Mutex::new(Desk {
                seen: now,
                notice: None,
                secret: None,
            }),
        });
        let mut open = lock(&self.open);
        open.retain(|_, session| self.is_alive(session));
        if open.len() >= MAX_SESSIONS {
            let longest_unused = open.values().min_by_key(|session| lock(&session.desk).seen);
            if let Some(key) = longest_unused.map(|session| session.key) {
                open.remove(&key);
            }
        }
        open.insert(session.key, session);
        let cookie = format!("{COOKIE_NAME}={id}; Path=/; Secure; HttpOnly; SameSite=Lax");
        HeaderValue::from_str(&cookie).expect("hex digits and our own words fit a header")
    }

    /// The session of a request, if it has one that has not ended.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Option<Arc<Session>> {
        let key: [u8; 32] = Sha256::digest(cookie(headers)?).into();
        let mut open = lock(&self.open);
        let session = Arc::clone(open.get(&key)?);
        if self.is_alive(&session) {
            return Some(session);
        }
        open.remove(&key);
        None
    }

    /// Ends a session: its id is worth nothing from now on.
    pub(crate) fn end(&self, session: &Session) {
        lock(&self.open).remove(&session.key);
    }

    fn is_alive(&self, session: &Session) -> bool {
        session.began.elapsed() < self.lifetime && lock(&session.desk).seen.elapsed() < self.idle
    }
}

/// The id in the cookie; of several, browsers send the right one first.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(COOKIE).iter();
    let pairs = all.filter_map(|value| value.to_str().ok());
    let mut pairs = pairs.flat_map(|value| value.split(';'));
    pairs.find_map(|pair| pair.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='))
}

/// A cookie that makes the browser forget ours.
pub(crate) fn no_cookie() -> HeaderValue {
    HeaderValue::from_static("__Host-muster=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0")
}

impl Session {
    /// Leaves a notice for the next page.
    pub(crate) fn notify(&self, notice: Notice) {
        lock(&self.desk).notice = Some(notice);
    }

    /// Leaves a new secret for the page that shows it.
    pub(crate) fn keep_secret(&self, key_id: &str, secret: String) {
        lock(&self.desk).secret = Some(NewSecret {
            key_id: key_id.to_owned(),
            secret,
            made: Instant::now(),
        });
    }

    /// Takes the new secret of a key: who comes second gets nothing.
    pub(crate) fn take_secret(&self, key_id: &str) -> Option<String> {
        let secret = lock(&self.desk)
            .secret
            .take_if(|secret| secret.key_id == key_id || secret.made.elapsed() > SECRET_PATIENCE)?;
        (secret.key_id == key_id && secret.made.elapsed() <= SECRET_PATIENCE)
            .then_some(secret.secret)
    }

    fn owns(&self, csrf: &str) -> bool {
        self.csrf.as_bytes().ct_eq(csrf.as_bytes()).into()
    }
}

/// The request of somebody who is signed in.
#[derive(Clone)]
pub(crate) struct Visit {
    /// Their session.
    pub(crate) session: Arc<Session>,
    /// The servers, with the token, and with the address that the request came from.
    pub(crate) connection: Connection,
    /// Whether a script asks to bring a page up to date, rather than a person to see one.
    live: bool,
}

/// A visit to a workspace.
pub(crate) struct Visitor {
    visit: Visit,
    /// Slug of the workspace in the path.
    pub(crate) workspace: String,
}

impl Visit {
    /// What stands around a page outside of workspaces.
    pub(crate) fn frame(&self, title: &str) -> Frame {
        let mut frame = Frame::new(title);
        frame.session = Some(Arc::clone(&self.session));
        if !self.live {
            frame.notice = lock(&self.session.desk).notice.take();
        }
        frame
    }
}

impl Visitor {
    /// The servers, with the token of the visitor.
    pub(crate) fn connection(&self) -> &Connection {
        &self.visit.connection
    }

    /// The session of the visitor.
    pub(crate) fn session(&self) -> &Session {
        &self.visit.session
    }

    /// What stands around a page of the workspace.
    pub(crate) fn frame(&self, title: &str, section: Section) -> Frame {
        let mut frame = self.visit.frame(title);
        frame.section = section;
        frame.workspace = Some(self.workspace.clone());
        frame
    }
}

impl<S: Sync> FromRequestParts<S> for Visit {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // Only a page that is not behind `required` could be without.
        let visit = parts.extensions.get::<Self>().cloned();
        visit.ok_or_else(Problem::not_found)
    }
}

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let visit = Visit::from_request_parts(parts, state).await?;
        let workspace = workspace(parts.uri.path()).ok_or_else(Problem::not_found)?;
        Ok(Self { visit, workspace })
    }
}

/// The workspace that a path is in.
fn workspace(path: &str) -> Option<String> {
    let slug = path.strip_prefix("/w/")?.split('/').next()?;
    name::check_slug(slug).ok()?;
    Some(slug.to_owned())
}

/// Lets only requests through that belong to a session, and of those that change something only the
/// ones that our own pages made.
pub(crate) async fn required(
    State(console): State<Arc<Console>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(session) = console.sessions.find(request.headers()) else {
        return sign_in::first(&request, sign_in::Why::NotSignedIn);
    };
    let live = request.headers().contains_key("x-muster-live");
    if !live {
        // A page left open does not keep its session alive.
        lock(&session.desk).seen = Instant::now();
    }
    let visit = Visit {
        connection: presented(&session.connection, request.extensions().get()),
        session: Arc::clone(&session),
        live,
    };
    let mut frame = Frame::new("");
    frame.session = Some(Arc::clone(&session));
    frame.workspace = workspace(request.uri().path());
    let response = if matches!(*request.method(), Method::GET | Method::HEAD) {
        request.extensions_mut().insert(visit);
        next.run(request).await
    } else {
        match unforged(request, &session).await {
            Ok(mut request) => {
                request.extensions_mut().insert(visit);
                next.run(request).await
            }
            Err(problem) => problem.into_response(),
        }
    };
    if problem::is_signed_out(&response) {
        // The servers no longer accept the token.
        console.sessions.end(&session);
        let mut response = sign_in::to(sign_in::Why::TokenRefused);
        response
            .headers_mut()
            .insert(http::header::SET_COOKIE, no_cookie());
        return response;
    }
    problem::dress_in(response, frame)
}

/// A connection that says where a request came from, for the audit trail.
pub(crate) fn presented(connection: &Connection, peer: Option<&Peer>) -> Connection {
    match peer.and_then(|peer| peer.address) {
        Some(address) => connection.presented_from(address.ip()),
        None => connection.clone(),
    }
}

/// The part of every form that proves where it came from.
#[derive(Deserialize)]
struct Signature {
    csrf: String,
}

async fn unforged(request: Request, session: &Session) -> Result<Request, Problem> {
    if !security::is_same_origin(request.headers()) {
        return Err(Problem::forged());
    }
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_FORM_BYTES).await;
    let body = body.map_err(|_| Problem::too_large())?;
    let signature = serde_urlencoded::from_bytes::<Signature>(&body);
    match signature {
        Ok(signature) if session.owns(&signature.csrf) => {
            Ok(Request::from_parts(parts, Body::from(body)))
        }
        _ => Err(Problem::forged()),
    }
}

#[cfg(test)]
mod tests;
