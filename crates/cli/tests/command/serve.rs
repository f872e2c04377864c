//! `muster migrate` and `muster serve`: the parts of a deployment, each a process, on a database of
//! the operator's.

use std::{fs, net::TcpStream, path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::database::Database;
use crate::harness::{self, Server, directory, file, run, up_command, wait};

fn migrate(database: &Database) -> Command {
    let mut command = harness::muster();
    command.arg("migrate").env("DATABASE_URL", database.url());
    command
}

#[test]
fn migrating_twice_changes_nothing_the_second_time() {
    let database = Database::create("migrated");
    let applied = run(migrate(&database).args(["--output", "json"]), b"")
        .code(0)
        .json();
    assert!(
        applied["applied"].as_array().unwrap().len() > 1,
        "{applied}"
    );
    let applied = run(migrate(&database).args(["--output", "json"]), b"")
        .code(0)
        .json();
    assert_eq!(applied, json!({ "applied": [] }));
    let text = run(&mut migrate(&database), b"").code(0);
    assert_eq!(text.text(), "the schema is up to date\n");
}

#[test]
fn a_server_refuses_a_database_that_is_not_migrated_and_says_what_to_do() {
    let database = Database::create("not_migrated");
    for server in ["keys", "users", "ingest", "segments"] {
        let mut command = harness::muster();
        let command = command.args(["serve", server, "--grpc-listen", "127.0.0.1:0"]);
        let command = command.env("DATABASE_URL", database.url());
        run(command, b"").code(1).says(&["run `muster migrate`"]);
    }
    assert_eq!(
        database.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"),
        "0",
        "a server never migrates by itself"
    );
}

#[test]
fn a_database_that_is_not_there_is_told_with_its_place_and_without_its_password() {
    let directory = directory();
    let url = "postgres://muster:hunter2@127.0.0.1:9/muster";
    for words in [
        &["migrate"][..],
        &["serve", "keys", "--grpc-listen", "127.0.0.1:0"],
        &["up", "--grpc-listen", "127.0.0.1:0"],
    ] {
        let mut command = harness::muster();
        let command = command.args(words).arg("--data-dir").arg(directory.path());
        let done = run(command.env("DATABASE_URL", url), b"").code(1);
        assert!(!done.stderr.contains("hunter2"), "{}", done.stderr);
        done.says(&[
            "error: no connection to the database at 127.0.0.1:9:",
            "refused",
        ]);
    }
}

#[test]
fn a_database_that_lets_nobody_in_is_told_with_what_it_says() {
    let database = Database::create("closed");
    let mut command = harness::muster();
    let url = database.url().replace("/closed", "/no_such_database");
    let done = run(command.arg("migrate").env("DATABASE_URL", url), b"").code(1);
    done.says(&["\"no_such_database\" does not exist"]);
}

/// An operator's token comes from `muster up`, here on the same database.
fn operator_token(database: &Database, directory: &Path) -> String {
    let data_dir = directory.join("up");
    let mut command = up_command(&data_dir);
    let command = command.env("DATABASE_URL", database.url());
    let scratch = harness::directory();
    let mut up = Server::start(command, scratch.path(), &data_dir);
    up.signal(Signal::SIGTERM);
    assert_eq!(wait(&mut up.child, Duration::from_secs(30)).code(), Some(0));
    fs::read_to_string(data_dir.join("operator.token")).unwrap()
}

fn serve(servers: &[&str], directory: &Path, set: impl FnOnce(&mut Command)) -> (Server, Value) {
    let data_dir = directory.join(servers.join("-"));
    let mut command = harness::muster();
    command
        .arg("serve")
        .args(servers)
        .arg("--data-dir")
        .arg(&data_dir);
    command.args([
        "--grpc-listen",
        "127.0.0.1:0",
        "--rest-listen",
        "127.0.0.1:0",
        "--console-listen",
        "127.0.0.1:0",
    ]);
    command.args(["--output", "json"]);
    set(&mut command);
    let scratch = directory.join(format!("scratch-{}", servers.join("-")));
    fs::create_dir(&scratch).unwrap();
    let server = Server::start(&mut command, &scratch, &data_dir);
    let ready = serde_json::from_str(&server.ready).unwrap();
    (server, ready)
}

#[test]
fn the_bridge_and_the_other_servers_work_together_as_two_processes() {
    let (directory, database) = (directory(), Database::create("two_processes"));
    run(&mut migrate(&database), b"").code(0);
    let token = operator_token(&database, directory.path());
    let (mut servers, ready) = serve(
        &["keys", "users", "ingest", "segments"],
        directory.path(),
        |command| {
            command.env("DATABASE_URL", database.url());
        },
    );
    assert_eq!(ready["rest"], Value::Null);
    let grpc = ready["grpc"].as_str().unwrap();
    let (mut bridge, ready) = serve(&["bridge"], directory.path(), |command| {
        command.args(["--endpoint", grpc]);
    });
    assert_eq!(ready["grpc"], Value::Null, "the bridge serves no gRPC");
    let rest = ready["rest"].as_str().unwrap();

    let muster = |words: &[&str]| {
        let mut command = harness::muster();
        // The variables stand in for the flags.
        command
            .env("MUSTER_ENDPOINT", grpc)
            .env("MUSTER_TOKEN", token.trim());
        command
            .env("MUSTER_WORKSPACE", "shop")
            .env("MUSTER_OUTPUT", "json");
        command.args(words);
        command
    };
    let json = |words: &[&str]| run(&mut muster(words), b"").code(0).json();
    json(&["workspace", "create", "shop"]);
    json(&["partner", "create", "acme"]);
    json(&["partner", "enable", "acme"]);
    let api_key = json(&["partner", "key", "create", "acme"])["secret"].clone();
    let import_key = json(&["key", "create", "--partner", "acme"])["secret"].clone();
    run(
        &mut muster(&["users", "import", "-"]),
        b"external_id\nu1\nu2\n",
    )
    .code(0);
    let (_directory, audience) = file("spring.csv", "external_id\nu1\nu2\nnobody\n");
    let mut export = muster(&["export", "--partner", "acme", "--via", "rest", &audience]);
    export.env("MUSTER_REST_ENDPOINT", rest);
    export.env("MUSTER_PARTNER_API_KEY", api_key.as_str().unwrap());
    export.env("MUSTER_CLIENT_SECRET", import_key.as_str().unwrap());
    let sent = run(&mut export, b"").code(0).json();
    assert_eq!(sent[0]["outcomes"]["added"], 2);
    assert_eq!(sent[0]["outcomes"]["unknown"], 1);
    assert_eq!(
        json(&["segment", "count", "--filter", "acme:\"spring\""])["user_count"],
        2
    );

    // Each ends by itself; the other goes on.
    bridge.signal(Signal::SIGTERM);
    assert_eq!(
        wait(&mut bridge.child, Duration::from_secs(30)).code(),
        Some(0)
    );
    TcpStream::connect(rest.strip_prefix("http://").unwrap()).unwrap_err();
    json(&["cohort", "list"]);
    servers.signal(Signal::SIGTERM);
    assert_eq!(
        wait(&mut servers.child, Duration::from_secs(30)).code(),
        Some(0)
    );
}
