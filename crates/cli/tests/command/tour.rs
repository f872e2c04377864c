//! Every command of the administration, in the order a person meets them: tables for people, JSON
//! for scripts, and what is said when something is not there.

use serde_json::Value;

use crate::harness::{Done, Muster, PARTNER, file, muster, run, shared, workspace};

/// The text of a field.
#[track_caller]
fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no {name} in {value}"))
}

#[test]
fn workspaces_and_partners_are_created_listed_enabled_and_disabled() {
    let muster = workspace("tour-places");
    let listed = muster.json(&["workspace", "list"]);
    let mut listed = listed.as_array().unwrap().iter();
    assert!(listed.any(|workspace| workspace["workspace"] == "tour-places"));
    assert!(
        muster
            .table(&["workspace", "list"])
            .starts_with("WORKSPACE")
    );
    let created = muster.json(&["partner", "create", "tour-partner", "--name", "Tour & Sons"]);
    assert_eq!(created["display_name"], "Tour & Sons");
    let twice = muster.error(&["partner", "create", "tour-partner"]);
    assert_eq!(twice["code"], "already_exists");
    assert!(muster.table(&["partner", "list"]).contains("Tour & Sons"));
    let table = muster.table(&["partner", "enable", "tour-partner"]);
    assert_eq!(
        table,
        "partner tour-partner is enabled for workspace tour-places\n"
    );
    let show = ["integration", "show", "--partner", "tour-partner"];
    let shown = muster.json(&show);
    assert_eq!(shown["enabled"], true);
    assert!(text(&shown, "rest_endpoint").ends_with("/partners/tour-partner"));
    let rest = shared().endpoints()["rest"].clone();
    assert!(text(&shown, "rest_endpoint").starts_with(rest.as_str().unwrap()));
    let disabled = muster.json(&["partner", "disable", "tour-partner"]);
    assert_eq!(disabled["enabled"], false);
    assert_eq!(muster.json(&show)["enabled"], false);
    assert!(muster.table(&show).contains("enabled:        no"));
}

#[test]
fn secrets_are_told_once_and_in_json_under_secret() {
    let muster = workspace("tour-secrets");
    let created = [
        (
            vec!["key", "create", "--partner", PARTNER, "--label", "prod"],
            "mst_dik_",
        ),
        (
            vec!["partner", "key", "create", PARTNER, "--label", "prod"],
            "mst_pak_",
        ),
        (
            vec!["token", "create", "prod", "--scope", "segments:read"],
            "mst_svc_",
        ),
    ];
    let mut secrets = Vec::new();
    for (words, prefix) in &created {
        let created = muster.json(words);
        let secret = text(&created, "secret").to_owned();
        assert!(secret.starts_with(prefix), "{secret}");
        assert_eq!(created["label"], "prod");
        secrets.push(secret);
        let table = muster.table(words);
        assert!(table.contains(&format!("\nsecret: {prefix}")), "{table}");
        assert!(table.contains("shown once"), "{table}");
    }
    for words in [
        vec!["key", "list"],
        vec!["partner", "key", "list", PARTNER],
        vec!["token", "list"],
        vec!["audit", "list"],
        vec!["integration", "show", "--partner", PARTNER],
    ] {
        let told = muster.table(&words) + &muster.json(&words).to_string();
        assert!(
            secrets.iter().all(|secret| !told.contains(secret)),
            "{told}"
        );
    }
}

