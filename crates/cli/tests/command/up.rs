//! `muster up`: how it starts, what it leaves for other commands, and how it ends.

use std::{
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::database::Database;
use crate::harness::{self, Server, Up, directory, run, runs, shared, until, up_command, wait};

#[test]
fn endpoints_and_token_are_where_other_commands_look_and_a_line_tells_that_it_is_ready() {
    let up = shared();
    let endpoints = up.endpoints();
    for name in ["grpc", "rest", "console", "operator_token_file"] {
        let value = endpoints[name].as_str().unwrap();
        assert!(up.server.ready.contains(value), "{}", up.server.ready);
    }
    assert!(
        up.server
            .ready
            .starts_with("Muster is ready: gRPC http://127.0.0.1:")
    );
    let file = endpoints["operator_token_file"].as_str().unwrap();
    assert_eq!(
        fs::metadata(file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // Neither the line nor the file with the endpoints holds the token itself.
    let token = fs::read_to_string(file).unwrap();
    assert!(token.starts_with("mst_svc_"));
    let told = format!("{}{}{endpoints}", up.server.ready, up.server.stderr());
    assert!(!told.contains(token.trim()));
}

#[test]
fn postgres_runs_unprivileged_private_and_as_a_child() {
    let up = shared();
    let status = fs::read_to_string(format!("/proc/{}/status", up.postmaster())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap().split_whitespace();
        words
            .map(|word| word.parse::<u32>().unwrap())
            .collect::<Vec<_>>()
    };
    assert!(field("Uid:").iter().all(|uid| *uid != 0), "{status}");
    assert!(field("Gid:").iter().all(|gid| *gid != 0), "{status}");
    assert_eq!(field("PPid:"), [up.server.pid()]);
    let data = fs::metadata(up.muster.data_dir.join("postgres")).unwrap();
    assert_eq!(data.permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_second_one_on_the_same_directory_is_refused_and_names_the_first() {
    let up = shared();
    let holder = format!("in use by another muster (process {})", up.server.pid());
    let mut second = up_command(&up.muster.data_dir);
    run(&mut second, b"").code(1).says(&[&holder]);
    // A database of its own is no reason to share the files.
    let database = up.database_url("postgres");
    let second = second.env("DATABASE_URL", database);
    run(second, b"").code(1).says(&[&holder]);
    up.endpoints();
    up.muster.table(&["workspace", "list"]);
}

#[test]
fn sigterm_ends_it_with_0_in_its_grace_period_although_a_stream_is_open() {
    let mut up = Up::start(&["--output", "json", "--grace", "4s"]);
    let ready: Value = serde_json::from_str(&up.server.ready).unwrap();
    assert_eq!(ready["state"], "ready");
    for name in ["grpc", "rest", "console", "operator_token_file"] {
        assert_eq!(ready[name], up.endpoints()[name]);
    }
    let muster = up.workspace("shop");
    // More than a batch, so that the stream is open, and no end, so that it stays open.
    let mut import = muster.command(&["users", "import", "-"]);
    let import = import
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut import = import.spawn().unwrap();
    let mut rows = import.stdin.take().unwrap();
    rows.write_all(b"external_id\n").unwrap();
    for n in 0..12_000 {
        writeln!(rows, "u{n}").unwrap();
    }
    rows.flush().unwrap();
    until("the first batch is written", || {
        muster.run(&["users", "find", "u0"]).status.success()
    });
    let postmaster = up.postmaster();
    let told = Instant::now();
    up.server.signal(Signal::SIGTERM);
    let status = wait(&mut up.server.child, Duration::from_secs(30));
    let took = told.elapsed();
    assert_eq!(status.code(), Some(0), "{}", up.server.stderr());
    assert!(took < Duration::from_secs(9), "it took {took:?}");
    assert!(!runs(postmaster));
    assert!(!up.muster.data_dir.join("endpoints.json").exists());
    drop(rows);
    let status = wait(&mut import, Duration::from_secs(60));
    assert_eq!(
        status.code(),
        Some(1),
        "an import that was cut off is no success"
    );
    let not_running = muster.error(&["users", "find", "u0"]);
    assert_eq!(not_running["code"], "not_running");
}

#[test]
fn a_second_sigterm_does_not_wait() {
    let mut up = Up::start(&["--grace", "5m"]);
    // A request whose body never ends; that the server asks for it shows that it has begun.
    let rest = up.endpoints()["rest"].as_str().unwrap().to_owned();
    let mut request = TcpStream::connect(rest.strip_prefix("http://").unwrap()).unwrap();
    let head = "POST /partners/acme/cohorts HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\n\
                Content-Length: 100\r\nExpect: 100-continue\r\n\r\n";
    request.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    request.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100");
    up.server.signal(Signal::SIGTERM);
    until("it is stopping", || {
        up.server.stderr().contains("a second signal does not wait")
    });
    assert!(runs(up.server.pid()));
    let postmaster = up.postmaster();
    let told = Instant::now();
    up.server.signal(Signal::SIGTERM);
    let status = wait(&mut up.server.child, Duration::from_secs(30));
    let took = told.elapsed();
    assert_eq!(status.code(), Some(1), "{}", up.server.stderr());
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    assert!(!runs(postmaster));
    assert!(!up.muster.data_dir.join("endpoints.json").exists());
}

#[test]
fn after_kill_9_it_serves_the_same_data_and_token_within_10_seconds() {
    let mut up = Up::start(&[]);
    let muster = up.workspace("shop");
    muster.import_users(3);
    let token_file = up.muster.data_dir.join("operator.token");
    let token = fs::read_to_string(&token_file).unwrap();
    let orphan = up.postmaster();
    up.server.kill_9();
    assert!(runs(orphan), "Postgres outlives a muster that was killed");
    let gone = muster.error(&["users", "find", "u2"]);
    let message = gone["message"].as_str().unwrap();
    assert!(
        message.starts_with("no connection to http://127.0.0.1:"),
        "{message}"
    );

    let started = Instant::now();
    let directory = up.directory.path();
    let data_dir = &up.muster.data_dir;
    let again = Server::start(&mut up_command(data_dir), directory, data_dir);
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(10),
        "it took {took:?}: {}",
        again.stderr()
    );
    assert!(!runs(orphan));
    assert_eq!(fs::read_to_string(&token_file).unwrap(), token);
    assert_eq!(
        muster.json(&["users", "find", "u2"])["user"]["external_id"],
        "u2"
    );
}

#[test]
fn database_url_replaces_the_private_postgres() {
    let (directory, data) = (directory(), Database::create("replaced"));
    let data_dir = directory.path().join("data");
    let mut command = up_command(&data_dir);
    let command = command.env("DATABASE_URL", data.url());
    let mut server = Server::start(command, directory.path(), &data_dir);
    let muster = harness::Muster {
        data_dir: data_dir.clone(),
        workspace: "shop".to_owned(),
    };
    muster.json(&["workspace", "create", "shop"]);
    assert!(!data_dir.join("postgres").exists());
    assert_eq!(
        data.query("SELECT count(*) FROM workspace WHERE slug = 'shop'"),
        "1"
    );
    // Ctrl-C is as good.
    server.signal(Signal::SIGINT);
    let status = wait(&mut server.child, Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "{}", server.stderr());
    assert_eq!(
        data.query("SELECT 1"),
        "1",
        "a database of the operator's stays up"
    );
}

#[test]
fn without_postgres_the_package_to_install_is_named() {
    let (directory, empty) = (directory(), directory());
    let mut command = up_command(&directory.path().join("data"));
    let command = command.arg("--pg-bin").arg(empty.path());
    let empty = empty.path().to_str().unwrap();
    run(command, b"")
        .code(1)
        .says(&["apt-get install postgresql", empty]);
}

#[test]
fn a_parent_that_postgres_may_not_enter_is_named() {
    if !nix::unistd::geteuid().is_root() {
        return; // Then Postgres runs as whoever made the directory, and may enter.
    }
    let parent = directory();
    let closed = parent.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let blocked = format!("who may not enter {}:", closed.display());
    let done = run(&mut up_command(&closed.join("data")), b"").code(1);
    done.says(&[&blocked, "chmod o+x"]);
}

#[test]
fn a_port_that_is_taken_is_told_and_nothing_is_left_running() {
    let taken = shared().endpoints()["grpc"].as_str().unwrap().to_owned();
    let taken = taken.strip_prefix("http://").unwrap();
    let directory = directory();
    let data_dir = directory.path().join("data");
    let mut command = harness::muster();
    let command = command
        .args(["up", "--grpc-listen", taken])
        .arg("--data-dir")
        .arg(&data_dir);
    run(command, b"")
        .code(1)
        .says(&[&format!("cannot listen on {taken}")]);
    assert!(!data_dir.join("postgres/postmaster.pid").exists());
    assert!(!data_dir.join("endpoints.json").exists());
}

#[test]
fn a_postgres_that_dies_is_restarted_and_nothing_is_lost() {
    let mut up = Up::start(&[]);
    let muster = up.workspace("shop");
    muster.import_users(3);
    let first = up.postmaster();
    kill(Pid::from_raw(first.try_into().unwrap()), Signal::SIGKILL).unwrap();
    // Connections that are open may go on working for a moment.
    until("another one accepts connections", || {
        let log = up.server.stderr();
        log.matches("PostgreSQL accepts connections").count() == 2
    });
    until("the data is there again", || {
        muster.run(&["users", "find", "u2"]).status.success()
    });
    assert_ne!(up.postmaster(), first);
    up.server.signal(Signal::SIGTERM);
    let status = wait(&mut up.server.child, Duration::from_secs(30));
    assert_eq!(status.code(), Some(0), "{}", up.server.stderr());
}

#[test]
fn a_signal_before_it_is_ready_leaves_no_postgres_behind() {
    let directory = directory();
    let data_dir = directory.path().join("data");
    for sign in [
        "making a new PostgreSQL cluster",
        "PostgreSQL accepts connections",
    ] {
        let scratch = harness::directory();
        let mut server = Server::spawn(&mut up_command(&data_dir), scratch.path(), &data_dir);
        until(sign, || server.stderr().contains(sign));
        server.signal(Signal::SIGTERM);
        let status = wait(&mut server.child, Duration::from_secs(30));
        assert_eq!(status.code(), Some(0), "{}", server.stderr());
        let left = processes_naming(data_dir.to_str().unwrap());
        assert!(left.is_empty(), "{left:?}");
        assert!(!data_dir.join("endpoints.json").exists());
    }
    let server = Server::start(&mut up_command(&data_dir), directory.path(), &data_dir);
    assert!(server.ready.starts_with("Muster is ready"));
}

#[test]
fn a_directory_with_blanks_and_a_path_too_long_for_a_socket_works() {
    let directory = directory();
    let data_dir = directory
        .path()
        .join(format!("with a blank, é and {}", "x".repeat(120)));
    let server = Server::start(&mut up_command(&data_dir), directory.path(), &data_dir);
    let muster = harness::Muster {
        data_dir,
        workspace: "shop".to_owned(),
    };
    muster.json(&["workspace", "create", "shop"]);
    muster.import_users(1);
    assert!(
        server.ready.contains("with a blank, é and x"),
        "{}",
        server.ready
    );
}

/// The command lines of the Postgres processes that have this text in them.
fn processes_naming(text: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().map(Result::unwrap);
    let lines = processes.filter_map(|process| {
        let bytes = fs::read(process.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
    });
    lines
        .filter(|line| line.contains(text) && line.contains("postgresql/"))
        .collect()
}
