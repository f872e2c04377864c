//! `muster segment resolve`: an audience on standard output, complete or with an error.

use std::time::Duration;

use muster_proto::segments::v1::{self as pb, resolve_segment_request::Audience};
use serde_json::json;
use tonic::Code;

use super::{
    filter_text,
    receipt::{Receipt, Step, is_withheld},
    reference,
    writer::{AudienceWriter, StreamFormat, View},
};
use crate::{
    error::{CliError, Result, is_transport},
    output::{self, Noun, grouped, remark},
    session::{Session, request_id},
    when,
};

/// Attempts in a row that bring nothing new before the command gives up.
const MAX_FRUITLESS_ATTEMPTS: u32 = 5;

/// Wait before the first further attempt; doubles with each fruitless one.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// Stream the users of a segment, a filter or a kept resolution to standard output.
///
/// Safe to pipe: the exit code is 0 only if the stream reached its end and count and digest of what
/// came match it. A connection that breaks is resumed without repeating or losing a user. People who
/// were erased or merged since a resolution was made are left out and counted. A summary goes to
/// standard error.
///
/// Identifiers are written exactly as they are. Spreadsheet programs take values that begin with
/// = + - or @ for formulas: import the columns as text. In CSV the full view has aliases as JSON and
/// device ids separated by ';'.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("audience").required(true).multiple(false))]
pub(crate) struct ResolveArgs {
    /// Name of the segment, or its id
    #[arg(value_name = "SEGMENT", group = "audience")]
    segment: Option<String>,
    /// A filter instead, in the same text form as `segment create` takes
    #[arg(long, value_name = "FILTER", group = "audience")]
    filter: Option<String>,
    /// A kept resolution instead, streamed again with the same users
    #[arg(long, value_name = "ID", group = "audience")]
    resolution: Option<String>,
    /// How to write the users [default: csv, or ndjson with --output json]
    #[arg(long, value_name = "FORMAT")]
    format: Option<StreamFormat>,
    /// What to write of each user
    #[arg(long, value_name = "VIEW", default_value = "external-id")]
    view: View,
    /// Only part I of N, with I from 0 to N-1; the parts are disjoint and complete
    #[arg(long, value_name = "I/N", value_parser = partition)]
    partition: Option<pb::Partition>,
    /// Go on after the batch with this token, without a header line; needs --resolution
    #[arg(
        long,
        value_name = "TOKEN",
        requires = "resolution",
        conflicts_with_all = ["segment", "filter"]
    )]
    resume: Option<String>,
    /// Refuse if a cohort was last published longer ago than this, such as 24h
    #[arg(long, value_name = "DURATION", value_parser = when::duration)]
    max_cohort_age: Option<Duration>,
    /// See what this token stands for, as changes and imports print it
    #[arg(
        long,
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true
    )]
    consistency_token: String,
    /// Share the resolution with other calls that give the same id, such as workers that stream one
    /// part each [default: a fresh one]
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

/// Parses `I/N`.
fn partition(text: &str) -> Result<pb::Partition, String> {
    let parts = text.split_once('/');
    let parsed = parts.and_then(|(index, count)| {
        let partition = pb::Partition {
            index: index.parse().ok()?,
            count: count.parse().ok()?,
        };
        let in_range = partition.index < partition.count && partition.count <= 1_024;
        in_range.then_some(partition)
    });
    parsed.ok_or_else(|| format!("{text:?} is not I/N with I below N and N up to 1024, as in 0/4"))
}

/// Why a stream stopped.
enum Stop {
    /// The end came and matched.
    Complete,
    /// It broke; another stream may go on.
    Broken(CliError),
    /// Going on is of no use.
    Final(CliError),
    /// Standard output took only a part of what came.
    Unwritten(CliError),
}

/// Runs the command.
pub(super) async fn run(session: &Session, args: ResolveArgs) -> Result<()> {
    let format = args.format.unwrap_or(if session.output.is_json() {
        StreamFormat::Ndjson
    } else {
        StreamFormat::Csv
    });
    let first = first_request(session.workspace()?, &args);
    let mut receipt = Receipt::new(args.resume.clone());
    let mut writer = AudienceWriter::new(output::stream(), format, args.view);
    let mut header_is_due = args.resume.is_none();
    let mut fruitless = 0;
    let result = loop {
        let before = receipt.received();
        let request = next_request(&first, &receipt);
        match stream(
            session,
            request,
            &mut receipt,
            &mut writer,
            &mut header_is_due,
        )
        .await
        {
            Stop::Complete => break Ok(()),
            Stop::Final(error) => break Err(error),
            // Nobody knows where in a batch the output ended, so there is no place to go on from.
            Stop::Unwritten(error) => return Err(error),
            Stop::Broken(error) => {
                fruitless = if receipt.received() > before {
                    1
                } else {
                    fruitless + 1
                };
                if fruitless >= MAX_FRUITLESS_ATTEMPTS {
                    break Err(error);
                }
            }
        }
        tokio::time::sleep(FIRST_WAIT * 2_u32.pow(fruitless - 1)).await;
    };
    writer.flush()?;
    summarize(session, &receipt);
    result
}