#[test]
fn keys_are_rotated_with_an_overlap_and_revoked() {
    let muster = workspace("tour-keys");
    let create = ["key", "create", "--partner", PARTNER, "--expires", "90d"];
    let first = muster.json(&create);
    let id = text(&first, "key_id");
    assert!(first["expire_time"].is_string());
    let wrong = muster
        .run(&["key", "revoke", id, "--partner", "other"])
        .code(1);
    wrong.says(&["belongs to partner acme, not to other"]);
    let rotated = muster.json(&["key", "rotate", id, "--overlap", "1h"]);
    assert_ne!(rotated["secret"], first["secret"]);
    assert_eq!(rotated["replaced_key"]["key_id"], id);
    assert_eq!(
        rotated["replaced_key"]["replaced_by_key_id"],
        rotated["key_id"]
    );
    assert_eq!(rotated["replaced_key"]["state"], "active");
    let second = text(&rotated, "key_id");
    let told = muster.run(&["key", "rotate", second]).code(0);
    told.says(&["the old key", "is accepted until"]);
    assert_eq!(muster.json(&["key", "revoke", id])["state"], "revoked");
    assert!(muster.table(&["key", "show", id]).contains("revoked:"));
    let listed = muster.json(&["key", "list", "--partner", PARTNER]);
    assert_eq!(listed.as_array().unwrap().len(), 3);

    let api_key = muster.json(&["partner", "key", "create", PARTNER]);
    let revoke = [
        "partner",
        "key",
        "revoke",
        PARTNER,
        text(&api_key, "key_id"),
    ];
    assert_eq!(muster.json(&revoke)["state"], "revoked");
}

#[test]
fn a_token_does_what_its_scopes_say_until_it_is_revoked() {
    let muster = workspace("tour-tokens");
    let token = muster.json(&["token", "create", "reader", "--scope", "cohorts:read"]);
    assert_eq!(token["workspace"], "tour-tokens");
    let with = |words: &[&str]| {
        let mut command = muster.command(words);
        run(command.env("MUSTER_TOKEN", text(&token, "secret")), b"")
    };
    let may = with(&["cohort", "list"]);
    if !may.status.success() {
        panic!("{may:?}");
    }
    with(&["key", "list"]).code(1).says(&["keys:read"]);
    let elsewhere = with(&["cohort", "list", "--workspace", "elsewhere"]);
    assert_ne!(elsewhere.status.code(), Some(0));
    let revoked = muster.json(&["token", "revoke", text(&token, "token_id")]);
    assert_eq!(revoked["state"], "revoked");
    with(&["cohort", "list"]).code(1).says(&["see --token"]);
    let everywhere = ["token", "create", "all", "--scope", "*", "--all-workspaces"];
    assert_eq!(muster.json(&everywhere)["workspace"], "");
    let listed = muster.json(&["token", "list"]);
    assert_eq!(
        listed.as_array().unwrap().len(),
        1,
        "only those bound to the workspace"
    );
    let listed = muster.json(&["token", "list", "--all-workspaces"]);
    assert!(listed.as_array().unwrap().len() > 2);
}

#[test]
fn the_audit_log_tells_who_changed_what_newest_first() {
    let muster = workspace("tour-audit");
    let key = muster.json(&["key", "create", "--partner", PARTNER]);
    muster.json(&["key", "revoke", text(&key, "key_id")]);
    let events = muster.json(&["audit", "list", "--since", "1h"]);
    let actions: Vec<_> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|e| text(e, "action"))
        .collect();
    let expected = [
        "data_import_key.revoke",
        "data_import_key.create",
        "partner.enable",
        "workspace.create",
    ];
    assert_eq!(actions, expected);
    assert!(text(&events[0], "resource").ends_with(text(&key, "key_id")));
    assert!(
        muster
            .table(&["audit", "list", "--limit", "1"])
            .contains("data_import_key.revoke")
    );
    let before = muster.json(&["audit", "list", "--until", "1h"]);
    assert_eq!(before, Value::Array(Vec::new()));
    let all = muster.json(&["audit", "list", "--all-workspaces"]);
    assert!(all.as_array().unwrap().len() > 4);
}

