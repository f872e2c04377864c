//! HTTP/2 by hand: frames as bytes, and a peer that sends whatever bytes it likes.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const NOTHING: u8 = 0;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// How long an answer may take that is no measurement of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// A frame as bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header as HPACK has it that uses no table.
pub(crate) fn header(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        length(text.len(), &mut bytes);
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// An integer of HPACK with a prefix of seven bits.
fn length(mut number: usize, bytes: &mut Vec<u8>) {
    if number < 127 {
        bytes.push(number as u8);
        return;
    }
    bytes.push(127);
    number -= 127;
    while number >= 128 {
        bytes.push((number % 128 + 128) as u8);
        number /= 128;
    }
    bytes.push(number as u8);
}

/// The head of a gRPC call.
pub(crate) fn call(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "muster.test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let headers = usual.iter().chain(more);
    headers
        .flat_map(|(name, value)| header(name, value))
        .collect()
}

/// A frame that was read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// The reading half of a peer.
pub(crate) struct Reader(ReadHalf<TlsStream<TcpStream>>);

/// A peer that has sent its preface.
pub(crate) struct Peer {
    pub(crate) reader: Reader,
    writer: WriteHalf<TlsStream<TcpStream>>,
}

/// How an attack ended.
#[derive(Debug)]
pub(crate) struct Cut {
    /// How often its bytes were sent.
    pub(crate) sent: u32,
    /// How long that took.
    pub(crate) took: Duration,
    /// The error of the `GOAWAY` that came first, if one did.
    pub(crate) goaway: Option<u32>,
}

impl Peer {
    pub(crate) async fn greet(stream: TlsStream<TcpStream>) -> Self {
        let (reader, writer) = split(stream);
        let mut peer = Self {
            reader: Reader(reader),
            writer,
        };
        let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        preface.extend(frame(SETTINGS, NOTHING, 0, &[]));
        peer.send(&preface).await.unwrap();
        peer
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Sends what `bytes` makes of 0, 1, 2 and so on until the connection is cut, `most` times at
    /// most; answers nothing.
    pub(crate) async fn until_cut(self, most: u32, bytes: impl Fn(u32) -> Vec<u8>) -> Cut {
        let Self {
            mut reader,
            mut writer,
        } = self;
        let begun = Instant::now();
        let mut reading = tokio::spawn(async move {
            let mut goaway = None;
            while let Some(read) = reader.next().await {
                if read.kind == GOAWAY {
                    let code = read.payload[4..8].try_into().unwrap();
                    goaway.get_or_insert(u32::from_be_bytes(code));
                }
            }
            goaway
        });
        let mut sent = 0;
        while sent < most && !reading.is_finished() {
            let written = async {
                writer.write_all(&bytes(sent)).await?;
                writer.flush().await
            };
            match timeout(PATIENCE, written).await {
                Ok(Ok(())) => sent += 1,
                Ok(Err(_)) => break,
                Err(_) => panic!("neither taken nor cut after {sent}"),
            }
        }
        let goaway = timeout(PATIENCE, &mut reading).await;
        let goaway = goaway.unwrap_or_else(|_| panic!("not cut after {sent}"));
        Cut {
            sent,
            took: begun.elapsed(),
            goaway: goaway.unwrap(),
        }
    }

    /// Answers pings until the connection is cut or a frame for a stream comes that `wanted` wants.
    pub(crate) async fn wait_for(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let next = timeout(PATIENCE, self.reader.next()).await;
            let read = next.expect("a frame or the end in time")?;
            if wanted(&read) {
                return Some(read);
            }
            let reply = match (read.kind, read.flags) {
                (PING, NOTHING) => frame(PING, ACK, 0, &read.payload),
                (SETTINGS, NOTHING) => frame(SETTINGS, ACK, 0, &[]),
                _ => continue,
            };
            // If it cannot be sent, reading tells.
            let _ = self.send(&reply).await;
        }
    }
}

impl Reader {
    /// The next frame; `None` once the connection has ended, in whatever way.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }
}
