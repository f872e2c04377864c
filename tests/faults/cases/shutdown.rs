//! SIGTERM while everything is in use: what was acknowledged is there afterwards, what was not can
//! be sent again, and the end comes in time.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use futures::stream;
use muster_client::{
    Refusal,
    upload::{Outcome, Progress},
};
use muster_domain::import::Mode;
use muster_proto::{
    ingest::v1::{self as ingest, ingest_service_client::IngestServiceClient},
    segments::v1::{
        self as segments, resolve_segment_request::Audience, resolve_segment_response::Message,
        segment_service_client::SegmentServiceClient,
    },
    users::v1 as users,
};
use muster_storage::{Settings, Store};
use muster_testbed::process::{self, PATIENCE, Server};
use muster_tests::{PARTNER, Shop, WORKSPACE, identified, rest::Rest, text};
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};
use tonic::{Streaming, transport::Endpoint};

use crate::{
    node::{EVERYTHING, free_address, program},
    oracle::{self, List},
    suite::{Plan, Tally},
};

/// Users who are there from the beginning: more than windows of [`WINDOW`] hold in an audience.
const USERS: usize = 9_000;

/// Window of those who do not read, in bytes.
const WINDOW: u32 = 16 * 1024;

const GRACE: Duration = Duration::from_secs(1);

/// Connections to the database may take that long to close after the grace period.
const CLOSING: Duration = Duration::from_secs(2);

/// What a busy machine takes for the rest.
const SLACK: Duration = Duration::from_millis(1_500);

/// A second signal must end it within this time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What happens besides.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ending {
    /// Everybody leaves when they are told to.
    Orderly,
    /// Some neither read nor leave.
    Stuck,
    /// The same, and there is a second signal.
    Twice,
}

/// A `muster serve` of everything, or a `muster up` with a Postgres of its own.
struct All {
    all_in_one: bool,
    database_url: String,
    grpc: SocketAddr,
    rest: SocketAddr,
    data: TempDir,
    server: Option<Server>,
    /// And a token of its operator.
    shop: Option<(Shop, String)>,
}

impl All {
    async fn begin(all_in_one: bool) -> Self {
        let mut it = Self {
            all_in_one,
            database_url: String::new(),
            grpc: free_address(),
            rest: free_address(),
            data: process::directory(),
            server: None,
            shop: None,
        };
        let mut token = String::new();
        if !all_in_one {
            it.database_url = muster_testbed::database().await;
            let store = Store::connect(&Settings::new(&it.database_url)).unwrap();
            let operator = muster_keys::bootstrap_operator(&store).await.unwrap();
            operator.expose().clone_into(&mut token);
        }
        it.start();
        if all_in_one {
            let file = it.data.path().join("operator.token");
            std::fs::read_to_string(file)
                .unwrap()
                .trim()
                .clone_into(&mut token);
        }
        let (grpc, rest) = (format!("http://{}", it.grpc), format!("http://{}", it.rest));
        let shop = Shop::open(&grpc, &rest, &token).await;
        oracle::fill(&shop, USERS).await;
        let list = List {
            ids: (0..USERS).map(oracle::user).collect(),
            known: (0..USERS).map(oracle::user).collect(),
        };
        let upload = oracle::upload("everybody", Mode::Replace, "everybody");
        let partner = shop.partner();
        let uploaded = upload.run(&partner, list.source(), &mut |_| {}).await;
        list.check_committed(&uploaded.unwrap());
        let token = oracle::service_token(&shop).await;
        it.shop = Some((shop, token));
        it
    }

    fn command(&self) -> Command {
        let mut command = process::command(program());
        if self.all_in_one {
            command.arg("up");
        } else {
            command.arg("serve").args(EVERYTHING);
            command.env("DATABASE_URL", &self.database_url);
        }
        command
            .args(["--grpc-listen", &self.grpc.to_string()])
            .args(["--rest-listen", &self.rest.to_string()])
            .args(["--console-listen", "127.0.0.1:0"])
            .args(["--grace", &format!("{}s", GRACE.as_secs())])
            .arg("--data-dir")
            .arg(self.data.path());
        command
    }

    fn start(&mut self) {
        tokio::task::block_in_place(|| {
            drop(self.server.take());
            let output = self.data.path().join("output");
            std::fs::create_dir_all(&output).unwrap();
            let server = Server::start(&mut self.command(), &output, self.data.path());
            self.server = Some(server);
        });
    }