#[test]
fn users_are_found_identified_merged_and_erased() {
    let muster = workspace("tour-users");
    let rows = b"external_id,alias:mail,device_id\nu1,a@x,d1;d2\nu2,,\n,b@x,d3\n,,d4\n";
    run(&mut muster.command(&["users", "import", "-"]), rows).code(0);
    let found = muster.json(&["users", "find", "alias:mail=a@x"]);
    assert_eq!(found["user"]["external_id"], "u1");
    assert_eq!(found["matched_by_imports"], true);
    assert_eq!(
        muster.json(&["users", "find", "device_id=d1"])["matched_by_imports"],
        false
    );
    let number = format!("user_no={}", found["user"]["user_no"]);
    assert_eq!(
        muster.json(&["users", "find", &number])["user"],
        found["user"]
    );
    assert!(
        !muster
            .table(&["users", "find", &number])
            .contains("matched")
    );
    let table = muster.table(&["users", "find", "u1"]);
    assert!(
        table.contains("aliases:             alias:mail=a@x\n"),
        "{table}"
    );

    let result = |words: &[&str]| muster.json(words)["results"][0]["outcome"].clone();
    assert_eq!(
        result(&["users", "identify", "alias:mail=b@x", "u3"]),
        "identified"
    );
    assert_eq!(
        muster.json(&["users", "find", "u3"])["user"]["device_ids"][0],
        "d3"
    );
    assert_eq!(result(&["users", "merge", "u2", "u1"]), "merged");
    assert_eq!(result(&["users", "delete", "u3"]), "deleted");
    let partly = muster.run(&["users", "delete", "u1", "nobody"]).code(1);
    assert!(partly.text().contains("not_found"), "{}", partly.text());
    assert_eq!(muster.error(&["users", "find", "u1"])["code"], "not_found");
}

/// A cohort `spring` of 20, and a replacement by 2 that waits for confirmation.
fn with_waiting_import(slug: &str) -> (Muster, String) {
    let muster = workspace(slug);
    muster.import_users(20);
    let rows: String = (0..20).map(|n| format!("u{n}\n")).collect();
    let (_directory, spring) = file("spring.csv", format!("external_id\n{rows}"));
    muster.table(&["export", "--partner", PARTNER, &spring]);
    let (_directory, less) = file("spring.csv", "external_id\nu0\nu1\n");
    let export = [
        "export",
        "--partner",
        PARTNER,
        "--max-removed",
        "0.5",
        &less,
    ];
    let waiting = muster
        .run(&[&export[..], &["--output", "json"]].concat())
        .code(1);
    let report = waiting.json()[0].clone();
    assert_eq!(report["state"], "awaiting_confirmation");
    assert_eq!(report["members_removed"], 18);
    let members = muster.json(&["cohort", "show", "spring"])["member_count"].clone();
    assert_eq!(members, 20, "nothing is published before");
    let id = text(&report, "import_id").to_owned();
    let told = muster.run(&export).code(1);
    told.says(&[
        "would remove more members than allowed",
        "`muster import confirm ",
    ]);
    (muster, id)
}

#[test]
fn a_replacement_that_removes_too_many_waits_for_a_person_who_confirms_or_aborts() {
    let (muster, id) = with_waiting_import("tour-confirm");
    let listed = muster.json(&["import", "list", "--state", "awaiting_confirmation"]);
    let other = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|import| import["import_id"] != *id);
    let other = text(other.unwrap(), "import_id").to_owned();
    let shown = muster.run(&["import", "show", &id]).code(0);
    assert!(shown.text().contains("- removed  18"), "{}", shown.text());
    shown.says(&["preview: nothing is published"]);
    assert_eq!(
        muster.json(&["import", "abort", &other])["state"],
        "aborted"
    );
    let confirmed = muster.json(&["import", "confirm", &id]);
    assert_eq!(confirmed["version"], 2);
    assert_eq!(
        muster.json(&["cohort", "show", "spring"])["member_count"],
        2
    );
    let again = muster.error(&["import", "confirm", &other]);
    assert_eq!(again["code"], "failed_precondition");
    let of_cohort = muster.json(&["import", "list", "--cohort", "spring"]);
    assert_eq!(of_cohort.as_array().unwrap().len(), 3);
    let table = muster.table(&["import", "list"]);
    assert!(
        table.contains("aborted") && table.contains("committed"),
        "{table}"
    );
}

