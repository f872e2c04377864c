//! Whatever belongs to another partner of the same workspace answers as what does not exist.

use muster_tests::{PARTNER, WORKSPACE};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    requests::ROWS,
    world::{Deployment, OTHER_PARTNER, World},
};

/// Everything of one partner, named by another one, with and without saying whose it is.
#[tokio::test]
async fn a_partner_sees_and_touches_nothing_of_another_one() {
    let on = Deployment::start().await;
    let theirs = World::make(&on, WORKSPACE, PARTNER).await;
    let own = World::make(&on, WORKSPACE, OTHER_PARTNER).await;
    let nothing = World::of_nothing(&own);
    let key = own.get("client_secret");
    let (mark, mut compared) = (theirs.mark(), 0);
    for row in ROWS.iter().filter(|row| row.key) {
        for name in row.names() {
            if ["workspace", "request", "fresh"].contains(&name) {
                continue;
            }
            let absent = match name {
                "partner" => "no-such-partner".to_owned(),
                name => nothing.get(name),
            };
            let [answer, like] = [theirs.get(name), absent].map(async |value| {
                let request = row.request(&own, &[(name, &value)]);
                let mut answer = on.call(row.rpc, &request, &key).await;
                answer.message = answer.message.replace(&value, "…");
                let told = Value::from(answer.messages.clone())
                    .to_string()
                    .replace(&value, "…");
                assert!(!told.contains(&mark), "{} {name}: {told}", row.rpc);
                answer
            });
            let (answer, like) = (answer.await, like.await);
            let said = (answer.code, &answer.reason, &answer.message);
            let alike = (like.code, &like.reason, &like.message);
            assert_eq!(said, alike, "{} {name}", row.rpc);
            compared += 1;
        }
    }
    assert!(compared >= 10, "{compared}");
    // Nothing of theirs has changed.
    let request = json!({ "workspace": WORKSPACE, "import_id": theirs.get("import_to_abort") });
    let import = on
        .operator("muster.ingest.v1.IngestService/GetImport", request)
        .await;
    assert_eq!(import["import"]["state"], "IMPORT_STATE_OPEN");
    on.muster.stop().await;
}

/// Lists without a partner's name show a partner its own.
#[tokio::test]
async fn lists_show_a_partner_its_own_only() {
    let on = Deployment::start().await;
    let theirs = World::make(&on, WORKSPACE, PARTNER).await;
    let own = World::make(&on, WORKSPACE, OTHER_PARTNER).await;
    for list in ["ListCohorts", "ListImports"] {
        let rpc = format!("muster.ingest.v1.IngestService/{list}");
        let answer = on
            .call(
                &rpc,
                &json!({ "page_size": 1_000 }),
                &own.get("client_secret"),
            )
            .await;
        assert_eq!(answer.code, Code::Ok, "{answer:?}");
        let told = Value::from(answer.messages).to_string();
        assert!(
            told.contains(&own.mark()) && !told.contains(&theirs.mark()),
            "{told}"
        );
    }
    on.muster.stop().await;
}
