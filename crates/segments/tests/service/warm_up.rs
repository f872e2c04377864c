//! What is done before there are callers.

use muster_storage::{Settings, Store};

#[tokio::test]
async fn a_server_with_the_fewest_connections_is_warmed_up_about_nothing() {
    let url = muster_testbed::database().await;
    let settings = Settings {
        max_connections: 2,
        ..Settings::new(&url)
    };
    let store = Store::connect(&settings).unwrap();
    // A connection that does not come free would be an error.
    muster_segments::warm_up(&store).await.unwrap();
    muster_segments::warm_up(&store).await.unwrap();
    store.close().await;
}
