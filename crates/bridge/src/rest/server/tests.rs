use std::time::{Duration, Instant};

use muster_client::Connection;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;

struct Running {
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

async fn start(change: impl FnOnce(&mut RestSettings)) -> Running {
    let mut settings = RestSettings::new(Connection::new("http://127.0.0.1:9", None).unwrap());
    change(&mut settings);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve(listener, settings, shutdown.clone()));
    Running {
        address,
        shutdown,
        task,
    }
}

/// Sends bytes and reads until the server closes.
async fn exchange(address: std::net::SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const HALF_A_CALL: &str = "POST /partners/tinyclues/cohorts HTTP/1.1\r\nhost: x\r\n\
    content-type: application/json\r\ncontent-length: 10\r\n\r\n{";

#[tokio::test]
async fn it_answers_and_stops() {
    let server = start(|_| {}).await;
    let call =
        "POST /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let answer = exchange(server.address, call).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    server.shutdown.cancel();
    server.task.await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_slow_head_and_a_silent_connection_are_closed() {
    let server = start(|s| s.limits.header_timeout = Duration::from_millis(100)).await;
    for bytes in ["POST /par", ""] {
        let began = Instant::now();
        exchange(server.address, bytes).await;
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_slow_body_is_408() {
    let server = start(|s| s.call_timeout = Duration::from_millis(100)).await;
    let answer = exchange(server.address, HALF_A_CALL).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_off_by_the_shutdown() {
    let server = start(|s| {
        s.limits.shutdown_grace = Duration::from_millis(100);
        s.call_timeout = Duration::from_secs(60);
    })
    .await;
    let call = tokio::spawn(exchange(server.address, HALF_A_CALL));
    // The first answer proves that the server runs; the call before it is then accepted, too.
    exchange(server.address, "nonsense\r\n\r\n").await;
    let began = Instant::now();
    server.shutdown.cancel();
    server.task.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(call.await.unwrap(), "");
}

#[tokio::test]
async fn a_full_listener_closes_whoever_asks_nothing_for_whoever_comes() {
    let server = start(|s| s.limits.max_connections = 1).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let answer = exchange(server.address, "nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}
