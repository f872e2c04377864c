//! `muster segment resolve`: an audience on standard output, whole or with an exit code that says
//! that it is not.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::harness::{Big, Done, Muster, PARTNER, Server, Up, big, file, run, up_command};
use crate::harness::{wait, workspace};

const EVERYONE: [&str; 4] = ["segment", "resolve", "--filter", "acme:\"everyone\""];

/// Users with commas, quotes and several devices, all in the cohort `all`.
fn audience(slug: &str) -> Muster {
    let muster = workspace(slug);
    let mut users =
        "external_id,alias:mail,device_id\n\"=a,\"\"b\"\"\",a@x,d1;d2\n,b@x,\n".to_owned();
    (0..498).for_each(|n| users.push_str(&format!("u{n},,\n")));
    run(
        &mut muster.command(&["users", "import", "-"]),
        users.as_bytes(),
    )
    .code(0);
    let (_directory, all) = file("all.csv", users);
    let sent = muster.json(&["export", "--partner", PARTNER, &all]);
    assert_eq!(sent[0]["members_after"], 500, "{sent}");
    muster.json(&["segment", "create", "all", "acme:\"all\""]);
    muster
}

/// The lines of an output.
fn lines(done: &Done) -> Vec<&str> {
    done.text().lines().collect()
}

#[test]
fn csv_and_ndjson_hold_the_same_users_exactly() {
    let muster = audience("resolve-forms");
    let csv = muster
        .run(&["segment", "resolve", "all", "--view", "full"])
        .code(0);
    // What a spreadsheet program would compute is guarded, unless asked for as it is.
    let guarded = r#"0,"'=a,""b""","[{""label"":""mail"",""name"":""a@x""}]",d1;d2"#;
    assert_eq!(lines(&csv)[1], guarded);
    let csv = muster
        .run(&["segment", "resolve", "all", "--view", "full", "--raw"])
        .code(0);
    let rows = lines(&csv);
    assert_eq!(rows.len(), 501);
    assert_eq!(rows[0], "user_no,external_id,aliases,device_ids");
    let first = r#"0,"=a,""b""","[{""label"":""mail"",""name"":""a@x""}]",d1;d2"#;
    assert_eq!(rows[1], first);
    let csv = csv.says(&["500 users; complete, digest verified"]);

    let full = [
        "segment", "resolve", "all", "--view", "full", "--format", "ndjson",
    ];
    let ndjson = muster.run(&full).code(0);
    let users = lines(&ndjson)
        .into_iter()
        .map(|line| serde_json::from_str(line).unwrap());
    let users: Vec<Value> = users.collect();
    assert_eq!(users.len(), 500);
    assert_eq!(users[0]["external_id"], "=a,\"b\"");
    assert_eq!(users[0]["device_ids"][1], "d2");
    assert_eq!(users[1]["external_id"], Value::Null);
    let numbers = users.iter().map(|user| user["user_no"].to_string());
    let rows = lines(&csv);
    let of_csv = rows[1..]
        .iter()
        .map(|line| line.split(',').next().unwrap().to_owned());
    assert!(numbers.eq(of_csv), "the same users in the same order");

    let by_flag = muster
        .run(&["--output", "json", "segment", "resolve", "all"])
        .code(0);
    let summary: Value = serde_json::from_str(&by_flag.stderr).unwrap();
    assert_eq!(summary["complete"], true);
    assert_eq!(summary["digest_verified"], true);
    assert_eq!(summary["printed"], 500);
    assert_eq!(lines(&by_flag).len(), 500, "JSON is a line a user");
}

#[test]
fn the_parts_of_a_partition_are_the_whole_and_disjoint() {
    let muster = audience("resolve-parts");
    let resolve = |words: &[&str]| {
        let done = muster
            .run(&[&["segment", "resolve"], words].concat())
            .code(0);
        let rows: Vec<String> = lines(&done)[1..]
            .iter()
            .map(|&row| row.to_owned())
            .collect();
        rows
    };
    let whole = resolve(&["all"]);
    let mut parts = Vec::new();
    for index in 0..3 {
        let partition = format!("{index}/3");
        // Workers that share a resolution name it by the same request id.
        parts.push(resolve(&[
            "all",
            "--partition",
            &partition,
            "--request-id",
            "tonight",
        ]));
    }
    assert!(
        parts
            .iter()
            .all(|part| !part.is_empty() && part.len() < 500)
    );
    assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 500, "disjoint");
    let together: BTreeSet<_> = parts.iter().flatten().collect();
    assert_eq!(together, whole.iter().collect());
    let kept = muster.json(&["segment", "resolutions"]);
    assert_eq!(
        kept.as_array().unwrap().len(),
        2,
        "the parts are of one resolution"
    );
}

