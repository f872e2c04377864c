//! The import protocol as a stream: open, batches, commit.
//!
//! Only a commit publishes. The end of the stream says nothing, because a cancelled stream looks
//! like one that ended cleanly.

use std::{collections::VecDeque, pin::pin, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _};
use muster_domain::{
    error::{Error, Kind, Result},
    import::{ImportDigest, Mode, Summary},
};
use muster_service::{Admission, Caller};
use muster_storage::{Timestamp, WorkspaceId};
use tokio::{sync::mpsc, time::timeout};

use crate::{Ingest, batch::Changes, gate, open::Entry, publish::Outcome};

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
    /// The cohort it writes to, as imports queue for it.
    pub(crate) cohort: gate::Cohort,
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
    /// How long a reader that is behind may take to make room for the last answer.
    const FAREWELL: Duration = Duration::from_secs(1);
    let admission = Admission::watch(ingest.store.clone(), caller.clone());
    let conversation = Conversation {
        ingest: &ingest,
        caller: &caller,
        admission: &admission,
        messages: pin!(messages),
        replies: &replies,
    };
    if let Err(error) = converse(conversation).await {
        // If nobody listens any more there is nobody to tell.
        let _ = timeout(FAREWELL, replies.send(Err(error))).await;
    }
}

async fn converse<S: Stream<Item = Result<Message>>>(
    mut client: Conversation<'_, S>,
) -> Result<()> {
    let (ingest, caller) = (client.ingest, client.caller);
    let Some(first) = client.next().await? else {
        return Ok(());
    };
    let Message::Open(open) = first else {
        return Err(Error::field("open", "must be the first message"));
    };
    let entry = Entry::check(ingest, caller, &open).await?;
    // What was read ahead to see whether the whole import is small enough for one transaction.
    let mut ahead = Vec::new();
    if open.pipelined {
        ahead.extend(client.next().await?);
        if let [Message::Batch(_)] = ahead.as_slice() {
            ahead.extend(client.next().await?);
        }
        if let [Message::Batch(batch), Message::Commit(commit)] = ahead.as_slice()
            && let Some(outcome) = ingest.import_at_once(caller, &entry, batch, commit).await?
        {
            return client.send(outcome.into()).await;
        }
    }
    // Somebody who has gone takes nothing over: their last words, read late, would fence the one who
    // came after them.
    let opening = ingest.open(caller, &entry);
    let mut writer = client.while_there(opening).await?;
    let opened = Reply::Opened {
        next_offset: writer.next_offset,
        complete: writer.complete,
    };
    client.send(opened).await?;
    let mut ahead = VecDeque::from(ahead);
    loop {
        let message = match ahead.pop_front() {
            Some(message) => Some(message),
            None => client.next().await?,
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
                let is_new = client.unless_ended(ingest.is_new(&writer, &batch)).await?;
                if !is_new {
                    let next_offset = writer.next_offset;
                    client.send(Reply::Acked { next_offset }).await?;
                    continue;
                }
                match client.stage(&mut writer, batch, &mut ahead).await? {
                    After::Nothing => {}
                    After::Message(message) => ahead.push_front(message),
                    After::End => return Ok(()),
                }
            }
            Some(Message::Commit(commit)) => {
                let outcome = ingest.commit(caller, &writer, &commit).await?;
                return client.send(outcome.into()).await;
            }
        }
    }
}

/// What has arrived after some batches.
enum After {
    Nothing,
    Message(Message),
    /// The end of the client's half.
    End,
}

/// Both halves of the stream, cut short when the client goes away, or neither says nor reads
/// anything for too long, when its credential is revoked, or when the server shuts down.
struct Conversation<'a, S> {
    ingest: &'a Ingest,
    caller: &'a Caller,
    admission: &'a Admission,
    messages: std::pin::Pin<&'a mut S>,
    replies: &'a Replies,
}

impl<S: Stream<Item = Result<Message>>> Conversation<'_, S> {
    /// What the client says next; `None` at the end of its half.
    async fn next(&mut self) -> Result<Option<Message>> {
        let (messages, replies) = (&mut self.messages, self.replies);
        let next = async {
            tokio::select! {
                message = messages.next() => message.transpose(),
                () = replies.closed() => Err(gone()),
            }
        };
        watched(self.ingest, self.admission, next).await?
    }

    /// Stages a batch together with those after it that have arrived, and acknowledges each. What
    /// comes after them and has arrived, too, is returned.
    async fn stage(
        &mut self,
        writer: &mut Writer,
        first: Changes,
        ahead: &mut VecDeque<Message>,
    ) -> Result<After> {
        let (ingest, caller) = (self.ingest, self.caller);
        let mut group = self.unless_ended(ingest.group(writer)).await?;
        let mut next = first;
        let after = loop {
            let checked = next.check(writer.mode);
            let workspace = writer.workspace;
            let counted = checked.and_then(|()| caller.count_identifiers(workspace, next.len()));
            if let Err(error) = counted {
                break Err(error);
            }
            self.unless_ended(ingest.add(writer, &mut group, next))
                .await?;
            if group.is_full() {
                break Ok(After::Nothing);
            }
            let arrived = match ahead.pop_front() {
                Some(message) => Some(Some(Ok(message))),
                None => self.messages.next().now_or_never(),
            };
            match arrived {
                None => break Ok(After::Nothing),
                Some(None) => break Ok(After::End),
                Some(Some(Err(error))) => break Err(error),
                Some(Some(Ok(Message::Batch(batch)))) if group.is_continued_by(&batch) => {
                    next = batch;
                }
                Some(Some(Ok(message))) => break Ok(After::Message(message)),
            }
        };
        // Also if what came after them is wrong: they were sent before it.
        let staged = ingest.stage(caller, writer, group);
        for next_offset in self.unless_ended(staged).await? {
            self.send(Reply::Acked { next_offset }).await?;
        }
        after
    }

    /// Works for as long as the client is there; what is not committed by then is rolled back.
    async fn while_there<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.replies.closed() => Err(gone()),
            done = work => done,
        }
    }

    /// Answers, waiting for a slow reader; memory holds a bounded number of answers. Nothing is
    /// acknowledged unless the credential was accepted a moment ago, however long the work took and
    /// whatever has become of the database.
    async fn send(&self, reply: Reply) -> Result<()> {
        // What was published was so while the credential was held; the client should hear of it.
        if !matches!(reply, Reply::Committed(_)) {
            self.admission.confirmed().await?;
        }
        let send = self.replies.send(Ok(reply));
        let sent = watched(self.ingest, self.admission, send);
        sent.await?.map_err(|_| gone())
    }

    /// Does work that is undone by being dropped, as long as the caller is admitted.
    async fn unless_ended<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            error = self.admission.ended() => Err(error),
        }
    }
}

/// Waits for `work`, but no longer than makes sense.
async fn watched<T>(
    ingest: &Ingest,
    admission: &Admission,
    work: impl Future<Output = T>,
) -> Result<T> {
    tokio::select! {
        done = timeout(ingest.settings.idle_timeout, work) => done.map_err(|_| idle()),
        error = admission.ended() => Err(error),
        () = ingest.shutdown.cancelled() => Err(shutting_down()),
    }
}

fn gone() -> Error {
    Error::new(Kind::Unavailable, "STREAM_BROKEN", "the client went away")
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
    .retry_after(Duration::from_secs(1))
}
