//! Taking batches: while some are written to disk, the next ones are matched, and those after them
//! are received and decoded.

use std::{collections::VecDeque, pin::pin};

use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture};
use muster_domain::{
    error::{Error, Result},
    import::ImportDigest,
};

use crate::{
    batch::Changes,
    matching::Group,
    session::{Commit, Conversation, Message, Reply, Writer, unless_ended},
};

/// Most batches that are staged in one transaction, and that wait for their turn.
const MAX_GROUP: usize = 8;

/// From so many bytes on, fewer are enough. An upload has one group that is staged, one that is
/// matched, and batches that wait: it takes a few times as much.
const GROUP_BYTES: usize = 2 * 1024 * 1024;

/// What a client has said; `None` is the end of its half of the stream.
type Arrival = Result<Option<Message>>;

/// The batches of an import, as they come.
pub(crate) struct Upload<'a, S> {
    pub(crate) client: Conversation<'a, S>,
    /// What has been received and not been looked at.
    pub(crate) ahead: VecDeque<Arrival>,
    pub(crate) staging: Option<Staging<'a>>,
}

/// Batches that are being made durable.
pub(crate) struct Staging<'a> {
    /// Ends with the offset after each of them.
    work: BoxFuture<'a, Result<Vec<u64>>>,
    /// The offset after all of them.
    end: u64,
    /// That of the import up to there.
    digest: ImportDigest,
}

/// What the batches of an import are followed by.
pub(crate) enum Last {
    Commit(Commit),
    /// The end of the client's half of the stream.
    End,
}

impl<S: Stream<Item = Result<Message>>> Upload<'_, S> {
    /// Takes batches until something else comes. Those that were taken last may still have to be
    /// [settled](Self::settle).
    pub(crate) async fn take_batches(&mut self, writer: &mut Writer) -> Result<Last> {
        loop {
            let batch = match self.next(writer).await? {
                None => return Ok(Last::End),
                Some(Message::Commit(commit)) => return Ok(Last::Commit(commit)),
                Some(Message::Batch(batch)) => batch,
                Some(Message::Open(_)) => {
                    let problem = "must be sent once, as the first message";
                    return Err(Error::field("open", problem));
                }
            };
            let (end, _) = self.end(writer);
            if batch.offset != end || writer.complete {
                self.settle(writer).await?;
                let (ingest, admission) = (self.client.ingest, self.client.admission);
                if !unless_ended(admission, ingest.is_new(writer, &batch)).await? {
                    let next_offset = writer.next_offset;
                    self.client.send(Reply::Acked { next_offset }).await?;
                    continue;
                }
            }
            batch.check(writer.mode)?;
            let caller = self.client.caller;
            caller.count_identifiers(writer.workspace, batch.len())?;
            let group = self.gather(writer, batch);
            self.stage(writer, group).await?;
        }
    }

    /// The offset after all that was taken, and the digest of the import up to there.
    fn end<'b>(&'b self, writer: &'b Writer) -> (u64, &'b ImportDigest) {
        match &self.staging {
            Some(staging) => (staging.end, &staging.digest),
            None => (writer.next_offset, &writer.digest),
        }
    }

    /// A batch, and those after it that have arrived.
    fn gather(&mut self, writer: &Writer, first: Changes) -> Vec<Changes> {
        let caller = self.client.caller;
        let mut end = first.end();
        let mut group = vec![first];
        while has_room(group.iter()) {
            let arrived = match self.ahead.pop_front() {
                Some(arrived) => Some(arrived),
                None => {
                    let next = self.client.messages.next().now_or_never();
                    next.map(Option::transpose)
                }
            };
            match arrived {
                None => break,
                Some(Ok(Some(Message::Batch(batch))))
                    if batch.offset == end
                        && batch.check(writer.mode).is_ok()
                        && caller
                            .count_identifiers(writer.workspace, batch.len())
                            .is_ok() =>
                {
                    end = batch.end();
                    group.push(batch);
                }
                Some(other) => {
                    self.ahead.push_front(other);
                    break;
                }
            }
        }
        group
    }

    /// Matches batches, and begins to stage them once those before them are durable.
    async fn stage(&mut self, writer: &mut Writer, batches: Vec<Changes>) -> Result<()> {
        let (ingest, caller) = (self.client.ingest, self.client.caller);
        let workspace = writer.workspace;
        let digest = self.end(writer).1.clone();
        let matching = Group::resolve(&ingest.identities, workspace, batches, digest);
        let mut matching = pin!(matching);
        let mut matched = None;
        while matched.is_none() || self.staging.is_some() {
            tokio::select! {
                group = &mut matching, if matched.is_none() => matched = Some(group?),
                staged = staged(&mut self.staging) => self.acknowledge(writer, staged).await?,
                arrived = self.client.next(), if self.reads_ahead() => self.ahead.push_back(arrived),
            }
        }
        let group = matched.expect("waited for");
        let (end, digest) = group.end();
        let digest = digest.clone();
        let (import_id, fence) = (writer.import_id.clone(), writer.fence);
        let admission = self.client.admission;
        let work = async move {
            let staged = ingest.stage(caller, workspace, &import_id, fence, group);
            unless_ended(admission, staged).await
        };
        self.staging = Some(Staging {
            work: work.boxed(),
            end,
            digest,
        });
        Ok(())
    }

    /// Whether there is room for more of what the client says, and it may have more to say.
    fn reads_ahead(&self) -> bool {
        let batches = self.ahead.iter().map(|arrived| match arrived {
            Ok(Some(Message::Batch(batch))) => Some(batch),
            _ => None,
        });
        batches
            .collect::<Option<Vec<_>>>()
            .is_some_and(|batches| has_room(batches.into_iter()))
    }

    /// What the client says next, while what it has said is made durable.
    async fn next(&mut self, writer: &mut Writer) -> Arrival {
        if let Some(arrived) = self.ahead.pop_front() {
            return arrived;
        }
        loop {
            let staged = tokio::select! {
                arrived = self.client.next() => return arrived,
                staged = staged(&mut self.staging) => staged,
            };
            self.acknowledge(writer, staged).await?;
        }
    }

    /// Waits until all that was taken is durable, and acknowledges it.
    pub(crate) async fn settle(&mut self, writer: &mut Writer) -> Result<()> {
        if self.staging.is_some() {
            let staged = staged(&mut self.staging).await;
            self.acknowledge(writer, staged).await?;
        }
        Ok(())
    }

    /// Tells the client of batches that have become durable: of each for itself.
    async fn acknowledge(&mut self, writer: &mut Writer, staged: Result<Vec<u64>>) -> Result<()> {
        let staging = self.staging.take().expect("what has ended was there");
        let ends = staged?;
        writer.next_offset = staging.end;
        writer.digest = staging.digest;
        for next_offset in ends {
            self.client.send(Reply::Acked { next_offset }).await?;
        }
        Ok(())
    }
}

/// Whether one more may be with these batches.
fn has_room<'a>(batches: impl ExactSizeIterator<Item = &'a Changes>) -> bool {
    batches.len() < MAX_GROUP && batches.map(Changes::bytes).sum::<usize>() < GROUP_BYTES
}

/// The end of what is being made durable, if anything is. May be dropped and begun again.
async fn staged(staging: &mut Option<Staging<'_>>) -> Result<Vec<u64>> {
    match staging {
        Some(staging) => (&mut staging.work).await,
        None => std::future::pending().await,
    }
}
