//! Streams that cannot go on, or that the world changes under.

use std::time::{Duration, Instant};

use muster_domain::credential::Kind;
use muster_proto::segments::v1::{self as pb, Withheld, resolve_segment_response::Message};
use muster_segments::Settings;
use muster_storage::credentials;
use tonic::{Code, Status, Streaming};

use crate::deployment::{Deployment, inline, refusal};

const C: &str = r#"tinyclues:"c""#;

/// Far more than flow-control windows hold, so that a client that does not read stops the server.
const USERS: u32 = 50_000;

/// A stream of which the first batch has been read, and the number of its users.
async fn begun() -> (Deployment, Streaming<pb::ResolveSegmentResponse>, usize) {
    begun_with(Settings::default()).await
}

async fn begun_with(
    settings: Settings,
) -> (Deployment, Streaming<pb::ResolveSegmentResponse>, usize) {
    let it = Deployment::start_with(settings).await;
    it.users_with_padding(USERS, 400).await;
    it.cohort("c", "c", 0..USERS).await;
    let stream = it.client().resolve_segment(inline(C)).await;
    let mut stream = stream.unwrap().into_inner();
    loop {
        let message = stream.message().await.unwrap().unwrap();
        if let Message::Batch(batch) = message.message.unwrap() {
            return (it, stream, batch.users.len());
        }
    }
}

/// Reads on until the stream ends; it must not be complete.
async fn broken(mut stream: Streaming<pb::ResolveSegmentResponse>) -> Status {
    loop {
        match stream.message().await {
            Ok(Some(message)) => assert!(!matches!(message.message, Some(Message::End(_)))),
            Ok(None) => panic!("a stream that was cut off has no clean end"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_revoked_credential_ends_the_stream_within_a_second() {
    let (it, stream, _) = begun().await;
    let mut conn = it.store.connection().await.unwrap();
    credentials::revoke(&mut conn, Kind::ServiceToken, it.token)
        .await
        .unwrap();
    drop(conn);
    let revoked = Instant::now();
    // The guarantee is about time, so time has to pass. The client does not read meanwhile: the
    // server is stopped by flow control, and must find out by itself.
    tokio::time::sleep_until((revoked + Duration::from_secs(1)).into()).await;
    let status = broken(stream).await;
    let (code, reason, _) = refusal(&status);
    assert_eq!(
        (code, reason.as_str()),
        (Code::Unauthenticated, "CREDENTIAL_INVALID")
    );
    assert!(revoked.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_cut_and_can_be_resumed() {
    let settings = Settings {
        idle_timeout: Duration::from_secs(1),
        ..Settings::default()
    };
    let (it, stream, _) = begun_with(settings).await;
    // The limit is about time, so time has to pass, in which the client does not read: until windows
    // are full, which a busy machine takes a while for, and a second more.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let status = broken(stream).await;
    let (code, reason, _) = refusal(&status);
    assert_eq!((code, reason.as_str()), (Code::Aborted, "STREAM_IDLE"));
    assert!(status.message().ends_with("it can be resumed"));
    assert_eq!(it.count(C).await, u64::from(USERS));
}

#[tokio::test]
async fn a_shutdown_ends_streams_so_that_they_are_resumed_elsewhere() {
    let (it, stream, _) = begun().await;
    it.shutdown.cancel();
    let status = broken(stream).await;
    let (code, reason, _) = refusal(&status);
    assert_eq!(
        (code, reason.as_str()),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
}

#[tokio::test]
async fn an_erasure_is_effective_for_what_has_not_been_sent() {
    let (it, mut stream, mut received) = begun().await;
    it.erase(USERS - 1).await;
    it.merge(USERS - 2, USERS - 3).await;
    let mut last = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        match message.message.unwrap() {
            Message::Header(_) => panic!("there is one header"),
            Message::Batch(batch) => {
                received += batch.users.len();
                last = batch.users;
            }
            Message::End(end) => {
                assert_eq!(end.user_count, u64::from(USERS));
                assert_eq!(end.withheld_count, 2);
            }
        }
    }
    assert_eq!(received, USERS as usize);
    let tail: Vec<Withheld> = last[last.len() - 3..]
        .iter()
        .map(pb::AudienceMember::withheld)
        .collect();
    assert_eq!(
        tail,
        [Withheld::Unspecified, Withheld::Merged, Withheld::Erased]
    );
    assert!(
        last.iter()
            .all(|it| it.withheld == 0 || it.external_id.is_empty())
    );
}

#[tokio::test]
async fn a_stream_that_waits_for_its_client_holds_no_connection() {
    let (it, _stream, _) = begun().await;
    crate::deployment::eventually(|| async {
        let busy = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()
                      AND state <> 'idle'";
        it.number(busy).await == 0
    })
    .await;
}
