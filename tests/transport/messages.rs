//! What a peer can say of its messages: that they are long, and that they are small.

use std::{
    collections::HashMap,
    io::Write as _,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use http_body_util::Full;
use tonic::{
    body::Body,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};
use tower::Service as _;

use crate::{
    certificates::SERVER_NAME,
    deployment::{Deployment, served},
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, NOTHING, Peer, RST_STREAM, call, frame},
};

const CONNECTIONS: u32 = 40;
const STREAMS_EACH: u32 = 250;

/// Streams that are opened before somebody else is served again.
const AT_ONCE: u32 = 50;

/// Calls that one account may have open: half of 1,024.
const OPEN: u32 = 512;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);

/// How large each message is said to be: the largest that is read.
const DECLARED_BYTES: u32 = 4 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_messages_that_are_announced_and_never_sent_cost_nothing() {
    let deployment = Deployment::start(&["--request-timeout", "12s"]).await;
    let bearer = format!("Bearer {}", deployment.shop.operator_token);
    let head = call(
        "/muster.users.v1.UserService/UpsertUsers",
        &[("authorization", &bearer)],
    );
    let announced = [&[0][..], &DECLARED_BYTES.to_be_bytes()].concat();
    let awaited = deployment.withstands("announced messages", async {
        let mut peers = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut peer = Peer::greet(deployment.dial(deployment.grpc).await).await;
            let mut begun = HashMap::new();
            for portion in 0..STREAMS_EACH / AT_ONCE {
                for n in 0..AT_ONCE {
                    let stream = 2 * (portion * AT_ONCE + n) + 1;
                    let mut frames = frame(HEADERS, END_HEADERS, stream, &head);
                    frames.extend(frame(DATA, NOTHING, stream, &announced));
                    peer.send(&frames).await.unwrap();
                    begun.insert(stream, Instant::now());
                }
                // Credentials are looked up in turn: once this caller's was, theirs were.
                served(&deployment.shop).await.unwrap();
            }
            peers.push(tokio::spawn(ends(peer, begun)));
        }
        let mut awaited = 0;
        for peer in peers {
            awaited += peer.await.unwrap();
        }
        awaited
    });
    let awaited = awaited.await;
    eprintln!("{awaited} messages were awaited");
    // Those that found no room were refused at once; as the first ended, others took their place.
    let all = CONNECTIONS * STREAMS_EACH;
    assert!((OPEN / 10 * 9..all / 2).contains(&awaited), "{awaited}");
}

/// Waits for the end of every call; returns how many messages were awaited until it was too late.
async fn ends(mut peer: Peer, mut begun: HashMap<u32, Instant>) -> u32 {
    let mut awaited = 0;
    while !begun.is_empty() {
        let ended = peer.wait_for(|frame| match frame.kind {
            HEADERS | DATA => frame.flags & END_STREAM != 0,
            kind => kind == RST_STREAM,
        });
        let ended = ended.await.expect("the connection stays");
        // A reset may follow the answer.
        if let Some(begun) = begun.remove(&ended.stream) {
            awaited += u32::from(begun.elapsed() > REQUEST_TIMEOUT / 2);
        }
    }
    awaited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_unpacks_to_much_is_not_unpacked() {
    let deployment = Deployment::start(&[]).await;
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![0; 1024 * 1024];
    for _ in 0..128 {
        bomb.write_all(&zeros).unwrap();
    }
    let bomb = bomb.finish().unwrap();

    deployment
        .withstands("a compressed message", async {
            let length = u32::try_from(bomb.len()).unwrap().to_be_bytes();
            let message = [&[1][..], &length, &bomb].concat();
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(deployment.authority.pem()))
                .domain_name(SERVER_NAME);
            let endpoint = Endpoint::from_shared(deployment.shop.grpc.clone()).unwrap();
            let endpoint = endpoint.tls_config(tls).unwrap();
            let mut channel = endpoint.connect().await.unwrap();
            let path = "/muster.users.v1.UserService/UpsertUsers";
            let request = http::Request::post(format!("{}{path}", deployment.shop.grpc))
                .header("content-type", "application/grpc")
                .header("grpc-encoding", "gzip")
                .header(
                    "authorization",
                    format!("Bearer {}", deployment.shop.operator_token),
                )
                .body(Body::new(Full::from(message)))
                .unwrap();
            std::future::poll_fn(|context| channel.poll_ready(context))
                .await
                .unwrap();
            let answer = channel.call(request).await.unwrap();
            let unimplemented = tonic::Code::Unimplemented as i32;
            assert_eq!(answer.headers()["grpc-status"], unimplemented.to_string());
        })
        .await;

    deployment
        .withstands("a compressed body", async {
            let client = reqwest::Client::builder()
                .tls_certs_only(
                    reqwest::Certificate::from_pem_bundle(&deployment.authority.pem()).unwrap(),
                )
                .build()
                .unwrap();
            let url = format!("{}/partners/tinyclues/cohorts/users", deployment.shop.rest);
            let answer = client
                .post(url)
                .header("content-type", "application/json")
                .header("content-encoding", "gzip")
                .body(bomb.clone())
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), 400);
        })
        .await;
}
