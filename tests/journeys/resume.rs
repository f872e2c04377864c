//! A network on a bad day: nothing is lost, nothing comes twice, nothing is half there.

use muster_client::upload::{Outcome, Upload};
use muster_domain::{
    identifier::{Identifier, IdentifierKind},
    import::{Effect, Mode},
};
use muster_tests::{Muster, PARTNER, WORKSPACE, connect, identified, proxy::Proxy};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

const USERS: usize = 30_000;

#[tokio::test(flavor = "multi_thread")]
async fn an_import_survives_connections_cut_at_random_points() {
    let muster = Muster::start().await;
    let ids: Vec<String> = (0..USERS).map(|n| format!("user-{n:06}")).collect();
    muster
        .upsert_users(ids.iter().map(|id| identified(id)).collect())
        .await;
    let mut runner = TestRunner::deterministic();
    for round in 0..5 {
        let points = proptest::collection::vec(1usize..300_000, 4);
        let points = points.new_tree(&mut runner).unwrap().current();
        let proxy = Proxy::start(&muster.grpc, points.clone()).await;
        let connection = connect(&proxy.url, &muster.client_secret);
        let cohort = format!("round-{round}");
        let import_id = format!("import-{round}");
        let mut upload = Upload::new(WORKSPACE, PARTNER, &cohort, Mode::Replace, &import_id);
        upload.retry.first_wait = std::time::Duration::from_millis(10);
        let source = ids.clone();
        let rows = move || {
            Ok(source.clone().into_iter().map(|id| {
                let identifier = Identifier {
                    kind: IdentifierKind::ExternalId,
                    label: String::new(),
                    id,
                };
                Ok((Effect::Add, identifier))
            }))
        };
        let outcome = upload.run(&connection, rows, &mut |_| {}).await;
        let outcome = outcome.unwrap_or_else(|error| panic!("cut at {points:?}: {error}"));
        let Outcome::Committed {
            summary, version, ..
        } = outcome
        else {
            panic!("not committed");
        };
        assert_eq!(version, 1, "published once");
        assert_eq!(summary.received, USERS as u64, "cut at {points:?}");
        assert_eq!(summary.outcomes.added, USERS as u64, "cut at {points:?}");
        let cohort = muster.cohort(&cohort).await;
        assert_eq!(
            (cohort.version, cohort.member_count),
            (1, Some(USERS as u64))
        );
        assert!(proxy.struck() > 0, "the network was bad");
    }
    muster.stop().await;
}
