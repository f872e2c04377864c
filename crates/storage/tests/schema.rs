//! The schema as servers meet it: empty, up to date, newer, changed.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use muster_storage::{Settings, Store};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

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

#[tokio::test]
async fn identifiers_move_to_their_users_when_a_filled_directory_is_migrated() {
    let mut sql = PgConnection::connect(&muster_testbed::empty_database().await)
        .await
        .unwrap();
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    let files = std::fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    let (mut before, rest): (Vec<_>, Vec<_>) = files
        .into_iter()
        .partition(|file| file.file_name().unwrap() < "0014");
    before.insert(0, format!("{directory}/../src/roles/roles.sql").into());
    let apply = async |sql: &mut PgConnection, files: Vec<std::path::PathBuf>| {
        for file in files {
            let statements = std::fs::read_to_string(&file).unwrap();
            let applied = sqlx::raw_sql(AssertSqlSafe(statements))
                .execute(&mut *sql)
                .await;
            applied.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    };
    apply(&mut sql, before).await;
    // Ann, into whom Old was merged; somebody with a device; somebody who was erased.
    sqlx::raw_sql(
        "INSERT INTO directory (workspace_id, epoch, next_user_no) VALUES (7, 3, 4);
         INSERT INTO directory_user (workspace_id, user_no, state, external_id, merged_into, epoch, identified_epoch)
         VALUES (7, 0, 1, 'ann', NULL, 2, 1), (7, 1, 2, NULL, 0, 2, 1), (7, 2, 1, NULL, NULL, 1, NULL),
                (7, 3, 3, NULL, NULL, 3, NULL);
         INSERT INTO user_identifier (workspace_id, kind, label, id, user_no, epoch)
         VALUES (7, 1, '', 'ann', 0, 1), (7, 1, '', 'old', 0, 2), (7, 2, 'mail', 'a b', 0, 1),
                (7, 3, '', 'phone', 2, 1);",
    )
    .execute(&mut sql)
    .await
    .unwrap();
    apply(&mut sql, rest).await;
    let users: Vec<(i64, Option<String>, Option<String>)> = sqlx::query_as(
        "SELECT user_no, external_id, identifiers FROM directory_user ORDER BY user_no",
    )
    .fetch_all(&mut sql)
    .await
    .unwrap();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        users,
        [
            (0, text("ann"), text("1old\n2mail\ta b")),
            (1, None, None),
            (2, None, text("3phone")),
            (3, None, None),
        ]
    );
    for (line, user) in [("1ann", 0), ("1old", 0), ("2mail\ta b", 0), ("3phone", 2)] {
        let found = "SELECT user_no FROM user_identifier
                     WHERE workspace_id = 7 AND key = identifier_key($1)";
        let found: i64 = sqlx::query_scalar(found)
            .bind(line)
            .fetch_one(&mut sql)
            .await
            .unwrap();
        assert_eq!(found, user, "{line}");
    }
}
