//! Uploads that go wrong: nothing is half there, and what was acknowledged is not sent again.

use std::time::Duration;

use muster_bridge::export::{self, Delivery, ExportError, Options};
use muster_domain::{
    identifier::IdentifierRef,
    import::{Effect, ImportDigest, Mode},
};
use muster_proto::{
    ingest::v1::{self as ingest, ingest_cohort_request as req, ingest_cohort_response as res},
    keys::v1 as keys,
};
use muster_tests::{Muster, PARTNER, WORKSPACE};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::story::{grpc, ids, send, shop_of, write_ids};

async fn members(muster: &Muster, cohort_id: &str) -> Vec<String> {
    muster
        .audience_ids(&format!("{PARTNER}:id(\"{cohort_id}\")"))
        .await
}

/// Revokes the key that the partner uses.
async fn revoke_the_key(muster: &Muster) {
    let request = keys::ListKeysRequest {
        workspace: WORKSPACE.into(),
        ..Default::default()
    };
    let listed = muster.operator.keys().list_keys(request).await.unwrap();
    muster.revoke_key(&listed.into_inner().keys[0].key_id).await;
}

/// One import, spoken by hand.
pub(crate) struct Import {
    requests: mpsc::Sender<ingest::IngestCohortRequest>,
    answers: Streaming<ingest::IngestCohortResponse>,
    digest: ImportDigest,
    sent: u64,
}

impl Import {
    /// Opens it with the partner's key.
    pub(crate) async fn open(muster: &Muster, cohort_id: &str, mode: ingest::ImportMode) -> Self {
        let (requests, stream) = mpsc::channel(4);
        let mut ingest = muster.partner().ingest();
        let open = ingest::OpenImport {
            cohort_id: cohort_id.into(),
            mode: mode.into(),
            import_id: format!("{cohort_id}-1"),
            ..Default::default()
        };
        say(&requests, req::Message::Open(open)).await;
        let answers = ingest
            .ingest_cohort(ReceiverStream::new(stream))
            .await
            .unwrap();
        let mut import = Self {
            requests,
            answers: answers.into_inner(),
            digest: ImportDigest::default(),
            sent: 0,
        };
        let res::Message::Opened(opened) = import.answer().await.unwrap() else {
            panic!("it is opened first");
        };
        import.sent = opened.next_offset;
        import
    }

    /// Adds external ids, which are durable then.
    pub(crate) async fn add(&mut self, external_ids: &[String]) {
        for id in external_ids {
            self.digest
                .update(Effect::Add, IdentifierRef::external_id(id));
        }
        let change = ingest::CohortChange {
            effect: ingest::ChangeEffect::Add.into(),
            external_ids: external_ids.iter().collect(),
            ..Default::default()
        };
        let batch = ingest::IdentifierBatch {
            offset: self.sent,
            changes: vec![change],
        };
        say(&self.requests, req::Message::Batch(batch)).await;
        self.sent += external_ids.len() as u64;
        let answer = self.answer().await.unwrap();
        assert!(matches!(answer, res::Message::Acked(_)), "{answer:?}");
    }

