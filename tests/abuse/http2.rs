//! HTTP/2 as it should not be spoken: a frame at a time, and what comes back.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A list of headers in HPACK, without its tables.
pub(crate) fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

fn integer(block: &mut Vec<u8>, number: usize) {
    let Some(mut rest) = number.checked_sub(127) else {
        return block.push(u8::try_from(number).unwrap());
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// The headers of a gRPC call, with more of them.
pub(crate) fn call(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut headers = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "muster"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    headers.extend(more);
    block(&headers)
}

/// A connection.
pub(crate) struct Raw {
    pub(crate) reader: OwnedReadHalf,
    pub(crate) writer: OwnedWriteHalf,
}

impl Raw {
    /// Connects and says what every client says first.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        writer.write_all(&hello).await.unwrap();
        Self { reader, writer }
    }

    /// The next frame: kind, flags, stream, payload; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        next(&mut self.reader).await
    }
}

async fn next(reader: &mut OwnedReadHalf) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await.ok()?;
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let mut payload = vec![0; len as usize];
    reader.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], stream, payload))
}

/// Sends chunk after chunk, reading all answers, until the connection ends; panics if it does not,
/// within `most` chunks and `within` this time. Returns how many were sent.
pub(crate) async fn flood(
    address: SocketAddr,
    mut chunk: impl FnMut(u32) -> Vec<u8>,
    most: u32,
    within: Duration,
) -> u32 {
    let Raw {
        mut reader,
        mut writer,
    } = Raw::connect(address).await;
    let reading = tokio::spawn(async move {
        let mut goaway = None;
        while let Some((kind, _, _, payload)) = next(&mut reader).await {
            if kind == GOAWAY {
                goaway = Some(payload[7]);
            }
        }
        goaway
    });
    let began = Instant::now();
    let mut sent = 0;
    while sent < most && !reading.is_finished() {
        assert!(began.elapsed() < within, "not cut off after {sent} chunks");
        let written = tokio::time::timeout(within, writer.write_all(&chunk(sent))).await;
        match written.expect("the server reads or closes") {
            Ok(()) => sent += 1,
            Err(_) => break,
        }
    }
    let left = within.saturating_sub(began.elapsed());
    let goaway = tokio::time::timeout(left, reading).await;
    let goaway = goaway.unwrap_or_else(|_| panic!("not cut off after {sent} chunks"));
    let (took, code) = (began.elapsed(), goaway.unwrap());
    eprintln!("cut off after {sent} chunks, {took:?}, error {code:?}");
    sent
}
