use muster_domain::identifier::IdentifierRef;
use proptest::prelude::*;
use serde_json::json;
use time::macros::datetime;

use super::*;

fn change(changes: Value) -> Result<ChangeCohort, Problem> {
    let body = json!({ "cohort_id": "c_1", "cohort_changes": changes, "more": [1] });
    Body::parse(&serde_json::to_vec(&body).unwrap())?.into_change_cohort()
}

fn listed(changes: Value) -> Vec<(Effect, Identifier)> {
    change(changes).unwrap().changes
}

fn add(identifier: IdentifierRef<'_>) -> (Effect, Identifier) {
    (Effect::Add, identifier.to_owned())
}

#[test]
fn all_three_arrays_are_read() {
    let got = listed(json!([{
        "user_ids": ["u1", "u2"],
        "device_ids": ["d1"],
        "aliases": [{ "alias_name": "n", "alias_label": "l", "extra": 1 }],
    }]));
    let want = [
        add(IdentifierRef::external_id("u1")),
        add(IdentifierRef::external_id("u2")),
        add(IdentifierRef::alias("l", "n")),
        add(IdentifierRef::device_id("d1")),
    ];
    assert_eq!(got, want);
}

#[test]
fn arrays_may_be_missing_empty_or_null() {
    for object in [
        json!({ "user_ids": ["u"] }),
        json!({ "user_ids": ["u"], "device_ids": [], "aliases": [] }),
        json!({ "user_ids": ["u"], "device_ids": null, "aliases": null }),
        json!({ "user_ids": ["u"], "aliases": {}, "should_remove": null }),
        json!({ "user_ids": ["u"], "should_remove": false, "unknown": {} }),
    ] {
        assert_eq!(
            listed(json!([object])),
            [add(IdentifierRef::external_id("u"))]
        );
    }
    for nothing in [json!([]), json!([{ "user_ids": [] }]), json!("[]")] {
        assert!(listed(nothing).is_empty());
    }
}

#[test]
fn adds_and_removes_stay_in_order() {
    let got = listed(json!([
        { "user_ids": ["u"] },
        { "device_ids": ["d"], "should_remove": true },
        { "user_ids": ["u"], "should_remove": true },
    ]));
    let effects: Vec<Effect> = got.iter().map(|(effect, _)| *effect).collect();
    assert_eq!(effects, [Effect::Add, Effect::Remove, Effect::Remove]);
}

#[test]
fn aliases_may_be_one_object() {
    let alias = json!({ "alias_name": "n", "alias_label": "l" });
    let one = listed(json!([{ "aliases": alias.clone() }]));
    assert_eq!(one, listed(json!([{ "aliases": [alias] }])));
}

#[test]
fn changes_may_be_text() {
    let text = r#"[{"user_ids":["u"],"should_remove":true}]"#;
    let want = (Effect::Remove, IdentifierRef::external_id("u").to_owned());
    assert_eq!(listed(json!(text)), [want]);
}