#[test]
fn cohorts_are_renamed_found_by_former_names_and_archived() {
    let muster = workspace("tour-cohorts");
    muster.import_users(3);
    let (_directory, spring) = file("c1.csv", "external_id\nu0\nnobody\n");
    muster.table(&[
        "export",
        "--partner",
        PARTNER,
        "--name",
        "spring sale",
        &spring,
    ]);
    let rename = ["cohort", "rename", "spring sale", "autumn sale"];
    assert_eq!(muster.json(&rename)["name"], "autumn sale");
    let found = muster.json(&["cohort", "list", "spring"]);
    assert_eq!(found[0]["cohort_id"], "c1");
    assert_eq!(found[0]["former_names"][0], "spring sale");
    assert_eq!(muster.json(&["cohort", "show", "c1"])["member_count"], 1);
    let import = muster.json(&["import", "list"])[0].clone();
    let rejected = ["import", "rejected", text(&import, "import_id")];
    assert!(muster.table(&rejected).contains("external_id=nobody"));
    let csv = muster.table(&[&rejected[..], &["--format", "csv"]].concat());
    let expected = "position,effect,reason,kind,label,id\n1,add,unknown,external_id,,nobody\n";
    assert_eq!(csv, expected);
    assert_eq!(
        muster.json(&["cohort", "archive", "autumn sale"])["archived"],
        true
    );
    assert_eq!(muster.json(&["cohort", "list"]), Value::Array(Vec::new()));
    assert!(
        muster
            .table(&["cohort", "list", "--archived"])
            .contains("autumn sale")
    );
}

#[test]
fn segments_are_created_counted_checked_compared_updated_and_archived() {
    let muster = workspace("tour-segments");
    muster.import_users(5);
    let (_directory, a) = file("a.csv", "external_id\nu0\nu1\nu2\n");
    let (_directory, b) = file("b.csv", "external_id\nu2\nu3\n");
    muster.table(&["export", "--partner", PARTNER, &a, &b]);
    let created = muster.json(&[
        "segment",
        "create",
        "buyers",
        "acme:\"a\" and not acme:\"b\"",
    ]);
    assert_eq!(created["name"], "buyers");
    assert_eq!(
        muster.json(&["segment", "count", "buyers"])["user_count"],
        2
    );
    let id = text(&created, "segment_id");
    assert_eq!(muster.json(&["segment", "show", id])["name"], "buyers");
    let first = resolution(&muster, "buyers");
    let update = [
        "segment",
        "update",
        "buyers",
        "--filter",
        "acme:\"b\"",
        "--name",
        "b2",
    ];
    assert_eq!(muster.json(&update)["name"], "b2");
    let second = resolution(&muster, "b2");
    let diff = muster.json(&["segment", "diff", &first, &second]);
    assert_eq!(diff["entered_count"], 2);
    assert_eq!(diff["left_count"], 2);
    let listed = muster.table(&["segment", "diff", &first, &second, "--list"]);
    let sides: Vec<_> = listed
        .lines()
        .map(|line| line.split(',').next().unwrap())
        .collect();
    assert_eq!(sides, ["side", "left", "left", "entered", "entered"]);

    let inside = muster.table(&["segment", "check", "b2", "u3"]);
    assert!(inside.starts_with("✓ in it: "), "{inside}");
    let outside = muster.table(&["segment", "check", "--filter", "acme:\"a\"", "u4"]);
    assert!(outside.starts_with("✗ not in it: "), "{outside}");
    assert_eq!(
        muster.json(&["segment", "check", "b2", "u3"])["member"],
        true
    );
    let used = muster.error(&["cohort", "archive", "b"]);
    assert_eq!(used["reason"], "COHORT_IN_USE");
    assert_eq!(muster.json(&["segment", "archive", "b2"])["archived"], true);
    assert_eq!(muster.json(&["segment", "list"]), Value::Array(Vec::new()));
    assert!(
        muster
            .table(&["segment", "list", "--archived"])
            .contains("b2")
    );
    let kept = muster.json(&["segment", "resolutions"]);
    assert_eq!(kept.as_array().unwrap().len(), 2);
}

