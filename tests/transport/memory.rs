//! What messages take in memory: of a flood of large ones as much as they may, and the rest is refused.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, future::join_all, stream};
use http::request::Builder;
use http_body::Frame;
use http_body_util::StreamBody;
use muster_client::upload::{Outcome, Upload};
use muster_domain::{
    identifier::IdentifierRef,
    import::{Effect, Mode},
};
use muster_proto::ingest::v1::{
    ChangeEffect, CohortChange, IdentifierBatch, ImportMode, IngestCohortRequest, OpenImport,
    ingest_cohort_request::Message as ToServer,
};
use muster_tests::{PARTNER, WORKSPACE};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tonic::{
    Code, Status,
    body::Body,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_types::StatusExt as _;
use tower::Service as _;

use crate::{certificates::SERVER_NAME, deployment::Deployment};

/// What the messages may take together; the caller in these tests, who is in no workspace, half.
const BUDGET: [&str; 2] = ["--message-memory", "32MiB"];
const SHARE_MIB: usize = 16;

/// What the process may take beside it for connections, for those who are served, and for what is
/// just being refused.
const MEMORY_BYTES: u64 = 80 * 1024 * 1024;

const CONNECTIONS: usize = 4;

/// How long it may take until all that are too many have been refused.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_arrive_take_no_more_memory_than_they_may() {
    const CALLS: usize = 192;

    let deployment = Deployment::start(&BUDGET).await;
    deployment
        .withstands_in(MEMORY_BYTES, "large messages, sent in part", async {
            let mut channels = Vec::new();
            for _ in 0..CONNECTIONS {
                channels.push(channel(&deployment).await);
            }
            let bearer = format!("Bearer {}", deployment.shop.operator_token);
            let calls = channels.iter().cycle().take(CALLS).cloned();
            let calls = calls.map(|channel| {
                let request = request("/muster.users.v1.UserService/UpsertUsers");
                let request = request.header("authorization", &bearer);
                tokio::spawn(send_in_part(channel, request))
            });
            let calls = calls.collect();
            let refused = refusals(calls, CALLS - SHARE_MIB, "TOO_MANY_BYTES").await;
            assert!(refused < CALLS, "those for which there is room are awaited");
        })
        .await;
    // What they took is there again.
    deployment
        .shop
        .upsert_users(vec![muster_tests::identified("ann")])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_credential_sends_no_large_message() {
    const CALLS: usize = 64;

    let deployment = Deployment::start(&[]).await;
    deployment
        .withstands("large messages of strangers", async {
            let channel = channel(&deployment).await;
            let calls = (0..CALLS).map(|_| {
                let request = request("/grpc.health.v1.Health/Check");
                tokio::spawn(send_in_part(channel.clone(), request))
            });
            refusals(calls.collect(), CALLS, "MESSAGE_TOO_LARGE").await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_wait_in_streams_take_no_more_memory_than_they_may() {
    const STREAMS: usize = 80;

    let deployment = Deployment::start(&BUDGET).await;
    deployment
        .withstands_in(MEMORY_BYTES, "batches whose imports do not go on", async {
            let connections = join_all((0..CONNECTIONS).map(async |_| {
                let connection = deployment.shop.operator.renewed();
                connection.ingest()
            }));
            let connections = connections.await;
            let streams = connections.iter().cycle().take(STREAMS).cloned();
            let streams = streams.enumerate().map(|(n, mut ingest)| {
                tokio::spawn(async move {
                    let sent = stream::iter([open(n), batch()]).chain(stream::pending());
                    let mut answers = ingest.ingest_cohort(sent).await?.into_inner();
                    let answer = answers.message().await?;
                    panic!("an import that does not go on is answered {answer:?}");
                })
            });
            // Each takes a megabyte for what arrives, and another for the batch that was read.
            let least = STREAMS - SHARE_MIB / 2;
            refusals(streams.collect(), least, "TOO_MANY_BYTES").await;
            honest_upload(&deployment).await;
        })
        .await;
}

/// The largest batches at full speed are within the memory of a workspace.
async fn honest_upload(deployment: &Deployment) {
    const IDENTIFIERS: usize = 60_000;

    let ids = (0..IDENTIFIERS).map(|n| format!("{n:0>200}"));
    let changes: Vec<_> = ids
        .map(|id| (Effect::Add, IdentifierRef::external_id(&id).to_owned()))
        .collect();
    let source = move || Ok(changes.clone().into_iter().map(Ok));
    let upload = Upload::new(WORKSPACE, PARTNER, "honest", Mode::Delta, "honest");
    let partner = deployment.shop.partner();
    let Outcome::Committed { summary, .. } =
        upload.run(&partner, source, &mut |_| {}).await.unwrap()
    else {
        panic!("a delta is published");
    };
    assert_eq!(summary.received, IDENTIFIERS as u64);
}

type Call = JoinHandle<Result<(), Status>>;

/// Waits until so many calls have been refused, and ends the others; tells how many were by then.
async fn refusals(calls: Vec<Call>, least: usize, reason: &str) -> usize {
    let (refused, mut all) = mpsc::unbounded_channel();
    let watching = calls.into_iter().map(|call| {
        let refused = refused.clone();
        tokio::spawn(async move {
            let abort = call.abort_handle();
            tokio::select! {
                ended = call => refused.send(ended.unwrap().unwrap_err()).unwrap(),
                () = refused.closed() => abort.abort(),
            }
        })
    });
    let watching: Vec<_> = watching.collect();
    for n in 0..least {
        let status = timeout(PATIENCE, all.recv()).await;
        let status = status.unwrap_or_else(|_| panic!("{n} of {least} were refused"));
        let status = status.unwrap();
        let info = status.get_details_error_info().unwrap();
        let said = (status.code(), info.reason.as_str());
        assert_eq!(said, (Code::ResourceExhausted, reason));
        let again = status.get_details_retry_info();
        assert_eq!(again.is_some(), reason == "TOO_MANY_BYTES");
    }
    let more = all.len();
    drop(all);
    join_all(watching).await;
    least + more
}

async fn channel(deployment: &Deployment) -> Channel {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(deployment.authority.pem()))
        .domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(deployment.shop.grpc.clone()).unwrap();
    let endpoint = endpoint.tls_config(tls).unwrap();
    endpoint.connect().await.unwrap()
}

fn request(path: &str) -> Builder {
    http::Request::post(path).header("content-type", "application/grpc")
}

/// Announces a message of 4 MiB, sends one of them, and waits.
async fn send_in_part(mut channel: Channel, request: Builder) -> Result<(), Status> {
    let mut message = vec![0];
    message.extend(4_194_304_u32.to_be_bytes());
    message.resize(1024 * 1024, 0);
    let part = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from(message)))]);
    let body = Body::new(StreamBody::new(part.chain(stream::pending())));
    let ready = std::future::poll_fn(|context| channel.poll_ready(context));
    ready.await.unwrap();
    let answer = channel.call(request.body(body).unwrap()).await.unwrap();
    Err(Status::from_header_map(answer.headers()).unwrap())
}

fn open(n: usize) -> IngestCohortRequest {
    let message = ToServer::Open(OpenImport {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        cohort_id: format!("cohort-{n}"),
        mode: ImportMode::Delta.into(),
        import_id: format!("import-{n}"),
        // The server looks what comes after the batch before it does anything.
        pipelined: true,
        ..Default::default()
    });
    IngestCohortRequest {
        message: Some(message),
    }
}

/// Almost a mebibyte.
fn batch() -> IngestCohortRequest {
    let ids = (0..8_000).map(|n| format!("{n:0>120}"));
    let message = ToServer::Batch(IdentifierBatch {
        offset: 0,
        changes: vec![CohortChange {
            effect: ChangeEffect::Add.into(),
            external_ids: ids.collect(),
            ..Default::default()
        }],
    });
    IngestCohortRequest {
        message: Some(message),
    }
}
