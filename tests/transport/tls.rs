//! Certificates: who is let in, and how they are replaced.

use std::{
    fs,
    time::{Duration, Instant},
};

use muster_client::Tls;
use muster_proto::{
    ingest::v1::{
        CommitImport, ImportMode, IngestCohortRequest, OpenImport,
        ingest_cohort_request::Message as ToServer, ingest_cohort_response::Message as FromServer,
    },
    keys::v1::{ListAuditEventsRequest, ListWorkspacesRequest},
};
use muster_testbed::process;
use muster_tests::{PARTNER, Shop, WORKSPACE, connect_with, identified};
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    certificates::{Authority, SERVER_NAME},
    deployment::{Deployment, handshake},
};

/// How long a new certificate may take to be used; the files are looked at every second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether somebody with these certificates gets an answer over gRPC.
async fn reaches(deployment: &Deployment, tls: &Tls) -> bool {
    let connection = connect_with(tls, &deployment.shop.grpc, &deployment.shop.operator_token);
    let request = ListWorkspacesRequest::default();
    connection
        .integrations()
        .list_workspaces(request)
        .await
        .is_ok()
}

async fn until_reached(deployment: &Deployment, tls: &Tls, wanted: bool) {
    let deadline = Instant::now() + PATIENCE;
    while reaches(deployment, tls).await != wanted {
        assert!(Instant::now() < deadline, "never reached: {wanted}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_everything_works_and_grpc_lets_in_known_certificates_only() {
    let deployment = Deployment::start_mutual(&[]).await;
    let shop = &deployment.shop;
    shop.upsert_users(vec![identified("ann"), identified("bob")])
        .await;
    // REST asks its partners for no certificate, and the client here has none.
    let changed = shop
        .rest()
        .change("spring", json!([{ "user_ids": ["ann"] }]))
        .await;
    assert_eq!(changed.status, 201, "{changed:?}");
    let filter = format!("{PARTNER}:id(\"spring\")");
    assert_eq!(shop.audience_ids(&filter).await, ["ann"]);

    let (authority, stranger) = (&deployment.authority, Authority::new());
    assert!(reaches(&deployment, &shop.tls).await);
    assert!(!reaches(&deployment, &authority.tls(None)).await);
    let forged = stranger.issue(ClientAuth);
    assert!(!reaches(&deployment, &authority.tls(Some(forged))).await);
    // A certificate of a server is none of a client.
    let other = authority.issue(ServerAuth);
    assert!(!reaches(&deployment, &authority.tls(Some(other))).await);
    // And clients look at the certificate of the server.
    assert!(
        handshake(deployment.rest, &stranger.tls(None), "http/1.1")
            .await
            .is_err()
    );
    let plain = shop.grpc.replace("https://", "http://");
    let plain = connect_with(&Tls::default(), &plain, &shop.operator_token);
    let request = ListWorkspacesRequest::default();
    assert!(plain.integrations().list_workspaces(request).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_while_a_stream_goes_on() {
    let deployment = Deployment::start_mutual(&[]).await;
    let (requests, outgoing) = mpsc::unbounded_channel();
    let say = |message| {
        let message = Some(message);
        requests.send(IngestCohortRequest { message }).unwrap();
    };
    say(ToServer::Open(OpenImport {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        cohort_id: "spring".into(),
        mode: ImportMode::Replace.into(),
        import_id: "spring-1".into(),
        ..Default::default()
    }));
    let mut ingest = deployment.shop.partner().ingest();
    let answers = ingest.ingest_cohort(UnboundedReceiverStream::new(outgoing));
    let mut answers = answers.await.unwrap().into_inner();
    let opened = answers.message().await.unwrap().unwrap().message.unwrap();
    assert!(matches!(opened, FromServer::Opened(_)), "{opened:?}");

    // What is of no use changes nothing, and the log says so.
    fs::write(deployment.file("server.pem"), "nonsense").unwrap();
    tokio::task::block_in_place(|| {
        process::until("the log tells of the certificate", || {
            deployment
                .server
                .stderr()
                .contains("cannot use the new certificate")
        });
    });
    let old = &deployment.shop.tls;
    assert!(reaches(&deployment, old).await);

    // Another authority for the servers, then for the clients.
    let authority = Authority::new();
    authority.certify_server(deployment.directory());
    let mixed = Tls {
        ca: Some(authority.pem()),
        ..old.clone()
    };
    until_reached(&deployment, &mixed, true).await;
    assert!(!reaches(&deployment, old).await);
    fs::write(deployment.file("clients.pem"), authority.pem()).unwrap();
    let new = authority.tls(Some(authority.issue(ClientAuth)));
    until_reached(&deployment, &new, true).await;
    assert!(!reaches(&deployment, &mixed).await);
    assert!(handshake(deployment.rest, &new, "http/1.1").await.is_ok());

    let digest = muster_domain::import::ImportDigest::default();
    say(ToServer::Commit(CommitImport {
        total: 0,
        digest: digest.finish().to_vec().into(),
    }));
    let end = answers.message().await.unwrap().unwrap().message.unwrap();
    assert!(matches!(end, FromServer::Committed(_)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_clear_it_listens_on_loopback_only_unless_told_otherwise() {
    let database_url = muster_testbed::database().await;
    let directory = process::directory();
    let serve = |words: &[&str]| {
        let mut command = process::command(process::muster());
        command
            .arg("serve")
            .args(words)
            .args(["--data-dir", directory.path().to_str().unwrap()])
            .env("DATABASE_URL", &database_url);
        command
    };
    let nowhere = ["--endpoint", "http://127.0.0.1:1"];
    tokio::task::block_in_place(|| {
        for address in ["0.0.0.0:0", "[::]:0"] {
            for words in [
                ["keys", "--grpc-listen", address],
                ["bridge", "--rest-listen", address],
                ["console", "--console-listen", address],
            ] {
                let mut command = serve(&words);
                let done = process::run(command.args(nowhere), b"");
                done.code(2)
                    .says(&["others can listen in on", "--insecure"]);
            }
        }
        let words = ["bridge", "--rest-listen", "0.0.0.0:0", "--insecure"];
        let mut command = serve(&words);
        let server =
            process::Server::start(command.args(nowhere), directory.path(), directory.path());
        assert!(server.ready.contains("http://0.0.0.0:"), "{}", server.ready);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_with_a_certificate_says_for_whom_it_calls() {
    let deployment = Deployment::start_mutual(&[]).await;
    let shop = &deployment.shop;
    let directory = process::directory();
    let file = |name: &str| deployment.file(name).to_str().unwrap().to_owned();
    let mut command = process::command(process::muster());
    command
        .args(["serve", "bridge", "--endpoint", &shop.grpc])
        .args(["--rest-listen", "127.0.0.1:0", "--output", "json"])
        .args(["--tls-name", SERVER_NAME, "--tls-ca", &file("ca.pem")])
        .args(["--tls-cert", &file("client.pem")])
        .args(["--tls-key", &file("client.key")])
        .arg("--data-dir")
        .arg(directory.path());
    let bridge = tokio::task::block_in_place(|| {
        process::Server::start(&mut command, directory.path(), directory.path())
    });
    let ready: serde_json::Value = serde_json::from_str(&bridge.ready).unwrap();
    let rest = Shop {
        rest: ready["rest"].as_str().unwrap().to_owned(),
        ..shop.clone()
    };
    // Loopback is more than one address: a client elsewhere than the bridge.
    let elsewhere = rest.rest().from("127.0.0.9".parse().unwrap());
    let named = elsewhere.name("spring", "Spring").await;
    assert_eq!(named.status, 201, "{named:?}");

    let newest = ListAuditEventsRequest {
        action_prefix: "cohort.".into(),
        page_size: 1,
        ..Default::default()
    };
    let mut integrations = shop.operator.integrations();
    let listed = integrations.list_audit_events(newest).await.unwrap();
    let event = listed.into_inner().events.remove(0);
    assert_eq!(event.peer, "127.0.0.9", "{event:?}");
}
