//! A workspace that floods the servers, and another one that only wants its own answers.
//!
//! It compares how long calls take, so it has a process of its own, beside which no other test runs.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../command/harness.rs"]
#[allow(dead_code, unused_imports, reason = "the other tests need the rest")]
mod harness;

use std::{
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use muster_client::{Connection, Credential, Refusal, upload::Upload};
use muster_domain::{
    identifier::IdentifierRef,
    import::{Effect, Mode},
};
use muster_proto::segments::v1 as segments;
use muster_testbed::process::PATIENCE;
use tokio::time::{sleep, timeout};

use crate::harness::{Muster, PARTNER, Up, text};

/// How often the quiet workspace calls, and how many calls a round has.
const PACE: Duration = Duration::from_millis(50);
const ROUND: usize = 20;

/// After how many rounds the calls alone are first compared with those beside the flood, and after
/// how many at the latest. A few calls are slow on any machine; the more of them were made, the less
/// a single one decides.
const FEWEST_ROUNDS: usize = 10;
const MOST_ROUNDS: usize = 40;

/// Below this it is the scheduler that is measured.
const LEAST: Duration = Duration::from_millis(10);

/// A workspace and its people.
#[derive(Clone)]
struct Tenant {
    connection: Connection,
    users: usize,
    count: Arc<AtomicU64>,
}

impl Tenant {
    fn new(muster: &Muster, endpoint: &str, users: usize) -> Self {
        muster.import_users(users);
        let token = muster.json(&["token", "create", "caller", "--scope", "*"]);
        let credential = Credential::bearer(text(&token, "secret")).unwrap();
        Self {
            connection: Connection::new(endpoint, Some(credential)).unwrap(),
            users,
            count: Arc::default(),
        }
    }

    /// An import of all users into one of a few cohorts, or a count of them, in turn.
    async fn call(&self) -> Result<(), Refusal> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(2) {
            let (cohort, import) = (format!("c-{}", number % 8), format!("i-{number}"));
            let upload = Upload::new("", PARTNER, &cohort, Mode::Delta, &import);
            let users = (0..self.users).map(|n| {
                let id = format!("u{n}");
                (Effect::Add, IdentifierRef::external_id(&id).to_owned())
            });
            let patience = Duration::from_secs(30);
            let done = upload.run_pipelined(&self.connection, users.collect(), patience);
            return done.await.map(drop);
        }
        let all = format!("{PARTNER}:id(\"c-0\")");
        let filter = segments::FilterExpression {
            form: Some(segments::filter_expression::Form::Text(all)),
        };
        let request = segments::CountSegmentRequest {
            audience: Some(segments::count_segment_request::Audience::Filter(filter)),
            ..Default::default()
        };
        let counted = self.connection.segments().count_segment(request).await;
        counted.map(drop).map_err(Refusal::from)
    }

    /// How long a round of calls takes, each.
    async fn round(&self, took: &mut Vec<Duration>) {
        for _ in 0..ROUND {
            let begun = Instant::now();
            self.call().await.unwrap();
            took.push(begun.elapsed());
            sleep(PACE.saturating_sub(begun.elapsed())).await;
        }
    }
}

/// Asks for far more than it may have, and heeds no hint when to come back.
struct Flood {
    on: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
    served: Arc<AtomicU64>,
}

impl Flood {
    fn new(tenant: &Tenant) -> Self {
        let flood = Self {
            on: Arc::default(),
            refused: Arc::default(),
            served: Arc::default(),
        };
        for _ in 0..8 {
            let (tenant, on) = (tenant.clone(), Arc::clone(&flood.on));
            let (refused, served) = (Arc::clone(&flood.refused), Arc::clone(&flood.served));
            tokio::spawn(async move {
                loop {
                    if !on.load(Ordering::Relaxed) {
                        sleep(PACE).await;
                        continue;
                    }
                    match tenant.call().await {
                        Ok(()) => served.fetch_add(1, Ordering::Relaxed),
                        Err(refusal) => {
                            // The first count may come before the first import.
                            let limited = u64::from(refusal.reason == "RATE_LIMITED");
                            sleep(PACE / 2).await;
                            refused.fetch_add(limited, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
        flood
    }

    /// Begins, and returns when it has had all that it may have at once.
    async fn start(&self) {
        let before = self.refused.load(Ordering::Relaxed);
        self.on.store(true, Ordering::Relaxed);
        let spent = async {
            while self.refused.load(Ordering::Relaxed) < before + 20 {
                sleep(PACE).await;
            }
        };
        let spent = timeout(PATIENCE, spent).await;
        spent.expect("it is refused in time");
    }
}

/// How long all but a hundredth of the calls took at most.
fn p99(took: &mut [Duration]) -> Duration {
    took.sort();
    took[(took.len() * 99).div_ceil(100) - 1]
}

#[test]
fn a_flood_of_one_workspace_does_not_keep_another_waiting() {
    // What the machine of the test can do is a fraction of what servers can.
    let up = Up::start(&["--workspace-calls-per-second", "20"]);
    let endpoints = up.endpoints();
    let endpoint = text(&endpoints, "grpc");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let quiet = Tenant::new(&up.workspace("quiet"), endpoint, 10);
    let loud = Tenant::new(&up.workspace("loud"), endpoint, 1_000);
    runtime.block_on(async {
        let flood = Flood::new(&loud);
        let (mut alone, mut flooded) = (Vec::new(), Vec::new());
        let mut rounds = 0;
        let fair = loop {
            quiet.round(&mut alone).await;
            flood.start().await;
            quiet.round(&mut flooded).await;
            flood.on.store(false, Ordering::Relaxed);
            rounds += 1;
            let fair = p99(&mut flooded) <= 2 * p99(&mut alone).max(LEAST);
            if rounds == MOST_ROUNDS || fair && rounds >= FEWEST_ROUNDS {
                break fair;
            }
        };
        let (alone, flooded) = (p99(&mut alone), p99(&mut flooded));
        let served = flood.served.load(Ordering::Relaxed);
        let refused = flood.refused.load(Ordering::Relaxed);
        println!(
            "p99 alone {alone:?} and flooded {flooded:?} in {rounds} rounds; \
             {served} served, {refused} refused"
        );
        assert!(
            refused > served,
            "it is a flood: {served} served, {refused} refused"
        );
        assert!(fair, "alone {alone:?}, flooded {flooded:?}");
    });
}
