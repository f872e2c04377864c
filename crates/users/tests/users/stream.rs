//! Importing users, one batch after the other.

use std::time::Duration;

use muster_domain::credential::Kind;
use muster_proto::users::v1::{
    self as pb, ImportUsersRequest, ImportUsersResponse, UserOutcomeCounts, UserRecord,
};
use muster_storage::credentials;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::{Muster, device, epoch, external_id, record, records, refused_as};

/// A client in the middle of an import.
struct Import {
    batches: mpsc::Sender<ImportUsersRequest>,
    answers: Streaming<ImportUsersResponse>,
}

impl Import {
    async fn open(muster: &Muster) -> Self {
        Self::with(muster.users.clone()).await
    }

    async fn with(
        mut users: pb::user_service_client::UserServiceClient<muster_client::Client>,
    ) -> Self {
        let (batches, receiver) = mpsc::channel(16);
        let answers = users.import_users(ReceiverStream::new(receiver)).await;
        Self {
            batches,
            answers: answers.unwrap().into_inner(),
        }
    }

    async fn send(&self, workspace: &str, users: Vec<UserRecord>) {
        let workspace = workspace.to_owned();
        let batch = ImportUsersRequest { workspace, users };
        // If the stream has ended, its last answer says why.
        let _ = self.batches.send(batch).await;
    }

    async fn answer(&mut self) -> Result<Option<ImportUsersResponse>, Status> {
        let answer = tokio::time::timeout(Duration::from_secs(10), self.answers.message());
        answer.await.expect("an answer, in time")
    }

