//! Indices together take no more memory than they may: who was asked for longest ago goes first.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, Instant};

use muster_domain::identifier::IdentifierRef;
use muster_identity::{Identities, Settings};
use muster_storage::{Store, WorkspaceId, directory, directory::feed, workspaces};

/// As many again are anonymous.
const USERS: u32 = 3_000;

struct Deployment {
    store: Store,
    workspaces: Vec<WorkspaceId>,
}

impl Deployment {
    /// Workspaces with a directory each, all of one size.
    async fn start(count: usize) -> Self {
        let store = muster_testbed::store().await;
        let mut conn = store.connection().await.unwrap();
        let mut made = Vec::new();
        for number in 0..count {
            let slug = format!("shop-{number}");
            let workspace = workspaces::insert(&mut conn, &slug, "").await.unwrap().id;
            muster_testbed::seed_users(&mut conn, workspace, USERS).await;
            made.push(workspace);
        }
        drop(conn);
        Self {
            store,
            workspaces: made,
        }
    }

    fn identities(&self, memory_bytes: usize) -> Identities {
        let settings = Settings {
            memory_bytes,
            least_users: 0,
            retry_pause: Duration::from_millis(10),
            ..Settings::default()
        };
        Identities::new(self.store.clone(), settings)
    }

    /// Asks for a workspace as a server does for a batch: the answer is that of SQL, whoever gives it.
    /// Returns whether the index gave it.
    async fn ask(&self, identities: &Identities, workspace: usize) -> bool {
        let workspace = self.workspaces[workspace];
        let known = format!("u-{}", USERS / 2);
        let sample = [
            IdentifierRef::external_id(&known),
            IdentifierRef::external_id("nobody"),
        ];
        let mut conn = self.store.connection().await.unwrap();
        let position = feed::position(&mut conn, workspace).await.unwrap();
        let held = identities
            .look(&mut conn, workspace, position, |snapshot| {
                snapshot.matches(&sample)
            })
            .await
            .unwrap();
        let (_, matches) = identities
            .match_identifiers(&mut conn, workspace, &sample)
            .await
            .unwrap();
        let expected = directory::match_identifiers(&mut conn, workspace, &sample)
            .await
            .unwrap();
        assert_eq!(matches, expected);
        held.inspect(|held| assert_eq!(held, &expected)).is_some()
    }

    /// Asks until the index answers.
    async fn load(&self, identities: &Identities, workspace: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.ask(identities, workspace).await {
            assert!(Instant::now() < deadline, "it is not loaded");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Uses are told apart by the millisecond.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_that_was_asked_for_longest_ago_makes_room_for_another() {
    let it = Deployment::start(3).await;
    let alone = it.identities(usize::MAX);
    it.load(&alone, 0).await;
    let one = alone.bytes();
    assert!(one > 0);

    let identities = it.identities(2 * one + one / 2);
    let is_held = |workspace: usize| {
        let held = identities.glance(it.workspaces[workspace], |_| ());
        held.is_some()
    };
    it.load(&identities, 0).await;
    it.load(&identities, 1).await;
    assert!(is_held(0) && is_held(1), "two fit");
    assert!(it.ask(&identities, 0).await);
    tokio::time::sleep(Duration::from_millis(5)).await;
    it.load(&identities, 2).await;
    assert!(is_held(0) && !is_held(1) && is_held(2));
    assert!(identities.bytes() <= 2 * one + one / 2);
    // It comes back when it is asked for, and another one goes.
    it.load(&identities, 1).await;
    assert!(!is_held(0) && is_held(1) && is_held(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_does_not_fit_is_left_to_the_database_and_takes_nobody_s_place() {
    let it = Deployment::start(2).await;
    let alone = it.identities(usize::MAX);
    it.load(&alone, 0).await;
    let one = alone.bytes();
    let mut conn = it.store.connection().await.unwrap();
    // By its number of users alone, the second one needs more.
    muster_testbed::execute(
        &mut conn,
        "UPDATE directory SET next_user_no = 100000000
         WHERE workspace_id = (SELECT max(workspace_id) FROM directory)",
    )
    .await;
    drop(conn);

    let identities = it.identities(one + one / 2);
    it.load(&identities, 0).await;
    for _ in 0..50 {
        assert!(!it.ask(&identities, 1).await, "it takes more than there is");
        assert!(it.ask(&identities, 0).await, "it lost its place");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(identities.bytes() <= one + one / 2);
}
