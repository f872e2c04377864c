//! `muster users import`: what files may look like, and what becomes of rows that are wrong.

use serde_json::{Value, json};

use crate::harness::{Done, Muster, big, file, run, workspace};

fn import(muster: &Muster, content: &[u8]) -> Done {
    let (_directory, path) = file("people.csv", content);
    muster.run(&["users", "import", &path, "--output", "json"])
}

/// The lines refused, with the reason.
fn refused(report: &Value) -> Vec<(u64, &str)> {
    let rows = report["refused"].as_array().unwrap().iter();
    rows.map(|row| {
        (
            row["line"].as_u64().unwrap(),
            row["detail"].as_str().unwrap(),
        )
    })
    .collect()
}

#[test]
fn a_byte_order_mark_crlf_and_no_last_line_feed_change_nothing() {
    let muster = workspace("import-windows");
    let text = "\u{feff}external_id,alias:mail,device_id\r\nu1,a@x,d1;d2\r\n\r\nu2,b@x,d3";
    let report = import(&muster, text.as_bytes()).code(0).json();
    assert_eq!(report["counts"]["created"], 2);
    let found = muster.json(&["users", "find", "alias:mail=a@x"]);
    assert_eq!(found["user"]["external_id"], "u1");
    assert_eq!(found["user"]["device_ids"], json!(["d1", "d2"]));
    let found = muster.json(&["users", "find", "u2"]);
    assert_eq!(
        found["user"]["device_ids"],
        json!(["d3"]),
        "no carriage return in it"
    );
}

#[test]
fn wrong_rows_are_refused_with_their_lines_and_the_others_written() {
    let muster = workspace("import-wrong");
    let mut text =
        b"external_id,device_id\nu1,d1\nragged\nu2,d2,more\n,\nu3,\xff\nu4,d\x004\n".to_vec();
    text.extend(format!("{},d5\nu6,{}\nu7,d7\n", "x".repeat(513), "y".repeat(600)).bytes());
    let report = import(&muster, &text).code(1).json();
    let rows = refused(&report);
    let lines: Vec<_> = rows.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [3, 4, 5, 6, 7, 8, 9], "{report:#}");
    for ((_, detail), part) in rows.iter().zip([
        "the row has 1 columns, the header has 2",
        "the row has 3 columns, the header has 2",
        "the row has no identifier",
        "column 2 is not valid UTF-8",
        "control characters",
        "at most 512 bytes, not 513",
        "at most 512 bytes, not 600",
    ]) {
        assert!(detail.contains(part), "{detail}");
    }
    assert_eq!(report["rows"], 9);
    assert_eq!(report["counts"]["created"], 2);
    assert_eq!(report["counts"]["invalid"], 7);
    assert_eq!(report["complete"], true);
    for user in ["u1", "u7"] {
        muster.json(&["users", "find", user]);
    }
    assert_eq!(muster.error(&["users", "find", "u6"])["code"], "not_found");
    let again = import(&muster, &text).code(1).json();
    assert_eq!(again["counts"]["unchanged"], 2, "running it again is safe");
}

#[test]
fn a_user_who_contradicts_another_is_a_conflict_with_its_line() {
    let muster = workspace("import-conflict");
    let text = b"external_id,alias:mail\nu1,a@x\nu2,a@x\n";
    let report = import(&muster, text).code(1).json();
    assert_eq!(report["counts"]["conflict"], 1);
    assert_eq!(refused(&report)[0].0, 3);
    let (_directory, path) = file("people.csv", text);
    let table = muster.run(&["users", "import", &path]).code(1);
    assert!(table.text().contains("conflict"), "{}", table.text());
}

#[test]
fn a_file_without_a_usable_header_is_refused_whole_and_says_what_is_missing() {
    let muster = workspace("import-header");
    for (content, parts) in [
        (&b""[..], ["the file is empty", "external_id, alias:LABEL"]),
        (
            b"name,city\nann,rome\n",
            ["is unknown", "--ignore-unknown-columns"],
        ),
        (b"u1\nu2\n", ["is unknown", "external_id"]),
        (
            b"external_id,alias:\nu1,a\n",
            ["alias: has no label", "alias:LABEL"],
        ),
        (
            b"external_id,external_id\nu1,u2\n",
            ["external_id is there twice", "people.csv"],
        ),
        (
            b"external_id;device_id\nu1;d1\n",
            ["is unknown", "separated by commas"],
        ),
        (
            b"\x1f\x8b\x08\x00\xff\xfe\n",
            ["the header is not UTF-8", "external_id"],
        ),
    ] {
        let done = import(&muster, content).code(1).says(&parts);
        assert!(done.stdout.is_empty(), "{done:?}");
    }
    assert_eq!(muster.error(&["users", "find", "u1"])["code"], "not_found");
    let (_directory, path) = file("people.csv", "name,external_id\nann,u1\n");
    muster.table(&["users", "import", &path, "--ignore-unknown-columns"]);
    muster.json(&["users", "find", "u1"]);
    muster
        .run(&["users", "import", "/nowhere.csv"])
        .code(1)
        .says(&["/nowhere.csv: No such file"]);
}

#[test]
fn a_quote_that_is_never_closed_is_told_and_swallows_nothing_silently() {
    let muster = workspace("import-quote");
    let report = import(&muster, b"external_id\nu1\n\"u2\nu3\nu4\n")
        .code(1)
        .json();
    assert_eq!(report["counts"]["created"], 1);
    let rows = refused(&report);
    assert_eq!(rows[0].0, 3);
    assert!(
        rows[0].1.contains("is a closing quote missing?"),
        "{rows:?}"
    );
}

#[test]
fn standard_input_is_read_like_a_file() {
    let muster = workspace("import-stdin");
    let mut command = muster.command(&["users", "import", "-"]);
    let done = run(&mut command, b"external_id\nu1\nu2\n").code(0);
    assert!(
        done.text().contains("created        2\n"),
        "{}",
        done.text()
    );
    assert!(
        done.text().contains("= rows         2\n"),
        "{}",
        done.text()
    );
    done.says(&["2 rows in ", "consistency token: "]);
    let mut command = muster.command(&["users", "import", "-"]);
    let done = run(&mut command, b"external_id\n").code(0);
    assert!(
        done.text().contains("= rows         0\n"),
        "a header alone is no users"
    );
}

#[test]
fn a_hundred_thousand_rows_are_all_accounted_for() {
    let big = big();
    assert_eq!(big.imported["rows"], 100_000);
    assert_eq!(big.imported["counts"]["created"], 100_000);
    assert_eq!(big.imported["complete"], true);
    for user in ["u0", "u54321", "u99999"] {
        big.muster.json(&["users", "find", user]);
    }
}
