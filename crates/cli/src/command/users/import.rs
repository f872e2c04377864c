//! `muster users import`: CSV in, batches out, a count of what became of every row.
//!
//! A thread reads the file and cuts batches; each goes out on the stream as soon as fewer than
//! [`IN_FLIGHT`] wait for their answer. Answers come in order, so the lines of a batch wait in a
//! queue next to it.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use muster_proto::users::v1 as pb;
use prost::Message;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::csv::{UserReader, identifier_count};
use crate::{
    error::{CliError, Result},
    output::{
        self, Column, col, grouped, json,
        progress::{Progress, rate},
        remark,
    },
    session::Session,
};

/// Largest number of identifiers in a batch.
const MAX_IDENTIFIERS: usize = 10_000;

/// Largest size of the users of a batch, in bytes; leaves room below 1 MiB for the rest of the
/// message.
const MAX_BATCH_BYTES: usize = 1_000_000;

/// Batches that may wait for their answer at a time.
const IN_FLIGHT: usize = 4;

/// Refused rows that a table shows; JSON has them all.
const SHOWN_REFUSED: usize = 20;

/// Write users from a CSV file.
///
/// The first line names the columns: external_id, alias:LABEL (any number) and device_id (several
/// ids separated by ';'). Every row is one user. A row that cannot be applied is refused and listed
/// with its line, the others are written; the exit code is then 1. Running the same import again is
/// safe. An audience that `segment resolve` wrote can be imported as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    /// The file; - for standard input
    #[arg(value_name = "FILE.csv")]
    file: PathBuf,
    /// Leave out columns of other names instead of refusing the file
    #[arg(long)]
    ignore_unknown_columns: bool,
}

/// What became of the rows of a file.
#[derive(Debug, Default, Serialize)]
struct Report {
    rows: u64,
    counts: Counts,
    refused_count: u64,
    refused: Vec<Refused>,
    consistency_token: String,
    /// Whether that is every row of the file.
    complete: bool,
    /// Rows that a table does not show are only counted.
    #[serde(skip)]
    keep_all: bool,
}

/// How many rows ended how; they add up to all rows.
#[derive(Debug, Default, Serialize)]
struct Counts {
    created: u64,
    updated: u64,
    unchanged: u64,
    conflict: u64,
    invalid: u64,
}

/// One row that changed nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Refused {
    line: u64,
    outcome: Value,
    detail: String,
}

const REFUSED_COLUMNS: &[Column] = &[col("line").name(), col("outcome"), col("detail")];

impl Report {
    fn refuse(&mut self, mut refused: Vec<Refused>) {
        self.refused_count += refused.len() as u64;
        refused.sort_by_key(|row| row.line);
        if !self.keep_all {
            refused.truncate(SHOWN_REFUSED.saturating_sub(self.refused.len()));
        }
        self.refused.extend(refused);
    }

    /// Adds rows that could not be read, and so were never sent.
    fn add_unreadable(&mut self, refused: Vec<Refused>) {
        self.rows += refused.len() as u64;
        self.counts.invalid += refused.len() as u64;
        self.refuse(refused);
    }

    /// Adds the answer to a batch and the rows that were read between its own.
    fn add(&mut self, batch: Sent, answer: pb::ImportUsersResponse) -> Result<()> {
        let counts = answer.counts.unwrap_or_default();
        let sum =
            counts.created + counts.updated + counts.unchanged + counts.conflict + counts.invalid;
        if sum != batch.lines.len() as u64 {
            return Err(CliError::Failed(format!(
                "the server accounted for {sum} of {} users",
                batch.lines.len()
            )));
        }
        self.rows += sum + batch.unreadable.len() as u64;
        self.counts.created += counts.created;
        self.counts.updated += counts.updated;
        self.counts.unchanged += counts.unchanged;
        self.counts.conflict += counts.conflict;
        self.counts.invalid += counts.invalid + batch.unreadable.len() as u64;
        self.consistency_token = answer.consistency_token;
        let mut refused = batch.unreadable;
        for result in answer.refused {
            let index = usize::try_from(result.index).ok();
            let line = index.and_then(|index| batch.lines.get(index)).copied();
            refused.push(Refused {
                line: line.ok_or_else(|| {
                    CliError::Failed("the server refused a user that was not sent".to_owned())
                })?,
                outcome: json::message("muster.users.v1.UserResult", &result)["outcome"].clone(),
                detail: result.detail,
            });
        }
        self.refuse(refused);
        Ok(())
    }

