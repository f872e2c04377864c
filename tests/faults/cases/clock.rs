//! Clocks that jump: that of the database, that of Muster, or both.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use muster_client::upload::UploadError;
use muster_domain::import::Mode;
use muster_proto::{
    ingest::v1::{
        self as ingest, ingest_cohort_request::Message as ToServer,
        ingest_cohort_response::Message as FromServer,
    },
    keys::v1 as keys,
    segments::v1::{self as segments, resolve_segment_response::Message},
};
use muster_storage::{Settings, Store};
use muster_testbed::process::{self, Server};
use muster_tests::{PARTNER, Shop, WORKSPACE, connect, identified, read_audience, text};
use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use tempfile::TempDir;
use tokio::time::sleep;
use tonic::Code;

use crate::{
    node::{Node, free_address, program},
    oracle::{self, List},
    suite::{Plan, Tally},
};

/// Users of the shop at first.
const USERS: usize = 300;

/// The cohort whose versions must count up.
const ORDERED: &str = "ordered";

const HOUR: i64 = 60 * 60;
const JUMPS: [i64; 4] = [HOUR, -HOUR, 10 * 365 * 24 * HOUR, -10 * 365 * 24 * HOUR];

/// Whose clock jumps.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Whose {
    Muster,
    Postgres,
    Both,
}

/// A clock jumps, work goes on, clean-ups run, and the clock jumps back.
pub(crate) async fn clock_jumps(mut plan: Plan) -> Tally {
    let world = World::start().await;
    oracle::fill(&world.shop, USERS).await;
    // Its clean-ups run at once whenever it is started.
    let mut cleaner = Node::start(&["keys", "ingest", "segments"], &world.url, &[]);
    // Tells when a clean-up has looked at the clock.
    world
        .sql(
            "CREATE TABLE looks (n integer);
             CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
                 $$ BEGIN INSERT INTO looks VALUES (1); RETURN NULL; END $$;
             CREATE TRIGGER look AFTER INSERT OR UPDATE OF seen_at ON clean_up
                 FOR EACH STATEMENT EXECUTE FUNCTION look()",
        )
        .await;
    let mut story = Story {
        ordered: BTreeSet::new(),
        version: 0,
        users: USERS,
        cohorts: 0,
    };
    story.publish(&world, &mut plan.rng).await;
    // The first look at a clock has nothing to compare it with: one that is wrong by then is believed.
    world.clean_up(&mut cleaner).await;
    let mut tally = Tally::default();
    // Every clock jumps every way, in an order of the seed.
    let mut jumps = Vec::new();
    for _ in 0..plan.rounds {
        if jumps.is_empty() {
            for whose in [Whose::Muster, Whose::Postgres, Whose::Both] {
                jumps.extend(JUMPS.map(|jump| (whose, jump)));
            }
            jumps.shuffle(&mut plan.rng);
        }
        let (whose, jump) = jumps.pop().unwrap();
        // As if nothing had happened for a day.
        world
            .sql("UPDATE clean_up SET paused_until = NULL, seen_at = clock_timestamp()")
            .await;
        let kept = Kept::make(&world, &mut plan.rng).await;
        world.jump(whose, jump).await;
        let jumped = Instant::now();
        story.go_on(&world, whose, jump, &mut plan.rng).await;
        tally.recovered(jumped.elapsed());
        kept.check_key(&world, whose, jump).await;
        let made_meanwhile = Kept::make(&world, &mut plan.rng).await;
        world.clean_up(&mut cleaner).await;
        if plan.rng.random_range(0..4) == 0 {
            // One that is open when the clock jumps back is no different.
            story.go_on(&world, whose, jump, &mut plan.rng).await;
        }
        world.jump(whose, 0).await;
        world.clean_up(&mut cleaner).await;
        story.go_on(&world, whose, 0, &mut plan.rng).await;
        // What was to be kept for days is over if it was made years ago.
        let over = whose != Whose::Muster && jump < -8 * 24 * HOUR;
        made_meanwhile.check(&world, !over).await;
        kept.check(&world, true).await;
        world.nothing_lasts_too_long().await;
        tally.faults += 2;
        tally.rounds += 1;
    }
    assert!(process::runs(world.server.pid()) && cleaner.runs());
    let said = world.server.stderr();
    assert!(!said.contains("panicked"), "{said}");
    oracle::check_versions(&world.store).await;
    tally.note = format!("{} versions, in order", story.version);
    tally
}

