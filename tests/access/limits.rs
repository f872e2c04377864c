//! Who fails too often, or asks too much, is told to wait; others are not.

use std::{num::NonZeroU32, time::Instant};

use muster_cli::deployment::Settings;
use muster_client::upload::{Outcome, Upload};
use muster_domain::{
    credential::{Kind, Secret},
    identifier::IdentifierRef,
    import::{Effect, Mode},
};
use muster_service::{attempts, traffic};
use muster_tests::{PARTNER, WORKSPACE};
use serde_json::json;
use tonic::Code;

use crate::{
    statements,
    world::{Deployment, RIVAL},
};

const LIST: &str = "muster.ingest.v1.IngestService/ListCohorts";

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

/// Whether a credential was looked up since the last time.
fn looked_up(heard: &statements::Statements) -> bool {
    heard
        .take()
        .iter()
        .any(|statement| statement.contains("credential_id"))
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_failed_attempts_are_refused_before_any_query() {
    let heard = statements::listen();
    let on = Deployment::start_with(Settings {
        attempts: attempts::Settings {
            per_minute: number(5),
            uncounted_from: Vec::new(),
        },
        ..Settings::default()
    })
    .await;
    let request = json!({ "workspace": WORKSPACE });
    let made_before = on.token(WORKSPACE, &["cohorts:read"]).await.secret;
    let guess = || Secret::generate(Kind::ServiceToken).unwrap();
    for _ in 0..3 {
        let refused = on.call(LIST, &request, guess().expose()).await;
        assert_eq!(refused.reason, "CREDENTIAL_INVALID");
        let refused = on.call(LIST, &request, "mst_svc_nonsense").await;
        assert_ne!(refused.code, Code::Ok);
    }
    heard.take();
    for presented in [guess().expose(), &made_before, "mst_svc_nonsense"] {
        let refused = on.call(LIST, &request, presented).await;
        let said = (refused.code, refused.reason.as_str());
        assert_eq!(said, (Code::ResourceExhausted, "TOO_MANY_FAILED_ATTEMPTS"));
    }
    // The harness checks that it says when to come back.
    let rest = on
        .muster
        .rest()
        .with_client_secret(Secret::generate(Kind::DataImportKey).unwrap().expose());
    rest.change("c", json!([]))
        .await
        .says(429, "Too many requests: try again later");
    assert!(!looked_up(&heard), "the database was not asked");
    // Who was accepted from there before goes on.
    assert_eq!(
        on.call(LIST, &request, &on.muster.operator_token)
            .await
            .code,
        Code::Ok
    );
    assert!(looked_up(&heard));
    on.muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partner_that_was_accepted_over_rest_is_not_held_up_by_guessers() {
    let on = Deployment::start_with(Settings {
        attempts: attempts::Settings {
            per_minute: number(5),
            uncounted_from: Vec::new(),
        },
        ..Settings::default()
    })
    .await;
    let rest = on.muster.rest();
    let answer = rest.change("c", json!([{ "user_ids": ["ann"] }])).await;
    assert_eq!(answer.status, 201);
    // From the same address: secrets that are made up, and its own API key with them.
    for _ in 0..8 {
        let made_up = Secret::generate(Kind::DataImportKey).unwrap();
        let guesser = rest.with_client_secret(made_up.expose());
        let refused = guesser.change("c", json!([])).await;
        assert!([401, 429].contains(&refused.status), "{refused:?}");
    }
    let answer = rest.change("c", json!([{ "user_ids": ["bob"] }])).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    on.muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_without_the_scope_is_refused_before_any_query_after_a_while() {
    let heard = statements::listen();
    let on = Deployment::start_with(Settings {
        attempts: attempts::Settings {
            per_minute: number(5),
            ..Default::default()
        },
        ..Settings::default()
    })
    .await;
    let token = on.token(WORKSPACE, &["users:read"]).await.secret;
    let request = json!({ "workspace": WORKSPACE });
    for _ in 0..5 {
        let refused = on.call(LIST, &request, &token).await;
        assert_eq!(refused.reason, "SCOPE_MISSING");
    }
    heard.take();
    let refused = on.call(LIST, &request, &token).await;
    assert_eq!(refused.reason, "TOO_MANY_FAILED_ATTEMPTS");
    assert!(!looked_up(&heard));
    on.muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_calls_too_often_is_told_to_wait_and_others_are_served() {
    let heard = statements::listen();
    let on = Deployment::start_with(Settings {
        traffic: traffic::Settings {
            calls_per_second: number(10),
            ..Default::default()
        },
        ..Settings::default()
    })
    .await;
    let [mine, others] = [WORKSPACE, RIVAL].map(async |of| on.token(of, &["cohorts:read"]).await);
    let (mine, others) = (mine.await.secret, others.await.secret);
    let request = json!({});
    let mut served = 0;
    let refused = loop {
        let answer = on.call(LIST, &request, &mine).await;
        if answer.code != Code::Ok {
            break answer;
        }
        served += 1;
        assert!(served < 1_000, "nothing stops it");
    };
    assert!(
        served >= 100,
        "what comes in ten seconds may come at once: {served}"
    );
    let said = (refused.code, refused.reason.as_str());
    assert_eq!(said, (Code::ResourceExhausted, "RATE_LIMITED"));
    // A call is earned every 100 ms; what is refused costs no query.
    loop {
        heard.take();
        if on.call(LIST, &request, &mine).await.code != Code::Ok {
            break;
        }
    }
    assert!(!looked_up(&heard));
    assert_eq!(on.call(LIST, &request, &others).await.code, Code::Ok);
    on.muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_waits_as_long_as_it_is_told_and_goes_on() {
    let on = Deployment::start_with(Settings {
        traffic: traffic::Settings {
            identifiers_per_second: number(1_000),
            ..Default::default()
        },
        ..Settings::default()
    })
    .await;
    // What comes in ten seconds may come at once, the rest not before it was earned.
    let ids: Vec<String> = (0..11_500).map(|n| format!("u-{n}")).collect();
    let changes: Vec<_> = ids
        .iter()
        .map(|id| (Effect::Add, IdentifierRef::external_id(id).to_owned()))
        .collect();
    let source = move || Ok(changes.clone().into_iter().map(Ok));
    let upload = Upload::new(WORKSPACE, PARTNER, "c", Mode::Delta, "i");
    let begun = Instant::now();
    let uploaded = upload.run(&on.muster.partner(), source, &mut |_| {}).await;
    let Outcome::Committed { summary, .. } = uploaded.unwrap() else {
        panic!("a delta is published");
    };
    assert_eq!(summary.received, 11_500);
    assert!(begun.elapsed().as_secs() >= 1, "{:?}", begun.elapsed());
    on.muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_users_is_limited_by_their_identifiers() {
    let on = Deployment::start_with(Settings {
        traffic: traffic::Settings {
            identifiers_per_second: number(100),
            ..Default::default()
        },
        ..Settings::default()
    })
    .await;
    // Half of what may come at once: two users with 250 identifiers each, or 500 of one.
    let devices = |user: &str, count| -> Vec<String> {
        (0..count).map(|n| format!("{user}-device-{n}")).collect()
    };
    let users = json!([
        { "external_id": "ann", "device_ids": devices("ann", 249) },
        { "device_ids": devices("bob", 250) },
    ]);
    let one = |n| json!({ "external_id": format!("user-{n}") });
    let identify = |n| json!({ "user": one(n), "external_id": "new" });
    let merge = |n| json!({ "from": one(n), "into": one(0) });
    let requests = [
        ("UpsertUsers", json!({ "users": users })),
        ("ImportUsers", json!({ "users": users })),
        (
            "IdentifyUsers",
            json!({ "entries": (0..250).map(identify).collect::<Vec<_>>() }),
        ),
        (
            "MergeUsers",
            json!({ "entries": (0..250).map(merge).collect::<Vec<_>>() }),
        ),
        (
            "DeleteUsers",
            json!({ "users": (0..500).map(one).collect::<Vec<_>>() }),
        ),
    ];
    for (method, request) in requests {
        let rpc = format!("muster.users.v1.UserService/{method}");
        let [mine, others] = [(); 2].map(async |()| on.token(WORKSPACE, &["users:write"]).await);
        let (mine, others) = (mine.await.secret, others.await.secret);
        for _ in 0..2 {
            let answer = on.call(&rpc, &request, &mine).await;
            assert_eq!(answer.code, Code::Ok, "{method}: {answer:?}");
        }
        let refused = on.call(&rpc, &request, &mine).await;
        let said = (refused.code, refused.reason.as_str());
        assert_eq!(said, (Code::ResourceExhausted, "RATE_LIMITED"), "{method}");
        let answer = on.call(&rpc, &request, &others).await;
        assert_eq!(answer.code, Code::Ok, "{method}: {answer:?}");
    }
    on.muster.stop().await;
}
