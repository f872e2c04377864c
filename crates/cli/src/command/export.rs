//! `muster export`: the partner's side. Campaign audience files in, cohorts out.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use futures::{StreamExt as _, stream};
use indicatif::MultiProgress;
use muster_bridge::export::{
    Delivery, Event, ExportError, FileReport, Options, RestTarget, Target, export, file_stem,
};
use muster_domain::import::{Mode, Outcomes};
use serde_json::{Value, json};

use crate::{
    endpoints::Endpoints,
    error::{CliError, Result},
    global::{Global, Secret},
    output::{Column, Output, col, progress::Progress, remark, table_rows},
    session::Session,
};

/// Files sent at the same time.
const AT_ONCE: usize = 4;

/// Malformed rows that a table lists; JSON has them all.
const SHOWN_MALFORMED: usize = 20;

/// Send campaign audience files, each as a cohort named after it.
///
/// A file is CSV, gzipped or not, with a header that names external_id, device_id or alias:LABEL;
/// of several such columns the first that is not empty identifies the row. A file is the whole
/// audience: whoever is not in it leaves the cohort, unless --delta is given. Over REST people can
/// only be added, because the contract has no replacement. A file that names nobody would empty the
/// cohort and is refused, unless --allow-empty is given.
///
/// Every row is accounted for: the table says what became of each, and `muster import rejected`
/// lists those that had no effect. A malformed row is counted and listed, the others are sent. The
/// exit code is 1 if a file was not published or had malformed rows.
#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    /// The files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Partner to send as
    #[arg(long, value_name = "SLUG")]
    partner: String,
    /// Add to the cohort instead of replacing its members
    #[arg(long)]
    delta: bool,
    /// How to send
    #[arg(long, value_name = "WAY", default_value = "grpc")]
    via: Via,
    /// The partner's id of the cohort, with a single file [default: the file's name]
    #[arg(long, value_name = "ID")]
    cohort_id: Option<String>,
    /// Name of the cohort, with a single file [default: the file's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Id of the import, with a single file, to resume one of an earlier run
    #[arg(long, value_name = "ID")]
    import_id: Option<String>,
    /// Largest share of the members, 0 to 1, to remove without confirmation
    #[arg(long, value_name = "SHARE", conflicts_with = "delta")]
    max_removed: Option<f64>,
    /// Empty the cohort if the file names nobody, instead of refusing the file
    #[arg(long, conflicts_with = "delta")]
    allow_empty: bool,
    /// URL of the REST endpoint, with --via rest [default: from DIR/endpoints.json]
    #[arg(
        long,
        env = "MUSTER_REST_ENDPOINT",
        value_name = "URL",
        hide_env_values = true
    )]
    rest_endpoint: Option<String>,
    /// The partner's API key, with --via rest
    #[arg(
        long,
        env = "MUSTER_PARTNER_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    partner_api_key: Option<Secret>,
    /// The workspace's data import key, with --via rest
    #[arg(
        long,
        env = "MUSTER_CLIENT_SECRET",
        value_name = "KEY",
        hide_env_values = true
    )]
    client_secret: Option<Secret>,
}

/// How files travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Via {
    /// One resumable import a file, published atomically.
    Grpc,
    /// Calls of the HTTP contract, to any endpoint that speaks it.
    Rest,
}

impl Export {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let single = [&self.cohort_id, &self.name, &self.import_id];
        if self.files.len() > 1 && single.iter().any(|option| option.is_some()) {
            return Err(CliError::Usage(
                "--cohort-id, --name and --import-id go with a single file".to_owned(),
            ));
        }
        self.require_distinct_cohorts()?;
        let target = self.target(global)?;
        let options = self.options();
        let output = Output::new(global.output);
        let bars = MultiProgress::new();
        let sent = self.files.iter().map(|file| {
            let mut progress = Progress::among(&bars, output, &file_stem(file), "ids");
            let (target, options) = (&target, &options);
            async move {
                let mut show = |event| show(&mut progress, file, event);
                export(file, target, options, &mut show).await
            }
        });
        let sent: Vec<_> = stream::iter(sent).buffered(AT_ONCE).collect().await;
        let rows = self.files.iter().zip(&sent).map(|(file, sent)| match sent {
            Ok(report) => report_json(report),
            Err(error) => json!({
                "file": file,
                "cohort_id": self.cohort_id.clone().unwrap_or_else(|| file_stem(file)),
                "name": self.name.clone().unwrap_or_else(|| file_stem(file)),
                "state": "failed",
                "error": told(error),
            }),
        });
        let rows: Vec<Value> = rows.collect();
        if output.is_json() {
            output.json(&Value::Array(rows))?;
        } else {
            output.text(&table_rows(COLUMNS, &rows))?;
            for (file, sent) in self.files.iter().zip(&sent) {
                match sent {
                    Ok(report) => explain(report),
                    Err(error) => remark(&format!("{}: {}", file.display(), told(error))),
                }
            }
        }
        let complete = |sent: &Result<FileReport, _>| match sent {
            Ok(report) => {
                report.tally.malformed.is_empty()
                    && !matches!(report.delivery, Delivery::AwaitingConfirmation { .. })
            }
            Err(_) => false,
        };
        match sent.iter().all(complete) {
            true => Ok(()),
            false => Err(CliError::Partial),
        }
    }

    /// Files of one name in several directories would replace each other.
    fn require_distinct_cohorts(&self) -> Result<()> {
        let mut stems = HashSet::new();
        match self
            .files
            .iter()
            .map(|file| file_stem(file))
            .find(|stem| !stems.insert(stem.clone()))
        {
            Some(twice) => Err(CliError::Usage(format!(
                "two of the files would be the cohort {twice:?}: send them one by one, each with \
                 --cohort-id and --name"
            ))),
            None => Ok(()),
        }
    }

    fn target(&self, global: &Global) -> Result<Target> {
        if self.via == Via::Grpc {
            let session = Session::open(global)?;
            return Ok(Target::Grpc {
                workspace: session.any_workspace(false),
                connection: session.connection,
                partner: self.partner.clone(),
            });
        }
        // An empty variable counts as none, as everywhere.
        let key = |key: &Option<Secret>, flag, variable| match key {
            Some(key) if !key.reveal().is_empty() => Ok(key.reveal().to_owned()),
            _ => Err(CliError::Usage(format!(
                "--via rest needs {flag}, or {variable} in the environment"
            ))),
        };
        let base_url = match &self.rest_endpoint {
            Some(url) if !url.is_empty() => url.clone(),
            _ => Endpoints::read(&global.data_dir())?.rest.ok_or_else(|| {
                CliError::Usage("no REST endpoint is known: give --rest-endpoint".to_owned())
            })?,
        };
        Ok(Target::Rest(RestTarget {
            base_url,
            partner: self.partner.clone(),
            partner_api_key: key(
                &self.partner_api_key,
                "--partner-api-key",
                "MUSTER_PARTNER_API_KEY",
            )?,
            client_secret: key(
                &self.client_secret,
                "--client-secret",
                "MUSTER_CLIENT_SECRET",
            )?,
        }))
    }

    fn options(&self) -> Options {
        let mode = match self.delta || self.via == Via::Rest {
            true => Mode::Delta,
            false => Mode::Replace,
        };
        Options {
            cohort_id: self.cohort_id.clone(),
            name: self.name.clone(),
            import_id: self.import_id.clone(),
            max_removed_fraction: self.max_removed,
            allow_empty: self.allow_empty,
            ..Options::new(mode)
        }
    }
}

