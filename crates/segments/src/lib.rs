//! The segment-query server, `muster.segments.v1.SegmentService`.
//!
//! It owns segments (saved filters over cohorts), their evaluation, and resolutions: evaluations
//! that are kept, so that an audience can be streamed again, resumed, split and compared. What a
//! filter *means* is in `muster_domain::filter`; how cohorts and users come to be is not known here.
//!
//! Start with [`register`]; `api` is the rpc surface and `wire` its messages. Below them there is one
//! module a noun: `segments`, `evaluation` (from a filter to users, at one snapshot), `counts` (of
//! several filters at one snapshot), `resolutions`,
//! `audience` (the stream), `records` (what is printed of a user, and what is withheld), `diff`,
//! `check` (why one user is in a segment, or is not), `references` (names in filters and ids), `warm_up`.

mod api;
mod audience;
mod check;
mod counts;
mod diff;
mod evaluation;
mod records;
mod references;
mod resolutions;
mod segments;
mod warm_up;
mod wire;

use std::time::Duration;

use muster_identity::Identities;
use muster_proto::segments::v1::segment_service_server::SegmentServiceServer;
use muster_service::server::Services;
use tokio_util::sync::CancellationToken;

#[doc(hidden)]
pub use audience::fuzz_resume_token;
pub use resolutions::housekeeping;
pub use warm_up::warm_up;

/// Largest request, in bytes: a filter of 1,000 nodes and a text of 64 KiB fit.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a resolution is kept.
    pub resolution_retention: Duration,
    /// How long a call waits for what its consistency token stands for.
    pub visibility_timeout: Duration,
    /// Evaluations made at once; each holds all cohorts of its filter in memory.
    pub concurrent_evaluations: usize,
    /// How long a call waits for its turn to evaluate.
    pub evaluation_wait: Duration,
    /// How long a client may leave an open stream unread.
    pub idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolution_retention: Duration::from_secs(7 * 24 * 60 * 60),
            visibility_timeout: Duration::from_secs(1),
            concurrent_evaluations: 4,
            evaluation_wait: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(120),
        }
    }
}

/// Adds the server to a listener; streams that are open end once `shutdown` is cancelled.
///
/// Run [`housekeeping`] beside it, once a process.
pub fn register(
    services: &mut Services,
    identities: Identities,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let api = api::Api::new(identities, settings, shutdown);
    services.add(SegmentServiceServer::new(api).max_decoding_message_size(MAX_REQUEST_BYTES));
}
