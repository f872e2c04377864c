//! How many connections there may be, and how old they become.

use std::time::{Duration, Instant};

use muster_proto::ingest::v1::{
    ImportMode, IngestCohortRequest, OpenImport, ingest_cohort_request::Message as ToServer,
};
use muster_tests::{PARTNER, WORKSPACE};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    deployment::{Deployment, handshake},
    frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, NOTHING, PING, Peer, call, frame},
};

/// How long what must happen may take on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection with a call that lasts; whether its answer began.
async fn watching(deployment: &Deployment) -> (Peer, bool) {
    let mut peer = Peer::greet(deployment.dial(deployment.grpc).await).await;
    let watch = call("/grpc.health.v1.Health/Watch", &[]);
    let mut frames = frame(HEADERS, END_HEADERS, 1, &watch);
    frames.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
    // If it is not taken, the answer tells.
    let _ = peer.send(&frames).await;
    let begun = peer.wait_for(|frame| frame.kind == DATA).await.is_some();
    (peer, begun)
}

/// A connection on which the partner uploads a cohort.
async fn uploading(deployment: &Deployment, cohort: usize) -> Peer {
    let mut peer = Peer::greet(deployment.dial(deployment.grpc).await).await;
    let bearer = format!("Bearer {}", deployment.shop.client_secret);
    let ingest = call(
        "/muster.ingest.v1.IngestService/IngestCohort",
        &[("authorization", &bearer)],
    );
    let open = OpenImport {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        cohort_id: format!("cohort-{cohort}"),
        mode: ImportMode::Replace.into(),
        import_id: format!("import-{cohort}"),
        ..Default::default()
    };
    let open = IngestCohortRequest {
        message: Some(ToServer::Open(open)),
    };
    let open = open.encode_to_vec();
    let length = u32::try_from(open.len()).unwrap().to_be_bytes();
    let mut frames = frame(HEADERS, END_HEADERS, 1, &ingest);
    frames.extend(frame(
        DATA,
        NOTHING,
        1,
        &[&[0][..], &length, &open].concat(),
    ));
    peer.send(&frames).await.unwrap();
    let opened = peer.wait_for(|frame| frame.kind == DATA).await;
    assert!(opened.is_some(), "the import is not open");
    peer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded_and_the_idle_make_room() {
    const MOST: usize = 24;

    let deployment = Deployment::start(&["--max-connections", "24"]).await;
    for address in [deployment.grpc, deployment.rest] {
        let mut idle = deployment
            .withstands("idle connections", async {
                let mut idle = Vec::new();
                for _ in 0..5 * MOST {
                    idle.push(deployment.dial(address).await);
                }
                idle
            })
            .await;
        // All but the youngest were sent away.
        let excess = idle.len() - MOST;
        for stream in &mut idle[..excess] {
            let gone = async { while stream.read_u8().await.is_ok() {} };
            timeout(PATIENCE, gone).await.unwrap();
        }
    }

    // Requests of strangers keep nobody out.
    let mut strangers = Vec::new();
    for _ in 0..MOST {
        let (peer, begun) = watching(&deployment).await;
        assert!(begun);
        strangers.push(peer);
    }
    let mut busy = Vec::new();
    for cohort in 0..MOST {
        busy.push(uploading(&deployment, cohort).await);
    }
    for peer in &mut strangers {
        assert!(peer.wait_for(|_| false).await.is_none());
    }
    // Who is being served is not sent away for somebody new.
    let refused = handshake(deployment.grpc, &deployment.shop.tls, "h2").await;
    if let Ok(mut stream) = refused {
        assert!(stream.read_u8().await.is_err());
    }
    for peer in &mut busy {
        let ping = frame(PING, NOTHING, 0, &[7; 8]);
        peer.send(&ping).await.unwrap();
        let pong = peer.wait_for(|frame| frame.payload == [7; 8]).await;
        assert!(pong.is_some(), "a busy connection was closed");
    }
    drop(busy);
    let deadline = Instant::now() + PATIENCE;
    while handshake(deployment.grpc, &deployment.shop.tls, "h2")
        .await
        .is_err()
    {
        assert!(Instant::now() < deadline, "nobody is let in any more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_old_is_asked_to_go_and_gets_time_for_open_calls() {
    const AGE: Duration = Duration::from_secs(3);

    let deployment = Deployment::start(&["--connection-age", "3s"]).await;
    let grpc = async {
        let begun = Instant::now();
        let (mut peer, answered) = watching(&deployment).await;
        assert!(answered);
        let goaway = peer.wait_for(|frame| frame.kind == GOAWAY).await;
        assert!(goaway.is_some(), "cut without a word");
        let asked = begun.elapsed();
        assert!(
            (AGE - AGE / 10..AGE + PATIENCE).contains(&asked),
            "{asked:?}"
        );
        // The call goes on until it has had its time.
        assert!(
            peer.wait_for(|frame| frame.flags & END_STREAM != 0 && frame.stream == 1)
                .await
                .is_none()
        );
        let ended = begun.elapsed();
        assert!(
            (2 * AGE - AGE / 5..2 * AGE + PATIENCE).contains(&ended),
            "{ended:?}"
        );
        eprintln!("asked to go after {asked:?}, cut after {ended:?}");
    };
    let rest = async {
        let begun = Instant::now();
        let mut stream = deployment.dial(deployment.rest).await;
        let mut answer = Vec::new();
        // Busy all the time, so that it is its age that ends it.
        loop {
            let request = b"GET / HTTP/1.1\r\nhost: muster.test\r\n\r\n";
            if stream.write_all(request).await.is_err() {
                break;
            }
            match timeout(PATIENCE, stream.read_buf(&mut answer))
                .await
                .unwrap()
            {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        let ended = begun.elapsed();
        assert!(
            (AGE - AGE / 10..2 * AGE + PATIENCE).contains(&ended),
            "{ended:?}"
        );
    };
    tokio::join!(grpc, rest);
}
