//! The first page of a workspace.

use std::collections::BTreeSet;

use muster_cli::deployment::{self, Listeners, Server, Settings};
use muster_client::Connection;
use muster_proto::keys::v1::CreateServiceTokenRequest;
use muster_tests::{
    WORKSPACE,
    proxy::{Proxy, Trouble, Way},
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    Stage,
    exports::{export, replace, user, users},
};

pub(crate) async fn it_says_what_waits_what_came_in_and_what_fails(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    stage.sign_in("/w/calm").await;
    browser.until_it_says("Nothing waits for you").await;
    browser.look("home-calm").await;
    // A cohort that nobody feeds any more.
    export(
        muster,
        "stale",
        "forgotten.csv",
        json!({ "user_ids": users(1..=9) }),
    )
    .await;
    let mut connection = muster.store.connection().await.unwrap();
    let ago = "UPDATE cohort SET imported_at = now() - interval '9 days'
               WHERE partner_cohort_id = 'stale'";
    sqlx::query(ago).execute(&mut *connection).await.unwrap();
    // A replacement that waits, and a partner whose key is no longer accepted.
    export(
        muster,
        "held",
        "held back.csv",
        json!({ "user_ids": users(1..=50) }),
    )
    .await;
    replace(muster, "held", "held import", vec![user(1)]).await;
    let key = muster.create_key().await;
    let refused = muster.rest().with_client_secret(&key.secret);
    muster.revoke_key(&key.key.unwrap().key_id).await;
    let change = json!([{ "user_ids": ["user-1"] }]);
    refused
        .change("held", change)
        .await
        .says(401, "Invalid client secret");
    browser.go(&format!("{}/w/shop", muster.console)).await;
    browser.until_it_says("49 of 50 people would leave").await;
    browser.until_it_says("was used, but is invalidated").await;
    browser.until_it_says("No import for 7 days").await;
    let said = browser.text().await;
    for words in [
        "forgotten.csv",
        "held back.csv",
        "Segments and audiences\nserving",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    browser.look("home").await;
    // What comes in while it is open is seen.
    export(
        muster,
        "late",
        "late arrival.csv",
        json!({ "user_ids": users(1..=8) }),
    )
    .await;
    browser.until_it_says("late arrival.csv").await;
    browser.press("late arrival.csv").await;
    browser
        .until_it_says("Every identifier matched somebody")
        .await;
}

pub(crate) async fn what_the_token_may_not_see_is_said_in_its_place(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    let token = CreateServiceTokenRequest {
        workspace: WORKSPACE.into(),
        label: "reader of keys".into(),
        scopes: vec!["keys:read".into()],
        ..Default::default()
    };
    let mut integrations = muster.operator.integrations();
    let token = integrations.create_service_token(token).await.unwrap();
    browser.go(&format!("{}/sign-in", muster.console)).await;
    browser.write("#token", &token.into_inner().secret).await;
    browser.press("Sign in").await;
    browser
        .until_it_says("Your token may not see all of this")
        .await;
    browser.until_it_says("Servers").await;
    browser
        .go(&format!("{}/w/shop/cohorts", muster.console))
        .await;
    browser.until_it_says("Your token may not do this").await;
}

pub(crate) async fn servers_out_of_reach_are_said_so_and_end_no_session(stage: &Stage) {
    let (muster, browser) = (&stage.muster, &stage.browser);
    // A console of its own, as `muster serve console` runs it.
    let proxy = Proxy::start(&muster.grpc, Vec::new()).await;
    let listeners = Listeners {
        console: Some(TcpListener::bind("127.0.0.1:0").await.unwrap().into()),
        grpc: None,
        rest: None,
    };
    let console = listeners.console_url().unwrap();
    let settings = Settings {
        servers: BTreeSet::from([Server::Console]),
        upstream: Some(Connection::new(&proxy.url, None).unwrap()),
        ..Settings::default()
    };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(deployment::run(settings, None, listeners, shutdown.clone()));
    browser.go(&format!("{console}/w/calm")).await;
    browser.write("#token", &muster.operator_token).await;
    browser.press("Sign in").await;
    browser.until_it_says("Nothing waits for you").await;
    proxy.strike(Way::ToServer, Trouble::Cut);
    drop(proxy);
    browser.reload().await;
    browser
        .until_it_says("The servers cannot be asked now")
        .await;
    let said = browser.text().await;
    assert!(said.contains("Users\nout of reach"), "{said}");
    browser.look("home-out-of-reach").await;
    browser.press("Cohorts").await;
    browser.until_it_says("The servers are out of reach").await;
    browser.look("out-of-reach").await;
    assert!(browser.text().await.contains("Sign out"));
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
