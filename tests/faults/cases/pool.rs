//! More calls than connections to the database.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use muster_tests::{PARTNER, Shop, connect};
use rand::{RngExt as _, rngs::StdRng};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    calls::{self, Call, Caller},
    node::Deployment,
    oracle,
    suite::{Plan, Tally},
};

/// Calls at the same time.
const CALLS: usize = 200;

/// Cohorts that a slow change of somebody else's holds; more than there are connections.
const COHORTS: usize = 8;

const USERS: usize = 1_000;

/// Longest time to an answer for a call that waits for nothing but connections: 2 s at most for the
/// one that looks its credential up, 2 s for that of its work, and for a processor.
const PLAIN: Duration = Duration::from_secs(6);

/// Five connections for each server and 200 calls, while the imports wait for locks: everybody is answered in time,
/// and once the locks are gone everything works at once.
pub(crate) async fn connections_exhausted(mut plan: Plan) -> Tally {
    let mut muster = Deployment::start(&["--database-connections", "5"]).await;
    let shop = muster.shop.clone();
    let caller = Caller::new(&shop);
    oracle::fill(&shop, USERS).await;
    let mut held: Vec<Held> = Vec::new();
    for n in 0..COHORTS {
        let mut cohort = Held {
            name: format!("busy-{n}"),
            ..Held::default()
        };
        cohort.add(&caller, Call::Import, oracle::user(n)).await;
        held.push(cohort);
    }
    let mut tally = Tally::default();
    let (mut answers, mut slowest) = (BTreeMap::<String, u32>::new(), Duration::ZERO);
    for _ in 0..plan.rounds.div_ceil(7) {
        let mut slow = PgConnection::connect(&muster.database_url).await.unwrap();
        let hold = "BEGIN; SELECT FROM cohort FOR UPDATE";
        sqlx::raw_sql(hold).execute(&mut slow).await.unwrap();
        let mut running = start(&caller, &mut plan.rng);
        let holds = if plan.rounds < 50 {
            3_000..4_000
        } else {
            3_000..9_000
        };
        let holds = Duration::from_millis(plan.rng.random_range(holds));
        let release = async {
            tokio::time::sleep(holds / 2).await;
            check_others(&shop).await;
            tokio::time::sleep(holds / 2).await;
            sqlx::raw_sql("ROLLBACK").execute(&mut slow).await.unwrap();
        };
        let answered = async {
            let mut refused = 0;
            while let Some(answered) = running.join_next().await {
                let answered: Answered = answered.unwrap();
                slowest = slowest.max(answered.took);
                refused += u32::from(answered.refused.is_some());
                let answer = answered
                    .refused
                    .clone()
                    .unwrap_or_else(|| "done".to_owned());
                *answers.entry(answer).or_default() += 1;
                held[answered.cohort].take(answered);
            }
            refused
        };
        let (refused, ()) = tokio::join!(answered, release);
        assert!(refused > 0, "there were connections for everybody");
        let over = Instant::now();
        let works = Call::ALL.map(|call| call.once(&caller, "busy-0", &held[0].user));
        for (call, works) in Call::ALL
            .into_iter()
            .zip(futures::future::join_all(works).await)
        {
            works.unwrap_or_else(|refusal| panic!("{call:?} is still refused: {refusal:?}"));
        }
        let took = over.elapsed();
        assert!(took < Duration::from_secs(2), "recovery took {took:?}");
        tally.recovered(took);
        assert!(muster.node.runs(), "{}", muster.node.process().stderr());
        tally.faults += refused;
        tally.rounds += 1;
    }
    for cohort in held {
        cohort.check(&shop).await;
    }
    oracle::check_versions(&muster.store).await;
    tally.note = format!("slowest answer {:.1} s, {answers:?}", slowest.as_secs_f64());
    tally
}

/// A call, answered.
struct Answered {
    call: Call,
    cohort: usize,
    user: String,
    took: Duration,
    /// With which code and reason.
    refused: Option<String>,
}

/// Makes all calls at once.
fn start(caller: &Caller, rng: &mut StdRng) -> JoinSet<Answered> {
    let mut running = JoinSet::new();
    for _ in 0..CALLS {
        let call = Call::ALL[rng.random_range(0..Call::ALL.len())];
        let cohort = rng.random_range(0..COHORTS);
        let user = oracle::user(rng.random_range(0..USERS));
        let caller = caller.clone();
        running.spawn(async move {
            let began = Instant::now();
            let answer = call.once(&caller, &format!("busy-{cohort}"), &user).await;
            let took = began.elapsed();
            let bound = match call {
                Call::Get | Call::Upsert => PLAIN,
                // For its turn to evaluate, or to publish, and for the cohort.
                Call::Count | Call::Resolve | Call::Import | Call::Rest => calls::PATIENCE,
            };
            assert!(took < bound, "{call:?} took {took:?}: {answer:?}");
            let refused = answer.err().map(|refusal| {
                let codes = [Code::Unavailable, Code::ResourceExhausted, Code::Aborted];
                calls::check_come_back(&refusal, &codes);
                format!("{:?} {}", refusal.code, refusal.reason)
            });
            Answered {
                call,
                cohort,
                user,
                took,
                refused,
            }
        });
    }
    running
}

/// That the load is not in everybody's way.
async fn check_others(shop: &Shop) {
    calls::check_healthy(shop).await;
    let mut stranger = Caller::new(shop);
    stranger.shop.operator = connect(&shop.grpc, "mst_svc_nobody");
    let began = Instant::now();
    let refused = Call::Get.once(&stranger, "busy-0", "").await.unwrap_err();
    assert_eq!(refused.code, Code::Unauthenticated, "{refused:?}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "a wrong key took {took:?}");
}

/// What a cohort may hold.
#[derive(Debug, Default)]
struct Held {
    name: String,
    /// Its first user.
    user: String,
    done: BTreeSet<String>,
    tried: BTreeSet<String>,
}

impl Held {
    async fn add(&mut self, caller: &Caller, call: Call, user: String) {
        call.once(caller, &self.name, &user).await.unwrap();
        self.done.insert(user.clone());
        self.tried.insert(user.clone());
        self.user = user;
    }

    fn take(&mut self, answered: Answered) {
        if !answered.call.adds() {
            return;
        }
        self.tried.insert(answered.user.clone());
        if answered.refused.is_none() {
            self.done.insert(answered.user);
        }
    }

    /// That everybody is in it who was told to be, and nobody else who was not tried.
    async fn check(&self, shop: &Shop) {
        let filter = format!("{PARTNER}:id(\"{}\")", self.name);
        let held: BTreeSet<String> = shop.audience_ids(&filter).await.into_iter().collect();
        let lost: Vec<_> = self.done.difference(&held).collect();
        assert!(lost.is_empty(), "{} has lost {lost:?}", self.name);
        assert!(held.is_subset(&self.tried), "{} has strangers", self.name);
    }
}
