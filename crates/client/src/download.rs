//! The client's side of an audience: every user once, in order, to a proven end.
//!
//! [`Download::run`] streams an audience, survives lost connections and restarted servers, and checks
//! what came against what was promised: a [`Receipt`] tells how far it got.

use std::time::Duration;

use muster_proto::segments::v1::{
    AudienceMember, Resolution, ResolveSegmentRequest, resolve_segment_request::Audience,
};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Code;

use crate::{Connection, Refusal, Retry};

mod receipt;

pub use receipt::{Receipt, is_withheld};

use receipt::Step;

/// An audience to fetch, and how far that got.
#[derive(Debug)]
pub struct Download {
    request: ResolveSegmentRequest,
    retry: Retry,
    receipt: Receipt,
}

/// What happens during a download, in order.
#[derive(Debug)]
pub enum Event<'a> {
    /// A stream begins, the first or a further one: this is what it streams.
    Begun(&'a Resolution),
    /// The next users, by user_no, those withheld among them: see [`is_withheld`].
    Users(Vec<AudienceMember>),
    /// A stream broke; the next one goes on after the last user.
    Retrying {
        /// How long until then.
        wait: Duration,
        /// What broke it.
        cause: &'a Refusal,
    },
}

/// Why a download failed. What came so far is not the whole audience.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError<E> {
    /// Whoever takes the users failed; it may have taken a part of the last ones.
    #[error(transparent)]
    Sink(E),
    /// The server refuses it for good.
    #[error("{0}")]
    Refused(Refusal),
    /// Tried as often, or as long, as allowed. The receipt tells where to go on.
    #[error("gave up after {failures} failed tries: {last}")]
    GaveUp {
        /// How many tries failed.
        failures: u32,
        /// The last failure.
        last: Refusal,
    },
    /// What came is not what was promised: none of it must be used.
    #[error("the audience must not be used: {0}")]
    Violation(String),
}

/// How one stream ended that did not reach its end.
enum Stop<E> {
    Broken(Refusal),
    Final(DownloadError<E>),
}

impl<E> From<Refusal> for Stop<E> {
    fn from(refusal: Refusal) -> Self {
        if refusal.is_transient() {
            Self::Broken(refusal)
        } else {
            Self::Final(DownloadError::Refused(refusal))
        }
    }
}

impl Download {
    /// A download of what `request` asks for. With a `resume_token` it begins in the middle, and the
    /// digest of the whole cannot be checked. A `request_id` is made up if there is none, so that a
    /// try whose answer got lost is not evaluated anew.
    pub fn new(mut request: ResolveSegmentRequest, retry: Retry) -> Self {
        if request.request_id.is_empty() {
            request.request_id = format!("{:032x}", rand::random::<u128>());
        }
        let resume_token = Some(request.resume_token.clone()).filter(|token| !token.is_empty());
        Self {
            receipt: Receipt::new(resume_token),
            request,
            retry,
        }
    }