    pub(crate) async fn commit(&mut self) -> Result<res::Message, tonic::Status> {
        let commit = ingest::CommitImport {
            total: self.sent,
            digest: self.digest.finish().to_vec().into(),
        };
        say(&self.requests, req::Message::Commit(commit)).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<res::Message, tonic::Status> {
        let answer = self.answers.message().await?;
        Ok(answer
            .expect("the server says why it ends")
            .message
            .unwrap())
    }
}

async fn say(requests: &mpsc::Sender<ingest::IngestCohortRequest>, message: req::Message) {
    let request = ingest::IngestCohortRequest {
        message: Some(message),
    };
    // If the server has ended the stream, its answer says why.
    let _ = requests.send(request).await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_old_list_and_goes_on_where_it_was() {
    let muster = shop_of(30).await;
    muster
        .rest()
        .change("list", json!([{ "user_ids": ids(0..3) }]))
        .await
        .succeeded();
    let unchanged = async || {
        assert_eq!(muster.cohort("list").await.version, 1);
        assert_eq!(members(&muster, "list").await, ids(0..3));
    };
    for (from, end) in [(10, 15), (15, 20)] {
        let mut import = Import::open(&muster, "list", ingest::ImportMode::Replace).await;
        assert_eq!(
            import.sent,
            from as u64 - 10,
            "what was acknowledged is there"
        );
        import.add(&ids(from..end)).await;
        unchanged().await;
        drop(import);
        unchanged().await;
    }
    let mut import = Import::open(&muster, "list", ingest::ImportMode::Replace).await;
    for id in ids(10..20) {
        import
            .digest
            .update(Effect::Add, IdentifierRef::external_id(&id));
    }
    import.add(&ids(20..25)).await;
    unchanged().await;
    let answer = import.commit().await.unwrap();
    assert!(matches!(answer, res::Message::Committed(_)), "{answer:?}");
    assert_eq!(members(&muster, "list").await, ids(10..25));
    muster.stop().await;
}

#[tokio::test]
async fn a_damaged_file_changes_nothing_and_its_repair_resumes() {
    let muster = shop_of(3).await;
    let folder = TempDir::new().unwrap();
    send(
        &write_ids(&folder, "list.csv", &ids(0..3)),
        &grpc(&muster),
        Mode::Delta,
    )
    .await;
    // Some batches come through before the damage shows.
    let people: Vec<String> = (0..60_000u64)
        .map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    let file = write_ids(&folder, "list.csv.gz", &[ids(1..2), people].concat());
    let sound = std::fs::read(&file).unwrap();
    std::fs::write(&file, &sound[..sound.len() * 3 / 4]).unwrap();
    let mut options = Options::new(Mode::Replace);
    options.import_id = Some("nightly".into());
    let target = grpc(&muster);
    let damaged = export::export(&file, &target, &options, &mut |_| {}).await;
    assert!(
        matches!(damaged, Err(ExportError::Upload(_))),
        "{damaged:?}"
    );
    assert_eq!(members(&muster, "list").await, ids(0..3));

    std::fs::write(&file, &sound).unwrap();
    let mut begun_at = None;
    let mut progress = |event| {
        if let export::Event::Advanced { durable, .. } = event {
            begun_at.get_or_insert(durable);
        }
    };
    let report = export::export(&file, &target, &options, &mut progress)
        .await
        .unwrap();
    let Delivery::Committed {
        summary, version, ..
    } = report.delivery
    else {
        panic!("{report:?}");
    };
    assert!(begun_at.unwrap() > 0, "it went on where it was");
    assert_eq!(
        (summary.received, summary.outcomes.unknown, version),
        (60_001, 60_000, 2)
    );
    assert_eq!(members(&muster, "list").await, ids(1..2));
    muster.stop().await;
}

#[tokio::test]
async fn a_key_revoked_during_an_upload_never_publishes() {
    let muster = shop_of(5).await;
    let mut import = Import::open(&muster, "list", ingest::ImportMode::Delta).await;
    import.add(&ids(0..5)).await;
    revoke_the_key(&muster).await;
    let refused = import.commit().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert_eq!(muster.cohort("list").await.version, 0);
    assert_eq!(members(&muster, "list").await, ids(0..0));
    muster.stop().await;
}

#[tokio::test]
async fn an_open_upload_ends_soon_after_its_key_is_revoked() {
    let muster = shop_of(5).await;
    let mut import = Import::open(&muster, "list", ingest::ImportMode::Delta).await;
    import.add(&ids(0..5)).await;
    revoke_the_key(&muster).await;
    // Nothing more is sent: the server ends it by itself. A second is promised; the rest is for a
    // busy machine.
    let ended = tokio::time::timeout(Duration::from_secs(5), import.answer()).await;
    let refused = ended.expect("it ends by itself").unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    muster.stop().await;
}