    fn table(&self) -> String {
        let row = |name: &str, count: u64| vec![name.to_owned(), grouped(&count)];
        let rows = [
            row("created", self.counts.created),
            row("updated", self.counts.updated),
            row("unchanged", self.counts.unchanged),
            row("conflict", self.counts.conflict),
            row("invalid", self.counts.invalid),
            row("= rows", self.rows),
        ];
        let header = vec!["outcome".to_owned(), "users".to_owned()];
        let mut text = output::render(header, &[false, true], rows.into_iter());
        if !self.refused.is_empty() {
            let rows: Vec<Value> = self.refused.iter().map(|r| serde_json::json!(r)).collect();
            text.push('\n');
            text.push_str(&output::table_rows(REFUSED_COLUMNS, &rows));
            let more = self.refused_count - self.refused.len() as u64;
            if more > 0 {
                let more = grouped(&more);
                text.push_str(&format!(
                    "… and {more} more; --output json lists them all\n"
                ));
            }
        }
        text
    }
}

/// A batch on its way, as its answer will need it.
#[derive(Debug, Default)]
struct Sent {
    /// Line of each user, by position in the batch.
    lines: Vec<u64>,
    /// Rows read since the batch before that are no users.
    unreadable: Vec<Refused>,
}

/// Runs the import.
pub(super) async fn run(session: &Session, args: ImportArgs) -> Result<()> {
    let workspace = session.workspace()?;
    let (source, size) = open(&args.file)?;
    let bytes = Arc::new(AtomicU64::new(0));
    let source = Counted(source, Arc::clone(&bytes));
    let failed = |text: String| CliError::Failed(format!("{}: {text}", args.file.display()));
    let reader = UserReader::new(source, args.ignore_unknown_columns).map_err(failed)?;

    // One more is in the hands of the loop below.
    let (sent, mut waiting) = mpsc::channel(IN_FLIGHT - 1);
    let (requests, stream) = mpsc::channel(1);
    let (finished, reading) = oneshot::channel();
    // Not a task of the runtime: that would wait at exit for a read of an idle standard input.
    std::thread::spawn(move || {
        let rest = read_batches(reader, &workspace, |batch, request| {
            // In this order: the answer cannot overtake the lines it needs.
            sent.blocking_send(batch).is_ok() && requests.blocking_send(request).is_ok()
        });
        // Nobody waits for the rest once the stream has failed.
        let _ = finished.send(rest);
    });

    let mut report = Report {
        keep_all: session.output.is_json(),
        ..Report::default()
    };
    let started = Instant::now();
    let mut progress = Progress::start(session.output, "users", size);
    let exchanged = async {
        // Waits for the first batch, so that a file without users does not call at all.
        let Some(mut batch) = waiting.recv().await else {
            return Ok(());
        };
        let mut client = session.connection.users();
        let answers = client.import_users(ReceiverStream::new(stream)).await;
        let mut answers = answers.map_err(|s| session.refused(s))?.into_inner();
        loop {
            let answer = answers.message().await.map_err(|s| session.refused(s))?;
            let answer = answer
                .ok_or_else(|| CliError::Failed("the server ended the stream early".to_owned()))?;
            report.add(batch, answer)?;
            progress.update(report.rows, bytes.load(Ordering::Relaxed));
            match waiting.recv().await {
                Some(next) => batch = next,
                None => return Ok(()),
            }
        }
    }
    .await;
    // Ends the reader where it waits for room that will not come.
    drop(waiting);
    drop(progress);
    let read = match exchanged {
        Ok(()) => reading
            .await
            .map_err(|_| failed("reading it failed".to_owned()))
            .and_then(|rest| rest.map_err(failed)),
        Err(error) => Err(error),
    };
    match read {
        Ok(rest) => {
            report.add_unreadable(rest);
            report.complete = true;
            print(session, &report, started)?;
            if report.refused_count > 0 {
                return Err(CliError::Partial);
            }
            Ok(())
        }
        Err(error) => {
            // What was written stays written, so it has to be told as well.
            if report.rows > 0 {
                print(session, &report, started)?;
                if !session.output.is_json() {
                    remark("the import is incomplete; running it again is safe");
                }
            }
            Err(error)
        }
    }
}

