//! Peers that do not keep up: clients that never read an audience, sources that fall silent in the
//! middle of an import. They cost a bounded amount of memory and no database connection, are cut,
//! and nobody else notices.

use std::{
    fs,
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, future::join_all, stream};
use http_body_util::{BodyExt as _, StreamBody};
use muster_client::Refusal;
use muster_domain::import::Mode;
use muster_proto::{
    ingest::v1 as ingest,
    segments::v1::{
        self as pb, resolve_segment_request::Audience, resolve_segment_response::Message,
    },
    users::v1 as users,
};
use muster_testbed::number;
use muster_tests::{PARTNER, WORKSPACE, identified, text};
use prost::Message as _;
use tokio::time::timeout;
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tower::ServiceExt as _;

use crate::{
    node::Deployment,
    oracle::{self, List},
    suite::{Plan, Tally},
};

/// Users with an external id alone.
const THIN: usize = 20_000;

/// Users with [`LONG`] identifiers: three messages of the largest size.
const FAT: usize = 9_000;

/// Bytes of a label, and of a name.
const LONG: usize = 500;

/// Audiences of thin records that nobody reads, and of fat ones.
const READERS: (usize, usize) = (92, 8);

/// Sources of each kind that fall silent.
const WRITERS: usize = 10;

/// Sources of users that do not read the answers, which exceed all windows.
const UNREAD: usize = 2;

/// What a stream may cost the server in memory: of thin records, of fat ones, and of a writer. Of an
/// audience that is one message being sent and one made ahead.
const MOST_BYTES: (u64, u64, u64) = (1 << 20, 10 << 20, 256 << 10);

/// How long the server lets a stream rest, in the short version.
const IDLE: Duration = Duration::from_secs(6);

/// How much later than that it may cut one.
const LATE: Duration = Duration::from_secs(4);

/// Slow readers and slow writers, all at once.
pub(crate) async fn slow_peers(mut plan: Plan) -> Tally {
    let mut tally = Tally::default();
    let idle = format!("{}s", IDLE.as_secs());
    let words = ["--database-connections", "5"];
    let mut story = Story::begin(&[words.as_slice(), &["--stream-idle", &idle]].concat()).await;
    for _ in 0..plan.rounds.div_ceil(20) {
        story.besiege(&mut plan, IDLE, &mut tally).await;
    }
    if plan.rounds >= 100 {
        // As an operator who sets nothing has it.
        let mut story = Story::begin(&words).await;
        let idle = Duration::from_secs(120);
        story.besiege(&mut plan, idle, &mut tally).await;
    }
    tally
}

struct Story {
    muster: Deployment,
    token: String,
}

type Audiences = Vec<Streaming<pb::ResolveSegmentResponse>>;

impl Story {
    async fn begin(words: &[&str]) -> Self {
        let muster = Deployment::start(words).await;
        oracle::fill(&muster.shop, THIN).await;
        let mut conn = muster.store.connection().await.unwrap();
        sqlx::query(
            r"WITH fat AS (
                  UPDATE directory_user
                  SET identifiers = '2' || repeat('l', $1) || E'\t' || rpad(user_no || '-', $1, 'n')
                  WHERE user_no < $2
                  RETURNING workspace_id, identifiers, user_no
              )
              INSERT INTO user_identifier (workspace_id, key, user_no)
              SELECT workspace_id, identifier_key(identifiers), user_no FROM fat",
        )
        .bind(i32::try_from(LONG).unwrap())
        .bind(i64::try_from(FAT).unwrap())
        .execute(&mut *conn)
        .await
        .unwrap();
        drop(conn);
        let token = oracle::service_token(&muster.shop).await;
        let story = Self { muster, token };
        for (cohort, count) in [("thin", THIN), ("fat", FAT), ("few", 100)] {
            let known = (0..count).map(oracle::user).collect();
            let list = List {
                ids: (0..count).map(oracle::user).collect(),
                known,
            };
            let upload = oracle::upload(cohort, Mode::Replace, cohort);
            let partner = story.muster.shop.partner();
            let uploaded = upload.run(&partner, list.source(), &mut |_| {}).await;
            list.check_committed(&uploaded.unwrap());
        }
        story
    }

    fn request<T>(&self, body: T) -> Request<T> {
        oracle::signed(&self.token, body)
    }

    /// A connection with windows smaller than any message.
    fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.muster.node.grpc()).unwrap();
        let endpoint = endpoint.initial_stream_window_size(16 * 1024);
        endpoint.connect_lazy()
    }

    /// Resident memory of the server, in bytes.
    fn memory(&mut self) -> u64 {
        let pid = self.muster.node.process().pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() * 1024
    }
}

