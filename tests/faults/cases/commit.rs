//! The reply to a commit is lost: whoever asks again gets the same answer, and nothing happens
//! twice.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use muster_client::upload::{Outcome, Progress, Upload};
use muster_domain::import::Mode;
use muster_tests::{
    Shop, connect,
    proxy::{Fault, Proxy, Trouble, Way},
    rest::Rest,
};
use rand::{RngExt as _, rngs::StdRng};
use serde_json::json;

use crate::{
    node::Deployment,
    oracle::{self, List},
    suite::{Plan, Tally},
    wire::Call,
};

const USERS: usize = 2_000;

/// How long a client of these cases waits for a server that says nothing.
const SILENCE: Duration = Duration::from_millis(400);

/// What happens to the reply, or to the commit itself.
#[derive(Debug, Clone, Copy)]
struct Loss {
    way: Way,
    trouble: Trouble,
    /// Whether the network breaks only once the import is published, so that it is surely the reply
    /// that is lost.
    published_first: bool,
}

impl Loss {
    fn draw(rng: &mut StdRng) -> Self {
        let long = SILENCE * 2;
        let troubles = [
            Trouble::Cut,
            Trouble::Halve,
            Trouble::Blackhole,
            Trouble::Delay(Duration::from_millis(rng.random_range(1..300))),
            Trouble::Delay(long),
        ];
        Self {
            way: match rng.random_range(0..3) {
                0 => Way::ToServer,
                _ => Way::ToClient,
            },
            trouble: troubles[rng.random_range(0..troubles.len())],
            published_first: rng.random_range(0..2) == 0,
        }
    }
}

