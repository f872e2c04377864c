//! The cases, by what breaks.

mod audiences;
mod shutdown;
mod slow;
mod streams;

use crate::suite::Case;

/// Every case, in the order they run.
pub(crate) const ALL: &[Case] = &[
    Case {
        name: "ingest-server-killed",
        run: |plan| Box::pin(streams::ingest_server_killed(plan)),
    },
    Case {
        name: "segment-server-killed",
        run: |plan| Box::pin(audiences::segment_server_killed(plan)),
    },
    Case {
        name: "audience-while-all-changes",
        run: |plan| Box::pin(audiences::audience_while_all_changes(plan)),
    },
    Case {
        name: "slow-peers",
        run: |plan| Box::pin(slow::slow_peers(plan)),
    },
    Case {
        name: "sigterm-under-load",
        run: |plan| Box::pin(shutdown::sigterm_under_load(plan)),
    },
];
