//! `muster import`: what became of uploads.

use std::io::Write;

use clap::builder::PossibleValuesParser;
use muster_proto::{
    ingest::v1 as pb,
    users::v1::{Alias, Identifier, identifier::Kind},
};
use prost_types::Timestamp;
use serde_json::Value;

use super::cohort::{self, CohortName};
use crate::{
    error::{Result, required},
    output::{self, Guard, Noun, Output, grouped, remark, render},
    page::{Limit, advance},
    session::{Session, request_id},
    when,
};

/// Identifiers asked for at once: the largest page the contract allows for rejected identifiers.
const REJECTED_PAGE_SIZE: i32 = 10_000;

const STATES: [&str; 5] = [
    "open",
    "awaiting_confirmation",
    "committed",
    "aborted",
    "expired",
];

/// The verbs of `muster import`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Import {
    /// List the imports of the workspace, newest first
    List {
        /// Only this partner's
        #[arg(long)]
        partner: Option<String>,
        /// Only of this cohort: the partner's id, or its current name
        #[arg(long)]
        cohort: Option<String>,
        /// Only imports in this state
        #[arg(long, value_parser = PossibleValuesParser::new(STATES))]
        state: Option<String>,
        /// Only imports opened since then: a time, a date, or ago such as 7d
        #[arg(long, value_name = "WHEN", value_parser = when::ago)]
        since: Option<Timestamp>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show one import with what became of every identifier
    Show(ImportName),
    /// List every identifier that had no effect: unknown, device of an identified user, or invalid
    Rejected {
        #[command(flatten)]
        import: ImportName,
        /// How to print them [default: table, or ndjson with --output json]
        #[arg(long, value_name = "FORMAT")]
        format: Option<RejectedFormat>,
        /// Write identifiers in CSV exactly as they are, also those that begin like a formula
        #[arg(long)]
        raw: bool,
    },
    /// Publish a replacement that awaits confirmation
    Confirm(ImportName),
    /// End an import that is open or awaits confirmation; nothing of it is published
    Abort(ImportName),
}

/// Names an import.
#[derive(Debug, clap::Args)]
pub(crate) struct ImportName {
    /// Id of the import
    #[arg(value_name = "IMPORT_ID")]
    import_id: String,
    /// Slug of its partner; needed only where several have an import with this id
    #[arg(long, default_value = "", hide_default_value = true)]
    partner: String,
}

/// How rejected identifiers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RejectedFormat {
    /// For people; control characters are spelled out
    Table,
    /// position,effect,reason,kind,label,id; safe to open in a spreadsheet program unless --raw
    Csv,
    /// An object a line
    Ndjson,
}

impl Import {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List {
                partner,
                cohort,
                state,
                since,
                limit,
            } => {
                let wanted = pb::ListImportsRequest {
                    partner: partner.unwrap_or_default(),
                    state: state_filter(state.as_deref()).into(),
                    since,
                    ..Default::default()
                };
                list(session, wanted, cohort, limit).await
            }
            Self::Show(name) => show(session, name).await,
            Self::Rejected {
                import,
                format,
                raw,
            } => {
                let fallback = if session.output.is_json() {
                    RejectedFormat::Ndjson
                } else {
                    RejectedFormat::Table
                };
                rejected(session, import, format.unwrap_or(fallback), raw).await
            }
            Self::Confirm(name) => confirm(session, name).await,
            Self::Abort(name) => abort(session, name).await,
        }
    }
}

async fn list(
    session: &Session,
    mut wanted: pb::ListImportsRequest,
    cohort: Option<String>,
    limit: Limit,
) -> Result<()> {
    wanted.workspace = session.workspace()?;
    if let Some(cohort) = cohort {
        let partner = Some(wanted.partner).filter(|partner| !partner.is_empty());
        let found = cohort::find(session, &CohortName { cohort, partner }).await?;
        (wanted.partner, wanted.cohort_id) = (found.partner, found.cohort_id);
    }
    let mut client = session.connection.ingest();
    let imports = limit
        .collect(async |page_size, page_token| {
            let request = pb::ListImportsRequest {
                page_size,
                page_token,
                ..wanted.clone()
            };
            let page = session
                .call(async || client.list_imports(request.clone()).await)
                .await?;
            Ok((page.imports, page.next_page_token))
        })
        .await?;
    session.output.list(&imports)
}