fn print(session: &Session, report: &Report, started: Instant) -> Result<()> {
    if session.output.is_json() {
        return session.output.json(&serde_json::json!(report));
    }
    session.output.text(&report.table())?;
    let elapsed = started.elapsed();
    remark(&format!(
        "{} rows in {:.1} s ({}/s)",
        grouped(&report.rows),
        elapsed.as_secs_f64(),
        grouped(&rate(report.rows, elapsed))
    ));
    if !report.consistency_token.is_empty() {
        remark(&format!("consistency token: {}", report.consistency_token));
    }
    Ok(())
}

/// Opens the file and says how large it is, where that is known.
fn open(path: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let failed = |error: io::Error| CliError::Failed(format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let size = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), size))
}

/// Cuts batches out of rows and hands them to `send` until it has no use for more. Returns the
/// unreadable rows after the last batch.
fn read_batches<R: Read>(
    reader: UserReader<R>,
    workspace: &str,
    mut send: impl FnMut(Sent, pb::ImportUsersRequest) -> bool,
) -> Result<Vec<Refused>, String> {
    let mut batch = Sent::default();
    let mut users = Vec::new();
    let (mut identifiers, mut size) = (0, 0);
    let request = |users: &mut Vec<pb::UserRecord>| pb::ImportUsersRequest {
        workspace: workspace.to_owned(),
        users: std::mem::take(users),
    };
    for row in reader {
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                // What was read before the fault is as good as in a file that ends here.
                if !users.is_empty() {
                    send(batch, request(&mut users));
                }
                return Err(error);
            }
        };
        let user = match row.user.and_then(|user| check_size(&user).map(|()| user)) {
            Ok(user) => user,
            Err(detail) => {
                let outcome = Value::from("invalid");
                batch.unreadable.push(Refused {
                    line: row.line,
                    outcome,
                    detail,
                });
                continue;
            }
        };
        let (more_identifiers, more_size) = (identifier_count(&user), wire_size(&user));
        let full =
            identifiers + more_identifiers > MAX_IDENTIFIERS || size + more_size > MAX_BATCH_BYTES;
        if full {
            if !send(std::mem::take(&mut batch), request(&mut users)) {
                return Ok(Vec::new());
            }
            (identifiers, size) = (0, 0);
        }
        identifiers += more_identifiers;
        size += more_size;
        batch.lines.push(row.line);
        users.push(user);
    }
    if users.is_empty() {
        return Ok(batch.unreadable);
    }
    send(batch, request(&mut users));
    Ok(Vec::new())
}

/// A user that does not fit into a batch of its own could never be sent.
fn check_size(user: &pb::UserRecord) -> Result<(), String> {
    if identifier_count(user) > MAX_IDENTIFIERS {
        return Err(format!(
            "the row has more than {MAX_IDENTIFIERS} identifiers"
        ));
    }
    if wire_size(user) > MAX_BATCH_BYTES {
        return Err("the row is larger than a batch of 1 MiB".to_owned());
    }
    Ok(())
}

