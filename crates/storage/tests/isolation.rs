//! What the database itself keeps apart: workspaces from each other, and servers from what is not
//! their business. No statement here has a predicate on the workspace.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use muster_storage::{Role, Settings, Store, WorkspaceId};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

const OURS: WorkspaceId = WorkspaceId(1);
const THEIRS: WorkspaceId = WorkspaceId(2);

/// Rows of one workspace in every table that has workspaces. Extend it with the schema.
const PLANT: &str = r#"
INSERT INTO workspace (workspace_id, slug, display_name) OVERRIDING SYSTEM VALUE VALUES ({w}, 'w{w}', '');
INSERT INTO partner VALUES ('tinyclues', '') ON CONFLICT DO NOTHING;
INSERT INTO workspace_partner (workspace_id, partner) VALUES ({w}, 'tinyclues');
INSERT INTO credential (credential_id, kind, workspace_id, label, digest, hint, created_by)
    VALUES ('00000000-0000-0000-0000-00000000000{w}', 1, {w}, '', sha256('{w}'), '', '');
INSERT INTO audit_event (workspace_id, actor, action, resource) VALUES ({w}, 'a', 'b', 'c');
INSERT INTO request_log (workspace_id, actor, method, request_id, fingerprint) VALUES ({w}, 'a', 'm', 'r', '');
INSERT INTO directory (workspace_id, next_user_no) VALUES ({w}, 1);
INSERT INTO directory_user (workspace_id, user_no, epoch) VALUES ({w}, 0, 1);
INSERT INTO user_identifier VALUES ({w}, gen_random_uuid(), 0);
INSERT INTO cohort (workspace_id, cohort_id, partner, partner_cohort_id, name)
    VALUES ({w}, '{u}', 'tinyclues', 'c', 'c');
INSERT INTO cohort_version VALUES ({w}, '{u}', 1, 'i', now(), 1, 1, 0);
INSERT INTO cohort_delta VALUES ({w}, '{u}', 1, 0, '', '');
INSERT INTO cohort_checkpoint VALUES ({w}, '{u}', 1, 0, '');
INSERT INTO cohort_import (workspace_id, import_id, cohort_id, mode, digest_state, refuse_if_older, created_by, expires_at, partner, partner_import_id)
    VALUES ({w}, 'i', '{u}', 1, '', false, '', now(), 'tinyclues', 'i');
INSERT INTO import_batch VALUES ({w}, 'i', 0, 1, '', 0, 0, 0, '', 1);
INSERT INTO import_rejected VALUES ({w}, 'i', 0, '{}', '{}', '{}', '{}', '{}', '{}');
INSERT INTO segment (workspace_id, segment_id, name, filter) VALUES ({w}, '{u}', 's', '{}');
INSERT INTO segment_cohort VALUES ({w}, '{u}', '{u}');
INSERT INTO segment_segment VALUES ({w}, '{u}', '{u}');
INSERT INTO resolution (workspace_id, resolution_id, filter_text, user_count, directory_epoch, created_by, expires_at)
    VALUES ({w}, '{u}', '', 0, 1, '', now());
INSERT INTO resolution_cohort VALUES ({w}, '{u}', '{u}', 'tinyclues', 'c', 'c', 1, NULL);
INSERT INTO resolution_part VALUES ({w}, '{u}', 0, '');
"#;

/// Tables with a workspace that row-level security leaves alone: they are looked up before the
/// workspace is known, and protected by privileges.
const CONTROL: [&str; 3] = ["workspace", "workspace_partner", "credential"];

/// Who may see all workspaces, where; everybody else sees one.
const EXCEPTIONS: [(&str, &str); 3] = [
    ("muster_keys", "audit_event"),
    ("muster_access", "audit_event"),
    ("muster_keys", "directory"),
];

async fn planted() -> (Store, PgConnection) {
    let url = muster_testbed::database().await;
    let mut sql = PgConnection::connect(&url).await.unwrap();
    for WorkspaceId(w) in [OURS, THEIRS] {
        let rows = PLANT
            .replace("{w}", &w.to_string())
            .replace("{u}", "00000000-0000-0000-0000-000000000009");
        sqlx::raw_sql(AssertSqlSafe(rows))
            .execute(&mut sql)
            .await
            .unwrap();
    }
    (Store::connect(&Settings::new(url)).unwrap(), sql)
}

/// Tables that row-level security confines.
async fn confined(sql: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'workspace_id'
         WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND NOT c.relname = ANY($1)
         ORDER BY 1",
    )
    .bind(CONTROL.map(str::to_owned).to_vec())
    .fetch_all(sql)
    .await
    .unwrap()
}