    /// What came so far.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Streams the audience to `sink` until its end came and matched, resuming it after whatever is
    /// transient. The sink may block; the server is read no faster than it takes. Called again after
    /// [`DownloadError::GaveUp`], it goes on.
    ///
    /// # Errors
    /// See [`DownloadError`].
    pub async fn run<E>(
        &mut self,
        connection: &Connection,
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), DownloadError<E>> {
        let deadline = Instant::now() + self.retry.deadline;
        let mut failures = 0;
        let mut failures_in_a_row = 0;
        loop {
            let before = self.receipt.received();
            let last = match timeout_at(deadline, self.stream(connection, sink)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Stop::Final(error))) => return Err(error),
                Ok(Err(Stop::Broken(refusal))) => refusal,
                Err(_) => {
                    let text = "the download took longer than allowed";
                    let last = Refusal::local(Code::DeadlineExceeded, "", text);
                    return Err(DownloadError::GaveUp { failures, last });
                }
            };
            if self.receipt.received() > before {
                failures_in_a_row = 0;
            }
            failures += 1;
            failures_in_a_row += 1;
            let wait = self.retry.wait(failures_in_a_row, last.retry_after);
            if failures_in_a_row >= self.retry.failures || Instant::now() + wait >= deadline {
                return Err(DownloadError::GaveUp { failures, last });
            }
            let cause = &last;
            sink(Event::Retrying { wait, cause }).map_err(DownloadError::Sink)?;
            tokio::time::sleep(wait).await;
        }
    }

    /// One stream, from where the ones before ended.
    async fn stream<E>(
        &mut self,
        connection: &Connection,
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), Stop<E>> {
        self.receipt.begin_stream();
        let mut segments = connection.segments();
        let opening = segments.resolve_segment(self.next_request());
        let opened = self.within(opening).await?;
        let mut messages = opened.into_inner();
        loop {
            let Some(message) = self.within(messages.message()).await? else {
                let text = "the stream ended without its end marker";
                return Err(Stop::Broken(Refusal::local(Code::Unavailable, "", text)));
            };
            let step = self.receipt.accept(message);
            let event = match step.map_err(|text| Stop::Final(DownloadError::Violation(text)))? {
                Step::Header => self.receipt.resolution().map(Event::Begun),
                Step::Users(users) => Some(Event::Users(users)),
                Step::End => return Ok(()),
            };
            event
                .map_or(Ok(()), &mut *sink)
                .map_err(|error| Stop::Final(DownloadError::Sink(error)))?;
        }
    }

    /// An answer, unless the server stays silent for too long.
    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, Refusal> {
        let silence = self.retry.silence;
        match timeout(silence, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => {
                let text = format!("no answer within {silence:?}");
                Err(Refusal::local(Code::DeadlineExceeded, "", text))
            }
        }
    }

    /// The request that goes on where the streams so far ended.
    fn next_request(&self) -> ResolveSegmentRequest {
        let mut request = self.request.clone();
        request.resume_token = self.receipt.resume_token().to_owned();
        if let Some(resolution) = self.receipt.resolution() {
            request.audience = Some(Audience::ResolutionId(resolution.resolution_id.clone()));
            // These were about evaluating it, which is done.
            request.consistency_token.clear();
            request.max_cohort_age = None;
            request.request_id.clear();
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::segments::v1 as pb;

    use super::*;

    #[test]
    fn a_further_try_names_the_resolution_and_where_to_go_on() {
        let first = pb::ResolveSegmentRequest {
            audience: Some(Audience::Segment(pb::SegmentReference::default())),
            max_cohort_age: Some(Default::default()),
            consistency_token: "c".to_owned(),
            request_id: "q".to_owned(),
            partition: Some(pb::Partition { index: 1, count: 2 }),
            ..Default::default()
        };
        let mut download = Download::new(first.clone(), Retry::default());
        assert_eq!(download.next_request(), first);
        let header = pb::AudienceHeader {
            resolution: Some(pb::Resolution {
                resolution_id: "r".to_owned(),
                ..Default::default()
            }),
            partition_user_count: 1,
        };
        let batch = pb::AudienceBatch {
            users: vec![pb::AudienceMember::default()],
            resume_token: "t".to_owned(),
            ..Default::default()
        };
        use pb::resolve_segment_response::Message;
        for message in [Message::Header(header), Message::Batch(batch)] {
            let message = Some(message);
            let response = pb::ResolveSegmentResponse { message };
            download.receipt.accept(response).unwrap();
        }
        let expected = pb::ResolveSegmentRequest {
            audience: Some(Audience::ResolutionId("r".to_owned())),
            resume_token: "t".to_owned(),
            partition: first.partition,
            ..Default::default()
        };
        assert_eq!(download.next_request(), expected);
    }

    #[test]
    fn a_try_whose_answer_got_lost_is_asked_for_by_the_same_request_id() {
        let download = Download::new(Default::default(), Retry::default());
        let id = download.next_request().request_id;
        assert!(!id.is_empty());
        assert_eq!(download.next_request().request_id, id);
    }
}
