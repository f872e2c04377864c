//! The client's side of the import protocol, as `proto/muster/ingest/v1/ingest_cohort.proto` has it.
//!
//! [`Upload::run`] sends a list of any length and survives lost connections and restarted servers;
//! [`Upload::run_pipelined`] sends a short one in a single round trip, once. Start with
//! [`Upload::run`], then read `Attempt`, which is one stream.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use muster_domain::{
    identifier::Identifier,
    import::{Effect, ImportDigest, Mode, Outcomes, Summary},
};
use muster_proto::ingest::v1::{
    CommitImport, ImportMode, ImportSummary, IngestCohortRequest, OpenImport,
    ingest_cohort_request::Message as ToServer, ingest_cohort_response::Message as FromServer,
};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Code;

use crate::{Connection, Refusal, Retry};

mod attempt;
mod batches;

/// What a client has to do, in any language.
#[doc = include_str!("../../../docs/import-protocol.md")]
pub mod protocol {}

use attempt::{Attempt, Failure};
use batches::{Packer, Total};

/// An import to send: what it is, and how hard to try.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Slug of the workspace; empty if the credential is a data import key, which fixes it.
    pub workspace: String,
    /// Slug of the partner; empty if the credential is a data import key, which fixes it.
    pub partner: String,
    /// The partner's id of the cohort, 1 to 255 characters.
    pub cohort_id: String,
    /// Name to give the cohort, up to 255 characters; empty leaves it as it is.
    pub name: String,
    /// Adds and removes, or the full list.
    pub mode: Mode,
    /// 1 to 255 characters, unique in the workspace. The same id means the same import: it is
    /// resumed, or its result told again.
    pub import_id: String,
    /// When the source says its data is from.
    pub source_time: Option<SystemTime>,
    /// For a delta: be refused if an import with a later source time was published before.
    pub refuse_if_older: bool,
    /// For a replacement: the largest share of the members, 0 to 1, to remove without confirmation;
    /// `None` for any share.
    pub max_removed_fraction: Option<f64>,
    /// How hard to try.
    pub retry: Retry,
}

/// How an upload ended well.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is published.
    Committed {
        /// What became of every identifier.
        summary: Summary,
        /// The version of the cohort it published.
        version: u64,
        /// Given to a resolution, makes it see this version.
        consistency_token: String,
    },
    /// It would remove more members than allowed and waits for a person.
    AwaitingConfirmation {
        /// What publishing it would do.
        preview: Summary,
    },
}

/// Why an upload failed. Nothing is published, unless the reply to a commit was lost for good: see
/// [`UploadError::GaveUp`].
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The source could not be read.
    #[error("the source cannot be read: {0}")]
    Source(#[from] io::Error),
    /// The server refuses it for good.
    #[error("{0}")]
    Refused(#[source] Refusal),
    /// Tried as often, or as long, as allowed. The import stays resumable under its id; if the
    /// last try got as far as the commit it may have been published, which running it again tells.
    #[error("gave up after {failures} failed tries: {last}")]
    GaveUp {
        /// How many tries failed.
        failures: u32,
        /// The last failure.
        #[source]
        last: Refusal,
    },
}

/// What happened during an upload.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The import is open, or open again.
    Opened {
        /// Identifiers the server has already.
        durable: u64,
    },
    /// More of it is durable.
    Acknowledged {
        /// Identifiers the server has.
        durable: u64,
    },
    /// All is sent, and the commit, too.
    Committing {
        /// Identifiers in all.
        total: u64,
    },
    /// A try failed; the next one goes on where the server is.
    Retrying {
        /// How long until then.
        wait: Duration,
        /// What failed.
        cause: Refusal,
    },
}