async fn may(sql: &mut PgConnection, role: Role, table: &str, privilege: &str) -> bool {
    sqlx::query_scalar("SELECT has_any_column_privilege($1, $2, $3)")
        .bind(role.name())
        .bind(table)
        .bind(privilege)
        .fetch_one(sql)
        .await
        .unwrap()
}

async fn count(sql: &mut PgConnection, table: &str) -> i64 {
    let count = format!("SELECT count(*) FROM {table}");
    let counted = sqlx::query_scalar(AssertSqlSafe(count))
        .fetch_one(sql)
        .await;
    counted.unwrap()
}

async fn refusal(sql: &mut PgConnection, statement: &str) -> String {
    let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(sql)
        .await;
    let Err(error) = done else {
        panic!("done: {statement}");
    };
    error.to_string()
}

const SERVERS: [Role; 6] = [
    Role::Directory,
    Role::Access,
    Role::Keys,
    Role::Users,
    Role::Ingest,
    Role::Segments,
];

#[tokio::test]
async fn every_table_of_a_workspace_is_confined_to_it() {
    let (_store, mut sql) = planted().await;
    let tables = confined(&mut sql).await;
    assert!(tables.len() >= 18, "{tables:?}");
    let loose: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM unnest($1::text[]) name JOIN pg_class c ON c.oid = name::regclass
         WHERE NOT (relrowsecurity AND relforcerowsecurity AND EXISTS (
             SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'workspace'
               AND p.polcmd = '*' AND p.polroles = '{0}'
               AND pg_get_expr(p.polqual, c.oid) LIKE '(workspace_id = %NULLIF(current_setting(''muster.workspace''%'
         ))",
    )
    .bind(&tables)
    .fetch_all(&mut sql)
    .await
    .unwrap();
    assert_eq!(
        loose,
        Vec::<String>::new(),
        "CALL isolate(…) in the migration that makes it"
    );
    for table in tables {
        assert_eq!(count(&mut sql, &table).await, 2, "PLANT a row of {table}");
    }
}

#[tokio::test]
async fn without_a_predicate_each_role_sees_and_changes_one_workspace() {
    let (store, mut sql) = planted().await;
    for table in confined(&mut sql).await {
        for role in SERVERS {
            if EXCEPTIONS.contains(&(role.name(), &table)) {
                continue;
            }
            let what = format!("{} {table}", role.name());
            let mut tx = store.acting_as(role).begin_in("test", OURS).await.unwrap();
            if may(&mut sql, role, &table, "SELECT").await {
                assert_eq!(count(&mut tx, &table).await, 1, "{what}");
                let foreign = format!(
                    "SELECT count(*) FROM {table} WHERE workspace_id <> {}",
                    OURS.0
                );
                let foreign: i64 = sqlx::query_scalar(AssertSqlSafe(foreign))
                    .fetch_one(&mut *tx)
                    .await
                    .unwrap();
                assert_eq!(foreign, 0, "{what}");
            }
            let column: Option<String> = sqlx::query_scalar(
                "SELECT quote_ident(attname) FROM pg_attribute
                 WHERE attrelid = $1::regclass AND attnum > 0 AND attname <> 'workspace_id'
                   AND has_column_privilege($2, attrelid, attnum, 'UPDATE') LIMIT 1",
            )
            .bind(&table)
            .bind(role.name())
            .fetch_optional(&mut sql)
            .await
            .unwrap();
            if let Some(column) = column {
                let update = format!("UPDATE {table} SET {column} = {column}");
                let done = sqlx::raw_sql(AssertSqlSafe(update))
                    .execute(&mut *tx)
                    .await
                    .unwrap();
                assert_eq!(done.rows_affected(), 1, "{what}");
            }
            if may(&mut sql, role, &table, "INSERT").await {
                // A copy of theirs; the check comes before any constraint.
                let theirs = format!(
                    "SELECT to_jsonb(t)::text FROM {table} t WHERE workspace_id = {}",
                    THEIRS.0
                );
                let theirs: String = sqlx::query_scalar(AssertSqlSafe(theirs))
                    .fetch_one(&mut sql)
                    .await
                    .unwrap();
                let insert = format!(
                    "INSERT INTO {table} OVERRIDING SYSTEM VALUE
                     SELECT * FROM jsonb_populate_record(NULL::{table}, '{theirs}')"
                );
                let refused = refusal(&mut tx, &insert).await;
                assert!(refused.contains("row-level security"), "{what}: {refused}");
            }
        }
    }
}