    /// Tells it to end and checks that it does so in time; returns how long it took from the last
    /// signal.
    fn stop(&mut self, rng: &mut StdRng, ending: Ending) -> Duration {
        let server = self.server.as_mut().unwrap();
        server.signal(Signal::SIGTERM);
        let mut begun = Instant::now();
        let mut limit = GRACE + CLOSING + SLACK;
        if ending == Ending::Twice {
            // Two signals that are pending at once are one signal.
            process::until("the first signal is heard", || {
                !process::runs(server.pid()) || server.stderr().contains("a second signal")
            });
            std::thread::sleep(Duration::from_millis(rng.random_range(0..400)));
            server.signal(Signal::SIGTERM);
            begun = Instant::now();
            limit = AT_ONCE;
        }
        let status = process::wait(&mut server.child, PATIENCE);
        let took = begun.elapsed();
        assert!(took < limit, "{ending:?}: it took {took:?} to end");
        match ending {
            // It may have come to its end before the second signal.
            Ending::Twice => assert!(matches!(status.code(), Some(0 | 1)), "{status:?}"),
            _ => assert_eq!(status.code(), Some(0), "{}", server.stderr()),
        }
        took
    }
}

/// Deployments side by side; the last one is a `muster up`. The wait that a server asks for when it
/// ends, a second, is what takes the time.
const LANES: u32 = 4;

/// SIGTERM under load, of `muster serve` and of `muster up`.
pub(crate) async fn sigterm_under_load(mut plan: Plan) -> Tally {
    let lanes = (0..LANES).map(|lane| {
        let rounds = (plan.rounds + lane) / LANES;
        let rng = StdRng::seed_from_u64(plan.rng.random());
        tokio::spawn(stop_again_and_again(lane == LANES - 1, rounds, rng))
    });
    let lanes = lanes.collect::<Vec<_>>();
    let mut tally = Tally::default();
    let mut longest = [Duration::ZERO; 2];
    for lane in lanes {
        let (done, took) = lane.await.unwrap();
        tally.rounds += done.rounds;
        tally.faults += done.faults;
        tally.recovered(done.worst_recovery);
        longest = [0, 1].map(|signals| longest[signals].max(took[signals]));
    }
    let [one, two] = longest.map(|it| it.as_secs_f64());
    tally.note = format!("ended in {one:.2} s, after a second signal in {two:.2} s");
    tally
}

/// Stops one deployment under load so many times; also tells the longest time that the end took
/// from the first signal, and from the second.
async fn stop_again_and_again(
    all_in_one: bool,
    rounds: u32,
    mut rng: StdRng,
) -> (Tally, [Duration; 2]) {
    let rng = &mut rng;
    let mut all = All::begin(all_in_one).await;
    let (shop, token) = all.shop.clone().unwrap();
    let mut tally = Tally::default();
    let mut longest = [Duration::ZERO; 2];
    for round in 0..rounds {
        let ending = match round % 4 {
            0 => Ending::Stuck,
            1 => Ending::Twice,
            _ => Ending::Orderly,
        };
        let stuck = match ending {
            Ending::Orderly => None,
            _ => Some(Stuck::begin(&shop, &token).await),
        };
        let load = Load::begin(rng, &shop, round).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..250))).await;
        let took = tokio::task::block_in_place(|| all.stop(rng, ending));
        let longest = &mut longest[usize::from(ending == Ending::Twice)];
        *longest = took.max(*longest);
        tally.faults += 1 + u32::from(ending == Ending::Twice);
        let stopped = Instant::now();
        all.start();
        load.check(&shop).await;
        drop(stuck);
        tally.recovered(stopped.elapsed());
        tally.rounds += 1;
    }
    (tally, longest)
}

/// Users of one upsert.
const AT_ONCE_USERS: usize = 20;

/// What a caller did until it was refused: what was acknowledged, and the one call that was not.
#[derive(Debug, Default)]
struct Done {
    acknowledged: Vec<usize>,
    open: Option<usize>,
}

/// Callers of every kind. Uploads and the audience go on by themselves once the server is back; the
/// others stop when they are refused.
struct Load {
    round: u32,
    uploads: JoinSet<(String, List, Outcome)>,
    audience: JoinSet<Vec<u32>>,
    rest: JoinSet<Done>,
    upserts: JoinSet<Done>,
}

