//! A Muster that ends under those who use it, and commands that outlive it.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Big, PARTNER, Server, Up, file, until, wait};

#[test]
fn an_export_goes_on_after_a_crash_of_the_server_and_sends_everybody_once() {
    const LINES: usize = 500_000;
    let mut up = Up::start(&[]);
    let muster = up.workspace("shop");
    muster.import_users(1_000);
    let rows: String = (0..LINES).map(|n| format!("u{n}\n")).collect();
    let (_directory, audience) = file("spring.csv", format!("external_id\n{rows}"));
    let mut export = muster.command(&["export", "--partner", PARTNER, &audience]);
    let export = export.args(["--output", "json", "--import-id", "nightly"]);
    let export = export.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut export = export.spawn().unwrap();
    until("a part of it is durable", || {
        let import = muster.run(&["import", "show", "nightly", "--output", "json"]);
        import.status.success() && import.json()["received"] != 0
    });
    assert!(
        export.try_wait().unwrap().is_none(),
        "it was over before the crash"
    );
    let grpc = up.endpoints()["grpc"].as_str().unwrap().to_owned();
    up.server.kill_9();

    let data_dir = &muster.data_dir;
    let mut again = crate::harness::muster();
    again.args(["up", "--grpc-listen", grpc.strip_prefix("http://").unwrap()]);
    again
        .args([
            "--rest-listen",
            "127.0.0.1:0",
            "--console-listen",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(data_dir);
    let _again = Server::start(&mut again, up.directory.path(), data_dir);
    let status = wait(&mut export, Duration::from_secs(120));
    let (mut told, mut said) = (String::new(), String::new());
    export.stdout.unwrap().read_to_string(&mut told).unwrap();
    export.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(0), "{told}{said}");
    assert!(said.contains("trying again in"), "{said}");
    let report: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(report[0]["received"], LINES);
    assert_eq!(report[0]["outcomes"]["added"], 1_000);
    assert_eq!(report[0]["outcomes"]["unknown"], LINES - 1_000);
    assert_eq!(
        muster.json(&["cohort", "show", "spring"])["member_count"],
        1_000
    );
}

#[test]
fn a_reader_who_stalls_does_not_keep_it_from_ending_and_gets_no_end() {
    let mut up = Up::start(&["--grace", "2s"]);
    let muster = Big::fill(up.workspace("big")).muster;
    let resolve = ["segment", "resolve", "--filter", "acme:\"everyone\""];
    let mut resolve = muster.command(&resolve);
    let resolve = resolve.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut resolve = resolve.spawn().unwrap();
    let mut reader = BufReader::new(resolve.stdout.take().unwrap());
    let mut audience = String::new();
    reader.read_line(&mut audience).unwrap();
    let told = Instant::now();
    up.server.signal(Signal::SIGTERM);
    let status = wait(&mut up.server.child, Duration::from_secs(30));
    let took = told.elapsed();
    assert_eq!(status.code(), Some(0), "{}", up.server.stderr());
    assert!(took < Duration::from_secs(7), "it took {took:?}");

    reader.read_to_string(&mut audience).unwrap();
    let status = wait(&mut resolve, Duration::from_secs(60));
    let mut said = String::new();
    resolve.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        audience.lines().count() < 100_001,
        "all of it came before the end"
    );
    assert!(
        said.contains("INCOMPLETE") && said.contains("to go on: "),
        "{said}"
    );
}
