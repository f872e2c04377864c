//! The import protocol message by message, for what no well-behaved client does.

use std::time::Duration;

use muster_client::{Connection, Refusal};
use muster_domain::import::{Effect, ImportDigest, Mode};
use muster_proto::ingest::v1::{
    ChangeEffect, CohortChange, CommitImport, Committed, IdentifierBatch, ImportMode,
    IngestCohortRequest, OpenImport, ingest_cohort_request::Message as ToServer,
    ingest_cohort_response::Message as FromServer,
};
use muster_tests::{PARTNER, WORKSPACE};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::oracle::external_id;

/// How long any answer may take that is no measurement of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// One stream of an import of external ids, all to be added. Dropping it cancels the call
/// (`RST_STREAM`).
pub(crate) struct Call {
    requests: Option<mpsc::UnboundedSender<IngestCohortRequest>>,
    answers: Streaming<muster_proto::ingest::v1::IngestCohortResponse>,
    /// Where the server said to go on.
    pub(crate) next_offset: u64,
    /// Whether it takes no more batches.
    pub(crate) complete: bool,
}

impl Call {
    /// Opens an import, or opens it again.
    pub(crate) async fn open(
        connection: &Connection,
        cohort: &str,
        mode: Mode,
        import_id: &str,
    ) -> Result<Self, Refusal> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let mode = match mode {
            Mode::Delta => ImportMode::Delta,
            Mode::Replace => ImportMode::Replace,
        };
        let open = ToServer::Open(OpenImport {
            workspace: WORKSPACE.into(),
            partner: PARTNER.into(),
            cohort_id: cohort.into(),
            mode: mode.into(),
            import_id: import_id.into(),
            ..Default::default()
        });
        requests.send(message(open)).unwrap();
        let mut ingest = connection.ingest();
        let call = ingest.ingest_cohort(UnboundedReceiverStream::new(outgoing));
        let answers = timeout(PATIENCE, call).await.expect("an answer in time")?;
        let mut call = Self {
            requests: Some(requests),
            answers: answers.into_inner(),
            next_offset: 0,
            complete: false,
        };
        match call.answer().await? {
            Some(FromServer::Opened(opened)) => {
                (call.next_offset, call.complete) = (opened.next_offset, opened.complete);
                Ok(call)
            }
            other => panic!("the first answer is not `opened`: {other:?}"),
        }
    }

    /// Sends a batch and does not wait.
    pub(crate) fn send(&self, offset: usize, ids: &[String]) {
        self.say(ToServer::Batch(IdentifierBatch {
            offset: offset as u64,
            changes: vec![CohortChange {
                effect: ChangeEffect::Add.into(),
                external_ids: ids.iter().collect(),
                ..Default::default()
            }],
        }));
    }

    /// Waits for the acknowledgement of a batch; returns the offset it names.
    pub(crate) async fn acknowledged(&mut self) -> Result<u64, Refusal> {
        match self.answer().await? {
            Some(FromServer::Acked(acked)) => Ok(acked.next_offset),
            other => panic!("neither an acknowledgement nor a refusal: {other:?}"),
        }
    }

    /// Sends a batch and waits for its acknowledgement.
    pub(crate) async fn batch(&mut self, offset: usize, ids: &[String]) -> Result<u64, Refusal> {
        self.send(offset, ids);
        self.acknowledged().await
    }

    /// Sends the commit of an import of exactly these ids, and does not wait.
    pub(crate) fn send_commit(&self, ids: &[String]) {
        let mut digest = ImportDigest::default();
        for id in ids {
            digest.update(Effect::Add, external_id(id).as_ref());
        }
        self.say(ToServer::Commit(CommitImport {
            total: ids.len() as u64,
            digest: digest.finish().to_vec().into(),
        }));
    }

    /// Waits for the answer to the commit.
    pub(crate) async fn committed(&mut self) -> Result<Committed, Refusal> {
        match self.answer().await? {
            Some(FromServer::Committed(committed)) => Ok(committed),
            other => panic!("neither committed nor refused: {other:?}"),
        }
    }

    /// Waits for the result of the stream, past acknowledgements that are still on their way.
    pub(crate) async fn end(&mut self) -> Result<Committed, Refusal> {
        loop {
            match self.answer().await? {
                Some(FromServer::Acked(_)) => {}
                Some(FromServer::Committed(committed)) => return Ok(committed),
                other => panic!("neither committed nor refused: {other:?}"),
            }
        }
    }

    /// Commits an import of exactly these ids.
    pub(crate) async fn commit(&mut self, ids: &[String]) -> Result<Committed, Refusal> {
        self.send_commit(ids);
        self.committed().await
    }

    /// Ends this side of the stream; the other side must end it without a result or an error.
    pub(crate) async fn half_close(mut self) {
        self.requests = None;
        let answer = self.answer().await.unwrap();
        assert!(
            answer.is_none(),
            "the end of the stream did something: {answer:?}"
        );
    }

    async fn answer(&mut self) -> Result<Option<FromServer>, Refusal> {
        let answer = timeout(PATIENCE, self.answers.message()).await;
        let answer = answer.expect("an answer in time")?;
        Ok(answer.map(|answer| answer.message.expect("an answer is never empty")))
    }

    fn say(&self, words: ToServer) {
        // If the call is over nobody takes it; the answers then tell why.
        let _ = self.requests.as_ref().unwrap().send(message(words));
    }
}

fn message(message: ToServer) -> IngestCohortRequest {
    IngestCohortRequest {
        message: Some(message),
    }
}
