//! Peers that send little, and those that read nothing: each is cut in time.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{
    deployment::{Deployment, handshake_over},
    frames::{
        DATA, END_HEADERS, END_STREAM, HEADERS, NOTHING, PING, Peer, RST_STREAM, call, frame,
    },
};

/// How much later than its time a peer may be cut on a machine that is busy with other tests.
const LATE: Duration = Duration::from_secs(20);

/// Between two bytes.
const DRIP: Duration = Duration::from_millis(100);

const HANDSHAKE: Duration = Duration::from_secs(2);
const HEADER: Duration = Duration::from_secs(3);
const REQUEST: Duration = Duration::from_secs(4);
const KEEPALIVE: Duration = Duration::from_secs(3);

/// Sends a byte at a time until the other side ends the connection, and returns what it answered.
async fn drip(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut bytes = bytes.iter();
    loop {
        // Whoever has nothing left to say keeps silent.
        if let Some(byte) = bytes.next() {
            // If it is not taken, reading tells.
            let _ = stream.write_all(&[*byte]).await;
            let _ = stream.flush().await;
        }
        match timeout(DRIP, stream.read_buf(&mut answer)).await {
            Err(_) | Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => return answer,
        }
    }
}

/// That something ends within its time, and not before half of it.
async fn within<T>(what: &str, bound: Duration, end: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let ended = timeout(bound + LATE, end).await;
    let took = begun.elapsed();
    let ended = ended.unwrap_or_else(|_| panic!("{what}: still there after {took:?}"));
    eprintln!("{what}: {took:?}");
    assert!(took > bound / 2, "{what}: cut after {took:?} already");
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_little_or_reads_nothing_is_cut_off() {
    let seconds = |time: Duration| format!("{}s", time.as_secs());
    let deployment = Deployment::start(&[
        "--handshake-timeout",
        &seconds(HANDSHAKE),
        "--header-timeout",
        &seconds(HEADER),
        "--request-timeout",
        &seconds(REQUEST),
        "--keepalive",
        &seconds(KEEPALIVE),
    ])
    .await;
    let (grpc, rest) = (deployment.grpc, deployment.rest);
    let silence = &[0_u8; 0][..];
    let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 400]].concat();
    let head = b"POST /partners/tinyclues/cohorts HTTP/1.1\r\nhost: muster.test\r\n".to_vec();
    let endless_head = [&head[..], b"x-slow: ", &[b'x'; 400]].concat();
    let body = [
        &head[..],
        b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n",
    ]
    .concat();
    let dial = |address| deployment.dial(address);
    let tcp = async |address| TcpStream::connect(address).await.unwrap();

    let slow = async {
        tokio::join!(
            within("a handshake that does not begin (gRPC)", HANDSHAKE, async {
                drip(tcp(grpc).await, silence).await
            }),
            within("a handshake that does not begin (REST)", HANDSHAKE, async {
                drip(tcp(rest).await, silence).await
            }),
            within("a handshake byte by byte", HANDSHAKE, async {
                drip(tcp(grpc).await, &hello).await
            }),
            within("no request over REST", HEADER, async {
                drip(dial(rest).await, silence).await
            }),
            within("a head byte by byte over REST", HEADER, async {
                drip(dial(rest).await, &endless_head).await
            }),
            within("a preface byte by byte", HEADER, async {
                drip(dial(grpc).await, b"PRI * HTTP/2.0\r\n").await
            }),
            within("no call", HEADER, async {
                let mut peer = Peer::greet(dial(grpc).await).await;
                peer.wait_for(|_| false).await
            }),
            within("a body byte by byte over REST", REQUEST, async {
                let mut stream = dial(rest).await;
                stream.write_all(&body).await.unwrap();
                let answer = drip(stream, &[b' '; 400]).await;
                let answer = String::from_utf8_lossy(&answer).into_owned();
                assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
            }),
            within("half a message", REQUEST, half_a_message(&deployment)),
            within("answers that nobody reads", REQUEST, unread(&deployment)),
            within("a peer that is dead", KEEPALIVE, async {
                let mut peer = watching(&deployment).await;
                while peer.reader.next().await.is_some() {}
            }),
            alive(&deployment),
        )
    };
    deployment.withstands("slow peers", slow).await;
}

/// A call without the end of its message ends; its connection stays.
async fn half_a_message(deployment: &Deployment) {
    let bearer = format!("Bearer {}", deployment.shop.operator_token);
    let head = call(
        "/muster.users.v1.UserService/UpsertUsers",
        &[("authorization", &bearer)],
    );
    let mut peer = Peer::greet(deployment.dial(deployment.grpc).await).await;
    let mut frames = frame(HEADERS, END_HEADERS, 1, &head);
    frames.extend(frame(DATA, NOTHING, 1, b"\0\0\0\x10\0abc"));
    peer.send(&frames).await.unwrap();
    let ended = peer.wait_for(|frame| match frame.kind {
        HEADERS | DATA => frame.flags & END_STREAM != 0,
        kind => kind == RST_STREAM,
    });
    ended.await.expect("only the call ends");
}

/// A connection with a call that lasts.
async fn watching(deployment: &Deployment) -> Peer {
    let mut peer = Peer::greet(deployment.dial(deployment.grpc).await).await;
    let watch = call("/grpc.health.v1.Health/Watch", &[]);
    let mut frames = frame(HEADERS, END_HEADERS, 1, &watch);
    frames.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
    peer.send(&frames).await.unwrap();
    peer
}

/// A peer that says nothing but answers when it is asked stays.
async fn alive(deployment: &Deployment) {
    let mut peer = watching(deployment).await;
    for _ in 0..3 {
        let ping = peer.wait_for(|frame| frame.kind == PING && frame.flags == NOTHING);
        let ping = ping.await.expect("it is asked, not cut");
        let pong = frame(PING, crate::frames::ACK, 0, &ping.payload);
        peer.send(&pong).await.unwrap();
    }
}

/// Requests one after the other, whose answers nobody reads, until they are taken no more and then
/// until the connection breaks.
async fn unread(deployment: &Deployment) -> io::Error {
    let socket = TcpSocket::new_v4().unwrap();
    // Little of what is sent to it is on its way.
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let stream = socket.connect(deployment.rest).await.unwrap();
    let stream = handshake_over(stream, &deployment.shop.tls, "http/1.1").await;
    let mut stream = stream.unwrap();
    let requests = b"GET / HTTP/1.1\r\nhost: muster.test\r\n\r\n".repeat(500);
    loop {
        let sent = async {
            stream.write_all(&requests).await?;
            stream.flush().await
        };
        if let Err(error) = sent.await {
            return error;
        }
    }
}
