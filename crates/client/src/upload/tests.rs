use std::pin::Pin;

use muster_domain::identifier::IdentifierKind;
use muster_proto::ingest::v1::{Committed, OutcomeCounts};

use super::*;

fn upload() -> Upload {
    Upload::new("shop", "tinyclues", "c_1", Mode::Delta, "import-1")
}

fn people(n: usize) -> Vec<(Effect, Identifier)> {
    let person = |n: usize| Identifier {
        kind: IdentifierKind::ExternalId,
        label: String::new(),
        id: format!("user-{n}"),
    };
    (0..n).map(|n| (Effect::Add, person(n))).collect()
}

#[test]
fn a_pipeline_opens_sends_and_commits() {
    let requests = upload().pipeline(people(1_000)).unwrap();
    let messages: Vec<ToServer> = requests.into_iter().filter_map(|r| r.message).collect();
    let [
        ToServer::Open(open),
        ToServer::Batch(batch),
        ToServer::Commit(commit),
    ] = messages.as_slice()
    else {
        panic!("three messages, not {}", messages.len());
    };
    assert!(open.pipelined);
    assert_eq!(batch.offset, 0);
    assert_eq!(commit.total, 1_000);
    let mut digest = ImportDigest::default();
    for (effect, identifier) in people(1_000) {
        digest.update(effect, identifier.as_ref());
    }
    assert_eq!(commit.digest.as_ref(), digest.finish());
}

#[test]
fn nothing_at_all_is_an_open_and_a_commit() {
    assert_eq!(upload().pipeline(Vec::new()).unwrap().len(), 2);
}

#[test]
fn a_result_without_a_summary_is_a_violation() {
    let refusal = outcome(FromServer::Committed(Committed::default())).unwrap_err();
    assert_eq!(refusal.reason, "PROTOCOL_VIOLATION");
    assert!(!is_worth_reopening(&refusal));
}

#[test]
fn every_outcome_is_carried_over() {
    let summary = ImportSummary {
        received: 45,
        outcomes: Some(OutcomeCounts {
            added: 1,
            already_member: 2,
            removed: 3,
            not_member: 4,
            unknown: 5,
            device_of_identified_user: 6,
            duplicate: 7,
            superseded: 8,
            invalid: 9,
        }),
        ..ImportSummary::default()
    };
    let summary = summary_from_wire(summary).unwrap();
    assert_eq!(summary.outcomes.total(), summary.received);
}

#[test]
fn a_gap_reopens_only_if_the_server_says_where() {
    let mut refusal = Refusal::local(Code::OutOfRange, "OFFSET_GAP", "gap");
    assert!(!is_worth_reopening(&refusal));
    let expected = ("expected_offset".to_owned(), "7".to_owned());
    refusal.metadata.extend([expected]);
    assert!(is_worth_reopening(&refusal));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_given_up_after_bounded_tries() {
    // Bound and dropped: nobody listens on this port.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let connection = Connection::new(&format!("http://127.0.0.1:{port}"), None).unwrap();
    let mut upload = upload();
    upload.retry.failures = 3;
    upload.retry.first_wait = Duration::from_millis(1);
    let mut retries = 0;
    let mut progress = |event| retries += u32::from(matches!(event, Progress::Retrying { .. }));
    let source = || Ok(people(1).into_iter().map(Ok));
    // Boxed as `Send`: servers and commands spawn uploads.
    let run: Pin<Box<dyn Future<Output = _> + Send>> =
        Box::pin(upload.run(&connection, source, &mut progress));
    let error = run.await.unwrap_err();
    assert!(
        matches!(error, UploadError::GaveUp { failures: 3, .. }),
        "{error}"
    );
    assert_eq!(retries, 2);
    let refusal = upload
        .run_pipelined(&connection, people(1), Duration::from_secs(5))
        .await
        .unwrap_err();
    assert!(refusal.is_transient(), "{refusal:?}");
}
