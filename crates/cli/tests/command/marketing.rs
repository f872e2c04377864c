//! Users, imports, cohorts and segments, as the people who work with them do.

use serde_json::Value;

use crate::harness::{Muster, PARTNER, file, run, text, workspace};

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
