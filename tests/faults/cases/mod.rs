//! The cases, by what breaks.

mod streams;

use crate::suite::Case;

/// Every case, in the order they run.
pub(crate) const ALL: &[Case] = &[Case {
    name: "ingest-server-killed",
    alone: false,
    run: |plan| Box::pin(streams::ingest_server_killed(plan)),
}];
