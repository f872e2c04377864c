//! The cases, by what breaks.

mod backup;
mod clock;
mod revocation;
mod streams;

use crate::suite::Case;

/// Every case, in the order they run.
pub(crate) const ALL: &[Case] = &[
    Case {
        name: "ingest-server-killed",
        alone: false,
        run: |plan| Box::pin(streams::ingest_server_killed(plan)),
    },
    Case {
        name: "backup-in-mid-import",
        alone: false,
        run: |plan| Box::pin(backup::backup_in_mid_import(plan)),
    },
    Case {
        name: "clock-jumps",
        alone: false,
        run: |plan| Box::pin(clock::clock_jumps(plan)),
    },
    Case {
        name: "credential-revoked",
        alone: true,
        run: |plan| Box::pin(revocation::credential_revoked(plan)),
    },
];
