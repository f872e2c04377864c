//! `muster export`: campaign files in, cohorts out, and every row accounted for.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Done, Muster, PARTNER, big, file, run, run_within, workspace};

fn export(muster: &Muster, words: &[&str]) -> Done {
    let common = ["export", "--partner", PARTNER, "--output", "json"];
    muster.run(&[&common[..], words].concat())
}

/// Sends a file as the cohort `spring` and returns what is told of it.
#[track_caller]
fn spring(muster: &Muster, content: impl AsRef<[u8]>, words: &[&str]) -> Value {
    let (_directory, path) = file("spring.csv", content);
    export(muster, &[&[path.as_str()], words].concat())
        .code(0)
        .json()[0]
        .clone()
}

fn members(muster: &Muster, cohort: &str) -> Value {
    muster.json(&["cohort", "show", cohort])["member_count"].clone()
}

#[test]
fn a_mark_crlf_and_gzip_change_nothing() {
    let muster = workspace("export-forms");
    muster.import_users(3);
    let windows = "\u{feff}external_id,note\r\nu0,\"a, b\"\r\n\r\nu1,\r\nu2,x";
    let report = spring(&muster, windows, &[]);
    assert_eq!(report["outcomes"]["added"], 3);
    assert_eq!(
        (&report["rows"], &report["malformed_count"]),
        (&json!(3), &json!(0))
    );
    let (directory, path) = file("zipped.csv", windows);
    assert!(Command::new("gzip").arg(&path).status().unwrap().success());
    let zipped = format!("{path}.gz");
    let report = export(&muster, &[&zipped]).code(0).json()[0].clone();
    assert_eq!(report["cohort_id"], "zipped", "without either ending");
    assert_eq!(report["outcomes"]["added"], 3);

    let bytes = fs::read(&zipped).unwrap();
    let damaged = directory.path().join("damaged.csv.gz");
    fs::write(&damaged, &bytes[..bytes.len() - 12]).unwrap();
    let done = export(&muster, &[damaged.to_str().unwrap()]).code(1);
    assert_eq!(done.json()[0]["state"], "failed");
    let published = muster.json(&["cohort", "list", "damaged"]);
    let published = published.as_array().unwrap().iter();
    assert!(
        published
            .map(|cohort| &cohort["version"])
            .all(|version| *version == 0)
    );
}