impl Load {
    async fn begin(rng: &mut StdRng, shop: &Shop, round: u32) -> Self {
        let mut load = Self {
            round,
            uploads: JoinSet::new(),
            audience: JoinSet::new(),
            rest: JoinSet::new(),
            upserts: JoinSet::new(),
        };
        for k in 0..2 {
            let list = List::draw(rng, USERS, 8_800);
            let cohort = format!("list-{round}-{k}");
            let mut upload = oracle::upload(&cohort, Mode::Replace, &cohort);
            upload.retry.longest_wait = Duration::from_millis(500);
            // A busy machine takes seconds to start a server.
            upload.retry.failures = 80;
            let partner = shop.partner();
            load.uploads.spawn(async move {
                let mut progress = |event| {
                    if let Progress::Retrying { cause, .. } = event {
                        check_refusal(&cause);
                    }
                };
                let uploaded = upload.run(&partner, list.source(), &mut progress).await;
                (cohort, list, uploaded.unwrap())
            });
        }
        load.audience.spawn(read_everybody(shop.clone()));
        let rest = shop.rest();
        load.rest
            .spawn(async move { until_refused(|n| post(&rest, round, n)).await });
        for caller in 0..2 {
            let shop = shop.clone();
            load.upserts.spawn(async move {
                let name = |n| 2 * n + caller;
                let shop = &shop;
                let call = |n| async move {
                    let written = upsert(shop, round, name(n)).await;
                    written.map_err(|refusal| check_refusal(&refusal))?;
                    Ok(())
                };
                let done = until_refused(call).await;
                Done {
                    acknowledged: done.acknowledged.into_iter().map(name).collect(),
                    open: done.open.map(name),
                }
            });
        }
        load
    }

    /// That nothing acknowledged is lost, and everything else can be sent again.
    async fn check(mut self, shop: &Shop) {
        let round = self.round;
        let request = segments::ListSegmentsRequest {
            workspace: WORKSPACE.into(),
            ..Default::default()
        };
        let segments = shop.operator.segments();
        settled(|| {
            let (mut segments, request) = (segments.clone(), request.clone());
            async move { segments.list_segments(request).await }
        })
        .await;
        let uploads = timeout(PATIENCE, self.uploads.join_all()).await;
        for (cohort, list, outcome) in uploads.expect("uploads complete") {
            let version = list.check_committed(&outcome);
            assert_eq!(version, 1, "{cohort} was published once");
            assert_eq!(shop.cohort(&cohort).await.version, 1, "{cohort}");
            oracle::check_published(shop, &cohort, &list.known).await;
        }
        let read = timeout(PATIENCE, self.audience.join_next()).await;
        let read = read.expect("the audience comes to its end").unwrap();
        let distinct: BTreeSet<&u32> = read.as_ref().unwrap().iter().collect();
        assert_eq!(distinct.len(), USERS, "the audience is not everybody");
        assert_eq!(read.as_ref().unwrap().len(), USERS, "somebody came twice");

        let rest = timeout(PATIENCE, self.rest.join_next()).await.unwrap();
        let rest = rest.unwrap().unwrap();
        let mut expected: BTreeSet<String> = rest.acknowledged.iter().map(|n| posted(*n)).collect();
        let filter = format!("{PARTNER}:id(\"rest-{round}\")");
        if !expected.is_empty() {
            let members = shop.audience_ids(&filter).await.into_iter().collect();
            let lost: Vec<_> = expected.difference(&members).collect();
            assert!(
                lost.is_empty(),
                "acknowledged over REST, and lost: {lost:?}"
            );
        }
        if let Some(open) = rest.open {
            let caller = shop.rest();
            settled(|| post(&caller, round, open)).await;
            expected.insert(posted(open));
        }
        oracle::check_published(shop, &format!("rest-{round}"), &expected).await;

        while let Some(done) = self.upserts.join_next().await {
            let done = done.unwrap();
            for n in done.acknowledged {
                let again = upsert(shop, round, n).await.unwrap();
                let there = again.iter().all(|it| *it == users::UserOutcome::Unchanged);
                assert!(there, "users {n} were acknowledged, and lost: {again:?}");
            }
            if let Some(n) = done.open {
                let again = upsert(shop, round, n).await.unwrap();
                let whole = again.iter().all(|it| *it == again[0]);
                assert!(whole, "half of users {n} were written: {again:?}");
            }
        }
    }
}

/// Calls again and again until the first refusal.
async fn until_refused<F: Future<Output = Result<(), ()>>>(call: impl Fn(usize) -> F) -> Done {
    let mut done = Done::default();
    for n in 0.. {
        match timeout(PATIENCE, call(n)).await.expect("an answer comes") {
            Ok(()) => done.acknowledged.push(n),
            Err(()) => {
                done.open = Some(n);
                break;
            }
        }
    }
    done
}