/// Medians of the time that each call takes, in seconds: count, resolve, import.
type Medians = [f64; 3];

impl Story {
    /// What must hold while the slow ones hang on, and after they were cut.
    async fn besiege(&mut self, plan: &mut Plan, idle: Duration, tally: &mut Tally) {
        let before = self.medians(plan).await;
        let memory = self.memory();
        let begun = Instant::now();
        let silent = self.silent_writers(plan, idle);
        let audiences = self.readers().await;
        let unread = self.unread_writers().await;
        let silent = tokio::spawn(silent);
        let mut during = [f64::MAX; 3];
        let mut grown = 0;
        let mut slices = 0;
        while slices == 0 || begun.elapsed() + Duration::from_secs(1) < idle && slices < 8 {
            self.check_connections().await;
            let slice = self.medians(plan).await;
            during = [0, 1, 2].map(|call| slice[call].min(during[call]));
            grown = grown.max(self.memory().saturating_sub(memory));
            slices += 1;
        }
        let ends = timeout(idle + LATE, silent).await;
        for (kind, end, took) in ends.expect("silent writers are cut").unwrap() {
            check_cut(kind, end);
            assert!(
                took + Duration::from_millis(100) > idle,
                "{kind}: cut after {took:?}"
            );
            tally.recovered(took.saturating_sub(idle));
            assert!(took < idle + LATE, "{kind}: cut after {took:?} only");
        }
        // Every reader came to a stop after the last of the writers had begun.
        tokio::time::sleep_until((begun + idle + LATE).into()).await;
        grown = grown.max(self.memory().saturating_sub(memory));
        self.check_audiences_cut(audiences).await;
        for answers in unread {
            check_cut("unread answers", drained(answers).await);
        }
        let (thin, fat) = READERS;
        let writers = (3 * WRITERS + UNREAD) as u64;
        let most = thin as u64 * MOST_BYTES.0 + fat as u64 * MOST_BYTES.1 + writers * MOST_BYTES.2;
        assert!(grown < most, "grew by {grown} bytes, more than {most}");
        let after = self.medians(plan).await;
        // Machines have moods: before and after, the worse one counts; meanwhile, the best slice. A
        // load that the slow ones cause is there in every slice.
        let mut worst: f64 = 0.0;
        for call in 0..3 {
            worst = worst.max(during[call] / before[call].max(after[call]));
        }
        assert!(
            worst < 2.0,
            "others wait {worst:.1} times as long: {before:?}, {during:?}, {after:?}"
        );
        tally.faults += u32::try_from(thin + fat + 3 * WRITERS + UNREAD).unwrap();
        tally.rounds += 1;
        tally.note = format!(
            "latency of others x{worst:.2}, memory +{} of at most {} MiB",
            grown >> 20,
            most >> 20
        );
    }

    /// Opens the audiences; what is on their way fills the window of each connection.
    async fn readers(&self) -> Audiences {
        let mut opened = Vec::new();
        let thin = ("thin", pb::AudienceView::UserNo, READERS.0);
        let fat = ("fat", pb::AudienceView::Full, READERS.1);
        for (cohort, view, count) in [thin, fat] {
            let (first, resolution) = self.open(cohort, view).await;
            let channels = [(); 4].map(|()| self.channel());
            let rest = (1..count).map(|n| {
                let channel = &channels[n % channels.len()];
                self.resolve(channel, view, Audience::ResolutionId(resolution.clone()))
            });
            let rest: Vec<_> = stream::iter(rest).buffered(4).collect().await;
            opened.push(first);
            opened.extend(rest);
        }
        opened
    }