#[tokio::test]
async fn without_a_workspace_nothing_is_seen_and_nothing_written() {
    let (store, mut sql) = planted().await;
    for table in confined(&mut sql).await {
        for role in SERVERS {
            if EXCEPTIONS.contains(&(role.name(), &table)) {
                continue;
            }
            let what = format!("{} {table}", role.name());
            let store = store.acting_as(role);
            // Once in a session that never entered a workspace, once in one that has.
            for _ in 0..2 {
                let mut tx = store.begin("test").await.unwrap();
                if may(&mut sql, role, &table, "SELECT").await {
                    assert_eq!(count(&mut tx, &table).await, 0, "{what}");
                }
                if may(&mut sql, role, &table, "INSERT").await {
                    let insert = format!(
                        "INSERT INTO {table} (workspace_id) OVERRIDING SYSTEM VALUE VALUES (1)"
                    );
                    let refused = refusal(&mut tx, &insert).await;
                    assert!(refused.contains("row-level security"), "{what}: {refused}");
                }
                drop(tx);
                store
                    .begin_in("test", OURS)
                    .await
                    .unwrap()
                    .commit()
                    .await
                    .unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_workspace_entered_is_left_with_the_transaction() {
    let settings = Settings {
        max_connections: 1,
        ..Settings::new(muster_testbed::database().await)
    };
    let store = Store::connect(&settings).unwrap().acting_as(Role::Ingest);
    let left =
        "SELECT coalesce(nullif(current_setting('muster.workspace', true), ''), '0')::bigint";
    for commits in [true, false] {
        let mut tx = store.begin_in("test", OURS).await.unwrap();
        assert_eq!(muster_testbed::number(&mut tx, left).await, 1);
        if commits {
            tx.commit().await.unwrap();
        } else {
            drop(tx);
        }
        let mut next = store.connection().await.unwrap();
        assert_eq!(muster_testbed::number(&mut next, left).await, 0);
    }
}

#[tokio::test]
async fn no_server_writes_what_is_not_its_business() {
    let (store, mut sql) = planted().await;
    let ddl = [
        "ALTER TABLE cohort DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE cohort NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE cohort ADD COLUMN x int",
        "DROP POLICY workspace ON cohort",
        "DROP TABLE import_batch",
        "TRUNCATE import_batch",
        "ALTER ROLE muster_ingest SUPERUSER",
        "CREATE TABLE mine ()",
        "UPDATE audit_event SET actor = ''",
        "DELETE FROM audit_event",
        "DELETE FROM credential",
        "UPDATE credential SET digest = ''",
        "UPDATE credential SET scopes = '{}'",
        "UPDATE credential SET workspace_id = NULL",
    ];
    for role in Role::ALL {
        let mut session = store.acting_as(role).connection().await.unwrap();
        for statement in ddl {
            let refused = refusal(&mut session, statement).await;
            assert!(
                ["permission denied", "must be owner", "must be superuser"]
                    .iter()
                    .any(|why| refused.contains(why)),
                "{} {statement}: {refused}",
                role.name()
            );
        }
        let superuser: bool = sqlx::query_scalar(
            "SELECT rolsuper OR rolbypassrls OR rolcanlogin FROM pg_roles WHERE rolname = current_user",
        )
        .fetch_one(&mut *session)
        .await
        .unwrap();
        assert!(!superuser, "{}", role.name());
    }
    let too_much: Vec<String> = sqlx::query_scalar(
        "SELECT rolname || ' on ' || relname FROM pg_roles, pg_class
         WHERE rolname LIKE 'muster\\_%' AND relkind = 'r' AND relnamespace = 'public'::regnamespace
           AND has_table_privilege(rolname, pg_class.oid, 'TRUNCATE, REFERENCES, TRIGGER')",
    )
    .fetch_all(&mut sql)
    .await
    .unwrap();
    assert_eq!(too_much, [""; 0]);
    let digests: Vec<String> = sqlx::query_scalar(
        "SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'muster\\_%'
           AND has_column_privilege(rolname, 'credential', 'digest', 'SELECT') ORDER BY 1",
    )
    .fetch_all(&mut sql)
    .await
    .unwrap();
    assert_eq!(digests, ["muster_access", "muster_backup", "muster_keys"]);
}

/// Who may do what: `r`ead, `a`dd, `w`rite, `d`elete; in brackets, to some columns only.
#[tokio::test]
async fn each_role_may_what_it_needs() {
    let (_store, mut sql) = planted().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1",
    )
    .fetch_all(&mut sql)
    .await
    .unwrap();
    let mut matrix = String::new();
    for table in tables {
        matrix.push_str(&format!("{table}:"));
        for role in Role::ALL {
            // It reads everything: see below.
            if role == Role::Backup {
                continue;
            }
            let mut letters = String::new();
            for (letter, privilege) in [
                ("r", "SELECT"),
                ("a", "INSERT"),
                ("w", "UPDATE"),
                ("d", "DELETE"),
            ] {
                let whole: bool = sqlx::query_scalar("SELECT has_table_privilege($1, $2, $3)")
                    .bind(role.name())
                    .bind(&table)
                    .bind(privilege)
                    .fetch_one(&mut sql)
                    .await
                    .unwrap();
                if whole {
                    letters.push_str(letter);
                } else if privilege != "DELETE" && may(&mut sql, role, &table, privilege).await {
                    letters.push_str(&format!("({letter})"));
                }
            }
            if !letters.is_empty() {
                matrix.push_str(&format!(" {}={letters}", &role.name()["muster_".len()..]));
            }
        }
        matrix.push('\n');
        let backup: bool = sqlx::query_scalar(
            "SELECT has_table_privilege('muster_backup', $1, 'SELECT')
                AND NOT has_table_privilege('muster_backup', $1, 'INSERT, UPDATE, DELETE, TRUNCATE')",
        )
        .bind(&table)
        .fetch_one(&mut sql)
        .await
        .unwrap();
        assert!(backup, "{table}");
    }
    assert_eq!(matrix, include_str!("isolation/privileges.txt"));
}

#[tokio::test]
async fn databases_of_one_cluster_are_migrated_at_once_by_a_login_that_is_no_superuser() {
    let cluster = tokio::task::spawn_blocking(muster_launcher::TemporaryCluster::start);
    let cluster = cluster.await.unwrap().unwrap();
    let mut admin = PgConnection::connect(&cluster.url("postgres"))
        .await
        .unwrap();
    for statement in [
        "CREATE ROLE plain LOGIN",
        "CREATE ROLE maker LOGIN CREATEROLE",
        "CREATE DATABASE one OWNER maker",
        "CREATE DATABASE two OWNER maker",
        "CREATE DATABASE three",
        "CREATE DATABASE four OWNER plain",
    ] {
        sqlx::raw_sql(statement).execute(&mut admin).await.unwrap();
    }
    let store = |database: &str, login: &str| {
        let url = cluster
            .url(database)
            .replace("user=muster", &format!("user={login}"));
        Store::connect(&Settings::new(url)).unwrap()
    };
    let (one, two, three) = (
        store("one", "maker"),
        store("two", "maker"),
        store("three", "muster"),
    );
    let four = store("four", "plain");
    let refused = four.migrate().await.unwrap_err().to_string();
    assert!(refused.contains("administrator"), "{refused}");
    let (a, b, c) = tokio::join!(one.migrate(), two.migrate(), three.migrate());
    for applied in [a, b, c] {
        assert!(!applied.unwrap().is_empty());
    }
    let refused = four.migrate().await.unwrap_err().to_string();
    assert!(refused.contains("administrator"), "{refused}");
    for store in [&one, &two, &three] {
        for role in Role::ALL {
            store.acting_as(role).check_role().await.unwrap();
        }
    }
    // Not even the owner of the tables sees a workspace by accident.
    let mut founding = one.acting_as(Role::Keys).begin("test").await.unwrap();
    let shop = muster_storage::workspaces::insert(&mut founding, "shop", "")
        .await
        .unwrap();
    founding.commit().await.unwrap();
    let mut owner = one.connection().await.unwrap();
    assert_eq!(count(&mut owner, "directory").await, 0);
    let mut entered = one
        .acting_as(Role::Users)
        .begin_in("test", shop.id)
        .await
        .unwrap();
    assert_eq!(count(&mut entered, "directory").await, 1);
    drop(entered);
    // A login of one server only.
    sqlx::raw_sql("CREATE ROLE ingest_login LOGIN; GRANT muster_ingest, muster_access, muster_housekeeping TO ingest_login")
        .execute(&mut admin)
        .await
        .unwrap();
    let ingest = store("one", "ingest_login");
    ingest.check_schema().await.unwrap();
    ingest.acting_as(Role::Ingest).check_role().await.unwrap();
    let refused = ingest
        .acting_as(Role::Keys)
        .check_role()
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("may not act in them"), "{refused}");
}