/// What goes on, whatever the clock says.
struct Story {
    /// Who is in the cohort.
    ordered: BTreeSet<String>,
    version: u64,
    users: usize,
    cohorts: usize,
}

impl Story {
    /// Commits a delta; its version must be the next one.
    async fn publish(&mut self, world: &World, rng: &mut StdRng) {
        let count = rng.random_range(1..40);
        let list = List::draw(rng, self.users, count);
        let mut upload = oracle::upload(ORDERED, Mode::Delta, &oracle::import_id(rng));
        // The source's own time, which goes on whatever happens to our clocks.
        upload.source_time = Some(UNIX_EPOCH + Duration::from_secs(1_000 + self.version));
        upload.refuse_if_older = true;
        let partner = world.shop.partner();
        let outcome = upload.run(&partner, list.source(), &mut |_| {}).await;
        let version = list.check_committed(&outcome.unwrap());
        assert_eq!(version, self.version + 1, "versions count up by one");
        self.version = version;
        self.ordered.extend(list.known);
    }

    async fn go_on(&mut self, world: &World, whose: Whose, jump: i64, rng: &mut StdRng) {
        let shop = &world.shop;
        self.publish(world, rng).await;
        // A user who is there before a batch is matched by it.
        let newcomer = oracle::user(self.users);
        shop.upsert_users(vec![identified(&newcomer)]).await;
        self.users += 1;
        self.publish(world, rng).await;
        oracle::check_published(shop, ORDERED, &self.ordered).await;
        // What the source says is older is refused, whatever our clocks say.
        let list = List::draw(rng, USERS, 1);
        let mut late = oracle::upload(ORDERED, Mode::Delta, &oracle::import_id(rng));
        late.source_time = Some(UNIX_EPOCH + Duration::from_secs(999));
        late.refuse_if_older = true;
        match late.run(&shop.partner(), list.source(), &mut |_| {}).await {
            Err(UploadError::Refused(refusal)) => assert_eq!(refusal.reason, "OUT_OF_ORDER"),
            other => panic!("not refused: {other:?}"),
        }
        self.new_cohort(world, whose, jump, rng).await;
        let cohorts = list_cohorts(shop).await;
        let distinct: BTreeSet<&String> = cohorts.iter().collect();
        assert_eq!(distinct.len(), cohorts.len(), "a list repeats itself");
        // The kept imports have cohorts of their own, so there are more.
        assert!(cohorts.len() > self.cohorts, "a list leaves something out");
    }

    /// A cohort that is new; and proof that Muster's clock is where it was put.
    async fn new_cohort(&mut self, world: &World, whose: Whose, jump: i64, rng: &mut StdRng) {
        let id = format!("cohort-{}", self.cohorts);
        self.cohorts += 1;
        let upload = oracle::upload(&id, Mode::Replace, &oracle::import_id(rng));
        let list = List::draw(rng, USERS, 3);
        let partner = world.shop.partner();
        let outcome = upload.run(&partner, list.source(), &mut |_| {}).await;
        list.check_committed(&outcome.unwrap());
        // Muster asks its own clock whether a new key would have expired already.
        let off = if whose == Whose::Postgres { 0 } else { jump };
        for (ahead, accepted) in [(-600, false), (600, true)] {
            let seconds = now_seconds() + off + ahead;
            let request = keys::CreateKeyRequest {
                workspace: WORKSPACE.into(),
                partner: PARTNER.into(),
                expire_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
                ..Default::default()
            };
            let created = world.shop.operator.keys().create_key(request).await;
            assert_eq!(
                created.is_ok(),
                accepted,
                "Muster's clock is elsewhere: {created:?}"
            );
        }
    }
}

/// What may not be lost to a wrong clock.
struct Kept {
    import_id: String,
    list: List,
    half: u64,
    resolution: String,
    audience: Vec<segments::AudienceMember>,
    key: keys::CreateKeyRequest,
    key_id: String,
    secret: String,
}

