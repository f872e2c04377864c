use muster_domain::identifier::IdentifierRef;

use super::*;

#[test]
fn all_three_arrays_are_always_sent() {
    let list = vec![
        IdentifierRef::external_id("u").to_owned(),
        IdentifierRef::alias("l", "n").to_owned(),
    ];
    let want = json!({
        "user_ids": ["u"],
        "device_ids": [],
        "aliases": [{ "alias_name": "n", "alias_label": "l" }],
    });
    assert_eq!(change(list), want);
}

#[test]
fn an_answer_may_tell_much_or_nothing() {
    let much = r#"{"message":"success","version":3,"import_id":"i","counts":{"received":2,
        "added":2,"already_member":0,"removed":0,"not_member":0,"unknown":0,
        "device_of_identified_user":0,"duplicate":0,"superseded":0,"invalid":0}}"#;
    let answer: Answer = serde_json::from_str(much).unwrap();
    assert_eq!((answer.version, answer.counts.unwrap().added), (Some(3), 2));
    let answer: Answer = serde_json::from_str(r#"{"message":"success"}"#).unwrap();
    assert!(answer.counts.is_none());
}

#[test]
fn only_what_clients_of_the_contract_retry_is_retried() {
    let retried: Vec<u16> = (200..600)
        .filter(|status| may_pass(StatusCode::from_u16(*status).unwrap()))
        .collect();
    assert_eq!(&retried[..5], [408, 423, 429, 500, 502]);
    assert!(!retried.contains(&501));
}

#[test]
fn the_endpoint_may_be_given_with_or_without_its_path() {
    for base_url in [
        "https://m.example",
        "https://m.example/",
        "https://m.example/partners/p/",
    ] {
        let target = RestTarget {
            base_url: base_url.to_owned(),
            partner: "p".to_owned(),
            partner_api_key: "hunter2".to_owned(),
            client_secret: "hunter2".to_owned(),
        };
        assert_eq!(target.endpoint(), "https://m.example/partners/p");
        assert!(!format!("{target:?}").contains("hunter2"));
    }
}
