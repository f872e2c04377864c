//! Connections that are given back, and clocks that jump.

use std::time::Duration;

use muster_storage::{Settings, Store};
use muster_testbed::{execute, number};
use tokio::time::timeout;

#[tokio::test]
async fn a_begin_that_nobody_waits_for_leaves_no_transaction_open() {
    let settings = Settings {
        max_connections: 1,
        ..Settings::new(muster_testbed::database().await)
    };
    let store = Store::connect(&settings).unwrap();
    let mut dropped = 0;
    for n in 0..400 {
        let patience = Duration::from_micros(n % 100 * 10);
        let begun = timeout(patience, store.snapshot("dropped")).await;
        dropped += u32::from(begun.is_err());
        drop(begun);
        let mut connection = store.connection().await.unwrap();
        let within = "SELECT count(*) WHERE current_setting('transaction_read_only') = 'on'";
        assert_eq!(number(&mut connection, within).await, 0, "try {n}");
    }
    assert!(dropped > 0);
}

#[tokio::test]
async fn clean_ups_pause_when_the_clock_of_the_database_has_jumped() {
    let store = muster_testbed::store().await;
    let time = async || store.clean_up_time().await.unwrap();
    assert!(time().await.is_some());
    assert!(time().await.is_some());
    let mut sql = store.connection().await.unwrap();
    let pause = "SELECT extract(epoch FROM paused_until - seen_at)::bigint FROM clean_up";

    // As if the clock were ten years ahead since.
    execute(
        &mut sql,
        "UPDATE clean_up SET seen_at = now() - interval '10 years'",
    )
    .await;
    assert!(time().await.is_none());
    assert!(time().await.is_none());
    assert!((86_300..=86_400).contains(&number(&mut sql, pause).await));

    // A short absence of all servers delays little.
    let absent = "UPDATE clean_up SET seen_at = now() - interval '20 minutes', paused_until = NULL";
    execute(&mut sql, absent).await;
    assert!(time().await.is_none());
    assert!((115..=120).contains(&number(&mut sql, pause).await));
    execute(&mut sql, "UPDATE clean_up SET paused_until = now()").await;
    assert!(time().await.is_some());

    // Ahead for a while, then put back: what was written meanwhile lies ahead.
    execute(
        &mut sql,
        "UPDATE clean_up SET seen_at = now() + interval '10 years', jumped_from = now() - interval '1 minute';
         INSERT INTO request_log (workspace_id, actor, method, request_id, fingerprint, response, created_at)
         VALUES (0, 'a', 'm', 'r', '', '', now() + interval '10 years')",
    )
    .await;
    assert!(time().await.is_none());
    let ahead = "SELECT count(*) FROM request_log WHERE created_at > now()";
    assert_eq!(number(&mut sql, ahead).await, 0);

    // Wrong only now, years behind: what was written before is left alone.
    execute(
        &mut sql,
        "UPDATE clean_up SET seen_at = now() + interval '10 years', jumped_from = NULL;
         UPDATE request_log SET created_at = now() + interval '10 years'",
    )
    .await;
    assert!(time().await.is_none());
    assert_eq!(number(&mut sql, ahead).await, 1);
}
