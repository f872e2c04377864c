//! Peers that send much: each kind is cut, and meanwhile others are served from memory that stays what
//! it is.

use std::time::{Duration, Instant};

use muster_domain::{
    identifier::{IdentifierKind, IdentifierRef},
    import::{Effect, ImportDigest},
};
use muster_proto::ingest::v1::{
    ChangeEffect, CohortChange, CommitImport, IdentifierBatch, ImportMode, IngestCohortRequest,
    OpenImport, ingest_cohort_request::Message as ToServer,
    ingest_cohort_response::Message as FromServer,
};
use muster_tests::{PARTNER, WORKSPACE, identified};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    deployment::Deployment,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, NOTHING, PING, PRIORITY, Peer,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, call, frame, header,
    },
};

/// How long any of them may last on a machine that is busy with other tests.
const CUT_WITHIN: Duration = Duration::from_secs(30);

const CANCEL: [u8; 4] = [0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u32 = 11;

/// What a peer does: once, then again and again, at most so often.
struct Attack {
    name: &'static str,
    first: Vec<u8>,
    again: Box<dyn Fn(u32) -> Vec<u8>>,
    most: u32,
    /// The error that the connection ends with, where it matters which safeguard it was.
    goaway: Option<u32>,
}

impl Attack {
    fn new(name: &'static str, most: u32, again: impl Fn(u32) -> Vec<u8> + 'static) -> Self {
        Self {
            name,
            first: Vec::new(),
            again: Box::new(again),
            most,
            goaway: None,
        }
    }

    fn after(self, first: Vec<u8>) -> Self {
        Self { first, ..self }
    }

    fn ends_with(self, code: u32) -> Self {
        Self {
            goaway: Some(code),
            ..self
        }
    }
}

/// A hundred times the same frame.
fn hundred(frame: &[u8]) -> Vec<u8> {
    frame.repeat(100)
}

fn attacks(token: &str) -> Vec<Attack> {
    let bearer = format!("Bearer {token}");
    let watch = call("/grpc.health.v1.Health/Watch", &[]);
    let ingest = call(
        "/muster.ingest.v1.IngestService/IngestCohort",
        &[("authorization", &bearer)],
    );
    let open = move |stream, flags| frame(HEADERS, END_HEADERS | flags, stream, &watch);
    let again = |frames: Vec<u8>| move |_| hundred(&frames);
    let id = |n: u32| 2 * n + 1;
    // A message is announced that never ends, so that its bytes are awaited.
    let mut message = frame(HEADERS, END_HEADERS, 1, &ingest);
    message.extend(frame(DATA, NOTHING, 1, &[0, 0, 4, 0, 0]));
    let padding = header("x-padding", &"x".repeat(8_000));
    let mut endless = open.clone()(1, NOTHING);
    endless[4] = NOTHING;
    let (resets, overflows, ended, giants) =
        (open.clone(), open.clone(), open.clone(), open.clone());
    vec![
        Attack::new("rapid reset", 100_000, move |n| {
            let mut frames = resets(id(n), NOTHING);
            frames.extend(frame(RST_STREAM, NOTHING, id(n), &CANCEL));
            frames
        }),
        Attack::new(
            "resets forced by windows that overflow",
            100_000,
            move |n| {
                let mut frames = overflows(id(n), NOTHING);
                let most = 0x7fff_ffff_u32.to_be_bytes();
                frames.extend(frame(WINDOW_UPDATE, NOTHING, id(n), &most));
                frames
            },
        )
        .ends_with(ENHANCE_YOUR_CALM),
        Attack::new("resets forced by data after the end", 100_000, move |n| {
            let mut frames = ended(id(n), END_STREAM);
            frames.extend(frame(DATA, NOTHING, id(n), b"late, and more than a byte"));
            frames
        }),
        Attack::new(
            "resets forced by streams that depend on themselves",
            100_000,
            {
                move |n| {
                    let mut frames = Vec::new();
                    let itself = [&id(n).to_be_bytes()[..], &[0]].concat();
                    for _ in 0..100 {
                        frames.extend(frame(PRIORITY, NOTHING, id(n), &itself));
                    }
                    frames
                }
            },
        ),
        Attack::new(
            "a flood of CONTINUATION",
            100_000,
            again(frame(CONTINUATION, NOTHING, 1, &header("x-more", "again"))),
        )
        .after(endless.clone()),
        Attack::new(
            "a flood of empty CONTINUATION",
            100_000,
            again(frame(CONTINUATION, NOTHING, 1, &[])),
        )
        .after(endless),
        Attack::new("giant headers", 20_000, move |n| {
            let mut frames = giants(id(n), END_STREAM);
            frames[4] = END_STREAM;
            for _ in 0..16 {
                frames.extend(frame(CONTINUATION, NOTHING, id(n), &padding));
            }
            frames.extend(frame(CONTINUATION, END_HEADERS, id(n), &[]));
            frames
        }),
        Attack::new("pings", 10_000, again(frame(PING, NOTHING, 0, &[0; 8]))),
        Attack::new("settings", 10_000, again(frame(SETTINGS, NOTHING, 0, &[]))),
        Attack::new(
            "frames that nobody knows",
            10_000,
            again(frame(0xf0, NOTHING, 0, &[0; 8])),
        ),
        Attack::new(
            "data of no byte",
            10_000,
            again(frame(DATA, NOTHING, 1, &[])),
        )
        .after(message.clone()),
        Attack::new(
            "data of one byte",
            10_000,
            again(frame(DATA, NOTHING, 1, &[0])),
        )
        .after(message),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_a_connection_busy_for_nothing_is_cut_off() {
    let deployment = Deployment::start(&[]).await;
    for attack in attacks(&deployment.shop.operator_token) {
        let Attack { name, most, .. } = attack;
        let cut = deployment
            .withstands(name, async {
                let mut peer = Peer::greet(deployment.dial(deployment.grpc).await).await;
                peer.send(&attack.first).await.unwrap();
                peer.until_cut(most, attack.again).await
            })
            .await;
        eprintln!("{name}: {cut:?}");
        assert!(cut.sent < most && cut.took < CUT_WITHIN, "{name}: {cut:?}");
        if attack.goaway.is_some() {
            assert_eq!(cut.goaway, attack.goaway, "{name}: {cut:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_only_so_many_streams_at_once() {
    const MOST: u32 = 256;
    // Who goes on for longer is cut off.
    const MORE: u32 = 100;
    const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

    let deployment = Deployment::start(&[]).await;
    let mut peer = Peer::greet(deployment.dial(deployment.grpc).await).await;
    let watch = call("/grpc.health.v1.Health/Watch", &[]);
    let open = |n: u32| {
        let mut frames = frame(HEADERS, END_HEADERS, 2 * n + 1, &watch);
        frames.extend(frame(DATA, END_STREAM, 2 * n + 1, &[0; 5]));
        frames
    };
    for n in 0..MOST {
        peer.send(&open(n)).await.unwrap();
        let begun = peer.wait_for(|frame| frame.kind == DATA && frame.stream == 2 * n + 1);
        assert!(begun.await.is_some(), "{n}");
    }
    for n in MOST..MOST + MORE {
        peer.send(&open(n)).await.unwrap();
        let ended = peer.wait_for(|frame| frame.stream == 2 * n + 1).await;
        let ended = ended.unwrap_or_else(|| panic!("only stream {n} is refused"));
        assert_eq!(
            (ended.kind, &ended.payload[..]),
            (RST_STREAM, &REFUSED_STREAM[..])
        );
    }
    // As soon as one ends another one may begin.
    let cancel = frame(RST_STREAM, NOTHING, 1, &CANCEL);
    peer.send(&cancel).await.unwrap();
    let next = MOST + MORE;
    peer.send(&open(next)).await.unwrap();
    let begun = peer.wait_for(|frame| frame.stream == 2 * next + 1).await;
    assert_eq!(begun.expect("an answer").kind, HEADERS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_stream_of_small_batches_is_never_cut() {
    const BATCHES: u64 = 300;

    let deployment = Deployment::start(&[]).await;
    let ids: Vec<String> = (0..BATCHES).map(|n| format!("u{n}")).collect();
    let users = ids.iter().map(|id| identified(id)).collect();
    deployment.shop.upsert_users(users).await;
    let (requests, outgoing) = mpsc::unbounded_channel();
    let say = |message| {
        let message = Some(message);
        requests.send(IngestCohortRequest { message }).unwrap();
    };
    say(ToServer::Open(OpenImport {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        cohort_id: "drops".into(),
        mode: ImportMode::Replace.into(),
        import_id: "drops-1".into(),
        ..Default::default()
    }));
    let mut ingest = deployment.shop.partner().ingest();
    let answers = ingest.ingest_cohort(UnboundedReceiverStream::new(outgoing));
    let mut answers = answers.await.unwrap().into_inner();
    let begun = Instant::now();
    let mut digest = ImportDigest::default();
    for (offset, id) in (0..).zip(&ids) {
        let identifier = IdentifierRef {
            kind: IdentifierKind::ExternalId,
            label: "",
            id,
        };
        digest.update(Effect::Add, identifier);
        say(ToServer::Batch(IdentifierBatch {
            offset,
            changes: vec![CohortChange {
                effect: ChangeEffect::Add.into(),
                external_ids: [id].into_iter().collect(),
                ..Default::default()
            }],
        }));
        loop {
            let answer = answers.message().await.unwrap().unwrap().message.unwrap();
            match answer {
                FromServer::Acked(acked) if acked.next_offset > offset => break,
                FromServer::Acked(_) | FromServer::Opened(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    say(ToServer::Commit(CommitImport {
        total: BATCHES,
        digest: digest.finish().to_vec().into(),
    }));
    let end = answers.message().await.unwrap().unwrap().message.unwrap();
    let FromServer::Committed(committed) = end else {
        panic!("{end:?}");
    };
    assert_eq!(committed.summary.unwrap().members_after, BATCHES);
    eprintln!("{BATCHES} batches in {:?}", begun.elapsed());
}
