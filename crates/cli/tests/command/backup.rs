//! `muster backup` and `muster restore`.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    database::Database,
    harness::{self, Muster, PARTNER, Server, Up, directory, file, muster, run, until, wait},
};

fn at(data_dir: &Path) -> Muster {
    Muster {
        data_dir: data_dir.to_owned(),
        workspace: String::new(),
    }
}

/// `muster backup` or `restore` of a database.
fn on(url: &str, words: &[&str]) -> Command {
    let mut command = muster();
    command.args(words).env("DATABASE_URL", url);
    command
}

fn in_directory(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_backup_of_a_running_muster_becomes_the_same_muster_elsewhere() {
    let mut up = Up::start(&[]);
    let shop = up.workspace("shop");
    shop.import_users(1_000);
    let (_audience, spring) = file("spring.csv", "external_id\nu1\nu2\nu3\nnobody\n");
    shop.json(&["export", "--partner", PARTNER, &spring]);
    let cohort = shop.json(&["cohort", "show", "spring"]);
    let backups = directory();
    let name = in_directory(backups.path(), "muster.dump");

    let told = shop.json(&["backup", &name]);
    let metadata = fs::metadata(&name).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert_eq!(told["bytes"], metadata.len());
    assert_eq!(fs::read_dir(backups.path()).unwrap().count(), 1);
    shop.run(&["backup", &name])
        .code(1)
        .says(&["is there already; --force"]);
    assert!(shop.table(&["backup", &name, "--force"]).starts_with(&name));
    // Into the data directory that is in use nothing is restored, nor into one that was.
    shop.run(&["restore", &name])
        .code(1)
        .says(&["is in use by"]);
    up.server.signal(Signal::SIGTERM);
    wait(&mut up.server.child, harness_patience());
    shop.run(&["restore", &name]).code(1).says(&["not empty"]);
    // Nobody has to run for a backup, and it may go through a pipe.
    let piped = shop.run(&["backup", "-"]).code(0);
    assert!(piped.stdout.starts_with(b"PGDMP"));

    let again = directory();
    let data_dir = again.path().join("data");
    let restored = at(&data_dir).json(&["restore", &name]);
    let contents = &restored["contents"];
    assert_eq!(contents["users"], 1_000, "{restored}");
    assert_eq!(contents["members"], 3, "{restored}");
    let mut command = harness::up_command(&data_dir);
    let _server = Server::start(&mut command, again.path(), &data_dir);
    let shop = Muster { data_dir, ..shop };
    assert_eq!(shop.json(&["cohort", "show", "spring"]), cohort);
}

fn harness_patience() -> std::time::Duration {
    std::time::Duration::from_secs(60)
}

#[test]
fn a_restore_needs_a_database_that_is_empty_and_idle() {
    let (from, to) = (
        Database::create("backup_from"),
        Database::create("backup_to"),
    );
    let backups = directory();
    let name = in_directory(backups.path(), "muster.dump");
    run(&mut on(&from.url(), &["backup", &name]), b"")
        .code(1)
        .says(&["holds no Muster"]);
    run(&mut on(&from.url(), &["migrate"]), b"").code(0);
    run(&mut on(&from.url(), &["backup", &name]), b"").code(0);

    let mut other = Command::new("psql");
    let other = other.args([to.url().as_str(), "-c", "SELECT pg_sleep(60)"]);
    let mut other = other.stdout(Stdio::null()).spawn().unwrap();
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'backup_to'
                AND query LIKE '%pg_sleep(60)%' AND application_name = 'psql' AND wait_event = 'PgSleep'";
    until("it is used", || from.query(busy) == "1");
    run(&mut on(&to.url(), &["restore", &name]), b"")
        .code(1)
        .says(&["in use by psql (process "]);
    other.kill().unwrap();
    other.wait().unwrap();
    let gone =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'backup_to'";
    until("it is not used", || from.query(gone) == "0");

    to.query("CREATE TABLE notes (n integer)");
    run(&mut on(&to.url(), &["restore", &name]), b"")
        .code(1)
        .says(&["not empty", "public.notes"]);
    to.query("DROP TABLE notes");
    run(&mut on(&to.url(), &["restore", &name]), b"")
        .code(0)
        .says(&["revoke the credentials"]);
    let versions = "SELECT max(version) FROM _sqlx_migrations";
    assert_eq!(to.query(versions), from.query(versions));
}

#[test]
fn a_damaged_or_foreign_file_restores_nothing() {
    let (from, to) = (
        Database::create("damaged_from"),
        Database::create("damaged_to"),
    );
    run(&mut on(&from.url(), &["migrate"]), b"").code(0);
    from.query(
        "INSERT INTO request_log (workspace_id, actor, method, request_id, fingerprint, response)
         SELECT 0, md5(n::text), 'm', md5((-n)::text), '', '' FROM generate_series(1, 20000) n",
    );
    let backups = directory();
    let name = |name: &str| in_directory(backups.path(), name);
    run(&mut on(&from.url(), &["backup", &name("good")]), b"").code(0);
    let good = fs::read(name("good")).unwrap();
    let refused = |file: &str, says: &[&str]| {
        let done = run(&mut on(&to.url(), &["restore", &name(file)]), b"");
        done.code(1).says(says);
        let relations = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        assert_eq!(to.query(relations), "0", "{file}");
    };
    refused("missing", &["No such file"]);
    fs::write(name("text"), "SELECT 1;").unwrap();
    refused("text", &["is not a backup"]);
    for share in [1, 5, 9] {
        fs::write(name("half"), &good[..good.len() * share / 10]).unwrap();
        refused("half", &["restored", "pg_restore failed"]);
    }
    let mut bytes = good.clone();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xa5);
    fs::write(name("damaged"), bytes).unwrap();
    refused("damaged", &["restored", "pg_restore failed"]);

    from.query("INSERT INTO _sqlx_migrations VALUES (9999, 'later', now(), true, '', 0)");
    run(&mut on(&from.url(), &["backup", &name("newer")]), b"").code(0);
    refused("newer", &["version 9999", "newer build"]);
    let foreign = Database::create("damaged_foreign");
    foreign.query("CREATE TABLE notes (n integer)");
    let mut dump = Command::new("pg_dump");
    let dump = dump.args([
        "--format=custom",
        "--file",
        &name("foreign"),
        &foreign.url(),
    ]);
    run(dump, b"").code(0);
    refused("foreign", &["something else than Muster"]);
}

