//! What there is, and what happens to every request on its way.

use std::sync::Arc;

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
    routing::{get, post},
};
use muster_client::Connection;
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};

use crate::{
    Settings, assets, cohorts, home, integrations,
    problem::{self, Problem},
    security, segments,
    session::{self, Sessions},
    sign_in, workspaces,
};

/// What all pages share.
pub(crate) struct Console {
    pub(crate) sessions: Sessions,
    /// Where the servers are, without a credential.
    pub(crate) servers: Connection,
}

/// The pages, and the files they need.
///
/// Everything but the sign-in and the files is behind [`session::required`], unknown paths included:
/// who is not signed in learns nothing of what there is.
pub fn router(settings: Settings) -> Router {
    let timeout = settings.page_timeout;
    let console = Arc::new(Console {
        sessions: Sessions::new(settings.session_idle, settings.session_lifetime),
        servers: settings.connection,
    });
    let signed_in = Router::new()
        .route("/", get(workspaces::show))
        .route("/sign-out", post(sign_in::sign_out))
        .route("/w/{workspace}", get(home::show))
        .merge(cohorts::routes())
        .merge(segments::routes())
        .merge(integration_pages())
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::not_found())
        .layer(from_fn_with_state(Arc::clone(&console), session::required));
    Router::new()
        .route("/sign-in", get(sign_in::show).post(sign_in::sign_in))
        .route("/sign-in/done", get(sign_in::done))
        .route("/assets/{name}", get(assets::serve))
        .merge(signed_in)
        .layer(CatchPanicLayer::custom(problem::after_panic))
        .layer(TimeoutLayer::with_status_code(
            http::StatusCode::GATEWAY_TIMEOUT,
            timeout,
        ))
        .layer(from_fn(problem::dress))
        .layer(from_fn(security::headers))
        .with_state(console)
}

fn integration_pages() -> Router<Arc<Console>> {
    Router::new()
        .route("/w/{workspace}/integrations", get(integrations::list))
        .route(
            "/w/{workspace}/integrations/{partner}",
            get(integrations::show),
        )
        .route(
            "/w/{workspace}/integrations/{partner}/enable",
            post(integrations::enable),
        )
        .route(
            "/w/{workspace}/integrations/{partner}/keys",
            post(integrations::create_key),
        )
        .route(
            "/w/{workspace}/integrations/{partner}/keys/{key}/secret",
            get(integrations::secret),
        )
        .route(
            "/w/{workspace}/integrations/{partner}/keys/{key}/rotate",
            get(integrations::confirm_rotation).post(integrations::rotate),
        )
        .route(
            "/w/{workspace}/integrations/{partner}/keys/{key}/invalidate",
            get(integrations::confirm_invalidation).post(integrations::invalidate),
        )
}
