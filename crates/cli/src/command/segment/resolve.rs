//! `muster segment resolve`: an audience on standard output, complete or with an error.

use std::time::Duration;

use muster_client::{
    Retry,
    download::{Download, DownloadError, Event, Receipt, is_withheld},
};
use muster_proto::segments::v1::{self as pb, resolve_segment_request::Audience};
use serde_json::json;

use super::{
    filter_text, reference,
    writer::{AudienceWriter, StreamFormat, View},
};
use crate::{
    error::{CliError, Result},
    output::{self, Noun, grouped, remark},
    session::Session,
    when,
};

/// Stream the users of a segment, a filter or a kept resolution to standard output.
///
/// Safe to pipe: the exit code is 0 only if the stream reached its end and count and digest of what
/// came match it. A connection that breaks is resumed without repeating or losing a user. People who
/// were erased or merged since a resolution was made are left out and counted. A summary goes to
/// standard error.
///
/// CSV is safe to open in a spreadsheet program: an identifier that begins with = + - @ or white
/// space, which it would take for a formula, gets an apostrophe in front; how many do is said at the
/// end. Give --raw, or use NDJSON, where a program reads them. In CSV the full view has aliases as
/// JSON and device ids separated by ';'.
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
    /// Write identifiers in CSV exactly as they are, also those that begin like a formula
    #[arg(long)]
    raw: bool,
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

/// Outlasts a restart of the server, and a reader that takes its time: a kept resolution can be
/// resumed as long as it is kept.
const RETRY: Retry = Retry {
    failures: 10,
    first_wait: Duration::from_millis(200),
    longest_wait: Duration::from_secs(5),
    silence: Duration::from_secs(120),
    deadline: Duration::from_secs(7 * 24 * 60 * 60),
};

/// Runs the command.
pub(super) async fn run(session: &Session, args: ResolveArgs) -> Result<()> {
    let format = args.format.unwrap_or(if session.output.is_json() {
        StreamFormat::Ndjson
    } else {
        StreamFormat::Csv
    });
    let mut download = Download::new(request(session.workspace()?, &args), RETRY);
    let mut writer = AudienceWriter::new(output::stream(), format, args.view, args.raw);
    let mut header_is_due = args.resume.is_none();
    let mut sink = |event: Event<'_>| match event {
        // Not before: an audience that was refused must not look like an empty one.
        Event::Begun(_) if std::mem::take(&mut header_is_due) => writer.write_header(false),
        Event::Begun(_) => Ok(()),
        Event::Users(users) => {
            let mut targeted = users.iter().filter(|user| !is_withheld(user));
            targeted.try_for_each(|user| writer.write(None, user))?;
            // Whoever reads has every user up to the resume token that is kept.
            writer.flush()
        }
        // In JSON, standard error is the summary and nothing else.
        Event::Retrying { .. } if session.output.is_json() => Ok(()),
        Event::Retrying { wait, cause } => {
            remark(&format!(
                "{cause}; trying again in {:.1} s",
                wait.as_secs_f64()
            ));
            Ok(())
        }
    };
    let result = match download.run(&session.connection, &mut sink).await {
        Ok(()) => Ok(()),
        // Nobody knows where in a batch the output ended, so there is no place to go on from.
        Err(DownloadError::Sink(error)) => return Err(error),
        Err(DownloadError::Refused(refusal) | DownloadError::GaveUp { last: refusal, .. }) => {
            Err(session.refused(refusal))
        }
        Err(violation) => Err(CliError::Failed(violation.to_string())),
    };
    writer.flush()?;
    if let Some(text) = writer.remark().filter(|_| !session.output.is_json()) {
        remark(&text);
    }
    summarize(session, download.receipt());
    result
}

fn request(workspace: String, args: &ResolveArgs) -> pb::ResolveSegmentRequest {
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
        resume_token: args.resume.clone().unwrap_or_default(),
        max_cohort_age: args.max_cohort_age.map(when::wire),
        request_id: args.request_id.clone().unwrap_or_default(),
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
}
