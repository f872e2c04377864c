//! A credential that is revoked while streams are open with it.

mod link;

use std::time::{Duration, Instant, SystemTime};

use muster_domain::import::{Effect, ImportDigest};
use muster_proto::{
    ingest::v1::{self as ingest, ingest_cohort_request, ingest_cohort_response},
    keys::v1 as keys,
    segments::v1::{self as segments, resolve_segment_response, segment_service_client},
};
use muster_storage::WorkspaceId;
use muster_tests::{PARTNER, Shop, WORKSPACE, connect, text};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, transport::Endpoint};

use self::link::{Fault, Link};
use crate::{
    node::{Deployment, Node},
    oracle,
    suite::{Plan, Tally},
};

/// Nothing is acknowledged later than this after a revocation has returned.
const PROMISE: Duration = Duration::from_secs(1);

/// A call whose credential cannot be looked up has failed by then, one that was open and a new one.
const GIVEN_UP: Duration = Duration::from_secs(6);

/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// So many are identified, and as many anonymous.
const USERS: u32 = 40_000;

/// How the credential stops being accepted.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Revoked,
    Expired,
    PartnerDisabled,
}

/// Streams are open on one process while their credentials are revoked through another one.
pub(crate) async fn credential_revoked(mut plan: Plan) -> Tally {
    let mut muster = Deployment::start(&[]).await;
    let mut connection = muster.store.connection().await.unwrap();
    let query = "SELECT workspace_id FROM workspace";
    let workspace = WorkspaceId(muster_testbed::number(&mut connection, query).await);
    muster_testbed::seed_users(&mut connection, workspace, USERS).await;
    drop(connection);
    let link = Link::start(&mut muster).await;
    let node = Node::start(&["ingest", "segments"], &link.url, &[]);
    let story = Story {
        shop: &muster.shop,
        node: node.grpc(),
    };
    let mut tally = Tally::default();
    let mut worst_ack = Duration::ZERO;
    let mut worst_end = Duration::ZERO;
    let mut published = 0;
    // One fault that lasts, lasts until everybody has given up.
    let mut is_next_for_good = true;
    for round in 0..plan.rounds {
        let fault = match round % 10 {
            2 => Fault::Swallowed,
            7 => Fault::Frozen,
            _ => *[Fault::None, Fault::None, Fault::Terminated, Fault::Cut]
                .choose(&mut plan.rng)
                .unwrap(),
        };
        let end = match plan.rng.random_range(0..8) {
            0 => End::Expired,
            1 | 2 => End::PartnerDisabled,
            _ => End::Revoked,
        };
        let mut open = story.open(&mut plan.rng, end).await;
        sleep(Duration::from_millis(plan.rng.random_range(0..120))).await;
        let versions = || async {
            let query = "SELECT count(*) FROM cohort_version";
            let mut connection = muster.store.connection().await.unwrap();
            muster_testbed::number(&mut connection, query).await
        };
        let lasting = matches!(fault, Fault::Swallowed | Fault::Frozen);
        // One that is in the middle of publishing when it is frozen holds its credential, and the
        // revocation does not return: so in a lasting fault commits are sent after its beginning.
        let mut broken = Vec::new();
        let mut given_up = None;
        if lasting {
            broken = link.inject(fault, &muster).await;
            if std::mem::take(&mut is_next_for_good) {
                given_up = Some(Instant::now() + GIVEN_UP);
            }
        }
        let _ = open.commit.send(true);
        sleep(Duration::from_micros(plan.rng.random_range(0..15_000))).await;
        if !lasting {
            broken = link.inject(fault, &muster).await;
        }
        let ended = story.end(end, &open).await;
        let _ = open.over.send(true);
        let versions_then = versions().await;
        if lasting {
            // The promise is about time, so time has to pass before anything is mended.
            sleep((ended + PROMISE + Duration::from_millis(200)) - Instant::now()).await;
        }
        if let Some(given_up) = given_up {
            story.gives_up().await;
            sleep(given_up + PROMISE - Instant::now()).await;
        }
        let mended = Instant::now();
        link.mend(broken);
        for stream in open.streams.drain(..) {
            let told = stream.await.unwrap();
            if let Some(last) = told.last_ack {
                let late = last.saturating_duration_since(ended);
                assert!(
                    late < PROMISE,
                    "acknowledged {late:?} after {end:?} ({fault:?})"
                );
                worst_ack = worst_ack.max(late);
            }
            let status = match told.end {
                Ok(()) => continue,
                Err(status) => status,
            };
            let refused = status.code() == Code::Unauthenticated;
            let unreachable = status.code() == Code::Unavailable && fault != Fault::None;
            // Who waits for the cohort while others publish may be told so.
            let busy = status.code() == Code::Aborted;
            assert!(
                refused || unreachable || busy,
                "{fault:?} {end:?}: {status:?}"
            );
            let known = match given_up {
                Some(given_up) => given_up,
                None if lasting => mended,
                None => ended,
            };
            let since = told.ended.saturating_duration_since(known);
            assert!(
                since < PROMISE,
                "open {since:?} after {end:?} ({fault:?}): {status:?}"
            );
            worst_end = worst_end.max(since);
        }
        let versions_now = versions().await;
        assert_eq!(
            versions_now, versions_then,
            "published after {end:?} ({fault:?})"
        );
        published = versions_now;
        story.again(end).await;
        story.healed().await;
        tally.faults += 1 + u32::from(fault != Fault::None);
        tally.rounds += 1;
    }
    assert!(node.runs(), "no process ends");
    oracle::check_versions(&muster.store).await;
    tally.recovered(worst_end);
    tally.note = format!(
        "last acknowledgement at most {:.2} s after the revocation, {published} commits were before it",
        worst_ack.as_secs_f64()
    );
    tally
}