fn state_filter(name: Option<&str>) -> pb::ImportState {
    name.map(|name| format!("IMPORT_STATE_{}", name.to_uppercase()))
        .and_then(|name| pb::ImportState::from_str_name(&name))
        .unwrap_or_default()
}

async fn show(session: &Session, name: ImportName) -> Result<()> {
    let request = pb::GetImportRequest {
        workspace: session.workspace()?,
        import_id: name.import_id,
        partner: name.partner,
    };
    let mut client = session.connection.ingest();
    let found = session
        .call(async || client.get_import(request.clone()).await)
        .await?;
    let import = required(found.import)?;
    session.output.show(&import)?;
    if session.output.is_json() {
        return Ok(());
    }
    if import.state() == pb::ImportState::AwaitingConfirmation {
        remark("preview: nothing is published until `muster import confirm`");
    }
    show_summary(session.output, &import.json()["summary"])
}

async fn confirm(session: &Session, name: ImportName) -> Result<()> {
    let request = pb::ConfirmImportRequest {
        workspace: session.workspace()?,
        import_id: name.import_id,
        partner: name.partner,
        request_id: request_id(),
    };
    let mut client = session.connection.ingest();
    let confirmed = session
        .call(async || client.confirm_import(request.clone()).await)
        .await?;
    let committed = required(confirmed.committed)?;
    session.output.show(&committed)?;
    if session.output.is_json() {
        return Ok(());
    }
    show_summary(session.output, &committed.json()["summary"])
}

async fn abort(session: &Session, name: ImportName) -> Result<()> {
    let request = pb::AbortImportRequest {
        workspace: session.workspace()?,
        import_id: name.import_id,
        partner: name.partner,
        request_id: request_id(),
    };
    let mut client = session.connection.ingest();
    let aborted = session
        .call(async || client.abort_import(request.clone()).await)
        .await?;
    session.output.show(&required(aborted.import)?)
}

/// Prints what became of every identifier, as a sum, and what it did to the cohort.
fn show_summary(output: Output, summary: &Value) -> Result<()> {
    match summary_text(summary) {
        Some(text) => output.text(&text),
        None => Ok(()),
    }
}

fn summary_text(summary: &Value) -> Option<String> {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let line = |name: &str, count: u64| vec![name.replace('_', " "), grouped(&count)];
    let outcomes = summary.get("outcomes")?.as_object()?;
    let mut lines: Vec<_> = outcomes
        .iter()
        .map(|(outcome, count)| line(outcome, number(count)))
        .collect();
    lines.push(line("= received", number(&summary["received"])));
    let header = vec!["outcome".to_owned(), "identifiers".to_owned()];
    let sum = render(header, &[false, true], lines.into_iter());
    let members = [
        line("before", number(&summary["members_before"])),
        line("+ added", number(&summary["members_added"])),
        line("- removed", number(&summary["members_removed"])),
        line("= after", number(&summary["members_after"])),
    ];
    let header = vec!["members".to_owned(), String::new()];
    let members = render(header, &[false, true], members.into_iter());
    Some(format!("\n{sum}\n{members}"))
}

