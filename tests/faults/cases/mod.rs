//! The cases, by what breaks.

mod database;
mod pool;
mod streams;
mod up;
mod upgrade;

use crate::suite::Case;

/// Every case, in the order they run.
pub(crate) const ALL: &[Case] = &[
    Case {
        name: "ingest-server-killed",
        run: |plan| Box::pin(streams::ingest_server_killed(plan)),
    },
    Case {
        name: "postgres-killed",
        run: |plan| Box::pin(database::postgres_killed(plan)),
    },
    Case {
        name: "disk-full",
        run: |plan| Box::pin(database::disk_full(plan)),
    },
    Case {
        name: "connections-exhausted",
        run: |plan| Box::pin(pool::connections_exhausted(plan)),
    },
    Case {
        name: "all-in-one-killed",
        run: |plan| Box::pin(up::all_in_one_killed(plan)),
    },
    Case {
        name: "migration-killed",
        run: |plan| Box::pin(upgrade::migration_killed(plan)),
    },
    Case {
        name: "migrators-at-once",
        run: |plan| Box::pin(upgrade::migrators_at_once(plan)),
    },
    Case {
        name: "schema-of-another-build",
        run: |plan| Box::pin(upgrade::schema_of_another_build(plan)),
    },
];
