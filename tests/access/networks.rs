//! A credential that may be used from some networks only.

use std::time::{Duration, Instant};

use muster_domain::credential::{Kind, Secret};
use muster_proto::ingest::v1::{self as ingest, ingest_cohort_request::Message};
use muster_tests::{PARTNER, WORKSPACE, connect};
use serde_json::json;
use tonic::Code;

use crate::world::{Deployment, Made, World};

const HERE: &str = "127.0.0.0/8";
const ELSEWHERE: &str = "192.0.2.0/24";
const LIST: &str = "muster.ingest.v1.IngestService/ListCohorts";

async fn key(on: &Deployment, networks: &[&str]) -> Made {
    let request = json!({
        "workspace": WORKSPACE, "partner": PARTNER, "allowed_addresses": networks,
    });
    let rpc = "muster.keys.v1.KeyService/CreateKey";
    let made = on.operator(rpc, request).await;
    Made::new(&made["secret"], &made["key"]["keyId"])
}

async fn restrict(on: &Deployment, key: &Made, networks: &[&str]) -> serde_json::Value {
    let request = json!({
        "workspace": WORKSPACE, "key_id": key.id, "allowed_addresses": networks,
    });
    on.operator("muster.keys.v1.KeyService/RestrictKey", request)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_accepted_from_its_networks_only() {
    let on = Deployment::start().await;
    let request = json!({ "workspace": WORKSPACE });
    let unknown = Secret::generate(Kind::DataImportKey).unwrap();
    let unknown = on.call(LIST, &request, unknown.expose()).await;
    let changes = || json!([{ "user_ids": ["u-1"] }]);
    // Mapped addresses are those that they map.
    let right = key(&on, &["::ffff:127.0.0.0/104", ELSEWHERE]).await;
    let wrong = key(&on, &[ELSEWHERE, "2001:db8::/32"]).await;
    assert_eq!(on.call(LIST, &request, &right.secret).await.code, Code::Ok);
    let rest = on.muster.rest();
    rest.with_client_secret(&right.secret)
        .change("c", changes())
        .await
        .succeeded();

    let refused = on.call(LIST, &request, &wrong.secret).await;
    let said =
        |answer: &crate::wire::Answer| (answer.code, answer.reason.clone(), answer.message.clone());
    assert_eq!(
        said(&refused),
        said(&unknown),
        "nobody learns that it exists"
    );
    rest.with_client_secret(&wrong.secret)
        .change("c", changes())
        .await
        .says(401, "Invalid client secret");
    let get = json!({ "workspace": WORKSPACE, "key_id": wrong.id });
    let found = on.operator("muster.keys.v1.KeyService/GetKey", get).await;
    assert_eq!(found["key"]["lastUsedTime"], json!(null));
    // Whoever runs it learns of it, once.
    let listed = json!({ "workspace": WORKSPACE, "action_prefix": "data_import_key.use" });
    let rpc = "muster.keys.v1.IntegrationService/ListAuditEvents";
    let trail = on.operator(rpc, listed).await;
    let events = trail["events"].as_array().unwrap();
    let [event] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!(event["refusal"], "ADDRESS_NOT_ALLOWED");
    assert_eq!(event["resource"], format!("data_import_key:{}", wrong.id));
    assert_eq!(event["peer"], "127.0.0.1");

    // So it is with the partner's own key.
    let create = json!({ "partner": PARTNER, "allowed_addresses": [ELSEWHERE] });
    let rpc = "muster.keys.v1.IntegrationService/CreatePartnerApiKey";
    let made = on.operator(rpc, create).await;
    rest.with_partner_api_key(made["secret"].as_str().unwrap())
        .change("c", changes())
        .await
        .says(401, "Invalid Partner API key");
    // A successor is restricted as the key was.
    let rotate = json!({ "workspace": WORKSPACE, "key_id": wrong.id });
    let rotated = on
        .operator("muster.keys.v1.KeyService/RotateKey", rotate)
        .await;
    assert_eq!(
        rotated["key"]["allowedAddresses"],
        json!([ELSEWHERE, "2001:db8::/32"])
    );
    let everywhere = restrict(&on, &wrong, &[]).await;
    assert_eq!(everywhere["key"]["allowedAddresses"], json!(null));
    assert_eq!(on.call(LIST, &request, &wrong.secret).await.code, Code::Ok);
    on.muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_with_a_credential_ends_when_it_is_not_allowed_from_there_any_more() {
    let on = Deployment::start().await;
    let key = key(&on, &[HERE]).await;
    let (sender, messages) = tokio::sync::mpsc::channel(4);
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let open = ingest::OpenImport {
        partner: PARTNER.into(),
        cohort_id: "c".into(),
        mode: ingest::ImportMode::Delta.into(),
        import_id: "i".into(),
        ..Default::default()
    };
    let message = Some(Message::Open(open));
    sender
        .send(ingest::IngestCohortRequest { message })
        .await
        .unwrap();
    let partner = connect(&on.muster.grpc, &key.secret);
    let answers = partner.ingest().ingest_cohort(messages).await;
    let mut answers = answers.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    restrict(&on, &key, &[ELSEWHERE]).await;
    let restricted = Instant::now();
    let ended = answers.message().await.unwrap_err();
    let took = restricted.elapsed();
    assert_eq!(ended.code(), Code::Unauthenticated);
    // A second is promised; a busy machine is given time to say so.
    assert!(took < Duration::from_secs(5), "{took:?}");
    println!("ended {took:?} after");
    on.muster.stop().await;
}

#[tokio::test]
async fn networks_are_checked_and_nobody_locks_the_own_token_out() {
    let on = Deployment::start().await;
    let rpc = "muster.keys.v1.KeyService/CreateKey";
    for bad in ["10.1.2.3/8", "10.0.0.0/33", "example.org", ""] {
        let request = json!({
            "workspace": WORKSPACE, "partner": PARTNER, "allowed_addresses": [HERE, bad],
        });
        let refused = on.call(rpc, &request, &on.muster.operator_token).await;
        assert_eq!(refused.code, Code::InvalidArgument, "{bad}");
        assert!(
            refused.message.starts_with("allowed_addresses[1]: "),
            "{refused:?}"
        );
    }
    let token = on.token(WORKSPACE, &["integrations:write"]).await;
    let rpc = "muster.keys.v1.IntegrationService/RestrictServiceToken";
    let request = json!({ "token_id": token.id, "allowed_addresses": [ELSEWHERE] });
    let refused = on.call(rpc, &request, &token.secret).await;
    assert_eq!(refused.reason, "WOULD_LOCK_OUT");
    let request = json!({ "token_id": token.id, "allowed_addresses": [HERE] });
    assert_eq!(on.call(rpc, &request, &token.secret).await.code, Code::Ok);
    on.muster.stop().await;
}

/// The id that one partner gives an import is free for another.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_id_is_its_partners_own() {
    use crate::world::OTHER_PARTNER;

    let on = Deployment::start().await;
    let world = World::make(&on, WORKSPACE, PARTNER).await;
    let import = world.get("import");
    let other = on.key(WORKSPACE, OTHER_PARTNER).await.secret;
    let get = "muster.ingest.v1.IngestService/GetImport";
    let named = |partner: &str| {
        json!({
            "workspace": WORKSPACE, "import_id": import, "partner": partner,
        })
    };
    assert_eq!(on.call(get, &named(""), &other).await.code, Code::NotFound);
    let open = json!({ "open": {
        "workspace": WORKSPACE, "partner": OTHER_PARTNER, "cohort_id": "c",
        "mode": "IMPORT_MODE_REPLACE", "import_id": import,
    } });
    let rpc = "muster.ingest.v1.IngestService/IngestCohort";
    let opened = on.call(rpc, &open, &other).await;
    assert_eq!(opened.code, Code::Ok, "{opened:?}");
    // Each partner sees its own, and who sees both has to say which.
    let theirs = on.call(get, &named(""), &other).await;
    assert_eq!(theirs.messages[0]["import"]["state"], "IMPORT_STATE_OPEN");
    let ambiguous = on.call(get, &named(""), &on.muster.operator_token).await;
    let said = (ambiguous.code, ambiguous.reason.as_str());
    assert_eq!(said, (Code::InvalidArgument, "IMPORT_AMBIGUOUS"));
    for (partner, state) in [
        (PARTNER, "IMPORT_STATE_COMMITTED"),
        (OTHER_PARTNER, "IMPORT_STATE_OPEN"),
    ] {
        let found = on.operator(get, named(partner)).await;
        assert_eq!(found["import"]["partner"], partner);
        assert_eq!(found["import"]["state"], state);
    }
    let abort = "muster.ingest.v1.IngestService/AbortImport";
    assert_eq!(
        on.call(abort, &named(OTHER_PARTNER), &on.muster.operator_token)
            .await
            .code,
        Code::Ok
    );
    let found = on.operator(get, named(PARTNER)).await;
    assert_eq!(found["import"]["state"], "IMPORT_STATE_COMMITTED");
    on.muster.stop().await;
}