/// Prints page after page, so that a list of any length needs the memory of one page.
async fn rejected(
    session: &Session,
    name: ImportName,
    format: RejectedFormat,
    raw: bool,
) -> Result<()> {
    let mut guard = Guard::new(raw);
    let mut request = pb::ListRejectedIdentifiersRequest {
        workspace: session.workspace()?,
        import_id: name.import_id,
        partner: name.partner,
        page_size: REJECTED_PAGE_SIZE,
        page_token: String::new(),
    };
    let mut client = session.connection.ingest();
    let mut out = output::stream();
    if format == RejectedFormat::Csv {
        writeln!(out, "position,effect,reason,kind,label,id")?;
    }
    let mut count: u64 = 0;
    loop {
        let page = session
            .call(async || client.list_rejected_identifiers(request.clone()).await)
            .await?;
        match format {
            RejectedFormat::Table if page.identifiers.is_empty() => {}
            // Pages are tables of their own: the width of all of them is only known at the end.
            RejectedFormat::Table => {
                let rows: Vec<_> = page.identifiers.iter().map(Noun::json).collect();
                let table = output::table_rows(pb::RejectedIdentifier::COLUMNS, &rows);
                out.write_all(table.as_bytes())?;
            }
            RejectedFormat::Csv => write_csv(&mut out, &mut guard, &page.identifiers)?,
            RejectedFormat::Ndjson => {
                for identifier in &page.identifiers {
                    writeln!(out, "{}", identifier.json())?;
                }
            }
        }
        count += page.identifiers.len() as u64;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = advance(&request.page_token, page.next_page_token)?;
    }
    out.flush()?;
    if let Some(text) = guard.remark().filter(|_| !session.output.is_json()) {
        remark(&text);
    }
    if count == 0 && !session.output.is_json() {
        remark("no rejected identifiers");
    }
    Ok(())
}

fn write_csv(
    out: &mut impl Write,
    guard: &mut Guard,
    identifiers: &[pb::RejectedIdentifier],
) -> Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    for rejected in identifiers {
        let effect = if rejected.removal { "remove" } else { "add" };
        let json = rejected.json();
        let reason = json["reason"].as_str().unwrap_or_default();
        let (kind, label, id) = parts(rejected.identifier.as_ref());
        let position = rejected.position.to_string();
        let (label, id) = (guard.cell(label), guard.cell(id));
        writer.write_record([&position, effect, reason, kind, &label, &id])?;
    }
    writer.flush()?;
    Ok(())
}

/// Kind, label and id; all empty if the identifier was erased since.
fn parts(identifier: Option<&Identifier>) -> (&'static str, &str, &str) {
    match identifier.and_then(|identifier| identifier.kind.as_ref()) {
        Some(Kind::ExternalId(id)) => ("external_id", "", id),
        Some(Kind::Alias(Alias { label, name })) => ("alias", label, name),
        Some(Kind::DeviceId(id)) => ("device_id", "", id),
        None => ("", "", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_on_the_command_line_is_one_of_the_contract() {
        for state in STATES {
            assert_ne!(
                state_filter(Some(state)),
                pb::ImportState::Unspecified,
                "{state}"
            );
        }
        assert_eq!(state_filter(None), pb::ImportState::Unspecified);
    }

    #[test]
    fn the_summary_shows_every_outcome_and_their_sum() {
        let import = pb::Import {
            summary: Some(pb::ImportSummary {
                received: 1_003,
                outcomes: Some(pb::OutcomeCounts {
                    added: 1_000,
                    unknown: 3,
                    ..Default::default()
                }),
                members_after: 1_000,
                members_added: 1_000,
                ..Default::default()
            }),
            ..Default::default()
        };
        let text = summary_text(&import.json()["summary"]).unwrap();
        for part in [
            "added",
            "device of identified user",
            "superseded",
            "invalid",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(
            text.contains("= received                       1,003"),
            "{text}"
        );
        assert!(summary_text(&Value::Null).is_none());
    }

    #[test]
    fn rejected_identifiers_come_out_as_they_came_in() {
        let rejected = |position, kind| pb::RejectedIdentifier {
            position,
            identifier: Some(Identifier { kind: Some(kind) }),
            reason: pb::RejectionReason::Invalid.into(),
            removal: position == 1,
        };
        let alias = Alias {
            label: "mail".to_owned(),
            name: "=a,\"b\"".to_owned(),
        };
        let rejected = [
            rejected(0, Kind::ExternalId("a\nb".to_owned())),
            rejected(1, Kind::Alias(alias)),
        ];
        let mut out = Vec::new();
        write_csv(&mut out, &mut Guard::new(true), &rejected).unwrap();
        let expected = "0,add,invalid,external_id,,\"a\nb\"\n\
                        1,remove,invalid,alias,mail,\"=a,\"\"b\"\"\"\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        write_csv(&mut out, &mut Guard::new(false), &rejected).unwrap();
        let expected = expected.replace("\"=a", "\"'=a");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
