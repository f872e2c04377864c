//! The import protocol as a stream: open, batches, commit.
//!
//! Only a commit publishes. The end of the stream says nothing, because a cancelled stream looks
//! like one that ended cleanly.

use std::pin::pin;

use futures::{Stream, StreamExt as _};
use muster_domain::{
    error::{Error, Kind, Result},
    import::{ImportDigest, Mode, Summary},
};
use muster_service::Caller;
use muster_storage::{Timestamp, WorkspaceId};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout_at},
};

use crate::{Ingest, batch::Changes, open::Entry, publish::Outcome};

/// What a client says.
#[derive(Debug)]
pub(crate) enum Message {
    Open(Box<Open>),
    Batch(Changes),
    Commit(Commit),
}

/// Opens or resumes an import.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) workspace: String,
    pub(crate) partner: String,
    pub(crate) cohort_id: String,
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) import_id: String,
    pub(crate) source_time: Option<Timestamp>,
    pub(crate) refuse_if_older: bool,
    pub(crate) max_removed_fraction: Option<f64>,
    pub(crate) pipelined: bool,
}

/// Publishes an import, if it is what the client thinks it is.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) total: u64,
    pub(crate) digest: Vec<u8>,
}

/// What the server answers.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Opened { next_offset: u64, complete: bool },
    Acked { next_offset: u64 },
    Committed(Published),
    AwaitingConfirmation(Summary),
}

/// A published import.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) summary: Summary,
    pub(crate) version: i64,
    pub(crate) consistency_token: String,
}

impl From<Outcome> for Reply {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Published(published) => Self::Committed(published),
            Outcome::AwaitingConfirmation(preview) => Self::AwaitingConfirmation(preview),
        }
    }
}

/// An import that this stream may write to.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) workspace: WorkspaceId,
    pub(crate) import_id: String,
    pub(crate) mode: Mode,
    pub(crate) fence: i64,
    pub(crate) next_offset: u64,
    pub(crate) digest: ImportDigest,
    /// Committed or awaiting confirmation already: takes no more batches.
    pub(crate) complete: bool,
}

/// Where the answers go.
pub(crate) type Replies = mpsc::Sender<Result<Reply>>;

/// Runs one stream to its end. Whatever goes wrong is the last answer.
pub(crate) async fn run(
    ingest: Ingest,
    caller: Caller,
    messages: impl Stream<Item = Result<Message>>,
    replies: Replies,
) {
    let messages = Messages {
        ingest: &ingest,
        caller: &caller,
        inner: pin!(messages),
        replies: &replies,
    };
    if let Err(error) = converse(&ingest, &caller, messages, &replies).await {
        // If nobody listens any more there is nobody to tell.
        let _ = replies.send(Err(error)).await;
    }
}

async fn converse<S: Stream<Item = Result<Message>>>(
    ingest: &Ingest,
    caller: &Caller,
    mut messages: Messages<'_, S>,
    replies: &Replies,
) -> Result<()> {
    let Some(first) = messages.next().await? else {
        return Ok(());
    };
    let Message::Open(open) = first else {
        return Err(Error::field("open", "must be the first message"));
    };
    let entry = Entry::check(ingest, caller, &open).await?;
    // What was read ahead to see whether the whole import is small enough for one transaction.
    let mut ahead = Vec::new();
    if open.pipelined {
        ahead.extend(messages.next().await?);
        if let [Message::Batch(_)] = ahead.as_slice() {
            ahead.extend(messages.next().await?);
        }
        if let [Message::Batch(batch), Message::Commit(commit)] = ahead.as_slice()
            && let Some(outcome) = ingest.import_at_once(caller, &entry, batch, commit).await?
        {
            return send(replies, outcome.into()).await;
        }
    }
    let mut writer = ingest.open(caller, &entry).await?;
    let opened = Reply::Opened {
        next_offset: writer.next_offset,
        complete: writer.complete,
    };
    send(replies, opened).await?;
    let mut ahead = ahead.into_iter();
    loop {
        let message = match ahead.next() {
            Some(message) => Some(message),
            None => messages.next().await?,
        };
        match message {
            None => return Ok(()),
            Some(Message::Open(_)) => {
                return Err(Error::field(
                    "open",
                    "must be sent once, as the first message",
                ));
            }
            Some(Message::Batch(batch)) => {
                let next_offset = ingest.stage(caller, &mut writer, &batch).await?;
                send(replies, Reply::Acked { next_offset }).await?;
            }
            Some(Message::Commit(commit)) => {
                let outcome = ingest.commit(caller, &writer, &commit).await?;
                return send(replies, outcome.into()).await;
            }
        }
    }
}

/// Answers, waiting for a slow reader; memory holds a bounded number of answers.
async fn send(replies: &Replies, reply: Reply) -> Result<()> {
    replies.send(Ok(reply)).await.map_err(|_| gone())
}

fn gone() -> Error {
    Error::new(Kind::Unavailable, "STREAM_BROKEN", "the client went away")
}

/// The client's messages, cut short when the client goes silent or away, its credential is
/// revoked, or the server shuts down.
struct Messages<'a, S> {
    ingest: &'a Ingest,
    caller: &'a Caller,
    inner: std::pin::Pin<&'a mut S>,
    replies: &'a Replies,
}

impl<S: Stream<Item = Result<Message>>> Messages<'_, S> {
    async fn next(&mut self) -> Result<Option<Message>> {
        let settings = &self.ingest.settings;
        let silence = Instant::now() + settings.idle_timeout;
        let first_check = Instant::now() + settings.credential_check;
        let mut check = interval_at(first_check, settings.credential_check);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = timeout_at(silence, self.inner.next()) => {
                    return message.map_err(|_| idle())?.transpose();
                }
                _ = check.tick() => self.caller.check_active(&self.ingest.store).await?,
                () = self.replies.closed() => return Err(gone()),
                () = self.ingest.shutdown.cancelled() => return Err(shutting_down()),
            }
        }
    }
}

fn idle() -> Error {
    Error::new(
        Kind::Aborted,
        "STREAM_IDLE",
        "the client was silent for too long; the import can be resumed",
    )
}

fn shutting_down() -> Error {
    Error::new(
        Kind::Unavailable,
        "SHUTTING_DOWN",
        "the server is shutting down; the import can be resumed",
    )
    .retry_after(std::time::Duration::from_secs(1))
}