#[test]
fn what_is_missing_is_named_and_a_password_is_told_to_nobody() {
    let from = Database::create("backup_tools");
    run(&mut on(&from.url(), &["migrate"]), b"").code(0);
    let programs = directory();
    let bin = programs.path().to_str().unwrap();
    let name = in_directory(programs.path(), "muster.dump");
    run(
        &mut on(&from.url(), &["backup", &name, "--pg-bin", bin]),
        b"",
    )
    .code(1)
    .says(&["pg_dump of PostgreSQL", "apt-get install postgresql-client"]);

    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec echo 'pg_dump (PostgreSQL) 99'\n\
         echo \"$@\" >{bin}/words\necho \"$PGPASSWORD\" >{bin}/password\n\
         echo 'pg_dump: error: out of luck' >&2\nexit 3\n"
    );
    let program = in_directory(programs.path(), "pg_dump");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let url = format!("{}&password=hunter%32", from.url());
    let done = run(&mut on(&url, &["backup", &name, "--pg-bin", bin]), b"").code(1);
    let done = done.says(&["pg_dump failed", "error: out of luck"]);
    assert!(!done.stderr.contains("hunter"), "{}", done.stderr);
    let read = |name| fs::read_to_string(in_directory(programs.path(), name)).unwrap();
    assert!(read("words").contains("--dbname=postgres:///backup_tools"));
    assert!(!read("words").contains("hunter"));
    assert_eq!(read("password"), "hunter2\n");
    // Nothing is left of it.
    assert!(!Path::new(&name).exists());
    assert!(!Path::new(&format!("{name}.partial")).exists());

    let nowhere = directory();
    let data_dir = nowhere.path().join("none");
    let error: Value = at(&data_dir).error(&["backup", &name]);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("no private Postgres"), "{message}");
    assert!(!data_dir.exists());
}
