//! How many users a second one stream writes, with an external id and a device each:
//! `cargo run --release -p muster-users --example import_rate -- [users] [database url]`.
#![expect(clippy::unwrap_used, reason = "a panic is how a measurement fails")]

use std::time::Instant;

use muster_client::{Connection, Credential};
use muster_domain::credential::{Kind, Secret};
use muster_proto::users::v1::{ImportUsersRequest, UserRecord};
use muster_service::server::{self, Services};
use muster_storage::{
    Settings, Store,
    credentials::{self, NewCredential},
    workspaces,
};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt as _, iter};
use tokio_util::sync::CancellationToken;

/// Users of a batch: two identifiers each make the largest batch there is.
const BATCH: u64 = 5_000;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let users: u64 = arguments
        .next()
        .map_or(500_000, |text| text.parse().unwrap());
    let url = match arguments.next() {
        Some(url) => url,
        None => muster_testbed::database().await,
    };
    let store = Store::connect(&Settings::new(url)).unwrap();
    let mut tx = store.begin("seed").await.unwrap();
    let slug = format!("rate-{}", uuid::Uuid::now_v7());
    workspaces::insert(&mut tx, &slug, "").await.unwrap();
    let secret = Secret::generate(Kind::ServiceToken).unwrap();
    let token = NewCredential {
        secret: &secret,
        workspace: None,
        partner: None,
        scopes: &["*".to_owned()],
        allowed_addresses: &[],
        label: "",
        created_by: "example",
        expires_at: None,
    };
    credentials::insert(&mut tx, &token).await.unwrap();
    tx.commit().await.unwrap();

    let shutdown = CancellationToken::new();
    let mut services = Services::default();
    let settings = muster_users::Settings::default();
    muster_users::register(&mut services, store.clone(), settings, shutdown.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let settings = server::Settings::default();
        let contract = muster_proto::FILE_DESCRIPTOR_SET;
        let served = services.serve(listener, store, &settings, contract, shutdown);
        served.await;
    });
    let credential = Credential::bearer(secret.expose()).unwrap();
    let mut client = Connection::new(&endpoint, Some(credential))
        .unwrap()
        .users();
    for round in ["created", "unchanged"] {
        let workspace = slug.clone();
        let batches = (0..users.div_ceil(BATCH)).map(move |batch| ImportUsersRequest {
            workspace: workspace.clone(),
            users: (batch * BATCH..users.min((batch + 1) * BATCH))
                .map(user)
                .collect(),
        });
        let begun = Instant::now();
        let answers = client.import_users(iter(batches)).await.unwrap();
        let mut answers = answers.into_inner();
        let mut written = 0;
        while let Some(answer) = answers.next().await {
            let counts = answer.unwrap().counts.unwrap();
            written += counts.created + counts.unchanged;
        }
        assert_eq!(written, users);
        let took = begun.elapsed();
        let rate = users as f64 / took.as_secs_f64();
        println!("{users} users {round} in {took:.1?}: {rate:.0} a second");
    }
}

/// Ids as they come in practice: in no order.
fn user(number: u64) -> UserRecord {
    let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    UserRecord {
        external_id: format!("customer-{scattered:016x}"),
        device_ids: vec![format!("{:032x}", u128::from(scattered) << 32 | 0xd)],
        ..Default::default()
    }
}
