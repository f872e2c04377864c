//! Proof that an audience arrived whole: what a stream promised against what came.

use muster_proto::segments::v1::{self as pb, resolve_segment_response::Message};
use sha2::{Digest, Sha256};

/// Follows one partition of one resolution over as many streams as it takes.
#[derive(Debug, Default)]
pub struct Receipt {
    header: Option<pb::AudienceHeader>,
    digest: Sha256,
    received: u64,
    withheld: u64,
    withheld_in_stream: u64,
    last: Option<u32>,
    resume_token: String,
    /// Records before the first one were received by an earlier run, so that the count and the
    /// digest of all of them cannot be checked here.
    began_in_the_middle: bool,
    complete: bool,
    /// What came breaks the contract.
    spoiled: bool,
}

/// What a message was.
#[derive(Debug)]
pub(super) enum Step {
    /// The header of a stream.
    Header,
    /// Records, in order; the withheld ones are among them.
    Users(Vec<pb::AudienceMember>),
    /// The end; everything that was promised has come.
    End,
}

impl Receipt {
    /// Nothing has come yet. A `resume_token` from an earlier run begins in the middle.
    pub(super) fn new(resume_token: Option<String>) -> Self {
        Self {
            began_in_the_middle: resume_token.is_some(),
            resume_token: resume_token.unwrap_or_default(),
            ..Self::default()
        }
    }

    /// A new stream begins.
    pub(super) fn begin_stream(&mut self) {
        self.withheld_in_stream = 0;
    }

    /// The resolution, once a header has come.
    pub fn resolution(&self) -> Option<&pb::Resolution> {
        self.header.as_ref()?.resolution.as_ref()
    }

    /// Whether what came breaks the contract; then nothing is gained by going on.
    pub fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    /// Where a further stream has to go on; empty for the start.
    pub fn resume_token(&self) -> &str {
        &self.resume_token
    }

    /// Records received, withheld ones included.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Records received without identifiers.
    pub fn withheld(&self) -> u64 {
        self.withheld
    }

