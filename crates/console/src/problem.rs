//! What stands in place of a page when something is wrong.

use std::error::Error;

use askama::Template;
use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use muster_client::Refusal;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::frame::{self, Frame};

/// Something wrong, as the person reads it.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    status: StatusCode,
    title: &'static str,
    text: String,
    /// What the operator finds it in the log by.
    request_id: String,
}

impl Problem {
    fn new(status: StatusCode, title: &'static str, text: impl Into<String>) -> Self {
        Self {
            status,
            title,
            text: text.into(),
            request_id: String::new(),
        }
    }

    /// There is no such thing, or the visitor may not know that there is.
    pub(crate) fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "Not found",
            "There is nothing here, or your token does not reach it.",
        )
    }

    /// Not made by one of our pages, or by one of another session.
    pub(crate) fn forged() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "This form is out of date",
            "It was not sent from a page of your session, so nothing was done. Open the page again \
             and send it anew.",
        )
    }

    /// More than a form of ours can hold.
    pub(crate) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Too large",
            "What was sent is larger than any form of the console.",
        )
    }

    /// The address or the form does not make sense.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "That did not make sense", text)
    }

    /// A defect of ours, which the log tells more about.
    pub(crate) fn internal(error: &(dyn Error + 'static)) -> Self {
        let id = Uuid::now_v7().to_string();
        tracing::error!(request_id = id, error, "a page failed");
        Self::defect(id)
    }

    fn defect(request_id: String) -> Self {
        Self {
            request_id,
            ..Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Something broke",
                "This is a defect of Muster, not of what you did.",
            )
        }
    }

    fn timed_out() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "That took too long",
            "The servers did not answer in time. What you asked for may have been done: look before \
             you try again.",
        )
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let problem = match refusal.code {
            Code::NotFound => Self::not_found(),
            Code::Unauthenticated => Self::new(
                StatusCode::UNAUTHORIZED,
                "Signed out",
                "Your token is no longer accepted.",
            ),
            Code::PermissionDenied => Self::new(
                StatusCode::FORBIDDEN,
                "Your token may not do this",
                refusal.message,
            ),
            Code::InvalidArgument => Self::invalid(refusal.message),
            Code::AlreadyExists | Code::FailedPrecondition | Code::OutOfRange => Self::new(
                StatusCode::CONFLICT,
                "That is not possible",
                refusal.message,
            ),
            Code::Aborted => Self::new(
                StatusCode::CONFLICT,
                "Somebody was faster",
                format!("{}. Look at the page again.", refusal.message),
            ),
            Code::ResourceExhausted => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "Too much at once",
                refusal.message,
            ),
            Code::DeadlineExceeded => Self::timed_out(),
            Code::Unavailable | Code::Cancelled => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The servers are out of reach",
                if refusal.connection_lost {
                    "Nobody answers. Try again in a moment.".to_owned()
                } else {
                    format!("They said: {}. Try again in a moment.", refusal.message)
                },
            ),
            _ => Self::defect(refusal.request_id.clone()),
        };
        Self {
            request_id: refusal.request_id,
            ..problem
        }
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Refusal::from(status).into()
    }
}

impl IntoResponse for Problem {
    /// An empty answer that [`dress_in`], or at last [`dress`], turns into a page.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Whether the servers refused the visitor's token.
pub(crate) fn is_signed_out(response: &Response) -> bool {
    let problem = response.extensions().get::<Problem>();
    problem.is_some_and(|problem| problem.status == StatusCode::UNAUTHORIZED)
}

#[derive(Template)]
#[template(path = "problem.html")]
struct Page {
    frame: Frame,
    problem: Problem,
}

/// Makes a page, in the frame given, of an answer that is a problem. Answers that the framework
/// made, such as to a form with a field missing, become one, too.
pub(crate) fn dress_in(mut response: Response, mut frame: Frame) -> Response {
    let known = response.extensions_mut().remove::<Problem>();
    let status = response.status();
    let plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    let problem = match known {
        Some(problem) => problem,
        None if !plain => return response,
        None if status == StatusCode::GATEWAY_TIMEOUT => Problem::timed_out(),
        None if status.is_client_error() => {
            Problem::invalid("The address, or the form, has a part missing or a part too many.")
        }
        None => return response,
    };
    frame.title = problem.title.to_owned();
    let status = problem.status;
    let mut page = frame::html(&Page { frame, problem });
    if page.status() == StatusCode::OK {
        *page.status_mut() = status;
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        page.headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    page
}

/// Makes a page of an answer that is a problem, for somebody who may not be signed in.
pub(crate) async fn dress(request: Request, next: Next) -> Response {
    dress_in(next.run(request).await, Frame::new(""))
}

/// What is answered where a page panicked.
pub(crate) fn after_panic(panic: Box<dyn std::any::Any + Send>) -> Response {
    let id = Uuid::now_v7().to_string();
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    tracing::error!(
        request_id = id,
        panic = text.unwrap_or_default(),
        "a page panicked"
    );
    Problem::defect(id).into_response()
}
