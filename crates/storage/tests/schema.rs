//! The schema as servers meet it: empty, up to date, newer, changed.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use muster_storage::{Settings, Store};
use sqlx::{Connection as _, PgConnection};

async fn migrated() -> (Store, PgConnection) {
    let url = muster_testbed::database().await;
    let store = Store::connect(&Settings::new(&*url)).unwrap();
    (store, PgConnection::connect(&url).await.unwrap())
}

#[tokio::test]
async fn an_empty_database_is_refused_until_it_is_migrated() {
    let url = muster_testbed::empty_database().await;
    let store = Store::connect(&Settings::new(url)).unwrap();
    let refused = store.check_schema().await.unwrap_err().to_string();
    assert!(refused.contains("run `muster migrate`"), "{refused}");
    let (one, other) = tokio::join!(store.migrate(), store.migrate());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(one.is_empty(), other.is_empty(), "one of them does it all");
    store.check_schema().await.unwrap();
    assert!(store.migrate().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let (store, mut sql) = migrated().await;
    sqlx::raw_sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'from the future', true, '\\x00', 0)",
    )
    .execute(&mut sql)
    .await
    .unwrap();
    for refused in [
        store.check_schema().await.map(drop),
        store.migrate().await.map(drop),
    ] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("run a newer build"), "{refused}");
    }
}

#[tokio::test]
async fn a_changed_migration_is_refused() {
    let (store, mut sql) = migrated().await;
    sqlx::raw_sql("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1")
        .execute(&mut sql)
        .await
        .unwrap();
    let refused = store.check_schema().await.unwrap_err().to_string();
    assert!(
        refused.contains("not the one this build knows"),
        "{refused}"
    );
}

#[tokio::test]
async fn every_table_and_every_key_is_by_workspace_and_commented() {
    let (_store, mut sql) = migrated().await;
    let loose: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname || ' ' || k.conname
         FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.conkey[1]
         WHERE k.contype IN ('p', 'u', 'f') AND a.attname <> 'workspace_id'
           AND c.relnamespace = 'public'::regnamespace
           AND c.relname NOT IN ('workspace', 'partner', 'credential', 'workspace_partner',
                                 'audit_event', 'clean_up', '_sqlx_migrations')",
    )
    .fetch_all(&mut sql)
    .await
    .unwrap();
    assert_eq!(loose, Vec::<String>::new());
    let uncommented: Vec<String> = sqlx::query_scalar(
        "SELECT relname FROM pg_class
         WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
           AND relname <> '_sqlx_migrations' AND obj_description(oid, 'pg_class') IS NULL",
    )
    .fetch_all(&mut sql)
    .await
    .unwrap();
    assert_eq!(uncommented, Vec::<String>::new());
}