impl Kept {
    async fn make(world: &World, rng: &mut StdRng) -> Self {
        let shop = &world.shop;
        let import_id = oracle::import_id(rng);
        let list = List::draw(rng, USERS, 50);
        let half = list.ids.len() / 2;
        send_half(shop, &import_id, &list.ids[..half]).await;
        let request = segments::resolve_segment_request::Audience::Filter(text(&format!(
            "{PARTNER}:id(\"{ORDERED}\")"
        )));
        let (resolution, audience) = resolve(shop, request).await;
        let key = keys::CreateKeyRequest {
            workspace: WORKSPACE.into(),
            partner: PARTNER.into(),
            expire_time: Some(world.by_both_clocks(Duration::from_secs(30 * 60))),
            request_id: oracle::import_id(rng),
            ..Default::default()
        };
        let created = shop.operator.keys().create_key(key.clone()).await.unwrap();
        let created = created.into_inner();
        Self {
            import_id,
            list,
            half: half as u64,
            resolution,
            audience,
            key,
            key_id: created.key.unwrap().key_id,
            secret: created.secret,
        }
    }

    /// That a key which expires in half an hour is refused exactly while the clock is beyond that.
    async fn check_key(&self, world: &World, whose: Whose, jump: i64) {
        let beyond = whose != Whose::Muster && jump > 0;
        let request = ingest::ListCohortsRequest::default();
        let mut client = connect(&world.shop.grpc, &self.secret).ingest();
        match client.list_cohorts(request).await {
            Ok(_) => assert!(!beyond, "an expired key is accepted ({whose:?} {jump})"),
            Err(status) => {
                assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
                assert!(
                    beyond,
                    "a key is refused before it expires ({whose:?} {jump})"
                );
            }
        }
    }

    /// That all of it is still there, and goes on.
    async fn check(&self, world: &World, resolution: bool) {
        let shop = &world.shop;
        self.check_key(world, Whose::Muster, 0).await;
        let again = shop
            .operator
            .keys()
            .create_key(self.key.clone())
            .await
            .unwrap();
        let again = again.into_inner().key.unwrap().key_id;
        assert_eq!(again, self.key_id, "an answer by request id is gone");
        if resolution {
            let kept = self.resolution.clone();
            let kept = segments::resolve_segment_request::Audience::ResolutionId(kept);
            let (_, audience) = resolve(shop, kept).await;
            assert_eq!(audience, self.audience, "a resolution has changed");
        }
        let upload = oracle::upload(&self.import_id, Mode::Replace, &self.import_id);
        let mut resumed_at = None;
        let partner = shop.partner();
        let mut progress = |event| {
            if let muster_client::upload::Progress::Opened { durable } = event {
                resumed_at.get_or_insert(durable);
            }
        };
        let outcome = upload
            .run(&partner, self.list.source(), &mut progress)
            .await;
        assert_eq!(
            resumed_at,
            Some(self.half),
            "an open import has lost something"
        );
        let outcome = outcome.unwrap_or_else(|error| panic!("an open import is gone: {error}"));
        self.list.check_committed(&outcome);
        oracle::check_published(shop, &self.import_id, &self.list.known).await;
    }
}

