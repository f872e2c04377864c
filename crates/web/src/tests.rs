use std::time::Instant;

use axum::routing::post;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use super::*;

struct Running {
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

async fn start(change: impl FnOnce(&mut Limits)) -> Running {
    let mut limits = Limits::default();
    change(&mut limits);
    let router = Router::new().route("/echo", post(async |body: String| body));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let task = tokio::spawn(async move { serve(listener, router, &limits, stop).await });
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

const HALF_A_CALL: &str = "POST /echo HTTP/1.1\r\nhost: x\r\n\
    content-length: 10\r\n\r\n{";

#[tokio::test]
async fn it_answers_and_stops() {
    let server = start(|_| {}).await;
    let call =
        "POST /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let answer = exchange(server.address, call).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    server.shutdown.cancel();
    server.task.await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_slow_head_and_a_silent_connection_are_closed() {
    let server = start(|s| s.header_timeout = Duration::from_millis(100)).await;
    for bytes in ["POST /par", ""] {
        let began = Instant::now();
        exchange(server.address, bytes).await;
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_off_by_the_shutdown() {
    let server = start(|s| s.drain_timeout = Duration::from_millis(100)).await;
    let call = tokio::spawn(exchange(server.address, HALF_A_CALL));
    // The first answer proves that the server runs; the call before it is then accepted, too.
    exchange(server.address, "nonsense\r\n\r\n").await;
    let began = Instant::now();
    server.shutdown.cancel();
    server.task.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(call.await.unwrap(), "");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_room() {
    let server = start(|s| {
        s.max_connections = 1;
        s.header_timeout = Duration::from_millis(200);
    })
    .await;
    let held = TcpStream::connect(server.address).await.unwrap();
    let answer = exchange(server.address, "nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    drop(held);
}