/// What a stream went through.
struct Told {
    last_ack: Option<Instant>,
    end: Result<(), Status>,
    ended: Instant,
}

/// Streams that are open with a credential.
struct Open {
    key_id: String,
    token_id: String,
    expires: Instant,
    /// Tells those that will commit to do it.
    commit: watch::Sender<bool>,
    /// Tells those that read that it is over.
    over: watch::Sender<bool>,
    streams: Vec<JoinHandle<Told>>,
}

/// The shop, and the process its streams are open on.
struct Story<'a> {
    shop: &'a Shop,
    node: String,
}

impl Story<'_> {
    /// Waits until the process serves again.
    async fn healed(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let request = || ingest::ListCohortsRequest {
            workspace: WORKSPACE.into(),
            ..Default::default()
        };
        while let Err(status) = connect(&self.node, &self.shop.client_secret)
            .ingest()
            .list_cohorts(request())
            .await
        {
            assert!(Instant::now() < deadline, "not back after 10 s: {status:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// A new call fails in time while the database cannot be asked.
    async fn gives_up(&self) {
        let mut ingest = connect(&self.node, &self.shop.client_secret).ingest();
        let request = ingest::ListCohortsRequest {
            workspace: WORKSPACE.into(),
            ..Default::default()
        };
        let answer = timeout(GIVEN_UP + PROMISE, ingest.list_cohorts(request)).await;
        let status = answer.expect("an answer in time").unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }

    /// Opens imports that trickle, repeat themselves, and are ready to commit, and an audience.
    async fn open(&self, rng: &mut StdRng, end: End) -> Open {
        // Long enough to open the streams in, also on a machine that is busy with other things.
        let lifetime = Duration::from_secs(5);
        let expires = Instant::now() + lifetime;
        let expire_time = (end == End::Expired).then(|| (SystemTime::now() + lifetime).into());
        let request = keys::CreateKeyRequest {
            workspace: WORKSPACE.into(),
            partner: PARTNER.into(),
            expire_time,
            ..Default::default()
        };
        let key = self.shop.operator.keys().create_key(request).await.unwrap();
        let key = key.into_inner();
        let request = keys::CreateServiceTokenRequest {
            workspace: WORKSPACE.into(),
            label: "reader".into(),
            scopes: vec!["audiences:read".into()],
            expire_time,
            ..Default::default()
        };
        let mut integrations = self.shop.operator.integrations();
        let token = integrations.create_service_token(request).await.unwrap();
        let token = token.into_inner();
        let (commit, told) = watch::channel(false);
        let (over, is_over) = watch::channel(false);
        let mut streams = Vec::new();
        for kind in [
            Kind::Trickles,
            Kind::Repeats,
            Kind::Commits,
            Kind::Commits,
            Kind::Commits,
        ] {
            let import = Import {
                node: self.node.clone(),
                secret: key.secret.clone(),
                import_id: oracle::import_id(rng),
                kind,
                commit: told.clone(),
                rng: StdRng::seed_from_u64(rng.next_u64()),
            };
            let (ready, is_ready) = tokio::sync::oneshot::channel();
            streams.push(opened(tokio::spawn(import.run(ready)), is_ready).await);
        }
        // Data import keys read no audiences, so a partner that is disabled has nothing to do here.
        if end != End::PartnerDisabled && rng.random() {
            let (ready, is_ready) = tokio::sync::oneshot::channel();
            let audience = read_audience(self.node.clone(), token.secret, is_over, ready);
            streams.push(opened(tokio::spawn(audience), is_ready).await);
        }
        Open {
            key_id: key.key.unwrap().key_id,
            token_id: token.token.unwrap().token_id,
            expires,
            commit,
            over,
            streams,
        }
    }

    /// Ends the credentials through the other process; returns since when they must be refused.
    async fn end(&self, end: End, open: &Open) -> Instant {
        let mut integrations = self.shop.operator.integrations();
        match end {
            End::Revoked => {
                let token = keys::RevokeServiceTokenRequest {
                    token_id: open.token_id.clone(),
                    request_id: String::new(),
                };
                let token = integrations.revoke_service_token(token);
                let (token, ()) = tokio::join!(token, self.shop.revoke_key(&open.key_id));
                token.unwrap();
            }
            End::PartnerDisabled => {
                let request = keys::DisablePartnerRequest {
                    workspace: WORKSPACE.into(),
                    partner: PARTNER.into(),
                    request_id: String::new(),
                };
                integrations.disable_partner(request).await.unwrap();
            }
            End::Expired => {
                sleep(open.expires.saturating_duration_since(Instant::now())).await;
            }
        }
        Instant::now()
    }

    /// Makes the next round possible.
    async fn again(&self, end: End) {
        if end == End::PartnerDisabled {
            let request = keys::EnablePartnerRequest {
                workspace: WORKSPACE.into(),
                partner: PARTNER.into(),
                request_id: String::new(),
            };
            let mut integrations = self.shop.operator.integrations();
            integrations.enable_partner(request).await.unwrap();
        }
    }
}

/// A stream once its first answer is there.
async fn opened(
    stream: JoinHandle<Told>,
    is_ready: tokio::sync::oneshot::Receiver<()>,
) -> JoinHandle<Told> {
    match timeout(PATIENCE, is_ready).await.unwrap() {
        Ok(()) => stream,
        Err(_) => panic!("it did not open: {:?}", stream.await.unwrap().end),
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Sends batches of a few identifiers, with short pauses.
    Trickles,
    /// Sends its first batch again and again.
    Repeats,
    /// Sends one batch, and commits when it is told to.
    Commits,
}

/// One import stream.
struct Import {
    node: String,
    secret: String,
    import_id: String,
    kind: Kind,
    commit: watch::Receiver<bool>,
    rng: StdRng,
}

impl Import {
    async fn run(mut self, ready: tokio::sync::oneshot::Sender<()>) -> Told {
        let mut ready = Some(ready);
        let mut told = Told {
            last_ack: None,
            end: Ok(()),
            ended: Instant::now(),
        };
        told.end = timeout(PATIENCE, self.converse(&mut ready, &mut told.last_ack))
            .await
            .expect("a stream ends");
        told.ended = Instant::now();
        told
    }

    async fn converse(
        &mut self,
        ready: &mut Option<tokio::sync::oneshot::Sender<()>>,
        last_ack: &mut Option<Instant>,
    ) -> Result<(), Status> {
        let (requests, outgoing) = mpsc::channel(4);
        let say = async |message| {
            let message = Some(message);
            // Once the stream is over, the answers tell why.
            let _ = requests.send(ingest::IngestCohortRequest { message }).await;
        };
        let open = ingest::OpenImport {
            cohort_id: format!("revoked-{:?}", self.kind),
            mode: ingest::ImportMode::Delta.into(),
            import_id: self.import_id.clone(),
            ..Default::default()
        };
        say(ingest_cohort_request::Message::Open(open)).await;
        let mut client = connect(&self.node, &self.secret).ingest();
        let mut answers = client
            .ingest_cohort(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        let mut offset = 0;
        let mut digest = ImportDigest::default();
        loop {
            let answer = match answers.message().await? {
                Some(answer) => answer.message.unwrap(),
                None => panic!("a stream that was cut off has no clean end"),
            };
            match answer {
                ingest_cohort_response::Message::Opened(_) => {}
                ingest_cohort_response::Message::Acked(_) => {
                    *last_ack = Some(Instant::now());
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(());
                    }
                    if self.kind == Kind::Commits {
                        let _ = self.commit.wait_for(|told| *told).await;
                        let jitter = self.rng.random_range(0..20_000);
                        sleep(Duration::from_micros(jitter)).await;
                        let commit = ingest::CommitImport {
                            total: offset,
                            digest: digest.finish().to_vec().into(),
                        };
                        say(ingest_cohort_request::Message::Commit(commit)).await;
                        continue;
                    }
                    let pause = self.rng.random_range(0..30);
                    sleep(Duration::from_millis(pause)).await;
                }
                _ => return Ok(()),
            }
            if self.kind == Kind::Repeats {
                offset = 0;
            }
            let count = match self.kind {
                Kind::Trickles => self.rng.random_range(1..5),
                Kind::Repeats | Kind::Commits => 5,
            };
            let ids: Vec<String> = (offset..offset + count)
                .map(|n| format!("u-{}", n % u64::from(USERS)))
                .collect();
            for id in &ids {
                digest.update(Effect::Add, oracle::external_id(id).as_ref());
            }
            let batch = ingest::IdentifierBatch {
                offset,
                changes: vec![ingest::CohortChange {
                    effect: ingest::ChangeEffect::Add.into(),
                    external_ids: ids.iter().collect(),
                    ..Default::default()
                }],
            };
            offset += count;
            say(ingest_cohort_request::Message::Batch(batch)).await;
        }
    }
}

/// Reads an audience so slowly, and with so small a window, that it is far from its end.
async fn read_audience(
    node: String,
    secret: String,
    mut over: watch::Receiver<bool>,
    ready: tokio::sync::oneshot::Sender<()>,
) -> Told {
    let read = async {
        let channel = Endpoint::from_shared(node)
            .unwrap()
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(64 * 1024)
            .connect_lazy();
        let mut request = Request::new(segments::ResolveSegmentRequest {
            workspace: WORKSPACE.into(),
            audience: Some(segments::resolve_segment_request::Audience::Filter(text(
                &format!("not {PARTNER}:id(\"revoked-Trickles\")"),
            ))),
            view: segments::AudienceView::Full.into(),
            ..Default::default()
        });
        let bearer = format!("Bearer {secret}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let mut client = segment_service_client::SegmentServiceClient::new(channel)
            .max_decoding_message_size(16 * 1024 * 1024);
        let mut answers = client.resolve_segment(request).await?.into_inner();
        let mut ready = Some(ready);
        while let Some(answer) = answers.message().await? {
            match answer.message.unwrap() {
                resolve_segment_response::Message::End(_) => panic!("it was complete too early"),
                resolve_segment_response::Message::Header(_) => {}
                resolve_segment_response::Message::Batch(_) => {
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(());
                    }
                    // Slow enough for some of it to be left when a credential expires.
                    let pause = Duration::from_secs(3);
                    let _ = timeout(pause, over.wait_for(|over| *over)).await;
                    sleep(Duration::from_millis(60)).await;
                }
            }
        }
        panic!("a stream that was cut off has no clean end");
    };
    let end = timeout(PATIENCE, read).await.expect("a stream ends");
    Told {
        last_ack: None,
        end,
        ended: Instant::now(),
    }
}