fn show(progress: &mut Progress, file: &Path, event: Event) {
    match event {
        Event::Advanced {
            read_bytes,
            total_bytes,
            durable,
        } => {
            progress.set_total(total_bytes);
            progress.update(durable, read_bytes);
        }
        Event::Committing { .. } => {}
        Event::Retrying { wait, cause } => remark(&format!(
            "{}: {cause}; trying again in {:.1} s",
            file.display(),
            wait.as_secs_f64()
        )),
    }
}

const COLUMNS: &[Column] = &[
    col("name").titled("cohort"),
    col("state"),
    col("version"),
    col("rows"),
    col("outcomes.added").titled("added"),
    col("outcomes.already_member").titled("already in"),
    col("members_removed").titled("left"),
    col("outcomes.unknown").titled("unknown"),
    col("outcomes.device_of_identified_user").titled("device of identified"),
    col("outcomes.duplicate").titled("duplicate"),
    col("outcomes.invalid").titled("invalid"),
    col("malformed_count").titled("malformed"),
    col("members_after").titled("members"),
];

fn report_json(report: &FileReport) -> Value {
    let malformed = report.tally.malformed.iter().map(|row| {
        json!({ "line": row.line, "last_line": row.last_line, "defect": row.defect.to_string() })
    });
    let mut json = json!({
        "file": report.file,
        "cohort_id": report.cohort_id,
        "name": report.name,
        "rows": report.tally.rows,
        "identifiers": report.tally.identifiers,
        "malformed_count": report.tally.malformed.len(),
        "malformed": malformed.collect::<Vec<_>>(),
    });
    let (state, more) = match &report.delivery {
        Delivery::Committed {
            import_id,
            summary,
            version,
            consistency_token,
        } => {
            let mut more = serde_json::to_value(summary).unwrap_or_default();
            more["import_id"] = import_id.clone().into();
            more["version"] = (*version).into();
            more["consistency_token"] = consistency_token.clone().into();
            ("committed", more)
        }
        Delivery::AwaitingConfirmation { import_id, preview } => {
            let mut more = serde_json::to_value(preview).unwrap_or_default();
            more["import_id"] = import_id.clone().into();
            ("awaiting_confirmation", more)
        }
        Delivery::Calls {
            calls,
            outcomes,
            version,
        } => {
            let outcomes: &Option<Outcomes> = outcomes;
            let more = json!({ "calls": calls, "outcomes": outcomes, "version": version });
            ("sent", more)
        }
    };
    json["state"] = state.into();
    json["note"] = report.note().into();
    if let Value::Object(more) = more {
        for (name, value) in more {
            json[name] = value;
        }
    }
    json
}

/// What a table has no room for.
fn explain(report: &FileReport) {
    let file = report.file.display();
    if let Some(note) = report.note() {
        remark(&format!("{file}: {note}"));
    }
    if let Delivery::AwaitingConfirmation { import_id, .. } = &report.delivery {
        remark(&format!(
            "{file}: would remove more members than allowed; look at it with `muster import show \
             {import_id}`, then `muster import confirm {import_id}` or `muster import abort \
             {import_id}`"
        ));
    }
    let malformed = &report.tally.malformed;
    for row in malformed.iter().take(SHOWN_MALFORMED) {
        remark(&format!("{file}, {row}"));
    }
    if let Some(more @ 1..) = malformed.len().checked_sub(SHOWN_MALFORMED) {
        remark(&format!(
            "{file}: {more} more malformed rows; --output json lists them all"
        ));
    }
}

/// Why a file was not sent, and what to do where that is a matter of the command line.
fn told(error: &ExportError) -> String {
    match error {
        ExportError::Nobody(_) => format!("{error}: give --allow-empty if that is meant"),
        error => chain(error),
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Several layers repeat the text of the one below.
        if !text.contains(&inner_text) {
            text.push_str(&format!(": {inner_text}"));
        }
        cause = inner.source();
    }
    text
}
