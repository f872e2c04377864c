//! What h2 leaves open: a peer that keeps the connection busy with frames that move nothing.
//!
//! h2 bounds what such frames make it remember, not how many it reads: pings and settings are
//! answered for ever, streams opened and reset again at a pace it can follow, data sent a byte a
//! frame. Each costs a thousand times the work of the bytes it takes. So the connection is read
//! through this, which looks at the heads of the frames only.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::Limits;

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` comes before the first frame.
const PREFACE_BYTES: usize = 24;

const HEAD_BYTES: usize = 9;

/// A data frame of fewer bytes moves nothing: a message of gRPC has five before it begins.
const SMALLEST_DATA_BYTES: usize = 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// An HTTP/2 connection that fails once its peer sent too many frames that move nothing.
#[derive(Debug)]
pub(crate) struct Guarded<I> {
    inner: I,
    frames: Frames,
}

impl<I> Guarded<I> {
    pub(crate) fn new(inner: I, limits: &Limits) -> Self {
        Self {
            inner,
            frames: Frames::new(limits.max_empty_frames),
        }
    }
}

/// Follows the frames of a connection.
#[derive(Debug)]
struct Frames {
    /// Bytes to pass over before the next head.
    skip: usize,
    head: [u8; HEAD_BYTES],
    head_len: usize,
    most: u32,
    count: u32,
    period_began: Instant,
}

/// The peer sent too many frames that move nothing.
#[derive(Debug, PartialEq)]
struct TooMany;

impl Frames {
    fn new(most: u32) -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            head_len: 0,
            most,
            count: 0,
            period_began: Instant::now(),
        }
    }

    fn read(&mut self, mut bytes: &[u8]) -> Result<(), TooMany> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            let taken = (HEAD_BYTES - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
            self.head_len += taken;
            bytes = &bytes[taken..];
            if self.head_len < HEAD_BYTES {
                return Ok(());
            }
            self.head_len = 0;
            let [a, b, c, kind, flags, ..] = self.head;
            self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
            if moves_nothing(kind, flags, self.skip) {
                self.count()?;
            }
        }
    }

    fn count(&mut self) -> Result<(), TooMany> {
        self.count += 1;
        if self.count <= self.most {
            return Ok(());
        }
        // Only now is the clock looked at: it costs more than the rest.
        if self.period_began.elapsed() < Limits::FRAME_PERIOD {
            return Err(TooMany);
        }
        self.period_began = Instant::now();
        self.count = 1;
        Ok(())
    }
}

fn moves_nothing(kind: u8, flags: u8, len: usize) -> bool {
    match kind {
        DATA => len < SMALLEST_DATA_BYTES && flags & END_STREAM == 0,
        // A stream has a limit of its own; a fast reader opens the window for every 16 KiB or so.
        HEADERS | WINDOW_UPDATE | CONTINUATION => false,
        // Pings, settings, resets, priorities, what nobody knows.
        _ => true,
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        let read = this.frames.read(&buffer.filled()[before..]);
        Poll::Ready(read.map_err(|TooMany| {
            tracing::warn!("closed a connection that sent too many frames that move nothing");
            io::Error::other("too many frames that move nothing")
        }))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, len: usize) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(len).unwrap().to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + len, 0);
        frame
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut bytes = vec![b'P'; PREFACE_BYTES];
        for _ in 0..3 {
            bytes.extend(frame(6, 0, 8)); // a ping
            bytes.extend(frame(DATA, 0, 70_000));
            bytes.extend(frame(DATA, 0, 1));
            bytes.extend(frame(DATA, END_STREAM, 0));
            bytes.extend(frame(WINDOW_UPDATE, 0, 4));
        }
        for step in [1, 2, 5, 9, 10, 1_000, bytes.len()] {
            let read = |most| {
                let mut frames = Frames::new(most);
                bytes.chunks(step).try_for_each(|chunk| frames.read(chunk))
            };
            assert_eq!(read(6), Ok(()), "{step}");
            assert_eq!(read(5), Err(TooMany), "{step}");
        }
    }

    #[test]
    fn a_slow_peer_may_go_on_for_ever() {
        let mut frames = Frames::new(2);
        frames.read(&[0; PREFACE_BYTES]).unwrap();
        for _ in 0..100 {
            frames.read(&frame(DATA, 0, 1)).unwrap();
            frames.period_began -= Limits::FRAME_PERIOD / 2;
        }
    }
}