impl Upload {
    /// An upload with everything optional left out and the default tries.
    pub fn new(
        workspace: impl Into<String>,
        partner: impl Into<String>,
        cohort_id: impl Into<String>,
        mode: Mode,
        import_id: impl Into<String>,
    ) -> Self {
        Self {
            workspace: workspace.into(),
            partner: partner.into(),
            cohort_id: cohort_id.into(),
            name: String::new(),
            mode,
            import_id: import_id.into(),
            source_time: None,
            refuse_if_older: false,
            max_removed_fraction: None,
            retry: Retry::default(),
        }
    }

    /// Sends what `source` yields and publishes it.
    ///
    /// The source is called, and its iterator used, on a thread that may block; it is called again
    /// for every try that has to send something, and must then yield the same identifiers. Memory
    /// is bounded by a few batches, whatever the length. After a lost connection the import is
    /// opened again under its id and goes on where the server is.
    ///
    /// # Errors
    /// At once if the server refuses for good or the source fails; else once the tries, or the
    /// time, of [`Retry`] are used up.
    pub async fn run<S, I>(
        &self,
        connection: &Connection,
        source: S,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Outcome, UploadError>
    where
        S: Fn() -> io::Result<I> + Send + Sync + 'static,
        I: Iterator<Item = io::Result<(Effect, Identifier)>>,
    {
        let deadline = Instant::now() + self.retry.deadline;
        let mut attempt = Attempt::new(self, connection, Arc::new(source));
        let mut failures = 0;
        let mut failures_in_a_row = 0;
        let mut durable_before = 0;
        let mut last = Refusal::local(
            Code::DeadlineExceeded,
            "",
            "the upload took longer than allowed",
        );
        loop {
            let failure = match timeout_at(deadline, attempt.run(progress)).await {
                Ok(Ok(outcome)) => return Ok(outcome),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(UploadError::GaveUp { failures, last }),
            };
            last = match failure {
                Failure::Source(error) => return Err(UploadError::Source(error)),
                Failure::Refused(refusal) if is_worth_reopening(&refusal) => refusal,
                Failure::Refused(refusal) => return Err(UploadError::Refused(refusal)),
            };
            if attempt.durable() > durable_before {
                durable_before = attempt.durable();
                failures_in_a_row = 0;
            }
            failures += 1;
            failures_in_a_row += 1;
            let wait = self.retry.wait(failures_in_a_row, last.retry_after);
            if failures_in_a_row >= self.retry.failures || Instant::now() + wait >= deadline {
                return Err(UploadError::GaveUp { failures, last });
            }
            progress(Progress::Retrying {
                wait,
                cause: last.clone(),
            });
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends a short list, up to a few thousand identifiers, and publishes it in one round trip and
    /// one try. The server does the whole in one transaction.
    ///
    /// # Errors
    /// What the server refuses; [`Code::DeadlineExceeded`] after `deadline`, and other transient
    /// codes, leave open whether it was published.
    pub async fn run_pipelined(
        &self,
        connection: &Connection,
        identifiers: Vec<(Effect, Identifier)>,
        deadline: Duration,
    ) -> Result<Outcome, Refusal> {
        let requests = self.pipeline(identifiers)?;
        let exchange = async {
            let stream = tokio_stream::iter(requests);
            let mut answers = connection
                .ingest()
                .ingest_cohort(stream)
                .await?
                .into_inner();
            while let Some(answer) = answers.message().await? {
                match answer.message {
                    Some(FromServer::Opened(_) | FromServer::Acked(_)) => {}
                    Some(last) => return outcome(last),
                    None => return Err(violation("an empty answer")),
                }
            }
            Err(ended_early())
        };
        timeout(deadline, exchange).await.unwrap_or_else(|_| {
            let text = format!("no answer within {deadline:?}");
            Err(Refusal::local(Code::DeadlineExceeded, "", text))
        })
    }

    fn pipeline(
        &self,
        identifiers: Vec<(Effect, Identifier)>,
    ) -> Result<Vec<IngestCohortRequest>, Refusal> {
        let mut digest = ImportDigest::default();
        let mut packer = Packer::new(0);
        let mut total = Total {
            identifiers: identifiers.len() as u64,
            digest: [0; 32],
        };
        let mut requests = vec![self.open(true)];
        for (effect, identifier) in identifiers {
            digest.update(effect, identifier.as_ref());
            let full = packer.push(effect, identifier).map_err(|e| {
                Refusal::local(Code::InvalidArgument, "IDENTIFIER_TOO_LARGE", e.to_string())
            })?;
            requests.extend(full.map(|batch| request(ToServer::Batch(batch))));
        }
        total.digest = digest.finish();
        requests.extend(packer.take().map(|batch| request(ToServer::Batch(batch))));
        requests.push(commit(total));
        Ok(requests)
    }

    fn open(&self, pipelined: bool) -> IngestCohortRequest {
        let mode = match self.mode {
            Mode::Delta => ImportMode::Delta,
            Mode::Replace => ImportMode::Replace,
        };
        request(ToServer::Open(OpenImport {
            workspace: self.workspace.clone(),
            partner: self.partner.clone(),
            cohort_id: self.cohort_id.clone(),
            name: self.name.clone(),
            mode: mode.into(),
            import_id: self.import_id.clone(),
            source_time: self.source_time.map(Into::into),
            refuse_if_older: self.refuse_if_older,
            max_removed_fraction: self.max_removed_fraction,
            pipelined,
        }))
    }
}

/// Whether opening the import again may get further: what is transient, and a gap, which names the
/// offset the server expects, as `Opened` will.
fn is_worth_reopening(refusal: &Refusal) -> bool {
    let gap = refusal.code == Code::OutOfRange && refusal.metadata.contains_key("expected_offset");
    gap || refusal.is_transient()
}

fn request(message: ToServer) -> IngestCohortRequest {
    IngestCohortRequest {
        message: Some(message),
    }
}

fn commit(total: Total) -> IngestCohortRequest {
    request(ToServer::Commit(CommitImport {
        total: total.identifiers,
        digest: total.digest.to_vec().into(),
    }))
}

/// The outcome that a last answer tells.
fn outcome(last: FromServer) -> Result<Outcome, Refusal> {
    let summary = |summary: Option<ImportSummary>| {
        summary
            .and_then(summary_from_wire)
            .ok_or_else(|| violation("a result without a summary"))
    };
    match last {
        FromServer::Committed(committed) => Ok(Outcome::Committed {
            summary: summary(committed.summary)?,
            version: committed.version,
            consistency_token: committed.consistency_token,
        }),
        FromServer::AwaitingConfirmation(awaiting) => Ok(Outcome::AwaitingConfirmation {
            preview: summary(awaiting.preview)?,
        }),
        FromServer::Opened(_) | FromServer::Acked(_) => Err(violation("an answer out of turn")),
    }
}

fn summary_from_wire(summary: ImportSummary) -> Option<Summary> {
    let outcomes = summary.outcomes?;
    Some(Summary {
        received: summary.received,
        outcomes: Outcomes {
            added: outcomes.added,
            already_member: outcomes.already_member,
            removed: outcomes.removed,
            not_member: outcomes.not_member,
            unknown: outcomes.unknown,
            device_of_identified_user: outcomes.device_of_identified_user,
            duplicate: outcomes.duplicate,
            superseded: outcomes.superseded,
            invalid: outcomes.invalid,
        },
        members_before: summary.members_before,
        members_after: summary.members_after,
        members_added: summary.members_added,
        members_removed: summary.members_removed,
    })
}

/// The stream ended without a result and without an error: a server that shuts down, or a proxy
/// that gave up, looks like this.
fn ended_early() -> Refusal {
    let text = "the stream ended without a result";
    Refusal::local(Code::Unavailable, "", text)
}

fn violation(what: &str) -> Refusal {
    let text = format!("the server broke the import protocol: {what}");
    Refusal::local(Code::Internal, "PROTOCOL_VIOLATION", text)
}

#[cfg(test)]
mod tests;
