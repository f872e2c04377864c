//! The cases, by what breaks.

mod audiences;
mod backup;
mod batches;
mod clock;
mod commit;
mod concurrency;
mod database;
mod frozen;
mod pool;
mod revocation;
mod shutdown;
mod slow;
mod streams;
mod up;
mod upgrade;

use crate::suite::Case;

/// Every case, in the order they run.
pub(crate) const ALL: &[Case] = &[
    Case {
        name: "ingest-server-killed",
        alone: false,
        run: |plan| Box::pin(streams::ingest_server_killed(plan)),
    },
    Case {
        name: "export-client-killed",
        alone: false,
        run: |plan| Box::pin(streams::client_killed(plan)),
    },
    Case {
        name: "import-stream-broken",
        alone: false,
        run: |plan| Box::pin(streams::stream_broken(plan)),
    },
    Case {
        name: "postgres-killed",
        alone: false,
        run: |plan| Box::pin(database::postgres_killed(plan)),
    },
    Case {
        name: "disk-full",
        alone: false,
        run: |plan| Box::pin(database::disk_full(plan)),
    },
    Case {
        name: "commit-reply-lost",
        alone: false,
        run: |plan| Box::pin(commit::reply_lost(plan)),
    },
    Case {
        name: "rest-answer-lost",
        alone: false,
        run: |plan| Box::pin(commit::rest_answer_lost(plan)),
    },
    Case {
        name: "batches-replayed",
        alone: false,
        run: |plan| Box::pin(batches::batches_replayed(plan)),
    },
    Case {
        name: "export-client-frozen",
        alone: false,
        run: |plan| Box::pin(frozen::client_frozen(plan)),
    },
    Case {
        name: "ingest-server-frozen",
        alone: false,
        run: |plan| Box::pin(frozen::server_frozen(plan)),
    },
    Case {
        name: "commits-at-once",
        alone: false,
        run: |plan| Box::pin(concurrency::commits_at_once(plan)),
    },
    Case {
        name: "everything-at-once",
        alone: false,
        run: |plan| Box::pin(concurrency::everything_at_once(plan)),
    },
    Case {
        name: "rest-meets-replacement",
        alone: false,
        run: |plan| Box::pin(concurrency::rest_meets_replacement(plan)),
    },
    Case {
        name: "segment-server-killed",
        alone: false,
        run: |plan| Box::pin(audiences::segment_server_killed(plan)),
    },
    Case {
        name: "audience-while-all-changes",
        alone: false,
        run: |plan| Box::pin(audiences::audience_while_all_changes(plan)),
    },
    Case {
        name: "slow-peers",
        alone: true,
        run: |plan| Box::pin(slow::slow_peers(plan)),
    },
    Case {
        name: "connections-exhausted",
        alone: false,
        run: |plan| Box::pin(pool::connections_exhausted(plan)),
    },
    Case {
        name: "sigterm-under-load",
        alone: true,
        run: |plan| Box::pin(shutdown::sigterm_under_load(plan)),
    },
    Case {
        name: "clock-jumps",
        alone: false,
        run: |plan| Box::pin(clock::clock_jumps(plan)),
    },
    Case {
        name: "all-in-one-killed",
        alone: false,
        run: |plan| Box::pin(up::all_in_one_killed(plan)),
    },
    Case {
        name: "credential-revoked",
        alone: true,
        run: |plan| Box::pin(revocation::credential_revoked(plan)),
    },
    Case {
        name: "backup-in-mid-import",
        alone: false,
        run: |plan| Box::pin(backup::backup_in_mid_import(plan)),
    },
    Case {
        name: "migration-killed",
        alone: false,
        run: |plan| Box::pin(upgrade::migration_killed(plan)),
    },
    Case {
        name: "migrators-at-once",
        alone: false,
        run: |plan| Box::pin(upgrade::migrators_at_once(plan)),
    },
    Case {
        name: "schema-of-another-build",
        alone: false,
        run: |plan| Box::pin(upgrade::schema_of_another_build(plan)),
    },
];
