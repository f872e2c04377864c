//! Who is erased is found nowhere any more: the whole database is dumped and searched.

use muster_client::{Connection, Credential};
use muster_launcher::client_program;
use muster_proto::{ingest::v1 as ingest, keys::v1 as keys, users::v1 as users};
use muster_tests::{Muster, PARTNER, WORKSPACE, identified};
use serde_json::json;

use crate::uploads::Import;

/// Is in every identifier of the person, and in nothing else.
const MARK: &str = "erase-me";

/// Everything in the database, as text.
async fn dump(muster: &Muster) -> String {
    let mut connection = muster.store.connection().await.unwrap();
    let place = "SELECT current_database()::text, current_setting('unix_socket_directories'),
                        current_setting('server_version_num')::integer / 10000";
    let (database, socket, major): (String, String, i32) = sqlx::query_as(place)
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    let program = client_program("pg_dump", None, u32::try_from(major).unwrap()).unwrap();
    let dumped = tokio::process::Command::new(program)
        .args([
            "--username=muster",
            "--host",
            socket.trim_matches('"'),
            &database,
        ])
        .output()
        .await
        .unwrap();
    assert!(dumped.status.success(), "{dumped:?}");
    String::from_utf8(dumped.stdout).unwrap()
}

/// The lines that name the person, as text or as the bytes that `bytea` prints.
fn traces(dump: &str) -> Vec<&str> {
    let bytes: String = MARK.bytes().map(|byte| format!("{byte:02x}")).collect();
    let names = |line: &&str| line.contains(MARK) || line.contains(&bytes);
    dump.lines().filter(names).collect()
}

