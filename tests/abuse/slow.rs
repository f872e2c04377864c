//! Peers that take their time.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{server::Target, tls::Certificates};

/// How many are slow at once.
const PEERS: usize = 50;

/// Sends a beginning, then a byte now and then, until the server has had enough.
async fn drip(address: SocketAddr, beginning: &[u8], within: Duration) {
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    writer.write_all(beginning).await.unwrap();
    let began = Instant::now();
    let dripping = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(500));
        loop {
            pace.tick().await;
            if writer.write_all(b"x").await.is_err() {
                return;
            }
        }
    });
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(within, reader.read_to_end(&mut answer)).await;
    let _ = ended.unwrap_or_else(|_| panic!("still open after {:?}", began.elapsed()));
    dripping.abort();
}

async fn all_drip(target: &Target, address: SocketAddr, beginning: &[u8], within: Duration) {
    let all = join_all((0..PEERS).map(|_| drip(address, beginning, within)));
    tokio::join!(all, target.serves_others());
    target.serves_others().await;
    target.stayed_small();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_head_is_cut_after_30_seconds() {
    let target = Target::start(&[]).await;
    let within = Duration::from_secs(45);
    all_drip(&target, target.rest, b"POST /partners/tiny", within).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_is_cut_after_8_seconds_and_silence_after_the_answer() {
    let target = Target::start(&[]).await;
    let beginning = b"POST /partners/tinyclues/cohorts HTTP/1.1\r\nhost: x\r\n\
        content-type: application/json\r\ncontent-length: 100000\r\n\r\n{";
    let within = Duration::from_secs(45);
    all_drip(&target, target.rest, beginning, within).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_request_is_cut_after_30_seconds() {
    let target = Target::start(&[]).await;
    let silent = async {
        let mut stream = TcpStream::connect(target.grpc).await.unwrap();
        let read = stream.read(&mut [0; 1]);
        let ended = tokio::time::timeout(Duration::from_secs(45), read).await;
        ended.expect("closed")
    };
    for ended in join_all((0..PEERS).map(|_| silent_again(&target))).await {
        ended.unwrap();
    }
    let _ = silent.await;
}

async fn silent_again(target: &Target) -> Result<(), tokio::time::error::Elapsed> {
    let mut stream = TcpStream::connect(target.grpc).await.unwrap();
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    tokio::time::timeout(Duration::from_secs(45), read)
        .await
        .map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handshake_is_cut_after_10_seconds() {
    let certificates = Certificates::new();
    let target = certificates.serve(&[]).await;
    // The first bytes of a ClientHello of which more is to come.
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let within = Duration::from_secs(20);
    join_all((0..PEERS).map(|_| drip(target.grpc, &hello, within))).await;
    join_all((0..PEERS).map(|_| drip(target.rest, &hello, within))).await;
    target.is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_up_to_the_limit_keep_nobody_out() {
    let target = Target::start(&["--max-connections", "40"]).await;
    let mut held = Vec::new();
    for _ in 0..200 {
        for address in [target.grpc, target.rest] {
            held.push(TcpStream::connect(address).await.unwrap());
        }
    }
    target.serves_others().await;
    let ended = join_all(held.into_iter().map(|mut stream| async move {
        let read = stream.read(&mut [0; 1]);
        tokio::time::timeout(Duration::from_secs(2), read)
            .await
            .is_ok()
    }))
    .await;
    let ended = ended.into_iter().filter(|ended| *ended).count();
    assert!(ended >= 2 * (200 - 40), "{ended} were closed for others");
    target.stayed_small();
}
