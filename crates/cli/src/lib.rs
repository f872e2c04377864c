//! The `muster` command.
//!
//! Owns the command line: what people and scripts type, what they read, and the exit code. It talks
//! to a running Muster through [`muster_client::Connection`] like any other caller, and knows no
//! rule about cohorts or users that the servers do not enforce themselves.
//!
//! A command is a file in `command/` named after its noun: arguments, then one short function a
//! verb. Commands that need a running Muster get a `Session`; those that do not (`up`, `serve`,
//! `migrate`, `backup`, `restore`) get the global flags. What a noun looks like, in a table and in JSON, is said once, in
//! `output/nouns.rs`.

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;

mod command;
mod database;
pub mod deployment;
pub mod endpoints;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod global;
mod identifier;
mod output;
mod page;
mod postgres_tools;
mod session;
mod signals;
mod size;
mod when;

/// Self-hosted cohort import and audience service.
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = EXIT_CODES,
    after_long_help = CONVENTIONS
)]
struct Cli {
    #[command(flatten)]
    global: global::Global,
    #[command(subcommand)]
    command: command::Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 the operation failed or was done in part; \
                          2 the command line is wrong.";

const CONVENTIONS: &str = "\
Users are named the same way by every command:
  external_id=ID        the company's id of an identified user; a bare ID means the same
  alias:LABEL=NAME      a labelled name, such as alias:newsletter=ann@example.org
  device_id=ID          a device
  user_no=N             the number of the user in the workspace (`users find`, `segment check`)

Durations are written 90d, 24h, 30m, 15s or combined, as in 1d12h; times are RFC 3339, a date
(midnight UTC), or a duration from now (`--expires 90d`) or ago (`--since 7d`).

Exit codes:
  0  done
  1  the operation failed, or was done in part: a record was refused, a stream did not reach its end
  2  the command line is wrong: an unknown flag, a malformed value, no workspace

Results go to standard output, everything else to standard error. With `--output json` every command
writes JSON, lists as one array, streams as a line per record; an error is then an object
{\"error\": {\"code\", \"reason\", \"message\", \"fields\", …}} on standard error.";

/// Runs the command line `args`, whose first item is the name of the program, and says how it went:
/// 0 done, 1 failed, 2 wrong usage.
pub async fn run(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to say it to if the terminal is gone.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let format = cli.global.output;
    match cli.command.run(&cli.global).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.report(format);
            error.exit_code()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::output::Format;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_subcommand() {
        let before = "muster --workspace shop --output json --endpoint http://h:1 cohort list";
        let after = "muster cohort list --workspace shop --output json --endpoint http://h:1";
        for line in [before, after] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.global.workspace.as_deref(), Some("shop"), "{line}");
            assert_eq!(cli.global.endpoint.as_deref(), Some("http://h:1"), "{line}");
            assert_eq!(cli.global.output, Format::Json, "{line}");
        }
    }

    #[test]
    fn a_token_shows_neither_in_help_nor_in_debug_output() {
        let token = "mst_tok_hunter2";
        let line = ["muster", "--token", token, "workspace", "list"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert!(!format!("{cli:?}").contains(token));
        let command = Cli::command();
        let argument = command.get_arguments().find(|a| a.get_id() == "token");
        assert!(argument.unwrap().is_hide_env_values_set());
    }

    /// Every line here is one that a person would type after reading the documentation.
    #[test]
    fn documented_lines_parse() {
        for line in [
            "workspace create shop --name Shop",
            "partner enable tinyclues --workspace shop",
            "partner key create tinyclues --label prod",
            "key create --workspace shop --partner tinyclues --expires 90d",
            "key create --partner tinyclues --allow-from 192.0.2.0/24 --allow-from 2001:db8::1",
            "key restrict 0195 --allow-from 10.0.0.0/8",
            "token restrict 0195 --anywhere",
            "import show i1 --partner tinyclues",
            "key revoke 0195 --partner tinyclues",
            "key rotate 0195 --overlap 24h",
            "token create campaigns --scope segments:read --scope users:read --expires 90d",
            "integration show --workspace shop --partner tinyclues",
            "users import people.csv",
            "users import -",
            "users find alias:newsletter=ann@example.org",
            "users identify device_id=d1 u1",
            "users merge external_id=a b",
            "users delete a b device_id=c",
            "cohort list spring --partner tinyclues --archived",
            "cohort list --order stalest --limit 10",
            "cohort versions spring --partner tinyclues",
            "cohort rename spring autumn --partner tinyclues",
            "import list --cohort spring --state committed --since 24h",
            "segment list buyers --cohort spring --partner tinyclues",
            "segment resolutions buyers --since 2026-11-03 --until 2026-11-04",
            "import rejected i1 --format csv",
            "segment create buyers tinyclues:\"a\"",
            "segment update buyers --filter x",
            "segment count buyers",
            "segment count --filter x",
            "segment resolve buyers --view full --partition 0/4 --max-cohort-age 24h",
            "segment resolve --resolution 0195 --resume abc --format ndjson",
            "segment diff a b --list",
            "segment check buyers user_no=7",
            "segment check --filter x alias:newsletter=ann",
            "audit list --since 7d",
            "backup /backup/muster.dump --force",
            "backup -",
            "restore /backup/muster.dump --data-dir /var/lib/muster-new",
        ] {
            let words = ["muster"].into_iter().chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn contradictory_lines_are_refused() {
        for line in [
            "segment count",
            "segment count buyers --filter x",
            "segment resolve buyers --resolution 0195",
            "segment resolve buyers --resume abc",
            "segment check buyers",
            "segment check a b --filter x",
            "segment update buyers",
            "users merge user_no=1 b",
            "segment resolve buyers --partition 4/4",
            "import list --state resting",
        ] {
            let words = ["muster"].into_iter().chain(line.split(' '));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