#[test]
fn every_row_is_accounted_for_and_malformed_ones_are_listed_with_their_lines() {
    let muster = workspace("export-rows");
    let users = b"external_id,device_id\nu0,d0\nu1,\n,d2\n";
    run(&mut muster.command(&["users", "import", "-"]), users).code(0);
    let mut text = b"external_id,device_id\nu0,\nu1\n,\nu1,,x\n,d0\n,d2\nu0,\nnobody,\n".to_vec();
    text.extend(format!("\"a\nb\",\n\u{1},\n{},\n", "x".repeat(513)).bytes());
    text.extend(b"\xff,\n");
    let (_directory, path) = file("spring.csv", &text);
    // Done in part: what could not be read is for somebody to look at.
    let report = export(&muster, &[&path]).code(1).json()[0].clone();
    let malformed = report["malformed"].as_array().unwrap().iter();
    let malformed: Vec<_> = malformed
        .map(|row| {
            (
                row["line"].as_u64().unwrap(),
                row["defect"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        (3, "1 fields where the header has 2"),
        (4, "every identifying column is empty"),
        (5, "3 fields where the header has 2"),
        (10, "a line break in the identifier; is a quote not closed?"),
        (14, "the identifier is not UTF-8"),
    ];
    assert_eq!(malformed, expected);
    let outcomes = &report["outcomes"];
    assert_eq!(outcomes["added"], 2, "u0, and the anonymous device d2");
    assert_eq!(outcomes["device_of_identified_user"], 1, "d0 is u0's");
    assert_eq!(outcomes["duplicate"], 1, "u0 again");
    assert_eq!(outcomes["unknown"], 1, "nobody");
    assert_eq!(outcomes["invalid"], 2, "a control character, 513 bytes");
    assert_eq!(report["rows"], 12);
    assert_eq!(report["received"], 7);
    let sum: u64 = outcomes
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(sum, 7, "{outcomes}");

    let done = muster.run(&["export", "--partner", PARTNER, &path]).code(1);
    let line = format!("{path}, line 3: 1 fields where the header has 2");
    done.says(&[&line, &format!("{path}, lines 10 to 11: a line break")]);
    let import = muster.json(&["import", "list"])[0]["import_id"].clone();
    let rejected = [
        "import",
        "rejected",
        import.as_str().unwrap(),
        "--output",
        "json",
    ];
    let reasons = muster.table(&rejected);
    assert_eq!(reasons.lines().count(), 4, "{reasons}");
    assert!(reasons.contains("device_of_identified_user") && reasons.contains("nobody"));
}

#[test]
fn a_header_that_identifies_nobody_is_refused_and_says_what_was_expected() {
    let muster = workspace("export-header");
    for (content, part) in [
        (
            "mail,city\na,b\n",
            r#"expected `external_id`, `device_id` or `alias:LABEL`, found "mail", "city""#,
        ),
        ("u1\nu2\n", "no column identifies anybody"),
        ("alias:\nx\n", "needs a label, as in `alias:newsletter`"),
        ("", "the file is empty: it needs a header"),
    ] {
        let (_directory, path) = file("spring.csv", content);
        let done = muster.run(&["export", "--partner", PARTNER, &path]).code(1);
        assert!(done.text().contains("spring  failed"), "{}", done.text());
        done.says(&[&path, part]);
    }
    assert_eq!(muster.json(&["cohort", "list"]), json!([]));
}

#[test]
fn of_several_columns_the_first_that_is_not_empty_identifies() {
    let muster = workspace("export-columns");
    let users = b"external_id,alias:mail,device_id\nu0,,\n,a@x,d1\n,b@x,d2\n";
    run(&mut muster.command(&["users", "import", "-"]), users).code(0);
    let rows = "city,alias:mail,external_id,device_id\nrome,,u0,\n,a@x,nobody,d2\n,,,d2\n";
    let report = spring(&muster, rows, &[]);
    assert_eq!(report["outcomes"]["added"], 3, "{report}");
    assert_eq!(report["outcomes"]["unknown"], 0);
}

#[test]
fn a_file_replaces_the_cohort_unless_delta_is_given() {
    let muster = workspace("export-modes");
    muster.import_users(4);
    spring(&muster, "external_id\nu0\nu1\n", &[]);
    let report = spring(&muster, "external_id\nu1\nu2\n", &["--delta"]);
    assert_eq!(report["members_removed"], 0);
    assert_eq!(members(&muster, "spring"), 3);
    let report = spring(&muster, "external_id\nu2\nu3\n", &[]);
    assert_eq!(report["members_removed"], 2);
    assert_eq!(members(&muster, "spring"), 2);
}

#[test]
fn a_replacement_that_names_nobody_leaves_the_cohort_alone_unless_that_is_meant() {
    let muster = workspace("export-empty");
    muster.import_users(4);
    spring(&muster, "external_id\nu0\nu1\n", &[]);
    for (content, told) in [
        (
            "external_id\n",
            "the file names nobody, and as a replacement it would empty the cohort",
        ),
        (
            "external_id\na,b\n",
            "nobody in its 1 rows (line 2: 2 fields where the header has 1)",
        ),
    ] {
        let (_directory, path) = file("spring.csv", content);
        let done = muster.run(&["export", "--partner", PARTNER, &path]).code(1);
        done.says(&[told, "give --allow-empty if that is meant"]);
        assert_eq!(members(&muster, "spring"), 2);
    }
    assert_eq!(
        muster.json(&["import", "list"]).as_array().unwrap().len(),
        1
    );
    let report = spring(&muster, "external_id\n", &["--delta"]);
    assert_eq!(report["members_after"], 2, "adding nobody does no harm");
    let report = spring(&muster, "external_id\n", &["--allow-empty"]);
    assert_eq!(report["members_removed"], 2);
    assert_eq!(members(&muster, "spring"), 0);
    let help = muster.table(&["export", "--help"]);
    assert!(help.contains("--allow-empty"), "{help}");
}

#[test]
fn of_several_files_a_missing_one_fails_and_the_others_are_sent() {
    let muster = workspace("export-several");
    muster.import_users(3);
    let (directory, a) = file("a.csv", "external_id\nu0\n");
    let b = directory.path().join("b.csv");
    fs::write(&b, "external_id\nu0\nu1\n").unwrap();
    let missing = directory.path().join("missing.csv");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (b, missing) = (path(&b), path(&missing));
    let reports = export(&muster, &[&a, &missing, &b]).code(1).json();
    let states: Vec<_> = reports
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["state"])
        .collect();
    assert_eq!(states, ["committed", "failed", "committed"]);
    assert!(
        reports[1]["error"]
            .as_str()
            .unwrap()
            .contains("No such file")
    );
    assert_eq!(
        (members(&muster, "a"), members(&muster, "b")),
        (json!(1), json!(2))
    );
    let table = muster
        .run(&["export", "--partner", PARTNER, &a, &missing])
        .code(1);
    assert!(
        table.text().contains("\nmissing  failed"),
        "{}",
        table.text()
    );
    table.says(&[&format!("{missing}: cannot read the file: No such file")]);
    export(&muster, &["--cohort-id", "x", &a, &b])
        .code(2)
        .says(&["go with a single file"]);
}

#[test]
fn what_cannot_be_read_twice_or_would_replace_itself_is_refused() {
    let muster = workspace("export-odd");
    let (directory, a) = file("a.csv", "external_id\nu0\n");
    let fifo = directory.path().join("pipe.csv");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for odd in [fifo.as_path(), directory.path(), Path::new("/dev/stdin")] {
        let done = muster.run(&["export", "--partner", PARTNER, odd.to_str().unwrap()]);
        done.code(1).says(&["it is not a regular file"]);
    }
    let (_directory, other_a) = file("a.csv.gz", "external_id\nu1\n");
    let done = export(&muster, &[&a, &other_a]).code(2);
    done.says(&["two of the files would be the cohort"]);
    assert_eq!(muster.json(&["cohort", "list"]), json!([]));
}

#[test]
fn an_import_id_that_was_published_is_not_published_again() {
    let muster = workspace("export-again");
    muster.import_users(3);
    let rows = "external_id\nu0\nu1\n";
    let first = spring(
        &muster,
        rows,
        &["--import-id", "nightly-7", "--name", "Spring"],
    );
    let again = spring(
        &muster,
        rows,
        &["--import-id", "nightly-7", "--name", "Spring"],
    );
    for name in ["import_id", "version", "outcomes", "consistency_token"] {
        assert_eq!(again[name], first[name]);
    }
    assert_eq!(again["version"], 1);
    assert_eq!(again["name"], "Spring");
}

#[test]
fn over_rest_people_are_only_added_and_that_is_said() {
    let muster = workspace("export-rest");
    muster.import_users(2_500);
    let secret = |words: &[&str]| muster.json(words)["secret"].as_str().unwrap().to_owned();
    let api_key = secret(&["partner", "key", "create", PARTNER]);
    let import_key = secret(&["key", "create", "--partner", PARTNER]);
    let send = |content: &str, api_key: &str| {
        let (_directory, path) = file("spring.csv", content);
        let words = [
            "export",
            "--partner",
            PARTNER,
            "--via",
            "rest",
            &path,
            "--output",
            "json",
        ];
        let mut command = muster.command(&words);
        command.env("MUSTER_PARTNER_API_KEY", api_key);
        run(command.env("MUSTER_CLIENT_SECRET", &import_key), b"")
    };
    let rows: String = (0..2_499).map(|n| format!("u{n}\n")).collect();
    let report = send(&format!("external_id\n{rows}a,b\n"), &api_key)
        .code(1)
        .json()[0]
        .clone();
    assert_eq!(report["state"], "sent");
    assert_eq!(report["calls"], 3, "of up to 1,000");
    assert_eq!(report["outcomes"]["added"], 2_499);
    assert_eq!(report["malformed"][0]["line"], 2_501);
    let report = send("external_id\nu2499\n", &api_key).code(0).json()[0].clone();
    assert!(
        report["note"]
            .as_str()
            .unwrap()
            .contains("members that are not in the file stay")
    );
    assert_eq!(members(&muster, "spring"), 2_500);
    let refused = send("external_id\nu0\n", "mst_pak_wrong").code(1).json()[0].clone();
    let error = refused["error"].as_str().unwrap();
    assert!(error.contains("401: Invalid Partner API key"), "{error}");
    send("external_id\nu0\n", "")
        .code(2)
        .says(&["needs --partner-api-key"]);
}

#[test]
fn a_partner_that_is_not_there_or_not_enabled_is_told() {
    let muster = workspace("export-partner");
    let (_directory, path) = file("spring.csv", "external_id\nu0\n");
    let unknown = muster.run(&["export", "--partner", "nope", &path]).code(1);
    unknown.says(&["partner \"nope\" does not exist"]);
    muster.table(&["partner", "disable", PARTNER]);
    let disabled = muster.run(&["export", "--partner", PARTNER, &path]).code(1);
    disabled.says(&["enabled"]);
}

#[test]
fn a_million_lines_are_sent_and_accounted_for_in_bounded_time() {
    let muster = &big().muster;
    let mut text = String::with_capacity(8_000_000);
    text.push_str("external_id\n");
    (0..1_000_000).for_each(|n| text.push_str(&format!("u{n}\n")));
    let (_directory, path) = file("million.csv", text);
    let started = Instant::now();
    let words = ["export", "--partner", PARTNER, &path, "--output", "json"];
    let done = run_within(Duration::from_secs(600), &mut muster.command(&words), b"");
    let took = started.elapsed();
    let report = done.code(0).json()[0].clone();
    println!("a million lines: {took:.1?}");
    assert_eq!(report["received"], 1_000_000);
    assert_eq!(report["outcomes"]["added"], 100_000);
    assert_eq!(report["outcomes"]["unknown"], 900_000);
}
