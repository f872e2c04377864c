//! Bodies: requests that may not take for ever, answers that are known to be over.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::room::Open;

/// The body of a request.
#[derive(Debug)]
pub struct Body {
    inner: Incoming,
    deadline: Option<Instant>,
    /// Made when there is something to wait for.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It took too long.
    #[error("the body of the request took too long")]
    TooSlow,
    /// The connection or the stream broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
}

impl Body {
    pub(crate) fn new(inner: Incoming, within: Duration) -> Self {
        Self {
            inner,
            deadline: Instant::now().checked_add(within),
            alarm: None,
        }
    }

    /// The same body for as long as it takes: for requests that are streams, whose service minds
    /// itself how long they may rest.
    #[must_use]
    pub fn without_deadline(self) -> Self {
        Self {
            deadline: None,
            ..self
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)));
        }
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        alarm
            .as_mut()
            .poll(context)
            .map(|()| Some(Err(BodyError::TooSlow)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of an answer: its request is open until it is sent or dropped.
#[derive(Debug)]
pub(crate) struct Answer<B> {
    inner: B,
    _open: Arc<Open>,
}

impl<B> Answer<B> {
    pub(crate) fn new(inner: B, open: Arc<Open>) -> Self {
        Self { inner, _open: open }
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