#[test]
fn wrong_types_are_one_and_the_same_mistake() {
    for changes in [
        Value::Null,
        json!(7),
        json!({ "user_ids": ["u"] }),
        json!("no json"),
        json!("{}"),
        json!(["u"]),
        json!([[]]),
        json!([{}]),
        json!([{ "should_remove": true }]),
        json!([{ "userids": ["u"] }]),
        json!([{ "user_ids": "u" }]),
        json!([{ "user_ids": {} }]),
        json!([{ "user_ids": [1] }]),
        json!([{ "user_ids": [null] }]),
        json!([{ "device_ids": [["d"]] }]),
        json!([{ "aliases": ["a"] }]),
        json!([{ "aliases": [{}] }]),
        json!([{ "aliases": { "alias_name": "n" } }]),
        json!([{ "aliases": [{ "alias_name": "n", "alias_label": 1 }] }]),
        json!([{ "user_ids": ["u"], "should_remove": "true" }]),
        json!([{ "user_ids": ["u"], "should_remove": 1 }]),
    ] {
        assert_eq!(
            change(changes.clone()),
            Err(Problem::CohortChanges),
            "{changes}"
        );
    }
    let missing = Body::parse(br#"{"cohort_id":"c"}"#).unwrap();
    assert_eq!(missing.into_change_cohort(), Err(Problem::CohortChanges));
}

#[test]
fn a_thousand_are_allowed_over_all_arrays_and_objects() {
    let ids = |n: usize| vec!["x"; n];
    let call = |last| {
        change(json!([
            { "user_ids": ids(600), "device_ids": ids(200) },
            { "user_ids": ids(last), "should_remove": true },
        ]))
    };
    assert_eq!(call(200).unwrap().changes.len(), 1_000);
    assert_eq!(call(201), Err(Problem::TooManyIdentifiers));
}

#[test]
fn an_invalid_identifier_is_named_and_sent_all_the_same() {
    let long = "x".repeat(513);
    let call = change(json!([
        { "user_ids": ["u"] },
        { "user_ids": ["u", "", "a\u{0}b"], "aliases": [{ "alias_name": long, "alias_label": "l" }] },
    ]));
    let call = call.unwrap();
    assert_eq!(call.changes.len(), 5);
    let minor: Vec<(usize, &str)> = call
        .minor
        .iter()
        .map(|m| (m.index, m.field.as_str()))
        .collect();
    assert_eq!(
        minor,
        [
            (1, "user_ids[1]"),
            (1, "user_ids[2]"),
            (1, "aliases[0].alias_name")
        ]
    );
    assert_eq!(call.minor[2].message, "must be at most 512 bytes, not 513");
}

#[test]
fn a_cohort_id_is_a_string_that_can_be_one() {
    let long = "x".repeat(256);
    for id in [
        Value::Null,
        json!(7),
        json!(""),
        json!("a\u{0}"),
        json!(long),
        json!(["c"]),
    ] {
        let body = json!({ "cohort_id": id, "cohort_changes": 7, "name": 7 });
        let body = || Body::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(body().into_change_cohort(), Err(Problem::CohortId));
        assert_eq!(body().into_name_cohort(), Err(Problem::CohortId));
    }
}

fn named(name: Value, created_at: Value) -> Result<NameCohort, Problem> {
    let body = json!({ "cohort_id": "c_1", "name": name, "created_at": created_at });
    Body::parse(body.to_string().as_bytes())?.into_name_cohort()
}

#[test]
fn a_cohort_is_named() {
    let want = NameCohort {
        cohort_id: "c_1".to_owned(),
        name: "spring sale".to_owned(),
        created_at: datetime!(2024-05-01 10:00:00 UTC),
    };
    assert_eq!(
        named(json!("spring sale"), json!("2024-05-01T10:00:00Z")),
        Ok(want)
    );
}

#[test]
fn names_and_times_are_checked() {
    let time = || json!("2024-05-01");
    for name in [Value::Null, json!(""), json!("  "), json!(1), json!(["n"])] {
        assert_eq!(named(name, time()), Err(Problem::Name));
    }
    for name in ["x".repeat(256), "a\nb".to_owned()] {
        let problem = named(json!(name), time()).unwrap_err();
        assert!(matches!(problem, Problem::NameUnusable(_)), "{problem:?}");
    }
    for time in [Value::Null, json!(1_714_557_600), json!("soon"), json!({})] {
        assert_eq!(named(json!("n"), time), Err(Problem::CreatedAt));
    }
}

#[test]
fn credentials_are_told_apart_before_any_query() {
    let key = Secret::generate(Kind::PartnerApiKey).unwrap();
    let secret = Secret::generate(Kind::DataImportKey).unwrap();
    let read = |key: Value, secret: Value| {
        let body = json!({ "partner_api_key": key, "client_secret": secret });
        Body::parse(body.to_string().as_bytes())
            .unwrap()
            .credentials()
            .map(|_| ())
    };
    let (key, secret) = (json!(key.expose()), json!(secret.expose()));
    assert_eq!(read(key.clone(), secret.clone()), Ok(()));
    for bad in [
        Value::Null,
        json!(1),
        json!(""),
        json!("mst_pak_x"),
        secret.clone(),
    ] {
        assert_eq!(read(bad, json!("")), Err(Problem::PartnerApiKey));
    }
    for bad in [
        Value::Null,
        json!(1),
        json!(""),
        json!("a\u{0}é"),
        key.clone(),
    ] {
        assert_eq!(read(key.clone(), bad), Err(Problem::ClientSecret));
    }
}

#[test]
fn what_is_no_object_is_malformed() {
    let deep = "[".repeat(100_000);
    for bytes in [
        &b""[..],
        b"[]",
        b"\"x\"",
        b"{",
        b"{\"a\":\xff}",
        b"{\"a\":\"\xff\"}",
        br#"{"a":"\ud800"}"#,
        b"{}{}",
        deep.as_bytes(),
    ] {
        assert!(matches!(Body::parse(bytes), Err(Problem::Malformed(_))));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(vec![
        "cohort_id",
        "cohort_changes",
        "user_ids",
        "device_ids",
        "aliases",
        "alias_name",
        "alias_label",
        "should_remove",
        "name",
        "created_at",
        "client_secret",
        "other",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!("[{\"user_ids\":[\"x\"]}]")),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(keys.clone(), inner, 0..6).prop_map(|map| {
                map.into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect::<Value>()
            }),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_json_never_panics_and_every_identifier_is_kept(
        changes in any_json(),
        whole in any_json(),
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let _ = Body::parse(&bytes);
        let whole = serde_json::to_vec(&whole).unwrap();
        if let Ok(body) = Body::parse(&whole) {
            let _ = body.credentials().is_ok();
            let _ = body.into_name_cohort();
        }
        if let Ok(body) = Body::parse(&whole) {
            let _ = body.into_change_cohort();
        }
        if let Ok(call) = change(changes) {
            let valid = call.changes.iter().filter(|(_, id)| id.as_ref().is_valid()).count();
            prop_assert_eq!(valid + call.minor.len(), call.changes.len());
        }
    }
}