/// Calls until it is accepted: the first call after a restart may meet the old connection.
async fn settled<T, E, F: Future<Output = Result<T, E>>>(call: impl Fn() -> F) {
    let settled = async {
        while call().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let settled = timeout(Duration::from_secs(10), settled).await;
    settled.expect("what was refused can be sent again");
}

/// That a call was refused in a way that says to try again.
#[track_caller]
fn check_refusal(refusal: &Refusal) {
    let known = [
        "",
        "SHUTTING_DOWN",
        "DATABASE_UNAVAILABLE",
        "COMMIT_UNKNOWN",
    ];
    let clean = refusal.is_transient() && known.contains(&refusal.reason.as_str());
    assert!(clean, "not a refusal to be retried: {refusal:?}");
}

/// The user that the `n`-th REST call adds.
fn posted(n: usize) -> String {
    oracle::user(n % USERS)
}

/// Adds one user over REST; an error if it was not acknowledged.
async fn post(rest: &Rest, round: u32, n: usize) -> Result<(), ()> {
    let cohort = format!("rest-{round}");
    let changes = json!([{ "user_ids": [posted(n)] }]);
    let fields = json!({ "cohort_id": cohort, "cohort_changes": changes });
    match rest.try_call("cohorts/users", fields).await {
        Ok(answer) if answer.status == 503 => Err(()),
        Ok(answer) => {
            answer.succeeded();
            Ok(())
        }
        // The connection was refused, or closed.
        Err(_) => Err(()),
    }
}

/// Writes some users, which are new the first time.
async fn upsert(shop: &Shop, round: u32, n: usize) -> Result<Vec<users::UserOutcome>, Refusal> {
    let new = (0..AT_ONCE_USERS).map(|k| identified(&format!("new-{round}-{n}-{k}")));
    let request = users::UpsertUsersRequest {
        workspace: WORKSPACE.into(),
        users: new.collect(),
        request_id: String::new(),
    };
    let answer = shop.operator.users().upsert_users(request).await?;
    let results = answer.into_inner().results;
    Ok(results.iter().map(users::UserResult::outcome).collect())
}

/// Reads one audience to its end, resuming it as often as need be; slowly, so that the end of the
/// server comes in between.
async fn read_everybody(shop: Shop) -> Vec<u32> {
    let mut request = segments::ResolveSegmentRequest {
        workspace: WORKSPACE.into(),
        audience: Some(Audience::Filter(everybody())),
        ..Default::default()
    };
    let mut read = Vec::new();
    loop {
        let broken = match shop
            .operator
            .segments()
            .resolve_segment(request.clone())
            .await
        {
            Err(status) => status,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    let message = match stream.message().await {
                        Ok(message) => message.expect("an end or an error"),
                        Err(status) => break status,
                    };
                    match message.message.unwrap() {
                        Message::Header(header) => {
                            let resolution = header.resolution.unwrap().resolution_id;
                            request.audience = Some(Audience::ResolutionId(resolution));
                        }
                        Message::Batch(batch) => {
                            read.extend(batch.users.iter().map(|user| user.user_no));
                            request.resume_token = batch.resume_token;
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                        Message::End(_) => return read,
                    }
                }
            }
        };
        check_refusal(&broken.into());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn everybody() -> segments::FilterExpression {
    text(&format!("{PARTNER}:id(\"everybody\")"))
}

/// Peers that neither read nor leave.
struct Stuck {
    _audiences: Vec<Streaming<segments::ResolveSegmentResponse>>,
    _imports: Vec<Streaming<ingest::IngestCohortResponse>>,
}

impl Stuck {
    async fn begin(shop: &Shop, token: &str) -> Self {
        let request = segments::ResolveSegmentRequest {
            workspace: WORKSPACE.into(),
            audience: Some(Audience::Filter(everybody())),
            ..Default::default()
        };
        let endpoint = Endpoint::from_shared(shop.grpc.clone()).unwrap();
        let channel = endpoint.initial_stream_window_size(WINDOW).connect_lazy();
        let mut audiences = Vec::new();
        let mut imports = Vec::new();
        for _ in 0..3 {
            let mut client = SegmentServiceClient::new(channel.clone());
            let audience = client.resolve_segment(oracle::signed(token, request.clone()));
            let mut audience = audience.await.unwrap().into_inner();
            // The header, and no more.
            audience.message().await.unwrap();
            audiences.push(audience);
            let mut client = IngestServiceClient::new(channel.clone());
            let silence = oracle::signed(token, stream::pending());
            imports.push(client.ingest_cohort(silence).await.unwrap().into_inner());
        }
        Self {
            _audiences: audiences,
            _imports: imports,
        }
    }
}