/// The network breaks at the commit, in every way; the client library's own retry, and another
/// upload with the same id, get one and the same answer.
pub(crate) async fn reply_lost(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let proxy = Arc::new(Proxy::start(&muster.shop.grpc, Vec::new()).await);
    let mut tally = Tally::default();
    let mut lost = 0;
    for round in 0..plan.rounds {
        let list = List::draw(&mut plan.rng, USERS, USERS / 2);
        let loss = Loss::draw(&mut plan.rng);
        let import_id = oracle::import_id(&mut plan.rng);
        let mut upload = oracle::upload("lost", Mode::Replace, &import_id);
        upload.retry.silence = SILENCE;
        upload.retry.first_wait = Duration::from_millis(20);
        let connection = connect(&proxy.url, &muster.shop.client_secret);
        let (network, began) = (Arc::clone(&proxy), Instant::now());
        let mut tries = 0;
        let mut struck = None;
        let mut progress = |event| match event {
            Progress::Opened { .. } => {
                tries += 1;
                if let (2, Some(at)) = (tries, struck) {
                    tally.recovered(began.elapsed() - at);
                }
            }
            Progress::Committing { .. } if struck.is_none() => {
                struck = Some(began.elapsed());
                match loss.published_first {
                    // No reply gets through from here on, so that there is time to look.
                    true => network.strike(Way::ToClient, Trouble::Blackhole),
                    false => network.strike(loss.way, loss.trouble),
                };
                tally.faults += 1;
            }
            _ => {}
        };
        let breaking = async {
            if loss.published_first {
                oracle::reached(&muster.store, &import_id, u64::MAX).await;
                proxy.strike(loss.way, loss.trouble);
            }
        };
        let (outcome, ()) = tokio::join!(
            upload.run(&connection, list.source(), &mut progress),
            breaking
        );
        let outcome = outcome.unwrap_or_else(|error| panic!("{loss:?}: {error}"));
        let version = list.check_committed(&outcome);
        assert_eq!(version, u64::from(round) + 1, "{loss:?}: published once");
        lost += u32::from(loss.published_first);
        // Whoever asks later is told the same.
        let partner = muster.shop.partner();
        let again = upload.run(&partner, list.source(), &mut |_| {}).await;
        check_same(&outcome, &again.unwrap());
        oracle::check_published(&muster.shop, "lost", &list.known).await;
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    assert!(tally.worst_recovery < SILENCE + Duration::from_secs(10));
    tally.note = format!("{lost} surely after the publication");
    tally
}

/// The same summary and the same version; the token may name a later directory.
#[track_caller]
fn check_same(first: &Outcome, second: &Outcome) {
    let essence = |outcome: &Outcome| match outcome {
        Outcome::Committed {
            summary, version, ..
        } => (*summary, *version),
        other => panic!("not committed: {other:?}"),
    };
    assert_eq!(essence(first), essence(second));
}

/// A client with the default patience, whose network goes away without a word while it waits for
/// the reply to its commit, notices and gets its answer; returns how long that took.
pub(crate) async fn blackholed(shop: &Shop, list: &List, upload: &Upload) -> Duration {
    let proxy = Proxy::start(&shop.grpc, Vec::new()).await;
    let connection = connect(&proxy.url, &shop.client_secret);
    let mut struck = None;
    let mut progress = |event| {
        if matches!(event, Progress::Committing { .. }) && struck.is_none() {
            struck = Some(Instant::now());
            proxy.strike(Way::ToClient, Trouble::Blackhole);
            proxy.strike(Way::ToServer, Trouble::Blackhole);
        }
    };
    let outcome = upload.run(&connection, list.source(), &mut progress).await;
    list.check_committed(&outcome.unwrap());
    struck.expect("it came to the commit").elapsed()
}

/// A client goes away in mid-import and its network with it, without a word; returns how long it
/// took the server to let go of the connection.
pub(crate) async fn abandoned(shop: &Shop) -> Duration {
    let proxy = Proxy::start(&shop.grpc, Vec::new()).await;
    let connection = connect(&proxy.url, &shop.client_secret);
    let call = Call::open(&connection, "abandoned", Mode::Replace, "abandoned").await;
    proxy.strike(Way::ToClient, Trouble::Blackhole);
    proxy.strike(Way::ToServer, Trouble::Blackhole);
    drop((call.unwrap(), connection));
    let struck = Instant::now();
    let gone = async {
        while proxy.open() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(120), gone).await;
    gone.expect("the server lets go of a connection without a client");
    struck.elapsed()
}

/// The answer to a REST call is lost; the call is made again and has no further effect.
pub(crate) async fn rest_answer_lost(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let mut tally = Tally::default();
    let mut applied = 0;
    for round in 0..plan.rounds {
        let list = List::draw(&mut plan.rng, USERS, 200);
        let cohort = format!("rest-{round}");
        let trouble = match plan.rng.random_range(0..3) {
            0 => Trouble::Cut,
            1 => Trouble::Halve,
            _ => Trouble::Blackhole,
        };
        let way = match plan.rng.random_range(0..4) {
            0 => Way::ToServer,
            _ => Way::ToClient,
        };
        // Somewhere in the answer, or in the request.
        let fault = Fault {
            way,
            after_bytes: plan.rng.random_range(0..200),
            trouble,
        };
        let proxy = Proxy::with_faults(&muster.shop.rest, [fault]).await;
        let unlucky = Rest::new(
            &proxy.url,
            muster_tests::PARTNER,
            &muster.shop.partner_api_key,
            &muster.shop.client_secret,
        );
        let naming = plan.rng.random_range(0..4) == 0;
        let call = async || match naming {
            true => unlucky.try_name(&cohort, "called so").await,
            false => {
                let changes = json!([{ "user_ids": list.ids }]);
                unlucky.try_change(&cohort, changes).await
            }
        };
        // What a client of the contract does: it gives up after a while and asks again.
        let began = Instant::now();
        let lost = tokio::time::timeout(SILENCE, call()).await;
        if let Ok(Ok(answer)) = lost {
            // Half a request is no success; the other half of the connection may still say so.
            assert_eq!(answer.status, 400, "{fault:?} hurt nobody: {answer:?}");
        }
        tally.faults += 1;
        // The first call may have left half a connection behind, which the client tries once more.
        let mut again = call().await;
        if again.is_err() {
            again = call().await;
        }
        let answer = again.unwrap().succeeded();
        tally.recovered(began.elapsed());
        if naming {
            let named = muster.shop.cohort(&cohort).await;
            assert_eq!((named.name.as_str(), named.version), ("called so", 0));
            assert!(named.former_names.is_empty(), "named twice: {named:?}");
        } else {
            let outcomes = &answer.body["counts"];
            let members = list.known.len() as u64;
            let added = outcomes["added"].as_u64().unwrap();
            let already = outcomes["already_member"].as_u64().unwrap();
            // All of the first call was applied, or nothing.
            assert!((added == 0) != (already == 0), "half applied: {answer:?}");
            assert_eq!(added + already, members, "{answer:?}");
            applied += u32::from(already > 0);
            oracle::check_published(&muster.shop, &cohort, &list.known).await;
        }
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally.note = format!("{applied} had been applied");
    tally
}