    /// Evaluates a cohort, and reads as far as the header.
    async fn open(
        &self,
        cohort: &str,
        view: pb::AudienceView,
    ) -> (Streaming<pb::ResolveSegmentResponse>, String) {
        let filter = format!("{PARTNER}:id(\"{cohort}\")");
        let audience = Audience::Filter(text(&filter));
        let mut stream = self.resolve(&self.channel(), view, audience).await;
        let header = stream.message().await.unwrap().unwrap().message.unwrap();
        let Message::Header(header) = header else {
            panic!("not a header: {header:?}");
        };
        (stream, header.resolution.unwrap().resolution_id)
    }

    async fn resolve(
        &self,
        channel: &Channel,
        view: pb::AudienceView,
        audience: Audience,
    ) -> Streaming<pb::ResolveSegmentResponse> {
        let request = self.request(pb::ResolveSegmentRequest {
            workspace: WORKSPACE.into(),
            audience: Some(audience),
            view: view.into(),
            ..Default::default()
        });
        let client = pb::segment_service_client::SegmentServiceClient::new(channel.clone());
        let mut client = client.max_decoding_message_size(usize::MAX);
        client.resolve_segment(request).await.unwrap().into_inner()
    }

    /// Reads what still comes, which is not the whole, then why it ended; and goes on from there.
    async fn check_audiences_cut(&self, audiences: Audiences) {
        let reads = audiences.into_iter().map(|mut audience| async move {
            let mut last = None;
            loop {
                match audience.message().await {
                    Ok(Some(message)) => match message.message.unwrap() {
                        Message::Header(_) => {}
                        Message::Batch(batch) => last = Some(batch),
                        Message::End(_) => panic!("an audience that nobody read was not cut"),
                    },
                    Ok(None) => panic!("an audience ended without end and error"),
                    Err(status) => {
                        check_cut("audience", status);
                        return last;
                    }
                }
            }
        });
        let reads = timeout(Duration::from_secs(60), join_all(reads)).await;
        reads.expect("what was cut can be read to its end");
    }

    /// That nobody holds a transaction without using it, and that everybody gets a connection.
    async fn check_connections(&self) {
        let mut conn = self.muster.store.connection().await.unwrap();
        let held = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND state LIKE 'idle in transaction%'
                      AND clock_timestamp() - state_change > interval '200 ms'";
        for _ in 0..5 {
            let held = number(&mut conn, held).await;
            assert_eq!(held, 0, "a transaction is held while its client is awaited");
        }
        let calls = (0..20).map(|_| self.count());
        join_all(calls).await;
    }

    async fn count(&self) {
        let request = pb::CountSegmentRequest {
            workspace: WORKSPACE.into(),
            audience: Some(pb::count_segment_request::Audience::Filter(text(&format!(
                "{PARTNER}:id(\"thin\")"
            )))),
            consistency_token: String::new(),
        };
        let mut segments = self.muster.shop.operator.segments();
        let count = segments.count_segment(request).await.unwrap();
        assert_eq!(count.into_inner().user_count, THIN as u64);
    }

    /// Medians of a few calls of each kind, one after the other.
    async fn medians(&self, plan: &mut Plan) -> Medians {
        const SAMPLES: usize = 11;
        let mut took = [const { Vec::new() }; 3];
        for _ in 0..SAMPLES {
            let begun = Instant::now();
            self.count().await;
            took[0].push(begun.elapsed().as_secs_f64());
            let begun = Instant::now();
            let few = format!("{PARTNER}:id(\"few\")");
            assert_eq!(self.muster.shop.audience_ids(&few).await.len(), 100);
            took[1].push(begun.elapsed().as_secs_f64());
            let import_id = oracle::import_id(&mut plan.rng);
            let upload = oracle::upload("samples", Mode::Delta, &import_id);
            let list = List::draw(&mut plan.rng, 200, 20);
            let begun = Instant::now();
            let partner = self.muster.shop.partner();
            let uploaded = upload.run(&partner, list.source(), &mut |_| {}).await;
            list.check_committed(&uploaded.unwrap());
            took[2].push(begun.elapsed().as_secs_f64());
        }
        took.map(|mut took| {
            took.sort_by(f64::total_cmp);
            took[SAMPLES / 2]
        })
    }

