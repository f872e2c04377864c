//! What is said of what is not there, wrong usage, and where flags may come from.

use crate::harness::{Done, Muster, muster, run, shared, text, workspace};

#[test]
fn what_is_not_there_is_named() {
    let muster = workspace("tour-nothing");
    for (words, message) in [
        (vec!["cohort", "show", "nope"], "the current name \"nope\""),
        (
            vec!["cohort", "rename", "nope", "x"],
            "the current name \"nope\"",
        ),
        (
            vec!["segment", "show", "nope"],
            "segment \"nope\" does not exist",
        ),
        (
            vec!["segment", "resolve", "nope"],
            "segment \"nope\" does not exist",
        ),
        (
            vec!["segment", "check", "--filter", "acme:\"x\"", "u1"],
            "no cohort named \"x\"",
        ),
        (
            vec!["import", "show", "nope"],
            "import \"nope\" does not exist",
        ),
        (vec!["users", "find", "nope"], "the user does not exist"),
        (vec!["key", "show", "nope"], "\"nope\" does not exist"),
        (vec!["token", "revoke", "nope"], "\"nope\" does not exist"),
        (
            vec!["partner", "enable", "nope"],
            "partner \"nope\" does not exist",
        ),
        (
            vec!["integration", "show", "--partner", "nope"],
            "partner \"nope\" does not exist",
        ),
        (
            vec!["partner", "key", "list", "nope"],
            "partner \"nope\" does not exist",
        ),
    ] {
        let done = muster.run(&words).code(1).says(&[message]);
        assert!(done.stdout.is_empty(), "{done:?}");
    }
    let elsewhere = Muster {
        workspace: "nope".to_owned(),
        ..muster
    };
    let error = elsewhere.error(&["cohort", "list"]);
    assert_eq!(error["code"], "not_found");
    assert!(text(&error, "message").contains("workspace \"nope\" does not exist"));
}

#[test]
fn wrong_usage_is_answered_with_2_and_a_hint() {
    let muster = Muster {
        workspace: String::new(),
        ..shared().muster.clone()
    };
    let says = |words: &[&str], parts: &[&str]| {
        let Done { stdout, .. } = muster.run(words).code(2).says(parts);
        assert!(stdout.is_empty());
    };
    says(
        &["cohort", "list"],
        &["Give --workspace or set MUSTER_WORKSPACE"],
    );
    says(&["frobnicate"], &["frobnicate"]);
    says(&["cohort", "list", "--frobnicate"], &["--frobnicate"]);
    says(&["cohort", "list", "--limit", "0"], &["--limit"]);
    says(
        &["users", "find", "devcie_id=1"],
        &["is no kind of identifier"],
    );
    says(&["users", "find", ""], &["must not be empty"]);
    says(
        &["key", "create", "--partner", "a", "--expires", "soon"],
        &["90d"],
    );
    says(
        &[
            "cohort",
            "list",
            "--endpoint",
            "localhost:1",
            "--token",
            "x",
        ],
        &["is not a URL"],
    );
    says(
        &["cohort", "list", "--endpoint", "http://other:1"],
        &["which token for http://other:1"],
    );
    run(&mut crate::harness::muster(), b"").code(2);
    run(crate::harness::muster().arg("--version"), b"").code(0);
}

#[test]
fn global_flags_and_variables_are_equivalent_and_flags_win() {
    let work = workspace("tour-globals");
    let data_dir = work.data_dir.to_str().unwrap();
    let expected = work.json(&["key", "list"]);
    let flags = [
        "--data-dir",
        data_dir,
        "--workspace",
        "tour-globals",
        "--output",
        "json",
    ];
    let verb = ["key", "list"];
    for words in [[&flags[..], &verb].concat(), [&verb[..], &flags].concat()] {
        assert_eq!(run(muster().args(words), b"").code(0).json(), expected);
    }
    let with_variables = |words: &[&str]| {
        let mut command = muster();
        command
            .env("MUSTER_DATA_DIR", data_dir)
            .env("MUSTER_WORKSPACE", "tour-globals");
        run(command.env("MUSTER_OUTPUT", "json").args(words), b"")
    };
    assert_eq!(with_variables(&verb).code(0).json(), expected);
    with_variables(&["key", "list", "--workspace", "nope"]).code(1);
    let table = with_variables(&["partner", "list", "--output", "table"]).code(0);
    assert!(table.text().starts_with("PARTNER"));

    let endpoint = shared().endpoints()["grpc"].as_str().unwrap().to_owned();
    let token = std::fs::read_to_string(work.data_dir.join("operator.token")).unwrap();
    let mut command = muster();
    command
        .env("MUSTER_ENDPOINT", &endpoint)
        .env("MUSTER_TOKEN", token);
    command.args([
        "key",
        "list",
        "--workspace",
        "tour-globals",
        "--data-dir",
        "/nonexistent",
    ]);
    run(&mut command, b"")
        .code(0)
        .says(&["no data import keys"]);
    let refused = run(command.args(["--token", "mst_svc_wrong"]), b"").code(1);
    assert!(!refused.stderr.contains("mst_svc_wrong"));
}