    /// Sends a batch and gets its answer.
    async fn batch(&mut self, users: &[&str]) -> ImportUsersResponse {
        self.send("shop", records(users)).await;
        self.answer().await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn every_batch_is_answered_in_order_and_its_counts_add_up() {
    let muster = Muster::start().await;
    muster.upsert(records(&["ext=ann dev=a1", "dev=b1"])).await;
    let mut import = Import::open(&muster).await;
    let mixed = [
        "ext=new dev=n1",
        "",
        "ext=ann dev=a2",
        "dev=b1",
        "ext=bob dev=b1",
        "ext=ann dev=b1",
    ];
    import.send("shop", records(&mixed)).await;
    import.send("", records(&["ext=new2", "ext=new"])).await;
    import.send("shop", Vec::new()).await;
    let first = import.answer().await.unwrap().unwrap();
    let counts = UserOutcomeCounts {
        created: 1,
        updated: 1,
        unchanged: 1,
        conflict: 2,
        invalid: 1,
    };
    assert_eq!(first.counts, Some(counts));
    let refused: Vec<_> = first
        .refused
        .iter()
        .map(|r| (r.index, r.outcome()))
        .collect();
    use pb::UserOutcome::{Conflict, Invalid};
    assert_eq!(refused, [(1, Invalid), (4, Conflict), (5, Conflict)]);
    assert!(
        first
            .refused
            .iter()
            .all(|r| !r.detail.is_empty() && r.user_no.is_none())
    );
    assert_eq!(epoch(&first.consistency_token), 2);
    let second = import.answer().await.unwrap().unwrap();
    let counts = second.counts.unwrap();
    assert_eq!((counts.created, counts.unchanged), (1, 1));
    assert_eq!(epoch(&second.consistency_token), 3);
    let empty = import.answer().await.unwrap().unwrap();
    assert_eq!(empty.counts, Some(UserOutcomeCounts::default()));
    assert_eq!(epoch(&empty.consistency_token), 3);
    drop(import.batches);
    assert!(import.answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_batch_that_is_too_large_ends_the_stream_and_undoes_nothing() {
    let muster = Muster::start().await;
    let many = (0..10_001).map(|n| record(&format!("dev={n}"))).collect();
    let empty = vec![UserRecord::default(); 10_001];
    let long: Vec<UserRecord> = (0..2_100)
        .map(|n| record(&format!("dev={n:0>512}")))
        .collect();
    for (index, large) in [many, empty, long].into_iter().enumerate() {
        let mut import = Import::open(&muster).await;
        import.batch(&[&format!("ext=before{index}")]).await;
        import.send("shop", large).await;
        let refused = import.answer().await.unwrap_err();
        refused_as(&refused, Code::ResourceExhausted, "BATCH_TOO_LARGE", "");
        let before = muster.find(external_id(&format!("before{index}"))).await;
        assert!(before.is_ok());
    }
    let mut import = Import::open(&muster).await;
    let huge = record(&format!("dev={}", "x".repeat(5 << 20)));
    import.send("shop", vec![huge]).await;
    let refused = import.answer().await.unwrap_err();
    refused_as(&refused, Code::ResourceExhausted, "MESSAGE_TOO_LARGE", "");
    assert!(muster.find(device("0")).await.is_err());
}

#[tokio::test]
async fn a_stream_belongs_to_one_workspace() {
    let muster = Muster::start().await;
    muster.workspace("other").await;
    let mut import = Import::open(&muster).await;
    import.batch(&["ext=ann"]).await;
    import.send("other", records(&["ext=bob"])).await;
    let invalid = (Code::InvalidArgument, "INVALID_FIELD", "workspace");
    let missing = (Code::NotFound, "NOT_FOUND", "");
    let refused = import.answer().await.unwrap_err();
    refused_as(&refused, invalid.0, invalid.1, invalid.2);
    for (workspace, (code, reason, field)) in [("", invalid), ("nowhere", missing)] {
        let mut import = Import::open(&muster).await;
        import.send(workspace, records(&["ext=bob"])).await;
        let refused = import.answer().await.unwrap_err();
        refused_as(&refused, code, reason, field);
    }
}

#[tokio::test]
async fn an_answered_batch_survives_a_client_that_vanishes() {
    let muster = Muster::start().await;
    let mut import = Import::open(&muster).await;
    import.batch(&["ext=ann"]).await;
    drop(import);
    assert!(muster.find(external_id("ann")).await.is_ok());
}

#[tokio::test]
async fn an_open_stream_ends_when_the_server_shuts_down() {
    let muster = Muster::start().await;
    let mut import = Import::open(&muster).await;
    import.batch(&["ext=ann"]).await;
    muster.shutdown.cancel();
    let ended = import.answer().await.unwrap_err();
    refused_as(&ended, Code::Unavailable, "SHUTTING_DOWN", "");
}

#[tokio::test]
async fn a_revoked_token_writes_no_more_even_on_an_open_stream() {
    let muster = Muster::start().await;
    let (token, users) = muster.token(None, "users:write").await;
    let mut idle = Import::with(users.clone()).await;
    let mut busy = Import::with(users).await;
    busy.batch(&["ext=ann"]).await;
    let mut sql = muster.store.connection().await.unwrap();
    let revoked = credentials::revoke(&mut sql, Kind::ServiceToken, token).await;
    assert!(revoked.unwrap());
    let ended = idle.answer().await.unwrap_err();
    refused_as(&ended, Code::Unauthenticated, "CREDENTIAL_INVALID", "");
    // However fast the client sends, a check comes in between.
    let ended = loop {
        busy.send("shop", records(&["ext=ann"])).await;
        if let Err(ended) = busy.answer().await {
            break ended;
        }
    };
    refused_as(&ended, Code::Unauthenticated, "CREDENTIAL_INVALID", "");
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_let_go() {
    let settings = muster_users::Settings {
        idle_timeout: Duration::from_secs(1),
    };
    let muster = Muster::with(20, settings).await;
    let mut import = Import::open(&muster).await;
    import.batch(&["ext=ann"]).await;
    let ended = import.answer().await.unwrap_err();
    refused_as(&ended, Code::Aborted, "STREAM_IDLE", "");
    assert!(muster.find(external_id("ann")).await.is_ok());
}

#[tokio::test]
async fn waiting_streams_hold_no_connection() {
    let muster = Muster::with_connections(1).await;
    let mut imports = Vec::new();
    for client in 0..5 {
        let mut import = Import::open(&muster).await;
        import.batch(&[&format!("dev={client}")]).await;
        imports.push(import);
    }
    assert!(muster.find(device("4")).await.is_ok());
    for mut import in imports {
        import.batch(&["ext=ann"]).await;
    }
}