fn person() -> users::UserRecord {
    users::UserRecord {
        external_id: format!("{MARK}-1"),
        aliases: vec![users::Alias {
            label: "mail".into(),
            name: format!("{MARK}@example.org"),
        }],
        device_ids: vec![format!("{MARK}-phone")],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_erased_is_in_no_dump_and_in_no_audience() {
    let muster = Muster::start().await;
    let mut users = muster.operator.users();
    muster.upsert_users(vec![identified("u-0")]).await;
    let rest = muster.rest();

    // Sent before anybody had it: listed as unknown.
    let everything = json!([{
        "user_ids": [format!("{MARK}-1"), "u-0"],
        "device_ids": [format!("{MARK}-phone")],
        "aliases": [{ "alias_label": "mail", "alias_name": format!("{MARK}@example.org") }],
    }]);
    rest.change("c", everything.clone()).await.succeeded();
    let upsert = users::UpsertUsersRequest {
        workspace: WORKSPACE.into(),
        users: vec![person()],
        request_id: "upsert".into(),
    };
    users.upsert_users(upsert.clone()).await.unwrap();
    // Now a member; the device is listed, as it is an identified user's.
    rest.change("c", everything).await.succeeded();
    // An upload that is not finished, in several batches, each with the person at its end: in the
    // longest form of which a hash could keep the end, and in others.
    let mut pending = Import::open(&muster, "pending", ingest::ImportMode::Delta).await;
    for filler in [3, 20, 50, 64, 100] {
        let last = format!("{}-{MARK}", "x".repeat(filler));
        pending
            .add(&["u-0".into(), format!("{MARK}-1"), last])
            .await;
    }
    let segment = format!("{PARTNER}:id(\"c\")");
    let before = muster.audience_ids(&segment).await;
    assert_eq!(before, [format!("{MARK}-1"), "u-0".into()]);
    let found = dump(&muster).await;
    assert!(!traces(&found).is_empty(), "the search finds what is there");

    // Erased by one of their identifiers, with those that matched nobody.
    let erase = |id: &str| users::Identifier {
        kind: Some(users::identifier::Kind::ExternalId(id.into())),
    };
    let mut gone = vec![erase(&format!("{MARK}-1"))];
    for filler in [3, 20, 50, 64, 100] {
        let id = format!("{}-{MARK}", "x".repeat(filler));
        muster.upsert_users(vec![identified(&id)]).await;
        gone.push(erase(&id));
    }
    let delete = users::DeleteUsersRequest {
        workspace: WORKSPACE.into(),
        users: gone,
        request_id: "delete".into(),
    };
    users.delete_users(delete).await.unwrap();

    let dumped = dump(&muster).await;
    assert_eq!(traces(&dumped), [""; 0]);
    assert_eq!(muster.audience_ids(&segment).await, ["u-0"]);
    let answer = pending.commit().await.unwrap();
    let dumped = dump(&muster).await;
    assert_eq!(traces(&dumped), [""; 0], "{answer:?}");
    assert_eq!(
        muster
            .audience_ids(&format!("{PARTNER}:id(\"pending\")"))
            .await,
        ["u-0"]
    );
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_tells_who_changed_what_from_where_and_names_nobody() {
    let muster = Muster::start().await;
    muster.upsert_users(vec![person()]).await;
    let rest = muster.rest();
    rest.name("c", "Spring").await.succeeded();
    let people = json!([{ "user_ids": [format!("{MARK}-1"), format!("{MARK}-2")] }]);
    rest.change("c", people).await.succeeded();
    muster.audience(&format!("{PARTNER}:id(\"c\")")).await;
    let delete = users::DeleteUsersRequest {
        workspace: WORKSPACE.into(),
        users: vec![users::Identifier {
            kind: Some(users::identifier::Kind::ExternalId(format!("{MARK}-1"))),
        }],
        request_id: String::new(),
    };
    muster.operator.users().delete_users(delete).await.unwrap();

    let list = async |filter: keys::ListAuditEventsRequest| {
        let listed = muster
            .operator
            .integrations()
            .list_audit_events(filter)
            .await;
        listed.unwrap().into_inner().events
    };
    let events = list(keys::ListAuditEventsRequest {
        workspace: WORKSPACE.into(),
        ..Default::default()
    })
    .await;
    let actions: Vec<&str> = events.iter().rev().map(|event| &*event.action).collect();
    assert_eq!(
        actions,
        [
            "workspace.create",
            "partner.enable",
            "data_import_key.create",
            "cohort.create",
            "cohort.publish",
            "segment.resolve",
            "users.erase",
        ],
        "one event for each change, however many people it concerns"
    );
    for event in &events {
        // Also of a call over REST, which the bridge passes on.
        assert_eq!(event.peer, "127.0.0.1", "{event:?}");
        assert_eq!(event.refusal, "");
    }
    assert!(events[3].actor.starts_with("data_import_key:"));
    assert!(!format!("{events:?}").contains(MARK));
    assert!(!format!("{events:?}").contains(&muster.client_secret));

    let cohorts = list(keys::ListAuditEventsRequest {
        workspace: WORKSPACE.into(),
        action_prefix: "cohort.".into(),
        actor: events[3].actor.clone(),
        resource: format!("cohort:{PARTNER}/c"),
        ..Default::default()
    })
    .await;
    assert_eq!(cohorts, events[2..=3]);
    let nobody = list(keys::ListAuditEventsRequest {
        actor: "nobody".into(),
        ..Default::default()
    })
    .await;
    assert_eq!(nobody, []);
    muster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_on_the_network_cannot_say_where_it_is() {
    let muster = Muster::start().await;
    let forging = Credential::bearer(&muster.operator_token)
        .unwrap()
        .presented_from([203, 0, 113, 9].into());
    let forging = Connection::new(&muster.grpc, Some(forging)).unwrap();
    let partner = keys::CreatePartnerRequest {
        partner: "other".into(),
        ..Default::default()
    };
    forging
        .integrations()
        .create_partner(partner)
        .await
        .unwrap();
    let newest = keys::ListAuditEventsRequest {
        action_prefix: "partner.create".into(),
        page_size: 1,
        ..Default::default()
    };
    let listed = muster
        .operator
        .integrations()
        .list_audit_events(newest)
        .await;
    let events = listed.unwrap().into_inner().events;
    assert_eq!(events[0].resource, "partner:other");
    assert_eq!(events[0].peer, "127.0.0.1");
    muster.stop().await;
}
