//! Workspaces, partners, credentials and the audit log, as an operator meets them.

use serde_json::Value;

use crate::harness::{PARTNER, run, shared, text, workspace};

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
