//! Backups that are made while everything goes on, and commands that are killed in the middle.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use muster_client::upload::Progress;
use muster_domain::import::Mode;
use muster_proto::ingest::v1::{self as ingest, ingest_cohort_request, ingest_cohort_response};
use muster_storage::{Settings, Store, WorkspaceId, contents};
use muster_testbed::process::{self, Server};
use muster_tests::{PARTNER, Shop, WORKSPACE, connect, identified};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    node::{Deployment, EVERYTHING, Node, free_address, program},
    oracle::{self, List},
    suite::{Plan, Tally},
};

/// Users that are in lists.
const USERS: usize = 3_000;

/// Others, twice as many, who give a backup something to do.
const OTHERS: u32 = 20_000;

/// Cohorts that are replaced all the time.
const COHORTS: usize = 3;

/// One round in so many restores a backup and looks into it; the others kill a command.
const REAL: u32 = 7;

/// `muster backup` in mid-import, and `muster restore` elsewhere; both killed in between.
pub(crate) async fn backup_in_mid_import(mut plan: Plan) -> Tally {
    let muster = Deployment::start(&[]).await;
    seed(&muster).await;
    let files = process::directory();
    let file = files.path().join("muster.dump");
    let mut tally = Tally::default();
    let (mut backups, mut killed) = (0, [0; 2]);
    let mut usual = [Duration::from_millis(800); 2];
    for round in 0..plan.rounds {
        if round % REAL == 0 {
            let work = Work::begin(&muster.shop, &mut plan.rng).await;
            sleep(Duration::from_millis(plan.rng.random_range(200..500))).await;
            let before = work.acknowledged();
            let begun = Instant::now();
            run(on(&muster.database_url, "backup", &file).arg("--force"));
            usual[0] = begun.elapsed();
            let done = work.end().await;
            let begun = Instant::now();
            // A data directory of its own takes a Postgres of its own.
            let restored = match round {
                0 => Restored::into_directory(&file).await,
                _ => Restored::into_database(&file).await,
            };
            if round != 0 {
                usual[1] = restored.took;
            }
            tally.recovered(begun.elapsed());
            restored.check(&before, &done).await;
            backups += 1;
        } else if round % 2 == 0 {
            let old = fs::read(&file).unwrap();
            let mut backup = on(&muster.database_url, "backup", &file);
            let was_running = kill_9(backup.arg("--force"), usual[0], &mut plan.rng).await;
            nobody_connected(&muster.store, "muster pg_dump").await;
            let now = fs::read(&file).unwrap();
            assert!(
                now == old || !was_running || is_whole(&file),
                "half a backup"
            );
            fs::write(&file, old).unwrap();
            killed[0] += u32::from(was_running);
        } else {
            let url = muster_testbed::empty_database().await;
            let mut restore = on(&url, "restore", &file);
            let was_running = kill_9(&mut restore, usual[1], &mut plan.rng).await;
            let store = Store::connect(&Settings::new(&url)).unwrap();
            nobody_connected(&store, "muster pg_restore").await;
            let mut connection = store.connection().await.unwrap();
            if contents::relations(&mut connection)
                .await
                .unwrap()
                .is_empty()
            {
                drop(connection);
                store.close().await;
                // Only once in a while: killed restores are many, whole ones take their time.
                if plan.rng.random_range(0..4) == 0 {
                    run(&mut on(&url, "restore", &file));
                }
            } else {
                let found = contents::check(&mut connection).await.unwrap();
                assert_eq!(found.problems, [""; 0], "half a database");
                assert_eq!(found.cohorts, COHORTS as u64 + 1, "half a database");
            }
            killed[1] += u32::from(was_running);
        }
        tally.faults += 1;
        tally.rounds += 1;
    }
    assert!(muster.node.runs(), "the server minds no backup");
    oracle::check_versions(&muster.store).await;
    tally.faults = killed[0] + killed[1] + backups;
    tally.note = format!(
        "{backups} backups restored and compared, {} backups and {} restores killed",
        killed[0], killed[1]
    );
    tally
}

async fn seed(muster: &Deployment) {
    let mut connection = muster.store.connection().await.unwrap();
    let query = "SELECT workspace_id FROM workspace";
    let workspace = WorkspaceId(muster_testbed::number(&mut connection, query).await);
    muster_testbed::seed_users(&mut connection, workspace, OTHERS).await;
    drop(connection);
    oracle::fill(&muster.shop, USERS).await;
}

/// What goes on while a backup is made: cohorts are replaced, users come, an import trickles.
struct Work {
    stop: Arc<AtomicBool>,
    log: Arc<Mutex<Log>>,
    tasks: Vec<JoinHandle<()>>,
    open: Open,
}

/// What was acknowledged, and what it was.
#[derive(Default, Clone)]
struct Log {
    /// Who is in a version of a cohort.
    versions: HashMap<(String, u64), BTreeSet<String>>,
    users: BTreeSet<String>,
    /// Identifiers of the open import that the server has.
    durable: u64,
}

