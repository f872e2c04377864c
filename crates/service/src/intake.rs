//! What the messages of calls take in memory: while they arrive, and while they are worked on.
//!
//! A message is put together in a buffer before anybody sees it, and the buffer stays as large as
//! the largest was. So a call holds as many bytes as that; the reader of a stream holds those of each
//! message that it has read beside it. Nobody waits for memory, since those who wait would hold what
//! the others wait for: who finds none is refused.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use muster_domain::error::{Error, Kind, Result};
use muster_storage::{
    WorkspaceId,
    share::{Held, Shares},
};
use tonic::{Status, body::Body};
use tonic_types::StatusExt as _;

use crate::{response::status, traffic::SHORTLY};

const REASON: &str = "TOO_MANY_BYTES";

/// The memory for the messages of one call.
#[derive(Debug, Clone)]
pub(crate) struct Messages(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shares: Shares,
    workspace: WorkspaceId,
    buffer: Mutex<Buffer>,
}

/// Where a message is put together.
#[derive(Debug, Default)]
struct Buffer {
    /// What has arrived since a message was read.
    filled: u32,
    capacity: u32,
    held: Option<Held>,
}

impl Messages {
    pub(crate) fn new(shares: Shares, workspace: WorkspaceId) -> Self {
        Self(Arc::new(Inner {
            shares,
            workspace,
            buffer: Mutex::default(),
        }))
    }

    /// The body that they arrive in.
    pub(crate) fn arriving(self, body: Body) -> Intake {
        Intake {
            body,
            messages: self,
        }
    }

    /// The memory of the message that was read last. The beginning of the next may be in it.
    pub(crate) fn read(&self) -> Result<Held> {
        let read = std::mem::take(&mut self.buffer().filled);
        self.take(read)
    }

    fn arrived(&self, bytes: usize) -> Result<()> {
        let mut buffer = self.buffer();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        buffer.filled = buffer.filled.saturating_add(bytes);
        let more = buffer.filled.saturating_sub(buffer.capacity);
        if more > 0 {
            let more = self.take(more)?;
            match &mut buffer.held {
                Some(held) => held.add(more),
                None => buffer.held = Some(more),
            }
            buffer.capacity = buffer.filled;
        }
        Ok(())
    }

    fn take(&self, bytes: u32) -> Result<Held> {
        let taken = self.0.shares.try_take(self.0.workspace, bytes);
        taken.ok_or_else(too_many)
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        let buffer = self.0.buffer.lock();
        buffer.unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_many() -> Error {
    let message =
        "the messages of open calls take as much memory as they may; wait for some to end";
    Error::new(Kind::ResourceExhausted, REASON, message).retry_after(SHORTLY)
}

/// The error behind the status that ended a body because there was no memory for it.
pub(crate) fn refused(status: &Status) -> Option<Error> {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == REASON)
        .then(too_many)
}

/// A body of which every byte has memory, or that ends with the error that there is none.
#[derive(Debug)]
pub(crate) struct Intake {
    body: Body,
    messages: Messages,
}

impl http_body::Body for Intake {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(error) = self.messages.arrived(data.len())
        {
            return Poll::Ready(Some(Err(status(error))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: WorkspaceId = WorkspaceId(1);
    const RIVAL: WorkspaceId = WorkspaceId(2);

    #[test]
    fn a_call_holds_its_largest_message_and_its_reader_what_it_reads() {
        let shares = Shares::halves(200);
        let free = |workspace, bytes| shares.try_take(workspace, bytes).is_some();
        let messages = Messages::new(shares.clone(), SHOP);
        messages.arrived(30).unwrap();
        messages.arrived(10).unwrap();
        assert!(free(SHOP, 60) && !free(SHOP, 61));
        let first = messages.read().unwrap();
        // The next message finds the buffer of the first.
        messages.arrived(40).unwrap();
        assert!(free(SHOP, 20) && !free(SHOP, 21));
        let refused = messages.read().unwrap_err();
        assert_eq!(
            (refused.reason, refused.retry_after),
            (REASON, Some(SHORTLY))
        );
        assert!(free(RIVAL, 100));
        drop(first);
        assert!(free(SHOP, 60) && !free(SHOP, 61));
        drop(messages);
        assert!(free(SHOP, 100));
    }

    #[test]
    fn a_refusal_is_known_again_behind_a_status() {
        assert_eq!(refused(&status(too_many())).unwrap().reason, REASON);
        let other = Error::new(Kind::ResourceExhausted, "TOO_MANY_CALLS", "");
        assert!(refused(&status(other)).is_none());
    }
}