fn first_request(workspace: String, args: &ResolveArgs) -> pb::ResolveSegmentRequest {
    let segment = args
        .segment
        .as_deref()
        .map(|name| Audience::Segment(reference(name)));
    let filter = args
        .filter
        .as_deref()
        .map(|text| Audience::Filter(filter_text(text)));
    let resolution = args.resolution.clone().map(Audience::ResolutionId);
    pb::ResolveSegmentRequest {
        workspace,
        audience: segment.or(filter).or(resolution),
        view: args.view.wire().into(),
        partition: args.partition,
        consistency_token: args.consistency_token.clone(),
        resume_token: String::new(),
        max_cohort_age: args.max_cohort_age.map(when::wire),
        // Before its header has come a resolution has no name yet; with the same request_id a
        // further attempt gets the same one.
        request_id: args.request_id.clone().unwrap_or_else(request_id),
    }
}

/// The request that goes on where the streams so far ended.
fn next_request(first: &pb::ResolveSegmentRequest, receipt: &Receipt) -> pb::ResolveSegmentRequest {
    let mut request = first.clone();
    request.resume_token = receipt.resume_token().to_owned();
    if let Some(resolution) = receipt.resolution() {
        request.audience = Some(Audience::ResolutionId(resolution.resolution_id.clone()));
        // These were about evaluating it, which is done.
        request.consistency_token.clear();
        request.max_cohort_age = None;
        request.request_id.clear();
    }
    request
}

/// Copies one stream until it stops.
async fn stream(
    session: &Session,
    request: pb::ResolveSegmentRequest,
    receipt: &mut Receipt,
    writer: &mut AudienceWriter<impl std::io::Write>,
    header_is_due: &mut bool,
) -> Stop {
    let stopped = |status: tonic::Status| {
        let broken = status.code() == Code::Unavailable || is_transport(&status);
        let error = session.refused(status);
        if broken {
            Stop::Broken(error)
        } else {
            Stop::Final(error)
        }
    };
    receipt.begin_stream();
    let mut client = session.connection.segments();
    let mut messages = match client.resolve_segment(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return stopped(status),
    };
    loop {
        let message = match messages.message().await {
            Ok(Some(message)) => message,
            Ok(None) => {
                let text = "the audience is incomplete: the stream ended without its end marker";
                return Stop::Broken(CliError::Failed(text.to_owned()));
            }
            Err(status) => return stopped(status),
        };
        match receipt.accept(message) {
            Ok(Step::Header) => {
                // Not before: an audience that was refused must not look like an empty one.
                if std::mem::take(header_is_due)
                    && let Err(error) = writer.write_header(false)
                {
                    return Stop::Unwritten(error);
                }
            }
            Ok(Step::Users(users)) => {
                let mut targeted = users.iter().filter(|user| !is_withheld(user));
                let written = targeted.try_for_each(|user| writer.write(None, user));
                // Whoever reads has every user up to the resume token that is kept.
                if let Err(error) = written.and_then(|()| writer.flush()) {
                    return Stop::Unwritten(error);
                }
            }
            Ok(Step::End) => return Stop::Complete,
            Err(problem) => {
                let text = format!("the audience must not be used: {problem}");
                return Stop::Final(CliError::Failed(text));
            }
        }
    }
}

/// Says on standard error what came, and how to go on if it is not all.
fn summarize(session: &Session, receipt: &Receipt) {
    let Some(resolution) = receipt.resolution() else {
        return;
    };
    let printed = receipt.received() - receipt.withheld();
    let id = &resolution.resolution_id;
    let resume_token =
        Some(receipt.resume_token()).filter(|token| !token.is_empty() && !receipt.is_spoiled());
    if session.output.is_json() {
        let summary = json!({
            "complete": receipt.is_complete(),
            "digest_verified": receipt.is_verified(),
            "printed": printed,
            "withheld": receipt.withheld(),
            "resume_token": resume_token,
            "resolution": resolution.json(),
        });
        return remark(&summary.to_string());
    }
    let withheld = match receipt.withheld() {
        0 => String::new(),
        count => format!(", {} withheld (erased or merged since)", grouped(&count)),
    };
    let state = match (receipt.is_complete(), receipt.is_verified()) {
        (true, true) => "complete, digest verified",
        (true, false) => "complete; the digest covers earlier parts too and was not verified",
        (false, _) => "INCOMPLETE",
    };
    remark(&format!(
        "resolution {id}: {} users{withheld}; {state}",
        grouped(&printed)
    ));
    if let Some(token) = resume_token.filter(|_| !receipt.is_complete()) {
        remark(&format!(
            "to go on: muster segment resolve --resolution {id} --resume {token}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_count_from_zero() {
        let expected = pb::Partition { index: 3, count: 4 };
        assert_eq!(partition("3/4"), Ok(expected));
        for bad in ["", "3", "4/4", "0/0", "-1/4", "0/1025", "a/b"] {
            assert!(partition(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_further_attempt_names_the_resolution_and_where_to_go_on() {
        let first = pb::ResolveSegmentRequest {
            audience: Some(Audience::Segment(reference("buyers"))),
            max_cohort_age: Some(when::wire(Duration::from_secs(1))),
            consistency_token: "c".to_owned(),
            request_id: "q".to_owned(),
            partition: Some(pb::Partition { index: 1, count: 2 }),
            ..Default::default()
        };
        let mut receipt = Receipt::new(None);
        assert_eq!(next_request(&first, &receipt), first);
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
        };
        use pb::resolve_segment_response::Message;
        for message in [Message::Header(header), Message::Batch(batch)] {
            let message = Some(message);
            receipt
                .accept(pb::ResolveSegmentResponse { message })
                .unwrap();
        }
        let expected = pb::ResolveSegmentRequest {
            audience: Some(Audience::ResolutionId("r".to_owned())),
            resume_token: "t".to_owned(),
            partition: first.partition,
            ..Default::default()
        };
        assert_eq!(next_request(&first, &receipt), expected);
    }
}