/// An import that is not finished.
#[derive(Clone)]
struct Open {
    import_id: String,
    list: List,
    durable: Arc<AtomicU64>,
}

/// All work that was done, and the import that was not.
struct Done {
    log: Log,
    open: Open,
}

/// The cohort of the import that stays open.
const OPEN: &str = "open";

impl Work {
    async fn begin(shop: &Shop, rng: &mut StdRng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let log = Arc::new(Mutex::new(Log::default()));
        let mut tasks = Vec::new();
        for cohort in 0..COHORTS {
            let cohort = format!("replaced-{cohort}");
            let (stop, log, shop) = (Arc::clone(&stop), Arc::clone(&log), shop.clone());
            let mut rng = StdRng::seed_from_u64(rng.next_u64());
            tasks.push(tokio::spawn(async move {
                loop {
                    let count = rng.random_range(1..USERS);
                    let list = List::draw(&mut rng, USERS, count);
                    let import_id = oracle::import_id(&mut rng);
                    let upload = oracle::upload(&cohort, Mode::Replace, &import_id);
                    let outcome = upload
                        .run(&shop.partner(), list.source(), &mut |_| {})
                        .await
                        .unwrap();
                    let version = list.check_committed(&outcome);
                    let key = (cohort.clone(), version);
                    log.lock().unwrap().versions.insert(key, list.known);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }));
        }
        let (stopping, users, operator) = (Arc::clone(&stop), Arc::clone(&log), shop.clone());
        let prefix = rng.next_u32();
        tasks.push(tokio::spawn(async move {
            for n in 0.. {
                let ids: Vec<String> = (0..20).map(|m| format!("new-{prefix:x}-{n}-{m}")).collect();
                let records = ids.iter().map(|id| identified(id)).collect();
                operator.upsert_users(records).await;
                users.lock().unwrap().users.extend(ids);
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
            }
        }));
        let open = Open {
            import_id: oracle::import_id(rng),
            list: List::draw(rng, USERS, USERS - 1),
            durable: Arc::default(),
        };
        let trickle = trickle(shop.clone(), open.clone(), Arc::clone(&stop));
        tasks.push(tokio::spawn(trickle));
        Self {
            stop,
            log,
            tasks,
            open,
        }
    }

    fn acknowledged(&self) -> Log {
        let mut log = self.log.lock().unwrap().clone();
        log.durable = self.open.durable.load(Ordering::Relaxed);
        log
    }

    async fn end(mut self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
        Done {
            log: self.acknowledged(),
            open: self.open,
        }
    }
}

/// Sends an import bit by bit, and never commits it.
async fn trickle(shop: Shop, open: Open, stop: Arc<AtomicBool>) {
    let (requests, outgoing) = mpsc::channel(1);
    let request = |message| ingest::IngestCohortRequest {
        message: Some(message),
    };
    let first = ingest::OpenImport {
        cohort_id: OPEN.into(),
        mode: ingest::ImportMode::Replace.into(),
        import_id: open.import_id.clone(),
        workspace: WORKSPACE.into(),
        partner: PARTNER.into(),
        ..Default::default()
    };
    let first = request(ingest_cohort_request::Message::Open(first));
    requests.send(first).await.unwrap();
    let mut client = shop.partner().ingest();
    let answers = client.ingest_cohort(ReceiverStream::new(outgoing)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut offset = 0;
    for ids in open.list.ids.chunks(10) {
        let answer = answers.message().await.unwrap().unwrap();
        if let ingest_cohort_response::Message::Acked(acked) = answer.message.unwrap() {
            open.durable.store(acked.next_offset, Ordering::Relaxed);
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let batch = ingest::IdentifierBatch {
            offset,
            changes: vec![ingest::CohortChange {
                effect: ingest::ChangeEffect::Add.into(),
                external_ids: ids.iter().collect(),
                ..Default::default()
            }],
        };
        offset += ids.len() as u64;
        let batch = request(ingest_cohort_request::Message::Batch(batch));
        requests.send(batch).await.unwrap();
    }
}

/// A Muster that was restored.
struct Restored {
    shop: Shop,
    store: Store,
    took: Duration,
    // In this order: the process ends before its directory goes.
    _server: Option<Server>,
    _node: Option<Node>,
    _directory: Option<TempDir>,
}

impl Restored {
    async fn into_database(file: &Path) -> Self {
        let url = muster_testbed::empty_database().await;
        let begun = Instant::now();
        run(&mut on(&url, "restore", file));
        let took = begun.elapsed();
        let node = Node::start(EVERYTHING, &url, &[]);
        let store = Store::connect(&Settings::new(&url)).unwrap();
        let operator = muster_keys::bootstrap_operator(&store).await.unwrap();
        Self {
            shop: shop(&node.grpc(), &node.rest(), operator.expose()),
            store,
            took,
            _server: None,
            _node: Some(node),
            _directory: None,
        }
    }

    async fn into_directory(file: &Path) -> Self {
        let directory = process::directory();
        let data_dir = directory.path().join("data");
        let mut restore = process::command(program());
        let restore = restore.arg("restore").arg(file);
        let begun = Instant::now();
        run(restore.arg("--data-dir").arg(&data_dir));
        let took = begun.elapsed();
        let (grpc, rest) = (free_address().to_string(), free_address().to_string());
        let mut up = process::command(program());
        up.args(["up", "--grpc-listen", &grpc, "--rest-listen", &rest])
            .args(["--console-listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(&data_dir);
        let server =
            tokio::task::block_in_place(|| Server::start(&mut up, directory.path(), &data_dir));
        let socket = data_dir.join("run");
        let url = format!("postgres:///muster?host={}&user=muster", socket.display());
        let token = fs::read_to_string(data_dir.join("operator.token")).unwrap();
        let (grpc, rest) = (format!("http://{grpc}"), format!("http://{rest}"));
        Self {
            shop: shop(&grpc, &rest, token.trim()),
            store: Store::connect(&Settings::new(url)).unwrap(),
            took,
            _server: Some(server),
            _node: None,
            _directory: Some(directory),
        }
    }

    /// That it is the Muster of one moment, no earlier than `before`, and that work goes on.
    async fn check(&self, before: &Log, done: &Done) {
        oracle::check_versions(&self.store).await;
        for cohort in (0..COHORTS).map(|n| format!("replaced-{n}")) {
            let version = self.shop.cohort(&cohort).await.version;
            let acknowledged = before.versions.keys();
            let acknowledged = acknowledged.filter(|(name, _)| *name == cohort);
            let newest = acknowledged.map(|(_, version)| *version).max();
            assert!(Some(version) >= newest, "{cohort} lost version {newest:?}");
            let key = (cohort.clone(), version);
            let Some(members) = done.log.versions.get(&key) else {
                panic!("nobody has committed version {version} of {cohort}");
            };
            oracle::check_published(&self.shop, &cohort, members).await;
        }
        let mut connection = self.store.connection().await.unwrap();
        let query = "SELECT external_id FROM directory_user WHERE external_id LIKE 'new-%'";
        let users: Vec<String> = sqlx::query_scalar(query)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        drop(connection);
        let users: BTreeSet<String> = users.into_iter().collect();
        assert!(before.users.is_subset(&users), "users are missing");
        self.check_open(before, &done.open).await;
    }

    /// That the import which was open can go on from where the server has it.
    async fn check_open(&self, before: &Log, open: &Open) {
        let upload = oracle::upload(OPEN, Mode::Replace, &open.import_id);
        let mut resumed_at = None;
        let mut progress = |event| {
            if let Progress::Opened { durable } = event {
                resumed_at.get_or_insert(durable);
            }
        };
        let partner = self.shop.operator.clone();
        let outcome = upload.run(&partner, open.list.source(), &mut progress);
        let outcome = outcome.await.unwrap();
        open.list.check_committed(&outcome);
        let resumed_at = resumed_at.unwrap();
        let sent = open.durable.load(Ordering::Relaxed);
        assert!(
            (before.durable..=sent.max(before.durable)).contains(&resumed_at),
            "it had {}, then {sent}, and the backup {resumed_at}",
            before.durable
        );
        oracle::check_published(&self.shop, OPEN, &open.list.known).await;
    }
}

fn shop(grpc: &str, rest: &str, operator: &str) -> Shop {
    Shop {
        grpc: grpc.to_owned(),
        rest: rest.to_owned(),
        operator: connect(grpc, operator),
        operator_token: operator.to_owned(),
        partner_api_key: String::new(),
        client_secret: String::new(),
        tls: Default::default(),
    }
}

/// `muster backup` or `muster restore` of a database.
fn on(database_url: &str, what: &str, file: &Path) -> Command {
    let mut command = process::command(program());
    command
        .arg(what)
        .arg(file)
        .env("DATABASE_URL", database_url);
    command
}

/// Runs it to a good end.
#[track_caller]
fn run(command: &mut Command) {
    tokio::task::block_in_place(|| process::run(command, b"")).code(0);
}

/// Starts it and kills it within the time it usually takes; returns whether it still ran.
async fn kill_9(command: &mut Command, usual: Duration, rng: &mut StdRng) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child: Child = quiet.spawn().unwrap();
    sleep(usual.mul_f64(rng.random_range(0.0..1.0))).await;
    let was_running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    was_running
}

/// Waits until the program that a killed command has left is gone.
async fn nobody_connected(store: &Store, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut connection = store.connection().await.unwrap();
        let clients = contents::other_clients(&mut connection).await.unwrap();
        if !clients.iter().any(|client| client.starts_with(name)) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} outlives its command");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a backup can be read to its end.
fn is_whole(file: &Path) -> bool {
    let mut read = Command::new("pg_restore");
    let null = PathBuf::from("/dev/null");
    let read = read.arg("--file").arg(null).arg(file);
    process::run(read, b"").status.success()
}
