//! An import whose stream breaks: nothing is published by it, and it can be resumed.

use std::time::{Duration, Instant};

use muster_client::upload::Progress;
use muster_domain::import::Mode;
use rand::RngExt as _;

use crate::{
    node::Deployment,
    oracle::{self, List},
    suite::{Plan, Tally},
};

const USERS: usize = 60_000;

/// The server dies by SIGKILL at a random point of the stream; the client resumes by itself.
pub(crate) async fn ingest_server_killed(mut plan: Plan) -> Tally {
    let mut muster = Deployment::start(&[]).await;
    oracle::fill(&muster.shop, USERS).await;
    let mut tally = Tally::default();
    for _ in 0..plan.rounds {
        let list = List::draw(&mut plan.rng, USERS, USERS / 2);
        let import_id = oracle::import_id(&mut plan.rng);
        let mut upload = oracle::upload("killed", Mode::Replace, &import_id);
        upload.retry.longest_wait = Duration::from_millis(500);
        let (partner, source) = (muster.shop.partner(), list.source());
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let running = tokio::spawn(async move {
            let mut progress = move |event| {
                let _ = tell.send((event, Instant::now()));
            };
            upload.run(&partner, source, &mut progress).await
        });
        tokio::time::sleep(Duration::from_millis(plan.rng.random_range(0..400))).await;
        muster.node.kill_9();
        let killed = Instant::now();
        muster.node.start_again();
        let outcome = running.await.unwrap().unwrap();
        list.check_committed(&outcome);
        while let Ok((event, at)) = told.try_recv() {
            if matches!(event, Progress::Opened { .. }) && at > killed {
                tally.recovered(at - killed);
                break;
            }
        }
        oracle::check_published(&muster.shop, "killed", &list.known).await;
        tally.faults += 1;
        tally.rounds += 1;
    }
    oracle::check_versions(&muster.store).await;
    tally
}