/// Resolves a segment and returns the id of the resolution.
fn resolution(muster: &Muster, segment: &str) -> String {
    let done = muster
        .run(&["segment", "resolve", segment, "--output", "json"])
        .code(0);
    let summary: Value = serde_json::from_str(&done.stderr).unwrap();
    assert_eq!(summary["complete"], true);
    text(&summary["resolution"], "resolution_id").to_owned()
}

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

#[test]
fn tables_group_numbers_align_columns_and_tell_times_to_the_second() {
    let muster = workspace("tour-tables");
    muster.import_users(1_234);
    let rows: String = (0..1_234).map(|n| format!("u{n}\n")).collect();
    let (_directory, a) = file(
        "a rather long name.csv",
        format!("external_id\n{rows}nobody\n"),
    );
    let (_directory, b) = file("b.csv", "external_id\nu0\n");
    let table = muster.table(&["export", "--partner", PARTNER, &a, &b]);
    assert!(
        table.contains("1,234") && table.contains("1,235"),
        "{table}"
    );
    aligned(&table);
    let number = |line: &str, word: &str| line.find(word).unwrap() + word.len();
    let lines: Vec<_> = table.lines().collect();
    let end = number(lines[0], "ROWS");
    assert_eq!(
        number(lines[1], "1,235"),
        end,
        "numbers are flush right:\n{table}"
    );
    muster.table(&["key", "create", "--partner", PARTNER]);
    for words in [
        vec!["cohort", "list"],
        vec!["cohort", "show", "b"],
        vec!["import", "list"],
        vec!["key", "list"],
        vec!["workspace", "list"],
        vec!["audit", "list"],
        vec!["users", "find", "u0"],
        vec!["segment", "check", "--filter", "acme:\"b\"", "u0"],
    ] {
        let table = muster.table(&words);
        let times = times(&table);
        assert!(!times.is_empty(), "{table}");
        assert!(times.iter().all(|time| time.len() == 20), "{times:?}");
        if words[1] == "list" {
            aligned(&table);
        }
    }
    let json = muster.json(&["cohort", "show", "b"]);
    assert!(
        text(&json, "create_time").contains('.'),
        "JSON keeps fractions: {json}"
    );
    assert!(
        muster
            .table(&[
                "segment",
                "count",
                "--filter",
                "acme:\"a rather long name\""
            ])
            .contains("1,234")
    );
}

/// The times of a text, in RFC 3339.
fn times(text: &str) -> Vec<&str> {
    let words = text.split([' ', '\n', '(', ')']);
    words
        .filter(|word| word.len() > 10 && word.as_bytes()[10] == b'T' && word.ends_with('Z'))
        .collect()
}

/// That the first column has the same width in every line.
fn aligned(table: &str) {
    let lines: Vec<&str> = table.lines().collect();
    let header = lines[0];
    let second = header
        .find("  ")
        .map(|gap| gap + 2 + header[gap + 2..].len() - header[gap + 2..].trim_start().len())
        .unwrap();
    for line in &lines[1..] {
        let gap: String = line.chars().skip(second - 2).take(2).collect();
        assert_eq!(gap, "  ", "the columns of {table}");
    }
    assert!(
        lines.iter().all(|line| line.trim_end() == *line),
        "no blanks at the ends"
    );
}
