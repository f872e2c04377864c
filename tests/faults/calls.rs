//! Single tries of calls of every kind, and what they are answered.

use std::time::Duration;

use muster_client::{Connection, Refusal, upload::Outcome};
use muster_domain::import::{Effect, Mode};
use muster_proto::{
    ingest::v1 as ingest,
    segments::v1::{self as segments, resolve_segment_response::Message},
    users::v1 as users,
};
use muster_tests::{PARTNER, Shop, WORKSPACE, identified, rest::Rest, text};
use serde_json::json;
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::oracle;

/// Longest time that any call may take to be answered, whatever is broken: callers give up then.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Reads a cohort.
    Get,
    /// Counts a filter.
    Count,
    /// Evaluates a filter and begins to stream.
    Resolve,
    /// Writes a user.
    Upsert,
    /// Adds a user to a cohort over gRPC, in one round trip.
    Import,
    /// Adds a user to a cohort over REST.
    Rest,
}

/// Who makes calls, with every client made beforehand: a new one for REST reads certificates.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Whom to call.
    pub(crate) shop: Shop,
    partner: Connection,
    rest: Rest,
}

impl Caller {
    /// A caller with the credentials of the shop.
    pub(crate) fn new(shop: &Shop) -> Self {
        Self {
            shop: shop.clone(),
            partner: shop.partner(),
            rest: shop.rest(),
        }
    }
}

impl Call {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [
        Self::Get,
        Self::Count,
        Self::Resolve,
        Self::Upsert,
        Self::Import,
        Self::Rest,
    ];

    /// Whether it adds a user to a cohort.
    pub(crate) fn adds(self) -> bool {
        matches!(self, Self::Import | Self::Rest)
    }

    /// Makes it once; `user` is added to `cohort` by those that add.
    ///
    /// # Panics
    /// If it is not answered in time.
    pub(crate) async fn once(
        self,
        caller: &Caller,
        cohort: &str,
        user: &str,
    ) -> Result<(), Refusal> {
        let answer = tokio::time::timeout(2 * PATIENCE, self.make(caller, cohort, user));
        let answer = answer.await;
        answer.unwrap_or_else(|_| panic!("{self:?} has no answer after {:?}", 2 * PATIENCE))
    }

    async fn make(self, caller: &Caller, cohort: &str, user: &str) -> Result<(), Refusal> {
        let shop = &caller.shop;
        let filter = || text(&format!("{PARTNER}:id(\"{cohort}\")"));
        match self {
            Self::Get => {
                let request = ingest::GetCohortRequest {
                    workspace: WORKSPACE.into(),
                    partner: PARTNER.into(),
                    cohort_id: cohort.into(),
                };
                shop.operator.ingest().get_cohort(request).await?;
            }
            Self::Count => {
                let request = segments::CountSegmentRequest {
                    workspace: WORKSPACE.into(),
                    audience: Some(segments::count_segment_request::Audience::Filter(filter())),
                    ..Default::default()
                };
                shop.operator.segments().count_segment(request).await?;
            }
            Self::Resolve => {
                let request =
                    resolve(segments::resolve_segment_request::Audience::Filter(filter()));
                let answer = shop.operator.segments().resolve_segment(request).await?;
                answer.into_inner().message().await?;
            }
            Self::Upsert => {
                let request = users::UpsertUsersRequest {
                    workspace: WORKSPACE.into(),
                    users: vec![identified(user)],
                    request_id: String::new(),
                };
                shop.operator.users().upsert_users(request).await?;
            }
            Self::Import => {
                let import_id = uuid::Uuid::now_v7().to_string();
                let upload = oracle::upload(cohort, Mode::Delta, &import_id);
                let adds = vec![(Effect::Add, oracle::external_id(user))];
                let outcome = upload.run_pipelined(&caller.partner, adds, 2 * PATIENCE);
                let outcome = outcome.await?;
                assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
            }
            Self::Rest => {
                let change = json!([{ "user_ids": [user] }]);
                let answer = caller.rest.change(cohort, change).await;
                let code = match answer.status {
                    201 => return Ok(()),
                    423 => Code::Aborted,
                    429 => Code::ResourceExhausted,
                    503 => Code::Unavailable,
                    _ => Code::Unknown,
                };
                return Err(Refusal {
                    code,
                    reason: String::new(),
                    message: format!("{} {}", answer.status, answer.body),
                    fields: Vec::new(),
                    metadata: Default::default(),
                    request_id: String::new(),
                    retry_after: Some(Duration::from_secs(answer.number("retry-after"))),
                    connection_lost: false,
                });
            }
        }
        Ok(())
    }
}

fn resolve(
    audience: segments::resolve_segment_request::Audience,
) -> segments::ResolveSegmentRequest {
    segments::ResolveSegmentRequest {
        workspace: WORKSPACE.into(),
        audience: Some(audience),
        view: segments::AudienceView::Full.into(),
        ..Default::default()
    }
}

/// An audience that is read to its end through any number of broken streams.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    resolution_id: String,
    resume_token: String,
    promised: u64,
    last_user_no: Option<u32>,
    /// The external ids so far, in the order of the stream.
    pub(crate) ids: Vec<String>,
}

impl Audience {
    /// Reads on until the end or the next refusal.
    ///
    /// # Panics
    /// If there is a gap or a duplicate.
    pub(crate) async fn read(&mut self, shop: &Shop, filter: &str) -> Result<(), Refusal> {
        use segments::resolve_segment_request::Audience as Of;
        let of = match self.resolution_id.is_empty() {
            true => Of::Filter(text(filter)),
            false => Of::ResolutionId(self.resolution_id.clone()),
        };
        let request = segments::ResolveSegmentRequest {
            resume_token: self.resume_token.clone(),
            ..resolve(of)
        };
        let answer = shop.operator.segments().resolve_segment(request).await?;
        let mut stream = answer.into_inner();
        while let Some(answer) = stream.message().await? {
            match answer.message.unwrap() {
                Message::Header(header) => {
                    self.promised = header.partition_user_count;
                    self.resolution_id = header.resolution.unwrap().resolution_id;
                }
                Message::Batch(batch) => {
                    for user in batch.users {
                        let follows = self.last_user_no < Some(user.user_no);
                        assert!(follows, "{} after {:?}", user.user_no, self.last_user_no);
                        self.last_user_no = Some(user.user_no);
                        self.ids.push(user.external_id);
                    }
                    self.resume_token = batch.resume_token;
                }
                Message::End(end) => {
                    let told = (end.user_count, self.promised);
                    let read = self.ids.len() as u64;
                    assert_eq!(told, (read, read), "an audience is incomplete");
                    return Ok(());
                }
            }
        }
        panic!("an audience stream ended without an end or an error");
    }
}

/// That a refusal is what a caller is told to come back upon: one of these codes, with the time to
/// wait.
#[track_caller]
pub(crate) fn check_come_back(refusal: &Refusal, codes: &[Code]) {
    assert!(codes.contains(&refusal.code), "{refusal:?}");
    assert!(!refusal.connection_lost, "the process is gone: {refusal:?}");
    let wait = refusal.retry_after.unwrap_or_default();
    assert!(
        wait > Duration::ZERO && wait <= Duration::from_secs(60),
        "no time to wait: {refusal:?}"
    );
}

/// That a process says it is well.
pub(crate) async fn check_healthy(shop: &Shop) {
    let channel = Endpoint::from_shared(shop.grpc.clone()).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let answer = health.check(HealthCheckRequest::default());
    let answer = tokio::time::timeout(Duration::from_secs(2), answer).await;
    let answer = answer.expect("health answers at once").unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
}