#[test]
fn a_kept_resolution_comes_out_byte_for_byte_although_the_cohort_has_changed() {
    let muster = audience("resolve-kept");
    let done = muster
        .run(&["segment", "resolve", "all", "--output", "json"])
        .code(0);
    let summary: Value = serde_json::from_str(&done.stderr).unwrap();
    let id = summary["resolution"]["resolution_id"].as_str().unwrap();
    let (_directory, less) = file("all.csv", "external_id\nu1\n");
    muster.json(&["export", "--partner", PARTNER, &less]);
    let again = ["segment", "resolve", "--resolution", id, "--output", "json"];
    assert_eq!(muster.run(&again).code(0).stdout, done.stdout);
    assert_eq!(
        lines(&muster.run(&["segment", "resolve", "all"]).code(0)).len(),
        2
    );
    // From the last batch on nothing is left, not even a header line.
    let token = summary["resume_token"].as_str().unwrap();
    let rest = ["segment", "resolve", "--resolution", id, "--resume", token];
    let rest = muster.run(&rest).code(0);
    assert_eq!(rest.text(), "");
    rest.says(&["0 users; complete"]);
}

#[test]
fn an_audience_over_old_cohorts_is_refused_without_a_line() {
    let muster = audience("resolve-old");
    let fresh = ["segment", "resolve", "all", "--max-cohort-age"];
    muster.run(&[&fresh[..], &["1h"]].concat()).code(0);
    let refused = muster.run(&[&fresh[..], &["0s"]].concat()).code(1);
    assert_eq!(refused.text(), "");
    refused.says(&["all"]);
}

#[test]
fn a_reader_who_leaves_ends_it_quietly_but_not_with_0() {
    let muster = &big().muster;
    for format in ["csv", "ndjson"] {
        let mut command = muster.command(&[&EVERYONE[..], &["--format", format]].concat());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        // As `head -1` does: one line, and gone.
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        reader.read_line(&mut first).unwrap();
        drop(reader);
        assert!(first.contains("user_no"), "{first}");
        let status = wait(&mut child, Duration::from_secs(60));
        assert_eq!(status.code(), Some(1));
        let mut said = String::new();
        child.stderr.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "quietly");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let muster = audience("resolve-full");
    for words in [
        vec!["segment", "resolve", "all"],
        vec!["segment", "list"],
        vec!["segment", "count", "all", "--output", "json"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = muster.command(&words);
        let mut child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let status = wait(&mut child, Duration::from_secs(60));
        let mut said = String::new();
        child.stderr.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains("standard output: No space left"), "{said}");
    }
}

/// Starts a resolution and waits until its first line has come.
fn begin(muster: &Muster) -> (Child, BufReader<std::process::ChildStdout>, String) {
    let mut command = muster.command(&[&EVERYONE[..], &["--output", "json"]].concat());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut output = String::new();
    reader.read_line(&mut output).unwrap();
    (child, reader, output)
}

#[test]
fn a_server_killed_in_mid_stream_means_no_end_and_the_rest_comes_after_its_restart() {
    let mut up = Up::start(&[]);
    let muster = Big::fill(up.workspace("big")).muster;
    let (mut child, mut reader, mut output) = begin(&muster);
    up.server.kill_9();
    reader.read_to_string(&mut output).unwrap();
    let status = wait(&mut child, Duration::from_secs(60));
    assert_eq!(status.code(), Some(1));
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    let told: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [summary, error] = &told[..] else {
        panic!("{said}")
    };
    assert_eq!(summary["complete"], false);
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("no connection to"),
        "{error}"
    );
    let came = output.lines().count();
    assert!(
        came < 100_000,
        "all of it came before the server was killed"
    );
    assert_eq!(summary["printed"], came, "what was told is what came");

    let directory = up.directory.path();
    let _again = Server::start(
        &mut up_command(&muster.data_dir),
        directory,
        &muster.data_dir,
    );
    let id = summary["resolution"]["resolution_id"].as_str().unwrap();
    let token = summary["resume_token"].as_str().unwrap();
    let rest = [
        "segment",
        "resolve",
        "--resolution",
        id,
        "--resume",
        token,
        "--output",
        "json",
    ];
    let rest = muster.run(&rest).code(0);
    let users = output.lines().chain(lines(&rest));
    let users: BTreeSet<&str> = users.collect();
    assert_eq!(came + lines(&rest).len(), 100_000, "nobody twice");
    assert_eq!(users.len(), 100_000, "nobody lost");
}
