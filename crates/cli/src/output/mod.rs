//! What people and scripts read: tables or JSON on standard output, remarks on standard error.
//!
//! A [`Noun`] has one description that serves both forms: its JSON, and the columns that pick from
//! that JSON for a table. Columns of messages are checked against the contract by a test.

mod guard;
pub(crate) mod json;
mod nouns;
pub(crate) mod progress;
mod table;

use std::{
    io::{self, BufWriter, StdoutLock, Write},
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    deployment::Listeners,
    error::{CliError, Result},
};

pub(crate) use guard::Guard;
pub(crate) use table::{
    Column, col, details, grouped, render, rows as table_rows, show_control_characters,
};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people: aligned columns.
    Table,
    /// For programs: JSON with stable names.
    Json,
}

/// A thing that commands print.
pub(crate) trait Noun {
    /// What several are called, in the remark that there are none.
    const PLURAL: &'static str;
    /// What a table shows of it, by path in the JSON.
    const COLUMNS: &'static [Column];

    /// The thing with all its fields.
    fn json(&self) -> Value;
}

/// Prints results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    /// Prints in the given form.
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether results are for programs.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints one thing with all its columns, one a line; those that are empty are left out.
    pub(crate) fn show<N: Noun>(self, noun: &N) -> Result<()> {
        let json = noun.json();
        match self.format {
            Format::Json => self.json(&json),
            Format::Table => self.text(&table::details(N::COLUMNS, &json)),
        }
    }

    /// Prints a thing that was just created with its secret, which nobody can ask for again; `more`
    /// are fields that only the JSON has.
    ///
    /// # Errors
    /// If there is no secret: the server has answered the same request before, and that answer got
    /// lost.
    pub(crate) fn show_secret<N: Noun>(
        self,
        noun: &N,
        secret: &str,
        more: &[(&str, Value)],
    ) -> Result<()> {
        let mut json = noun.json();
        if self.is_json() {
            json["secret"] = match secret {
                "" => Value::Null,
                secret => secret.into(),
            };
            for (name, value) in more {
                json[*name] = value.clone();
            }
            self.json(&json)?;
        } else {
            let mut text = table::details(N::COLUMNS, &json);
            if !secret.is_empty() {
                text.push_str(&format!(
                    "\nsecret: {secret}\nThis secret is shown once and kept nowhere: store it now.\n"
                ));
            }
            self.text(&text)?;
        }
        if secret.is_empty() {
            return Err(CliError::Failed(
                "it was created, but the answer with its secret got lost: revoke it and create another"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// Prints a list: a row each, or one array.
    pub(crate) fn list<N: Noun>(self, nouns: &[N]) -> Result<()> {
        let rows: Vec<Value> = nouns.iter().map(Noun::json).collect();
        match self.format {
            Format::Json => self.json(&Value::Array(rows)),
            Format::Table if rows.is_empty() => {
                remark(&format!("no {}", N::PLURAL));
                Ok(())
            }
            Format::Table => self.text(&table::rows(N::COLUMNS, &rows)),
        }
    }

    /// Prints JSON over several lines.
    pub(crate) fn json(self, value: &Value) -> Result<()> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::Failed(error.to_string()))?;
        self.text(&format!("{text}\n"))
    }

    /// Prints text as it is.
    pub(crate) fn text(self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }
}

/// Says that servers are ready, and where they listen.
pub(crate) fn ready(
    format: Format,
    listeners: &Listeners,
    operator_token_file: Option<&Path>,
) -> Result<()> {
    let output = Output::new(format);
    let (grpc, rest) = (listeners.grpc_url(), listeners.rest_url());
    let console = listeners.console_url();
    if output.is_json() {
        return output.text(&format!(
            "{}\n",
            json!({
                "state": "ready",
                "grpc": grpc,
                "rest": rest,
                "console": console,
                "operator_token_file": operator_token_file,
            })
        ));
    }
    let mut line = "Muster is ready:".to_owned();
    for (what, url) in [("gRPC", grpc), ("REST", rest), ("console", console)] {
        if let Some(url) = url {
            line.push_str(&format!(" {what} {url},"));
        }
    }
    if let Some(file) = operator_token_file {
        line.push_str(&format!(" operator token in {},", file.display()));
    }
    output.text(&format!("{}\n", line.trim_end_matches(',')))
}

/// Says which steps a migration applied.
pub(crate) fn migrated(format: Format, versions: &[i64]) -> Result<()> {
    let output = Output::new(format);
    if output.is_json() {
        return output.json(&json!({ "applied": versions }));
    }
    output.text(&match versions {
        [] => "the schema is up to date\n".to_owned(),
        versions => format!("applied the migrations {versions:?}\n"),
    })
}

/// Standard output for long streams.
pub(crate) fn stream() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(256 * 1024, io::stdout().lock())
}

/// Says something on standard error. If that is closed, there is nobody left to say it to.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