    /// Whether the end came and matched.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether the digest of the whole partition was compared.
    pub fn is_verified(&self) -> bool {
        self.complete && !self.began_in_the_middle
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// Says how it breaks the contract; the audience must not be used then.
    pub(super) fn accept(&mut self, response: pb::ResolveSegmentResponse) -> Result<Step, String> {
        let step = match response.message {
            _ if self.complete => Err("a message came after the end".to_owned()),
            None => Err("an empty message came".to_owned()),
            Some(Message::Header(header)) => self.accept_header(header).map(|()| Step::Header),
            Some(_) if self.header.is_none() => Err("the stream has no header".to_owned()),
            Some(Message::Batch(batch)) => self.accept_batch(batch).map(Step::Users),
            Some(Message::End(end)) => self.accept_end(&end).map(|()| Step::End),
        };
        self.spoiled |= step.is_err();
        step
    }

    fn accept_header(&mut self, header: pb::AudienceHeader) -> Result<(), String> {
        let id = |header: &pb::AudienceHeader| {
            header.resolution.as_ref().map(|r| r.resolution_id.clone())
        };
        if id(&header).is_none() {
            return Err("the header names no resolution".to_owned());
        }
        match &self.header {
            Some(first) if id(first) != id(&header) => {
                Err("the stream goes on with another resolution".to_owned())
            }
            Some(first) if first.partition_user_count != header.partition_user_count => {
                Err("the stream goes on with another count".to_owned())
            }
            _ => {
                self.header = Some(header);
                Ok(())
            }
        }
    }

    fn accept_batch(
        &mut self,
        batch: pb::AudienceBatch,
    ) -> Result<Vec<pb::AudienceMember>, String> {
        // All or nothing: a batch that is refused leaves no trace in the digest.
        let mut last = self.last;
        for user in &batch.users {
            if last.is_some_and(|last| user.user_no <= last) {
                return Err(format!("user {} came out of order", user.user_no));
            }
            last = Some(user.user_no);
        }
        for user in &batch.users {
            self.digest.update(user.user_no.to_be_bytes());
        }
        let withheld = batch.users.iter().filter(|user| is_withheld(user)).count() as u64;
        self.last = last;
        self.received += batch.users.len() as u64;
        self.withheld += withheld;
        self.withheld_in_stream += withheld;
        self.resume_token = batch.resume_token;
        Ok(batch.users)
    }

    fn accept_end(&mut self, end: &pb::AudienceEnd) -> Result<(), String> {
        let promised = self.header.as_ref().map_or(0, |h| h.partition_user_count);
        if end.user_count != promised {
            return Err(format!(
                "the header promised {promised} users, the end has {}",
                end.user_count
            ));
        }
        if end.withheld_count != self.withheld_in_stream {
            return Err(format!(
                "{} records were withheld, the end has {}",
                self.withheld_in_stream, end.withheld_count
            ));
        }
        let complete = if self.began_in_the_middle {
            self.received <= end.user_count
        } else {
            self.received == end.user_count
        };
        if !complete {
            return Err(format!(
                "{} users came, the end has {}",
                self.received, end.user_count
            ));
        }
        let digest = self.digest.clone().finalize();
        if !self.began_in_the_middle && digest[..] != end.digest[..] {
            return Err("the digest of what came is not that of the end".to_owned());
        }
        self.complete = true;
        Ok(())
    }
}

/// Whether a record stands for somebody who must not be targeted any more.
pub fn is_withheld(user: &pb::AudienceMember) -> bool {
    user.withheld != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(resolution_id: &str, count: u64) -> pb::ResolveSegmentResponse {
        message(Message::Header(pb::AudienceHeader {
            resolution: Some(pb::Resolution {
                resolution_id: resolution_id.to_owned(),
                ..Default::default()
            }),
            partition_user_count: count,
        }))
    }

    fn batch(users: &[u32]) -> pb::ResolveSegmentResponse {
        let users = users.iter().map(|user_no| pb::AudienceMember {
            user_no: *user_no,
            withheld: i32::from(user_no % 10 == 9),
            ..Default::default()
        });
        message(Message::Batch(pb::AudienceBatch {
            users: users.collect(),
            resume_token: "t".to_owned(),
            ..Default::default()
        }))
    }

    fn end(users: &[u32], withheld_count: u64) -> pb::ResolveSegmentResponse {
        let mut digest = Sha256::new();
        for user in users {
            digest.update(user.to_be_bytes());
        }
        message(Message::End(pb::AudienceEnd {
            user_count: users.len() as u64,
            digest: digest.finalize().to_vec().into(),
            withheld_count,
        }))
    }

    fn message(message: Message) -> pb::ResolveSegmentResponse {
        pb::ResolveSegmentResponse {
            message: Some(message),
        }
    }

    fn take(
        receipt: &mut Receipt,
        messages: impl IntoIterator<Item = pb::ResolveSegmentResponse>,
    ) -> Result<(), String> {
        messages
            .into_iter()
            .try_for_each(|message| receipt.accept(message).map(drop))
    }

    #[test]
    fn a_whole_stream_is_complete_and_verified() {
        let mut receipt = Receipt::new(None);
        let stream = [
            header("r", 3),
            batch(&[1, 5]),
            batch(&[9]),
            end(&[1, 5, 9], 1),
        ];
        take(&mut receipt, stream).unwrap();
        assert!(receipt.is_verified());
        assert_eq!((receipt.received(), receipt.withheld()), (3, 1));
    }

    #[test]
    fn an_empty_audience_is_complete() {
        let mut receipt = Receipt::new(None);
        take(&mut receipt, [header("r", 0), end(&[], 0)]).unwrap();
        assert!(receipt.is_verified());
    }

    #[test]
    fn a_stream_without_its_end_is_incomplete() {
        let mut receipt = Receipt::new(None);
        take(&mut receipt, [header("r", 1), batch(&[1])]).unwrap();
        assert!(!receipt.is_complete());
    }

    #[test]
    fn a_resumed_stream_adds_up_with_the_one_before() {
        let mut receipt = Receipt::new(None);
        take(&mut receipt, [header("r", 4), batch(&[1, 9])]).unwrap();
        assert_eq!(receipt.resume_token(), "t");
        receipt.begin_stream();
        let rest = [header("r", 4), batch(&[10, 19]), end(&[1, 9, 10, 19], 1)];
        take(&mut receipt, rest).unwrap();
        assert!(receipt.is_verified());
        assert_eq!(receipt.withheld(), 2);
    }

    #[test]
    fn a_run_that_began_in_the_middle_is_complete_but_not_verified() {
        let mut receipt = Receipt::new(Some("t".to_owned()));
        take(
            &mut receipt,
            [header("r", 3), batch(&[5]), end(&[1, 3, 5], 0)],
        )
        .unwrap();
        assert!(receipt.is_complete() && !receipt.is_verified());
    }

    #[test]
    fn whatever_does_not_match_is_refused() {
        let cases = [
            vec![batch(&[1])],
            vec![end(&[], 0)],
            vec![pb::ResolveSegmentResponse::default()],
            vec![header("r", 2), batch(&[2, 1])],
            vec![header("r", 2), batch(&[1]), batch(&[1])],
            vec![header("r", 2), batch(&[1]), end(&[1], 0)],
            vec![header("r", 2), batch(&[1]), end(&[1, 2], 0)],
            vec![header("r", 1), batch(&[1]), end(&[2], 0)],
            vec![header("r", 1), batch(&[9]), end(&[9], 0)],
            vec![header("r", 1), batch(&[1]), header("s", 1)],
            vec![header("r", 1), header("r", 2)],
            vec![header("r", 0), end(&[], 0), end(&[], 0)],
        ];
        for case in cases {
            let text = format!("{case:?}");
            assert!(take(&mut Receipt::new(None), case).is_err(), "{text}");
        }
    }
}
