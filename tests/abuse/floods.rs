//! Peers that send more, or something else, than anybody honest would.

use std::time::Duration;

use futures::{StreamExt as _, future::join_all};
use muster_proto::ingest::v1::{
    self as pb, ingest_cohort_request as ask, ingest_cohort_response as told,
};
use muster_tests::{PARTNER, identified};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    http2::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, Raw,
        SETTINGS, WINDOW_UPDATE, call, flood, frame,
    },
    server::Target,
};

/// Within which a flood is cut off; it takes a fraction of it on a machine with nothing else to do.
const BOUND: Duration = Duration::from_secs(20);

/// More chunks than any flood may get through.
const MANY: u32 = 400_000;

const UNARY: &str = "/muster.ingest.v1.IngestService/GetCohort";
const STREAM: &str = "/muster.ingest.v1.IngestService/IngestCohort";

fn stream(chunk: u32) -> u32 {
    2 * chunk + 1
}

/// Floods, with an honest caller beside, and looks at the memory afterwards.
async fn is_cut(chunk: impl FnMut(u32) -> Vec<u8>) -> u32 {
    let target = Target::start(&[]).await;
    let flooded = flood(target.grpc, chunk, MANY, BOUND);
    let (sent, ()) = tokio::join!(flooded, target.serves_others());
    assert!(sent < MANY);
    target.serves_others().await;
    target.stayed_small();
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets_are_cut() {
    let headers = call(UNARY, &[]);
    is_cut(|chunk| {
        let mut bytes = frame(HEADERS, END_HEADERS, stream(chunk), &headers);
        bytes.extend(frame(RST_STREAM, 0, stream(chunk), &8_u32.to_be_bytes()));
        bytes
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_resets_are_cut() {
    let headers = call(UNARY, &[]);
    let sent = is_cut(|chunk| {
        let mut bytes = frame(HEADERS, END_HEADERS, stream(chunk), &headers);
        // A window that grows by nothing is an error of the stream.
        bytes.extend(frame(WINDOW_UPDATE, 0, stream(chunk), &[0; 4]));
        bytes
    })
    .await;
    assert!(sent < 50_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_headers_are_cut() {
    let headers = call(UNARY, &[]);
    let more = crate::http2::block(&[("x", "y")]);
    let sent = is_cut(|chunk| match chunk {
        0 => frame(HEADERS, 0, 1, &headers),
        _ => frame(CONTINUATION, 0, 1, &more),
    })
    .await;
    assert!(sent < MANY);
}

#[tokio::test(flavor = "multi_thread")]
async fn giant_headers_are_refused_or_cut() {
    let target = Target::start(&[]).await;
    let giant = "x".repeat(8 * 1024);
    // Somewhat too many: an answer, and the connection goes on.
    let headers = call(UNARY, &[("a", &giant), ("b", &giant)]);
    let mut raw = Raw::connect(target.grpc).await;
    let (first, rest) = headers.split_at(10_000);
    let mut bytes = frame(HEADERS, END_STREAM, 1, first);
    bytes.extend(frame(CONTINUATION, END_HEADERS, 1, rest));
    raw.writer.write_all(&bytes).await.unwrap();
    let answer = async {
        while let Some((kind, _, stream, _)) = raw.next().await {
            if kind == HEADERS && stream == 1 {
                return true;
            }
        }
        false
    };
    let answered = tokio::time::timeout(BOUND, answer).await.unwrap();
    assert!(answered, "431");
    // Far too many: over.
    let piece = "y".repeat(16_000);
    let piece = crate::http2::block(&[("c", &piece)]);
    let headers = call(UNARY, &[]);
    let sent = flood(
        target.grpc,
        |chunk| match chunk {
            0 => frame(HEADERS, 0, 1, &headers),
            _ => frame(CONTINUATION, 0, 1, &piece),
        },
        MANY,
        BOUND,
    )
    .await;
    assert!(sent < 10_000);
    // Over HTTP/1 as well.
    let mut plain = tokio::net::TcpStream::connect(target.rest).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "z".repeat(1 << 20)
    );
    // The server may close before all is written.
    let _ = plain.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(BOUND, plain.read_to_end(&mut answer)).await;
    let _ = read.expect("closed in time");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"));
    target.serves_others().await;
    target.stayed_small();
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_cut() {
    is_cut(|_| frame(PING, 0, 0, &[7; 8])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_cut() {
    is_cut(|_| frame(SETTINGS, 0, 0, &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn priorities_are_cut() {
    is_cut(|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])).await;
}

/// Two steps of a client: the head of a call with a credential, and the start of a message.
fn authorized(token: &str) -> Vec<u8> {
    call(STREAM, &[("authorization", &format!("Bearer {token}"))])
}

fn declared(len: u32) -> Vec<u8> {
    let mut prefix = vec![0];
    prefix.extend(len.to_be_bytes());
    prefix
}

#[tokio::test(flavor = "multi_thread")]
async fn data_a_byte_a_frame_is_cut() {
    let target = Target::start(&[]).await;
    let headers = authorized(&target.shop.operator_token);
    let flooded = flood(
        target.grpc,
        |chunk| match chunk {
            0 => frame(HEADERS, END_HEADERS, 1, &headers),
            1 => frame(DATA, 0, 1, &declared(1_000_000)),
            _ => frame(DATA, 0, 1, b"x"),
        },
        MANY,
        BOUND,
    );
    tokio::join!(flooded, target.serves_others());
    target.stayed_small();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_stream_of_small_batches_is_never_cut() {
    const BATCHES: u64 = 2_000;

    let target = Target::start(&[]).await;
    target.shop.upsert_users(vec![identified("ann")]).await;
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let step = |message| pb::IngestCohortRequest {
        message: Some(message),
    };
    let open = pb::ingest_cohort_request::Open {
        partner: PARTNER.into(),
        cohort_id: "small".into(),
        mode: pb::ImportMode::Delta.into(),
        import_id: uuid::Uuid::now_v7().to_string(),
        ..Default::default()
    };
    send.send(step(ask::Message::Open(open))).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let answers = target.shop.partner().ingest().ingest_cohort(requests).await;
    let mut answers = answers.unwrap().into_inner();
    // Each waits for the acknowledgement of the one before: thousands of frames, all of them small.
    for offset in 0..BATCHES {
        let answer = answers.next().await.unwrap().unwrap().message.unwrap();
        let ready = matches!(answer, told::Message::Opened(_) | told::Message::Acked(_));
        assert!(ready, "{answer:?}");
        let batch = pb::ingest_cohort_request::Batch {
            offset,
            adds: vec![pb::Identifier {
                identifier: Some(pb::identifier::Identifier::ExternalId("ann".into())),
            }],
            ..Default::default()
        };
        send.send(step(ask::Message::Batch(batch))).await.unwrap();
    }
    let last = answers.next().await.unwrap().unwrap().message.unwrap();
    assert!(matches!(last, told::Message::Acked(acked) if acked.next_offset == BATCHES));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_messages_that_never_come_take_no_memory_and_are_cut() {
    const CONNECTIONS: u32 = 50;
    const STREAMS: u32 = 200;

    let target = Target::start(&["--stream-idle", "5s"]).await;
    let headers = authorized(&target.shop.operator_token);
    let attack = |()| async {
        let mut raw = Raw::connect(target.grpc).await;
        let mut bytes = Vec::new();
        for n in 0..STREAMS {
            bytes.extend(frame(HEADERS, END_HEADERS, stream(n), &headers));
            bytes.extend(frame(DATA, 0, stream(n), &declared(1_000_000)));
        }
        raw.writer.write_all(&bytes).await.unwrap();
        let mut over = 0;
        while over < STREAMS {
            let Some((kind, flags, ..)) = raw.next().await else {
                return;
            };
            let ended = matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
            over += u32::from(ended);
        }
    };
    let attacks = join_all((0..CONNECTIONS).map(|_| attack(())));
    let attacks = tokio::time::timeout(Duration::from_secs(60), attacks);
    let (cut, ()) = tokio::join!(attacks, target.serves_others());
    cut.expect("each stream ends with an answer");
    target.serves_others().await;
    target.stayed_small();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compressed_is_not_unpacked() {
    let target = Target::start(&[]).await;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut packed, &vec![0; 256 << 20]).unwrap();
    let packed = packed.finish().unwrap();
    let mut message = vec![1];
    message.extend(u32::try_from(packed.len()).unwrap().to_be_bytes());
    message.extend(&packed);
    let bearer = format!("Bearer {}", target.shop.operator_token);
    let headers = call(
        "/muster.users.v1.UserService/UpsertUsers",
        &[("authorization", &bearer), ("grpc-encoding", "gzip")],
    );
    let mut raw = Raw::connect(target.grpc).await;
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &headers);
    for piece in message.chunks(16_000) {
        bytes.extend(frame(DATA, 0, 1, piece));
    }
    bytes.extend(frame(DATA, END_STREAM, 1, &[]));
    raw.writer.write_all(&bytes).await.unwrap();
    let answer = async {
        loop {
            let (kind, _, stream, payload) = raw.next().await.expect("an answer");
            if kind == HEADERS && stream == 1 {
                return payload;
            }
        }
    };
    tokio::time::timeout(BOUND, answer)
        .await
        .expect("refused in time");
    // REST takes the bytes for what they are, which is no JSON; 413 if they are too many.
    let http = reqwest::Client::new();
    let url = format!("http://{}/partners/{PARTNER}/cohorts", target.rest);
    let posted = http
        .post(url)
        .header("content-type", "application/json")
        .header("content-encoding", "gzip")
        .body(packed);
    assert_eq!(posted.send().await.unwrap().status().as_u16(), 400);
    target.serves_others().await;
    target.stayed_small();
}
