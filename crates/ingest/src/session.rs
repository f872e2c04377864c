//! The import protocol as a stream: open, batches, commit.
//!
//! Only a commit publishes. The end of the stream says nothing, because a cancelled stream looks
//! like one that ended cleanly.

use std::{pin::pin, time::Duration};

use futures::{Stream, StreamExt as _};
use muster_domain::{
    error::{Error, Kind, Result},
    import::{ImportDigest, Mode, Summary},
};
use muster_service::{Admission, Caller, shutting_down};
use muster_storage::{Timestamp, WorkspaceId, share::Held};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    Ingest,
    at_once::Whole,
    batch::Changes,
    gate,
    open::Entry,
    publish::Outcome,
    upload::{Last, Upload},
};

/// What a client says.
#[derive(Debug)]
pub(crate) enum Message {
    Open(Box<Open>),
    Batch(Changes),
    Commit(Commit),
}

impl Message {
    /// The same, which holds the memory that it takes if it is large.
    pub(crate) fn holding(mut self, memory: Held) -> Self {
        if let Self::Batch(batch) = &mut self {
            batch.memory = Some(memory);
        }
        self
    }
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

/// How long publishing may go on after a revocation; either may have to wait for the other.
const LAST_WORD: Duration = Duration::from_secs(5);

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
    let admission = client.admission;
    let entry = unless_ended(admission, Entry::check(ingest, caller, &open)).await?;
    // What was read ahead to see whether the whole import is small enough for one transaction.
    let mut ahead = Vec::new();
    if open.pipelined {
        ahead.extend(client.next().await?);
        if let [Message::Batch(_)] = ahead.as_slice() {
            ahead.extend(client.next().await?);
        }
        ahead = match <[Message; 2]>::try_from(ahead) {
            Ok([Message::Batch(batch), Message::Commit(commit)]) if is_whole(&open, &batch) => {
                let whole = Whole::new(&ingest.identities, caller, &entry, batch, commit)?;
                let done = ingest.import_at_once(Box::new(whole));
                match unless_out_of_reach(admission, done).await? {
                    Ok(outcome) => return client.send(outcome.into()).await,
                    Err(whole) => {
                        let (batch, commit) = whole.into_parts();
                        vec![Message::Batch(batch), Message::Commit(commit)]
                    }
                }
            }
            Ok(other) => other.into(),
            Err(ahead) => ahead,
        };
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
    let mut upload = Upload {
        client,
        ahead: ahead.into_iter().map(|message| Ok(Some(message))).collect(),
        staging: None,
    };
    let taken = upload.take_batches(&mut writer).await;
    // They were sent before what comes next, also if that is wrong.
    upload.settle(&mut writer).await?;
    match taken? {
        Last::End => Ok(()),
        Last::Commit(commit) => {
            let committed = ingest.commit(caller, &writer, &commit);
            let outcome = unless_out_of_reach(admission, committed).await?;
            upload.client.send(outcome.into()).await
        }
    }
}

/// Whether a batch that is followed by a commit may be all that is done of an import. A replacement
/// that stops for confirmation is folded again later: it must be staged.
fn is_whole(open: &Open, batch: &Changes) -> bool {
    batch.offset == 0 && open.max_removed_fraction.is_none()
}

/// Both halves of the stream, cut short when the client goes away, or neither says nor reads
/// anything for too long, when its credential is revoked, or when the server shuts down.
pub(crate) struct Conversation<'a, S> {
    pub(crate) ingest: &'a Ingest,
    pub(crate) caller: &'a Caller,
    pub(crate) admission: &'a Admission,
    pub(crate) messages: std::pin::Pin<&'a mut S>,
    replies: &'a Replies,
}

impl<S: Stream<Item = Result<Message>>> Conversation<'_, S> {
    /// What the client says next; `None` at the end of its half.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>> {
        let (messages, replies) = (&mut self.messages, self.replies);
        let next = async {
            tokio::select! {
                message = messages.next() => message.transpose(),
                () = replies.closed() => Err(gone()),
            }
        };
        watched(self.ingest, self.admission, next).await?
    }

    /// Works for as long as the client is there and admitted; what is not committed by then is rolled
    /// back.
    async fn while_there<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.replies.closed() => Err(gone()),
            done = unless_ended(self.admission, work) => done,
        }
    }

    /// Answers, waiting for a slow reader; memory holds a bounded number of answers. Nothing is
    /// acknowledged unless the credential was accepted a moment ago, however long the work took and
    /// whatever has become of the database.
    pub(crate) async fn send(&self, reply: Reply) -> Result<()> {
        // What was published was so while the credential was held; the client should hear of it.
        if !matches!(reply, Reply::Committed(_)) {
            self.admission.confirmed().await?;
        }
        let send = self.replies.send(Ok(reply));
        let sent = watched(self.ingest, self.admission, send);
        sent.await?.map_err(|_| gone())
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
        () = ingest.shutdown.cancelled() => Err(shutting_down("the import can be resumed")),
    }
}

/// Does work that is undone by being dropped, as long as the caller is admitted.
pub(crate) async fn unless_ended<T>(
    admission: &Admission,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        done = work => done,
        error = admission.ended() => Err(error),
    }
}

/// Publishes, unless the database goes silent: what has become of it then is told when the import is
/// opened again. A revocation does not cut it short, since it knows better itself which of the two was
/// first.
async fn unless_out_of_reach<T>(
    admission: &Admission,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => done,
        error = admission.ended() => match error.kind {
            Kind::Unavailable => Err(unknown()),
            _ => timeout(LAST_WORD, work).await.unwrap_or(Err(error)),
        },
    }
}

fn unknown() -> Error {
    Error::new(
        Kind::Unavailable,
        "COMMIT_UNKNOWN",
        "the database went silent during the commit; whether it was done is unknown until the \
         import is opened again",
    )
    .retry_after(Duration::from_secs(1))
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
