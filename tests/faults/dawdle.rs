//! A database that takes its time over some imports, so that a fault can be put right into a
//! transaction.

use muster_storage::Store;

/// Makes every batch, and every publication, of the imports named [`slow`] take its time, with the
/// rows locked that such a transaction locks.
pub(crate) async fn install(store: &Store) {
    let mut connection = store.connection().await.unwrap();
    muster_testbed::execute(
        &mut connection,
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE
             name text := NEW.import_id;
         BEGIN
             IF TG_ARGV[0] = 'batch' THEN
                 SELECT partner_import_id INTO name FROM cohort_import i
                 WHERE i.workspace_id = NEW.workspace_id AND i.import_id = NEW.import_id;
             END IF;
             PERFORM pg_sleep(coalesce(
                 substring(name FROM '^slow-' || TG_ARGV[0] || '-([0-9]+)-')::float8, 0
             ) / 1000);
             RETURN NEW;
         END $$;
         CREATE TRIGGER dawdle BEFORE INSERT ON import_batch
             FOR EACH ROW EXECUTE FUNCTION dawdle('batch');
         CREATE TRIGGER dawdle BEFORE INSERT ON cohort_version
             FOR EACH ROW EXECUTE FUNCTION dawdle('version');",
    )
    .await;
}

/// What takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Staging each batch.
    Batch,
    /// Publishing.
    Version,
}

/// The id of an import that does.
pub(crate) fn slow(what: What, milliseconds: u64, import_id: &str) -> String {
    let what = match what {
        What::Batch => "batch",
        What::Version => "version",
    };
    format!("slow-{what}-{milliseconds}-{import_id}")
}

/// Waits until somebody is taking their time.
pub(crate) async fn under_way(store: &Store) {
    let look = async {
        loop {
            let mut connection = store.connection().await.unwrap();
            let dawdling = muster_testbed::number(
                &mut connection,
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event = 'PgSleep'",
            );
            if dawdling.await > 0 {
                return;
            }
        }
    };
    let limit = std::time::Duration::from_secs(60);
    let waited = tokio::time::timeout(limit, look).await;
    waited.expect("an import that dawdles");
}
