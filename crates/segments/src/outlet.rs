//! Streams that last: made ahead by at most two messages, and ended when the server shuts down or
//! the caller's credential is no longer accepted.

use std::{future::Future, time::Duration};

use muster_domain::error::{Error, Kind, Result};
use muster_service::Caller;
use muster_storage::Store;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Messages made before the client has taken them: one on its way, one in the making.
const AHEAD: usize = 2;

/// How often the caller's credential is looked at: an open stream ends within a second of its
/// revocation.
const CREDENTIAL_CHECK: Duration = Duration::from_millis(500);

/// Where the messages of a stream go.
#[derive(Debug)]
pub(crate) struct Outlet<T>(mpsc::Sender<Result<T>>);

impl<T> Outlet<T> {
    /// Sends a message, waiting while the client is slow. Holds no connection meanwhile, so neither
    /// must the caller.
    pub(crate) async fn send(&self, message: T) {
        // A client that is gone ends the whole production; see `stream`.
        let _ = self.0.send(Ok(message)).await;
    }
}

/// A stream of what `produce` sends, ended by its error, by the caller's credential or by the
/// shutdown, whichever comes first.
pub(crate) fn stream<T, F>(
    store: Store,
    caller: Caller,
    shutdown: CancellationToken,
    produce: impl FnOnce(Outlet<T>) -> F,
) -> ReceiverStream<Result<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(AHEAD);
    let production = produce(Outlet(sender.clone()));
    tokio::spawn(async move {
        let end = tokio::select! {
            biased;
            () = sender.closed() => return,
            () = shutdown.cancelled() => Err(shutting_down()),
            refused = refusal(&store, &caller) => Err(refused),
            end = production => end,
        };
        if let Err(error) = end {
            let _ = sender.send(Err(error)).await;
        }
    });
    ReceiverStream::new(receiver)
}

/// Why the caller may not go on, once that is so.
async fn refusal(store: &Store, caller: &Caller) -> Error {
    loop {
        tokio::time::sleep(CREDENTIAL_CHECK).await;
        if let Err(error) = caller.check_active(store).await {
            return error;
        }
    }
}

fn shutting_down() -> Error {
    Error::new(
        Kind::Unavailable,
        "SHUTTING_DOWN",
        "the server is shutting down; resume the stream on another one",
    )
    .retry_after(Duration::from_secs(1))
}
