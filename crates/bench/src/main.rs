//! `make bench`: how fast Muster is on this machine, next to what one would write without it.
//!
//! Starts the real `muster up` on a private, durable Postgres and measures it as its clients see it,
//! over loopback. What it is compared with runs in the same minutes, against the same Postgres in a
//! database of its own, in turn with Muster's runs: machines are noisy, so a ratio is the median of
//! the ratios of neighbours. Ids are drawn from a fixed seed.
//!
//! Prints a table in Markdown and writes JSON: `{metric: {value, unit, limit, ratio}}`, where `limit`
//! is the value that just meets the target, and `machine` says where it ran. A target that is missed
//! is a result like any other; only what cannot be measured is an error.
//!
//! Start at [`plan`], which says what is measured in what order. [`report`] has the targets.

mod deployment;
mod machine;
mod muster;
mod people;
mod plan;
mod redis;
mod report;
mod rest;
mod rows;
mod timing;

use std::{error::Error, fs, path::PathBuf, process::ExitCode};

use clap::Parser;

/// What stops a measurement.
type Failure = Box<dyn Error + Send + Sync>;

type Result<T, E = Failure> = std::result::Result<T, E>;

/// Measure Muster on this machine
#[derive(Debug, Parser)]
struct Arguments {
    /// Users of the directory, with an external id of 25 bytes and one device each
    #[arg(long, default_value_t = 5_000_000)]
    users: u32,
    /// Ids of the cohort
    #[arg(long, default_value_t = 1_000_000)]
    ids: u32,
    /// Measure only ingest and audience, as the directory grows to each of these sizes
    #[arg(long, value_name = "USERS,USERS,…", value_delimiter = ',')]
    growth: Vec<u32>,
    /// How often each thing is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Where the JSON goes
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// Where the data is kept while it runs: on a disk, not in memory
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/tmp")]
    directory: PathBuf,
    /// The muster to measure [default: the one built beside this program]
    #[arg(long, value_name = "PROGRAM")]
    muster: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    // In a task, as the calls of a backend are: the thread of `main` is none of those that run tasks, and
    // each answer would wait for it to be woken as well.
    let run = tokio::spawn(run(Arguments::parse()));
    match run.await.unwrap_or_else(|error| Err(error.into())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let report = plan::run(&arguments).await?;
    println!("{}", report.markdown());
    if let Some(directory) = arguments.json.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&arguments.json, format!("{:#}\n", report.json()))?;
    eprintln!("written to {}", arguments.json.display());
    Ok(())
}
