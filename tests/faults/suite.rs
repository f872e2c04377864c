//! Runs cases and prints one line for each: seed, rounds, faults, worst recovery.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    process::{Command, ExitCode},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use muster_testbed::process;
use rand::{SeedableRng as _, rngs::StdRng};

/// One kind of fault, or several that belong together, and what must hold in spite of them.
pub(crate) struct Case {
    /// Kebab case; tells what breaks.
    pub(crate) name: &'static str,
    /// Whether it measures times that other work on the machine would spoil.
    pub(crate) alone: bool,
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
    /// How many cases to run at once, but for those that measure times
    #[arg(long, env = "JOBS", default_value_t = 3)]
    jobs: usize,
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

/// Runs the cases that the command line asks for, each in a process of its own; fails if any promise
/// was broken.
pub(crate) fn run(cases: &'static [Case]) -> ExitCode {
    let arguments = Arguments::parse();
    let asked = |case: &&Case| {
        let names = &arguments.names;
        let wanted = |name: &String| match arguments.exact {
            true => case.name == name,
            false => case.name.contains(name.as_str()),
        };
        !arguments.ignored && (names.is_empty() || names.iter().any(wanted))
    };
    let asked: Vec<&Case> = cases.iter().filter(asked).collect();
    if arguments.list {
        asked
            .iter()
            .for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    let seed = arguments.seed.unwrap_or_else(rand::random);
    if let ([case], true) = (&asked[..], arguments.exact) {
        run_here(case, arguments.rounds, seed);
        return ExitCode::SUCCESS;
    }
    if asked.is_empty() && !arguments.names.is_empty() {
        eprintln!("no case is named like {:?}", arguments.names);
        return ExitCode::from(2);
    }
    println!("seed {seed}, {} rounds a case", arguments.rounds);
    let (alone, together): (Vec<&Case>, Vec<&Case>) = asked.iter().partition(|case| case.alone);
    let mut broken = run_apart(&together, arguments.jobs, arguments.rounds, seed);
    broken.extend(run_apart(&alone, 1, arguments.rounds, seed));
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

/// Runs one case in this process; a broken promise ends it with a panic.
fn run_here(case: &Case, rounds: u32, seed: u64) {
    let plan = Plan {
        rounds,
        rng: StdRng::seed_from_u64(seed),
    };
    eprintln!(
        "to run it again: make faults SEED={seed} ROUNDS={rounds} CASE={}",
        case.name
    );
    let begun = Instant::now();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tally = runtime.block_on((case.run)(plan));
    println!(
        "ok      {:<28} seed {seed}  rounds {:<4} faults {:<5} worst recovery {:>6.2} s  took {:.0} s  {}",
        case.name,
        tally.rounds,
        tally.faults,
        tally.worst_recovery.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
        tally.note,
    );
}

/// Runs cases as processes, so many at once, and prints the line of each when it ends; returns the
/// names of those that were broken.
fn run_apart(cases: &[&Case], jobs: usize, rounds: u32, seed: u64) -> Vec<&'static str> {
    let waiting = Mutex::new(cases.iter());
    let broken = Mutex::new(Vec::new());
    // Far more than any case needs: only a case that hangs takes that long.
    let patience = Duration::from_secs(240) + Duration::from_secs(15) * rounds;
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some(case) = waiting.lock().unwrap().next() else {
                        return;
                    };
                    let begun = Instant::now();
                    let mut command = Command::new(std::env::current_exe().unwrap());
                    command
                        .args([case.name, "--exact", "--rounds", &rounds.to_string()])
                        .args(["--seed", &seed.to_string()]);
                    let run = || process::run_within(patience, &mut command, b"");
                    let said = match catch_unwind(AssertUnwindSafe(run)) {
                        Ok(done) if done.status.success() => {
                            print!("{}", done.text());
                            continue;
                        }
                        Ok(done) => done.stderr,
                        Err(_) => format!("it did not end within {patience:?}\n"),
                    };
                    let took = begun.elapsed().as_secs_f64();
                    println!(
                        "BROKEN  {:<28} seed {seed}  took {took:.0} s\n{said}",
                        case.name,
                    );
                    broken.lock().unwrap().push(case.name);
                }
            });
        }
    });
    broken.into_inner().unwrap()
}