/// Bytes that a user adds to a batch: itself, its tag and its length.
fn wire_size(user: &pb::UserRecord) -> usize {
    user.encoded_len() + 6
}

/// Counts what is read, for the progress bar.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(text: &str) -> (Vec<(Sent, pb::ImportUsersRequest)>, Vec<Refused>) {
        let reader = UserReader::new(text.as_bytes(), false).unwrap();
        let mut batches = Vec::new();
        let rest = read_batches(reader, "shop", |sent, request| {
            batches.push((sent, request));
            true
        });
        (batches, rest.unwrap())
    }

    #[test]
    fn batches_keep_within_both_limits_and_lose_no_row() {
        let many: String = (0..25_000).map(|n| format!("u{n},d{n}\n")).collect();
        let (sent, rest) = batches(&format!("external_id,device_id\n{many}"));
        assert_eq!(sent.len(), 5);
        assert!(rest.is_empty());
        let lines: Vec<u64> = sent
            .iter()
            .flat_map(|(sent, _)| sent.lines.clone())
            .collect();
        assert_eq!(lines, (2..=25_001).collect::<Vec<_>>());

        let long: String = (0..5_000).map(|n| format!("{n:0>500}\n")).collect();
        let (sent, _) = batches(&format!("external_id\n{long}"));
        assert!(sent.len() > 1);
        for (_, request) in &sent {
            assert!(request.encoded_len() < 1024 * 1024);
        }
    }

    #[test]
    fn a_user_too_large_for_any_batch_is_refused_by_line() {
        let devices = vec!["d"; 10_001].join(";");
        let (sent, rest) = batches(&format!("device_id\nd1\n{devices}\nd2\n"));
        assert_eq!(sent[0].0.lines, [2, 4]);
        assert_eq!(sent[0].0.unreadable[0].line, 3);
        assert!(rest.is_empty());
    }

    #[test]
    fn the_report_adds_up_and_orders_refusals_by_line() {
        let (mut sent, rest) = batches("external_id,device_id\nu1,\nragged\nu2,d\n,\n");
        assert!(rest.is_empty());
        let answer = pb::ImportUsersResponse {
            counts: Some(pb::UserOutcomeCounts {
                created: 1,
                conflict: 1,
                ..Default::default()
            }),
            refused: vec![pb::UserResult {
                index: 1,
                outcome: pb::UserOutcome::Conflict.into(),
                detail: "device_id: belongs to user 7".to_owned(),
                ..Default::default()
            }],
            consistency_token: "t".to_owned(),
        };
        let mut report = Report::default();
        report.add(sent.remove(0).0, answer).unwrap();
        let lines: Vec<_> = report.refused.iter().map(|r| r.line).collect();
        assert_eq!(lines, [3, 4, 5]);
        assert_eq!(report.rows, 4);
        let json = serde_json::json!(report);
        let counts = json["counts"].as_object().unwrap();
        let sum: u64 = counts.values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(json["rows"], sum);
        assert_eq!(json["refused"][1]["outcome"], "conflict");
        assert!(report.table().contains("= rows"), "{}", report.table());
    }

    #[test]
    fn a_table_shows_the_first_refusals_and_counts_the_rest() {
        let refused: Vec<_> = (0..50)
            .map(|line| Refused {
                line,
                outcome: "invalid".into(),
                detail: String::new(),
            })
            .collect();
        let mut report = Report::default();
        report.add_unreadable(refused.clone());
        assert!(report.table().contains("… and 30 more"));
        let mut all = Report {
            keep_all: true,
            ..Report::default()
        };
        all.add_unreadable(refused);
        assert_eq!(all.refused.len(), 50);
    }

    #[test]
    fn an_answer_that_does_not_add_up_is_an_error() {
        let (mut sent, _) = batches("external_id\nu1\n");
        let answer = pb::ImportUsersResponse::default();
        assert!(Report::default().add(sent.remove(0).0, answer).is_err());
    }
}
