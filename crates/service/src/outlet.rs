//! Answers that are a stream: made ahead by at most one message, and cut when the server shuts
//! down, the caller's credential is no longer accepted, or the client lets the stream rest.
//!
//! A client that does not read must cost nothing for long. So a stream that is cut lets go of the
//! messages it has made, and its error waits beside them, not behind them, to be fetched.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream;
use muster_domain::error::{Error, Kind, Result};
use muster_storage::Store;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{Admission, Caller, shutting_down};

/// Messages made, or in the making, before the client has taken the one on its way.
const AHEAD: usize = 1;

/// What ends a stream before it is complete.
#[derive(Debug)]
pub struct Limits {
    /// Where the credential is looked up.
    pub store: Store,
    /// Who must be admitted for as long as it lasts.
    pub caller: Caller,
    /// The end of the server.
    pub shutdown: CancellationToken,
    /// How long it may rest.
    pub idle_timeout: Duration,
    /// What the client does about a stream that was cut, such as `it can be resumed`.
    pub remedy: &'static str,
}

/// Where the messages of a stream go.
#[derive(Debug)]
pub struct Outlet<T> {
    sender: mpsc::Sender<T>,
    queue: Weak<Queue<T>>,
    admission: Arc<Admission>,
    idle_timeout: Duration,
    remedy: &'static str,
}

impl<T> Outlet<T> {
    /// Waits, while the client is slow, until a message may be made. Holds no connection meanwhile,
    /// so neither must the caller.
    ///
    /// # Errors
    /// `ABORTED` (`STREAM_IDLE`) if the client reads nothing for too long.
    pub async fn room(&self) -> Result<Room<'_, T>> {
        let waited = self.wait(self.sender.reserve()).await;
        if waited.is_err() {
            forget(&self.queue);
        }
        // A client that is gone ends the whole production; see `stream`.
        let permit = waited?
            .map_err(|_| Error::new(Kind::Unavailable, "STREAM_BROKEN", "the client went away"))?;
        Ok(Room {
            permit,
            outlet: self,
        })
    }

    /// Sends a message that is small, or made already, waiting as [`room`](Self::room) does.
    ///
    /// # Errors
    /// As there, and as [`Room::send`].
    pub async fn send(&self, message: T) -> Result<()> {
        self.room().await?.send(message).await
    }

    /// Waits for something that the client is to do.
    ///
    /// # Errors
    /// `ABORTED` (`STREAM_IDLE`) if it does not for too long.
    pub async fn wait<U>(&self, client: impl Future<Output = U>) -> Result<U> {
        let waited = timeout(self.idle_timeout, client).await;
        waited.map_err(|_| {
            let message = format!(
                "the client let the stream rest for too long; {}",
                self.remedy
            );
            Error::new(Kind::Aborted, "STREAM_IDLE", message)
        })
    }
}

/// Room for one message.
#[derive(Debug)]
pub struct Room<'a, T> {
    permit: mpsc::Permit<'a, T>,
    outlet: &'a Outlet<T>,
}

impl<T> Room<'_, T> {
    /// Sends it, once it is known that the caller was admitted a moment ago.
    ///
    /// # Errors
    /// Those of [`Admission::ended`].
    pub async fn send(self, message: T) -> Result<()> {
        let confirmed = self.outlet.admission.confirmed().await;
        if confirmed.is_err() {
            forget(&self.outlet.queue);
        }
        confirmed?;
        self.permit.send(message);
        Ok(())
    }
}

/// What was made and not yet taken. The stream owns it, so it goes with the client.
type Queue<T> = Mutex<mpsc::Receiver<T>>;

/// The messages of a stream, and the error that ends it, if one does.
#[derive(Debug)]
pub struct Messages<T> {
    queue: Arc<Queue<T>>,
    end: oneshot::Receiver<Error>,
    ended: bool,
}

impl<T> Stream for Messages<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let message = ready!(queue.poll_recv(context));
        drop(queue);
        if let Some(message) = message {
            return Poll::Ready(Some(Ok(message)));
        }
        let error = ready!(Pin::new(&mut self.end).poll(context));
        self.ended = true;
        Poll::Ready(error.ok().map(Err))
    }
}

/// A stream of what `produce` sends, ended by its error or by the limits, whichever comes first.
pub fn stream<T, F>(limits: Limits, produce: impl FnOnce(Outlet<T>) -> F) -> Messages<T>
where
    T: Send + 'static,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (tell_end, end) = oneshot::channel();
    let queue = Arc::new(Mutex::new(receiver));
    let made = Arc::downgrade(&queue);
    let admission = Arc::new(Admission::watch(limits.store, limits.caller));
    let production = produce(Outlet {
        sender: sender.clone(),
        queue: Weak::clone(&made),
        admission: Arc::clone(&admission),
        idle_timeout: limits.idle_timeout,
        remedy: limits.remedy,
    });
    tokio::spawn(async move {
        let cut = tokio::select! {
            biased;
            () = sender.closed() => return,
            cut = met(&limits.shutdown, &admission, limits.remedy) => cut,
            end = production => {
                if let Err(error) = end {
                    // If nobody listens any more there is nobody to tell.
                    let _ = tell_end.send(error);
                }
                return;
            }
        };
        let _ = tell_end.send(cut);
        forget(&made);
    });
    Messages {
        queue,
        end,
        ended: false,
    }
}

/// Lets go of what was made and not taken.
fn forget<T>(queue: &Weak<Queue<T>>) {
    if let Some(queue) = queue.upgrade() {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        while queue.try_recv().is_ok() {}
    }
}

/// Why the stream may not go on, once that is so.
async fn met(shutdown: &CancellationToken, admission: &Admission, remedy: &str) -> Error {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => shutting_down(remedy),
        error = admission.ended() => error,
    }
}