/// Opens an import and sends a part of it.
async fn send_half(shop: &Shop, import_id: &str, ids: &[String]) {
    let open = ingest::OpenImport {
        cohort_id: import_id.into(),
        mode: ingest::ImportMode::Replace.into(),
        import_id: import_id.into(),
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        ..Default::default()
    };
    let batch = ingest::IdentifierBatch {
        offset: 0,
        changes: vec![ingest::CohortChange {
            effect: ingest::ChangeEffect::Add.into(),
            external_ids: ids.iter().collect(),
            ..Default::default()
        }],
    };
    let requests = [ToServer::Open(open), ToServer::Batch(batch)];
    let requests = requests.map(|message| ingest::IngestCohortRequest {
        message: Some(message),
    });
    let mut client = shop.partner().ingest();
    let answers = client.ingest_cohort(tokio_stream::iter(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    while let Some(answer) = answers.message().await.unwrap() {
        if let Some(FromServer::Acked(acked)) = answer.message {
            assert_eq!(acked.next_offset, ids.len() as u64);
            return;
        }
    }
    panic!("it was not acknowledged");
}

async fn resolve(
    shop: &Shop,
    audience: segments::resolve_segment_request::Audience,
) -> (String, Vec<segments::AudienceMember>) {
    let request = segments::ResolveSegmentRequest {
        workspace: WORKSPACE.into(),
        audience: Some(audience),
        view: segments::AudienceView::Full.into(),
        ..Default::default()
    };
    let mut segments = shop.operator.segments();
    let stream = segments.resolve_segment(request.clone()).await.unwrap();
    let mut stream = stream.into_inner();
    let Some(Message::Header(header)) = stream.message().await.unwrap().unwrap().message else {
        panic!("no header");
    };
    drop(stream);
    let kept = header.resolution.unwrap().resolution_id;
    let request = segments::ResolveSegmentRequest {
        audience: Some(segments::resolve_segment_request::Audience::ResolutionId(
            kept.clone(),
        )),
        ..request
    };
    let stream = segments.resolve_segment(request).await.unwrap();
    (kept, read_audience(stream.into_inner()).await)
}

/// All cohorts, a few at a time.
async fn list_cohorts(shop: &Shop) -> Vec<String> {
    let mut found = Vec::new();
    let mut request = ingest::ListCohortsRequest {
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        page_size: 20,
        ..Default::default()
    };
    loop {
        let page = shop.operator.ingest().list_cohorts(request.clone()).await;
        let page = page.unwrap().into_inner();
        found.extend(page.cohorts.into_iter().map(|cohort| cohort.cohort_id));
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

/// A `muster up` whose clock, and whose Postgres' clock, can be put.
struct World {
    shop: Shop,
    store: Store,
    url: String,
    clocks: PathBuf,
    server: Server,
    _directory: TempDir,
}

impl World {
    async fn start() -> Self {
        let directory = process::directory();
        let root = directory.path();
        let library = library();
        let clocks = root.join("clocks");
        let bin = root.join("bin");
        for path in [&clocks, &bin] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        put(&clocks, "muster", 0);
        put(&clocks, "postgres", 0);
        let real = process::run(std::process::Command::new("pg_config").arg("--bindir"), b"");
        let real = PathBuf::from(real.code(0).text().trim());
        let script = |name: &str, text: String| {
            let path = bin.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        };
        let real = |name: &str| real.join(name).display().to_string();
        let forget = "unset LD_PRELOAD FAKETIME_SHARED";
        script(
            "initdb",
            format!("#!/bin/sh\n{forget}\nexec {} \"$@\"\n", real("initdb")),
        );
        let clock = clocks.join("postgres");
        script(
            "postgres",
            format!(
                "#!/bin/sh\n{forget}\nLD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} exec {} \"$@\"\n",
                library.display(),
                clock.display(),
                real("postgres")
            ),
        );
        let data_dir = root.join("data");
        let (grpc, rest): (SocketAddr, SocketAddr) = (free_address(), free_address());
        let mut up = process::command(program());
        up.args(["up", "--grpc-listen", &grpc.to_string()])
            .args(["--rest-listen", &rest.to_string()])
            .args(["--console-listen", "127.0.0.1:0"])
            .args([
                Path::new("--data-dir"),
                &data_dir,
                Path::new("--pg-bin"),
                &bin,
            ])
            .env("LD_PRELOAD", &library)
            .env("FAKETIME_TIMESTAMP_FILE", clocks.join("muster"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DISABLE_SHM", "1");
        let server = tokio::task::block_in_place(|| Server::start(&mut up, root, &data_dir));
        let token = fs::read_to_string(data_dir.join("operator.token")).unwrap();
        let (grpc, rest) = (format!("http://{grpc}"), format!("http://{rest}"));
        let shop = Shop::open(&grpc, &rest, token.trim()).await;
        let socket = data_dir.join("run");
        let url = format!("postgres:///muster?host={}&user=muster", socket.display());
        Self {
            shop,
            store: Store::connect(&Settings::new(&url)).unwrap(),
            url,
            clocks,
            server,
            _directory: directory,
        }
    }

    /// Puts clocks so many seconds ahead of the true time, and waits until that is so.
    async fn jump(&self, whose: Whose, by: i64) {
        if whose != Whose::Postgres {
            put(&self.clocks, "muster", by);
        }
        if whose != Whose::Muster {
            put(&self.clocks, "postgres", by);
            let off = self.database_clock().await - by;
            assert!(
                off.abs() < 600,
                "Postgres' clock is {off} s from where it was put"
            );
        }
    }

    /// How many seconds the clock of the database is ahead of the true time.
    async fn database_clock(&self) -> i64 {
        let mut connection = self.store.connection().await.unwrap();
        let query = "SELECT extract(epoch FROM clock_timestamp())::bigint";
        muster_testbed::number(&mut connection, query).await - now_seconds()
    }

    /// A time that is so far ahead, at least, for Muster and Postgres, now and when they are right.
    fn by_both_clocks(&self, ahead: Duration) -> prost_types::Timestamp {
        let clock = |name| fs::read_to_string(self.clocks.join(name)).unwrap();
        let off = ["muster", "postgres"].map(|name| clock(name).trim().parse::<i64>().unwrap());
        // Not to be over when the clocks are right again.
        let off = off[0].max(off[1]).max(0);
        prost_types::Timestamp {
            seconds: now_seconds() + off + i64::try_from(ahead.as_secs()).unwrap(),
            nanos: 0,
        }
    }

    async fn sql(&self, statement: &'static str) {
        let mut connection = self.store.connection().await.unwrap();
        muster_testbed::execute(&mut connection, statement).await;
    }

    /// Lets every clean-up run once.
    async fn clean_up(&self, cleaner: &mut Node) {
        /// Those of `keys` and `segments`, and the two of `ingest`.
        const PASSES: i64 = 4;
        let mut connection = self.store.connection().await.unwrap();
        muster_testbed::execute(&mut connection, "TRUNCATE looks").await;
        cleaner.kill_9();
        cleaner.start_again();
        let deadline = Instant::now() + Duration::from_secs(10);
        let looks = "SELECT count(*) FROM looks";
        while muster_testbed::number(&mut connection, looks).await < PASSES {
            assert!(Instant::now() < deadline, "nobody cleans up");
            sleep(Duration::from_millis(10)).await;
        }
        // They are done when no connection has done anything for a moment.
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'muster'
                    AND application_name = 'muster' AND state <> 'idle' AND pid <> pg_backend_pid()";
        let mut quiet = 0;
        while quiet < 10 {
            let busy = muster_testbed::number(&mut connection, busy).await != 0;
            quiet = if busy { 0 } else { quiet + 1 };
            assert!(Instant::now() < deadline, "a clean-up does not end");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// That nothing written by a wrong clock is kept for years.
    async fn nothing_lasts_too_long(&self) {
        let mut connection = self.store.connection().await.unwrap();
        for query in [
            "SELECT count(*) FROM cohort_import WHERE expires_at > now() + interval '25 hours'",
            "SELECT count(*) FROM resolution WHERE expires_at > now() + interval '8 days'",
            "SELECT count(*) FROM request_log WHERE created_at > now() + interval '1 hour 1 minute'",
        ] {
            assert_eq!(
                muster_testbed::number(&mut connection, query).await,
                0,
                "{query}"
            );
        }
    }
}

/// Puts one clock; read anew at every look.
fn put(clocks: &Path, name: &str, by: i64) {
    let (path, draft) = (clocks.join(name), clocks.join("draft"));
    fs::write(&draft, format!("{by:+}\n")).unwrap();
    fs::rename(draft, path).unwrap();
}

fn now_seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs().cast_signed()
}

/// Where Debian has libfaketime.
fn library() -> PathBuf {
    let places = fs::read_dir("/usr/lib").unwrap();
    let places = places.map(|place| place.unwrap().path().join("faketime/libfaketimeMT.so.1"));
    places
        .into_iter()
        .find(|path| path.exists())
        .expect("libfaketime is not installed: `scripts/setup test` installs it on Debian")
}
