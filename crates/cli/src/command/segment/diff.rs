//! `muster segment diff`: who entered and who left between two resolutions.

use std::io::Write;

use muster_client::download::is_withheld;
use muster_proto::segments::v1::{self as pb, diff_resolutions_response::Message};

use super::writer::{AudienceWriter, StreamFormat, View};
use crate::{
    error::{CliError, Result},
    output::{self, Noun, grouped, remark},
    session::Session,
};

/// Compare two resolutions: how many users entered, left and stayed.
///
/// With --list the users go to standard output, first those who left, then those who entered, and
/// the counts to standard error; CSV as of `segment resolve`. People who were erased or merged since are left out and counted.
#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    /// Id of the earlier resolution; `segment resolutions` lists them
    #[arg(value_name = "BASE")]
    base: String,
    /// Id of the later resolution
    #[arg(value_name = "TARGET")]
    target: String,
    /// List the users
    #[arg(long)]
    list: bool,
    /// How to write the users [default: csv, or ndjson with --output json]
    #[arg(long, value_name = "FORMAT", requires = "list")]
    format: Option<StreamFormat>,
    /// Write identifiers in CSV exactly as they are, also those that begin like a formula
    #[arg(long, requires = "list")]
    raw: bool,
    /// What to write of each user
    #[arg(long, value_name = "VIEW", default_value = "external-id")]
    view: View,
}

/// What a stream promised against what came.
#[derive(Debug, Default)]
struct Tally {
    header: Option<pb::DiffHeader>,
    entered: u64,
    left: u64,
    withheld: u64,
}

impl Tally {
    fn add(&mut self, batch: &pb::DiffBatch) -> Result<&'static str, &'static str> {
        let count = batch.users.len() as u64;
        self.withheld += batch.users.iter().filter(|user| is_withheld(user)).count() as u64;
        match batch.side() {
            pb::DiffSide::Entered => {
                self.entered += count;
                Ok("entered")
            }
            pb::DiffSide::Left => {
                self.left += count;
                Ok("left")
            }
            pb::DiffSide::Unspecified => Err("a batch is on neither side"),
        }
    }

    /// Whether what came is what was promised.
    fn adds_up(&self) -> bool {
        self.header
            .is_some_and(|h| (h.entered_count, h.left_count) == (self.entered, self.left))
    }
}

/// Runs the command.
pub(super) async fn run(session: &Session, args: DiffArgs) -> Result<()> {
    let format = args.format.unwrap_or(if session.output.is_json() {
        StreamFormat::Ndjson
    } else {
        StreamFormat::Csv
    });
    let view = if args.list { args.view } else { View::UserNo };
    let request = pb::DiffResolutionsRequest {
        workspace: session.workspace()?,
        base_resolution_id: args.base,
        target_resolution_id: args.target,
        view: view.wire().into(),
    };
    let mut client = session.connection.segments();
    let mut messages = session
        .call(async || client.diff_resolutions(request.clone()).await)
        .await?;
    let mut writer = AudienceWriter::new(output::stream(), format, view, args.raw);
    if args.list {
        writer.write_header(true)?;
    }
    let mut tally = Tally::default();
    let incomplete = |text: &str| CliError::Failed(format!("the list is incomplete: {text}"));
    loop {
        let message = messages.message().await.map_err(|s| session.refused(s))?;
        match message.and_then(|response| response.message) {
            Some(Message::Header(header)) if tally.header.is_none() => {
                if !args.list {
                    return session.output.show(&header);
                }
                tally.header = Some(header);
            }
            Some(Message::Batch(batch)) => write(&mut writer, &mut tally, &batch)?,
            Some(Message::End(_)) if tally.adds_up() => break,
            Some(Message::Header(_)) => return Err(incomplete("a second header came")),
            Some(Message::End(_)) => return Err(incomplete("the counts do not match the header")),
            None => return Err(incomplete("the stream ended without its end marker")),
        }
    }
    writer.flush()?;
    if let Some(text) = writer.remark().filter(|_| !session.output.is_json()) {
        remark(&text);
    }
    summarize(session, &tally);
    Ok(())
}

fn write(
    writer: &mut AudienceWriter<impl Write>,
    tally: &mut Tally,
    batch: &pb::DiffBatch,
) -> Result<()> {
    let side = tally
        .add(batch)
        .map_err(|problem| CliError::Failed(problem.to_owned()))?;
    for user in batch.users.iter().filter(|user| !is_withheld(user)) {
        writer.write(Some(side), user)?;
    }
    writer.flush()
}

fn summarize(session: &Session, tally: &Tally) {
    let Some(header) = tally.header else {
        return;
    };
    if session.output.is_json() {
        let mut summary = header.json();
        summary["withheld_count"] = tally.withheld.into();
        return remark(&summary.to_string());
    }
    remark(&format!(
        "{} entered, {} left, {} stayed; {} withheld",
        grouped(&header.entered_count),
        grouped(&header.left_count),
        grouped(&header.stayed_count),
        grouped(&tally.withheld)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(side: pb::DiffSide, users: usize) -> pb::DiffBatch {
        pb::DiffBatch {
            side: side.into(),
            users: vec![pb::AudienceMember::default(); users],
        }
    }

    #[test]
    fn both_sides_have_to_match_the_header() {
        let mut tally = Tally::default();
        assert!(!tally.adds_up());
        tally.header = Some(pb::DiffHeader {
            entered_count: 2,
            left_count: 1,
            stayed_count: 9,
        });
        assert_eq!(tally.add(&batch(pb::DiffSide::Left, 1)), Ok("left"));
        assert_eq!(tally.add(&batch(pb::DiffSide::Entered, 1)), Ok("entered"));
        assert!(!tally.adds_up());
        assert_eq!(tally.add(&batch(pb::DiffSide::Entered, 1)), Ok("entered"));
        assert!(tally.adds_up());
        assert!(tally.add(&batch(pb::DiffSide::Unspecified, 1)).is_err());
    }
}
