//! Runs cases and prints one line for each: seed, rounds, faults, worst recovery.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use futures::FutureExt as _;
use rand::{SeedableRng as _, rngs::StdRng};

/// One kind of fault, or several that belong together, and what must hold in spite of them.
pub(crate) struct Case {
    /// Kebab case; tells what breaks.
    pub(crate) name: &'static str,
    /// Runs it; a panic is a violation.
    pub(crate) run: fn(Plan) -> Pin<Box<dyn Future<Output = Tally> + Send>>,
}

/// What a case is to do.
#[derive(Debug)]
pub(crate) struct Plan {
    /// How many rounds to run, at least 1.
    pub(crate) rounds: u32,
    /// Everything random is drawn from this.
    pub(crate) rng: StdRng,
}

/// What a case has done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Rounds that were run.
    pub(crate) rounds: u32,
    /// Faults that were really injected.
    pub(crate) faults: u32,
    /// The longest time from a fault, or from the end of it, until the same work went on.
    pub(crate) worst_recovery: Duration,
    /// Anything else worth knowing, in a few words.
    pub(crate) note: String,
}

impl Tally {
    /// Counts a recovery.
    pub(crate) fn recovered(&mut self, took: Duration) {
        self.worst_recovery = self.worst_recovery.max(took);
    }
}

/// Break Muster on purpose and check what it promises.
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Arguments {
    /// Only cases with one of these in their names
    #[arg(env = "CASE", value_delimiter = ',')]
    names: Vec<String>,
    /// Rounds of each case
    #[arg(long, env = "ROUNDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// What faults are drawn from [default: the time]
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Print the names of the cases
    #[arg(long)]
    list: bool,
    // What test runners pass.
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    format: Option<String>,
}

/// Runs the cases that the command line asks for; fails if any promise was broken.
pub(crate) fn run(cases: &[Case]) -> ExitCode {
    let arguments = Arguments::parse();
    let asked = |case: &&Case| {
        let names = &arguments.names;
        let wanted = |name: &String| match arguments.exact {
            true => case.name == name,
            false => case.name.contains(name.as_str()),
        };
        !arguments.ignored && (names.is_empty() || names.iter().any(wanted))
    };
    let cases: Vec<&Case> = cases.iter().filter(asked).collect();
    if arguments.list {
        cases
            .iter()
            .for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    if cases.is_empty() && !arguments.names.is_empty() {
        eprintln!("no case is named like {:?}", arguments.names);
        return ExitCode::from(2);
    }
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    println!("seed {seed}, {} rounds a case", arguments.rounds);
    let mut broken = Vec::new();
    for case in cases {
        let plan = Plan {
            rounds: arguments.rounds,
            rng: StdRng::seed_from_u64(seed),
        };
        let begun = Instant::now();
        let ended = runtime.block_on(AssertUnwindSafe((case.run)(plan)).catch_unwind());
        let took = begun.elapsed().as_secs_f64();
        match ended {
            Ok(tally) => println!(
                "ok      {:<28} seed {seed}  rounds {:<4} faults {:<5} worst recovery {:>6.2} s  took {took:.0} s  {}",
                case.name,
                tally.rounds,
                tally.faults,
                tally.worst_recovery.as_secs_f64(),
                tally.note,
            ),
            // The panic has told what is wrong.
            Err(_) => {
                println!("BROKEN  {:<28} seed {seed}  took {took:.0} s", case.name);
                broken.push(case.name);
            }
        }
    }
    if broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!(
        "again: make faults SEED={seed} ROUNDS={} CASE={}",
        arguments.rounds,
        broken.join(",")
    );
    ExitCode::FAILURE
}
