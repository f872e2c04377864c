//! One stream of an upload: from `open` to a result or a failure.

use std::{collections::VecDeque, io, sync::Arc};

use muster_domain::{identifier::Identifier, import::Effect};
use muster_proto::ingest::v1::{IngestCohortRequest, IngestCohortResponse};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{
    FromServer, Outcome, Progress, ToServer, Upload,
    batches::{self, Piece, Total},
    commit, ended_early, outcome, request, violation,
};
use crate::{Connection, Refusal};

/// Most batches sent but not acknowledged: enough to keep the wire and the server's commits busy,
/// and at most 16 MiB. The server
/// stages up to 8 in one transaction; the next 8 are there when it has done so.
const WINDOW: usize = 16;

/// Batches read ahead of the window.
const READ_AHEAD: usize = 4;

/// Why a stream ended without a result.
#[derive(Debug)]
pub(super) enum Failure {
    Source(io::Error),
    Refused(Refusal),
    /// The server does not answer, or answers do not get here.
    Silent,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(status.into())
    }
}

/// The streams of one upload, and what is known from earlier ones.
pub(super) struct Attempt<'a, S> {
    upload: &'a Upload,
    connection: Connection,
    source: Arc<S>,
    /// Known once the source was read to its end; saves reading it again for the commit alone.
    total: Option<Total>,
    durable: u64,
}

impl<'a, S, I> Attempt<'a, S>
where
    S: Fn() -> io::Result<I> + Send + Sync + 'static,
    I: Iterator<Item = io::Result<(Effect, Identifier)>>,
{
    pub(super) fn new(upload: &'a Upload, connection: &Connection, source: Arc<S>) -> Self {
        Self {
            upload,
            connection: connection.clone(),
            source,
            total: None,
            durable: 0,
        }
    }

    /// How many identifiers the server has, as far as this side knows.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// Opens the import, sends what the server lacks, and commits.
    pub(super) async fn run(
        &mut self,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Outcome, Failure> {
        let ended = self.converse(progress).await;
        if matches!(ended, Err(Failure::Silent)) {
            self.connection = self.connection.renewed();
        }
        ended
    }

    async fn converse(
        &mut self,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Outcome, Failure> {
        // Room for a whole window, `open` and `commit`, so that sending never waits.
        let (requests, outgoing) = mpsc::channel(WINDOW + 2);
        send(&requests, self.upload.open(false));
        let mut ingest = self.connection.ingest();
        let call = ingest.ingest_cohort(ReceiverStream::new(outgoing));
        let mut answers = timeout(self.upload.retry.silence, call)
            .await
            .map_err(|_| Failure::Silent)??
            .into_inner();
        let first = timeout(self.upload.retry.silence, answers.message())
            .await
            .map_err(|_| Failure::Silent)??;
        let Some(FromServer::Opened(opened)) = message(first)? else {
            return Err(violation("the first answer is not `opened`").into());
        };
        self.durable = opened.next_offset;
        progress(Progress::Opened {
            durable: self.durable,
        });
        let pieces = self.read(opened.next_offset, opened.complete);
        self.exchange(&requests, &mut answers, pieces, progress)
            .await
    }

    /// Starts to read what the server lacks.
    fn read(&self, next_offset: u64, complete: bool) -> mpsc::Receiver<io::Result<Piece>> {
        let (sender, pieces) = mpsc::channel(READ_AHEAD);
        match self.total {
            Some(total) if complete || next_offset == total.identifiers => {
                let only = sender.try_send(Ok(Piece::End(total)));
                debug_assert!(only.is_ok(), "the channel is new");
            }
            _ => {
                let source = Arc::clone(&self.source);
                // A complete import takes no more batches, but its commit states total and digest.
                let skip = if complete { u64::MAX } else { next_offset };
                tokio::task::spawn_blocking(move || {
                    batches::read_source(|| source(), skip, &sender);
                });
            }
        }
        pieces
    }

    async fn exchange(
        &mut self,
        requests: &mpsc::Sender<IngestCohortRequest>,
        answers: &mut Streaming<IngestCohortResponse>,
        mut pieces: mpsc::Receiver<io::Result<Piece>>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Outcome, Failure> {
        // Where each batch that is not acknowledged ends.
        let mut unacknowledged: VecDeque<u64> = VecDeque::with_capacity(WINDOW);
        let mut committing = false;
        let mut heard = Instant::now();
        loop {
            let answer_is_due = committing || !unacknowledged.is_empty();
            tokio::select! {
                piece = pieces.recv(), if !committing && unacknowledged.len() < WINDOW => {
                    if !answer_is_due {
                        // The silence of the server counts from the moment it has work.
                        heard = Instant::now();
                    }
                    match piece {
                        Some(Ok(Piece::Batch(batch))) => {
                            unacknowledged.push_back(end_of(&batch));
                            send(requests, request(ToServer::Batch(batch)));
                        }
                        Some(Ok(Piece::End(total))) => {
                            self.total = Some(total);
                            committing = true;
                            send(requests, commit(total));
                            progress(Progress::Committing { total: total.identifiers });
                        }
                        Some(Err(error)) => return Err(Failure::Source(error)),
                        None => {
                            let error = io::Error::other("reading stopped before the end");
                            return Err(Failure::Source(error));
                        }
                    }
                }
                answer = answers.message() => {
                    heard = Instant::now();
                    match message(answer?)? {
                        None => return Err(ended_early().into()),
                        Some(FromServer::Acked(acked)) => {
                            // One answer may acknowledge several batches.
                            while unacknowledged.front().is_some_and(|end| *end <= acked.next_offset) {
                                unacknowledged.pop_front();
                            }
                            self.durable = acked.next_offset;
                            progress(Progress::Acknowledged { durable: acked.next_offset });
                        }
                        Some(last) => return Ok(outcome(last)?),
                    }
                }
                () = sleep_until(heard + self.upload.retry.silence), if answer_is_due => {
                    return Err(Failure::Silent);
                }
            }
        }
    }
}

/// Queues a request. If the call is over nobody takes it; the answers then tell why.
fn send(requests: &mpsc::Sender<IngestCohortRequest>, request: IngestCohortRequest) {
    if let Err(mpsc::error::TrySendError::Full(_)) = requests.try_send(request) {
        unreachable!("the channel has room for the window, `open` and `commit`");
    }
}

fn end_of(batch: &muster_proto::ingest::v1::IdentifierBatch) -> u64 {
    let count = |c: &muster_proto::ingest::v1::CohortChange| {
        c.external_ids.len() + c.aliases.len() + c.device_ids.len()
    };
    let identifiers: usize = batch.changes.iter().map(count).sum();
    batch.offset + identifiers as u64
}

/// The content of an answer; `None` at the end of the stream.
fn message(answer: Option<IngestCohortResponse>) -> Result<Option<FromServer>, Refusal> {
    match answer {
        None => Ok(None),
        Some(answer) => match answer.message {
            None => Err(violation("an empty answer")),
            some => Ok(some),
        },
    }
}