    /// Streams of users whose answers nobody reads. They hold more answers than windows do.
    async fn unread_writers(&self) -> Vec<Streaming<users::ImportUsersResponse>> {
        let batch = users::ImportUsersRequest {
            workspace: WORKSPACE.into(),
            users: (0..1_000).map(|n| identified(&oracle::user(n))).collect(),
        };
        let mut opened = Vec::new();
        for _ in 0..UNREAD {
            let batches = stream::iter(vec![batch.clone(); 12]).chain(stream::pending());
            let client = users::user_service_client::UserServiceClient::new(self.channel());
            let answers = { client }.import_users(self.request(batches)).await;
            opened.push(answers.unwrap().into_inner());
        }
        opened
    }

    /// Sources that open an import and then say nothing, or next to nothing; and users' ones. How,
    /// and after what time, each of them ended.
    fn silent_writers(
        &self,
        plan: &mut Plan,
        idle: Duration,
    ) -> impl Future<Output = Vec<(&'static str, Status, Duration)>> + Send + use<> {
        let mut all = Vec::new();
        for n in 0..3 * WRITERS {
            let channel = self.channel();
            let open = ingest::IngestCohortRequest {
                message: Some(ingest::ingest_cohort_request::Message::Open(
                    ingest::OpenImport {
                        workspace: WORKSPACE.into(),
                        partner: PARTNER.into(),
                        cohort_id: "silent".into(),
                        mode: ingest::ImportMode::Delta.into(),
                        import_id: oracle::import_id(&mut plan.rng),
                        ..Default::default()
                    },
                )),
            };
            let (url, token) = (self.muster.node.grpc(), self.token.clone());
            let silence = self.request(stream::pending());
            let opened = self.request(stream::iter([open.clone()]).chain(stream::pending()));
            all.push(async move {
                let begun = Instant::now();
                let (kind, end) = match n % 3 {
                    0 => {
                        let client =
                            ingest::ingest_service_client::IngestServiceClient::new(channel);
                        let answers = { client }.ingest_cohort(opened).await;
                        (
                            "silent import",
                            drained(answers.unwrap().into_inner()).await,
                        )
                    }
                    1 => {
                        let client = users::user_service_client::UserServiceClient::new(channel);
                        let answers = { client }.import_users(silence).await;
                        ("silent users", drained(answers.unwrap().into_inner()).await)
                    }
                    _ => (
                        "trickled import",
                        trickled(channel, &url, &token, &open, idle).await,
                    ),
                };
                (kind, end, begun.elapsed())
            });
        }
        join_all(all)
    }
}

/// Reads a stream to its error.
async fn drained<T>(mut answers: Streaming<T>) -> Status {
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stream that was cut ended as if nothing were wrong"),
            Err(status) => return status,
        }
    }
}

/// That a stream was cut because it rested.
#[track_caller]
fn check_cut(kind: &str, status: Status) {
    let refusal = Refusal::from(status);
    let cut = (refusal.code, refusal.reason.as_str());
    assert_eq!(cut, (Code::Aborted, "STREAM_IDLE"), "{kind}: {refusal:?}");
}

/// Opens an import and sends a batch, byte by byte, that would take hours. How the server ends it.
async fn trickled(
    channel: Channel,
    url: &str,
    token: &str,
    open: &ingest::IngestCohortRequest,
    idle: Duration,
) -> Status {
    let mut head = BytesMut::new();
    head.put_u8(0);
    head.put_u32(u32::try_from(open.encoded_len()).unwrap());
    open.encode(&mut head).unwrap();
    // A batch of 100 KB follows, says its header.
    head.put_u8(0);
    head.put_u32(100_000);
    let frame = |bytes| Ok::<_, Status>(hyper::body::Frame::data(bytes));
    let step = idle / 20;
    let bytes = stream::unfold((), move |()| async move {
        tokio::time::sleep(step).await;
        Some((Bytes::from_static(b"x"), ()))
    });
    let body = stream::iter([head.freeze()]).chain(bytes).map(frame);
    let request = http::Request::post(format!("{url}/muster.ingest.v1.IngestService/IngestCohort"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .body(tonic::body::Body::new(StreamBody::new(body)))
        .unwrap();
    let mut answer = channel.oneshot(request).await.unwrap().into_body();
    while let Some(frame) = answer.frame().await {
        if let Ok(trailers) = frame.unwrap().into_trailers() {
            return Status::from_header_map(&trailers).unwrap();
        }
    }
    panic!("the call ended without a status");
}
