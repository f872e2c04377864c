//! Everything in one process, on its private Postgres, killed and started again.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use muster_client::{
    Retry,
    upload::{Outcome, Progress, UploadError},
};
use muster_domain::import::Mode;
use muster_storage::{Settings, Store};
use muster_testbed::process::{self, Server};
use muster_tests::Shop;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::RngExt as _;
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
};

use crate::{
    node,
    oracle::{self, List},
    suite::{Plan, Tally},
};

const USERS: usize = 3_000;

/// Longest time from the start until it serves.
const START: Duration = Duration::from_secs(10);

/// Identifiers of an import: two batches and a bit of a third.
const LONG: usize = 22_000;

/// Killed while it imports, with its Postgres or without, or while it starts: started again it
/// serves the same data, and the import goes on where it was.
pub(crate) async fn all_in_one_killed(mut plan: Plan) -> Tally {
    let mut muster = AllInOne::new();
    muster.start();
    let token = muster.token();
    let shop = Shop::open(&muster.grpc(), &muster.rest(), &token).await;
    oracle::fill(&shop, USERS).await;
    let mut tally = Tally::default();
    let (mut with_postgres, mut starting, mut refused) = (0, 0, 0);
    let mut importing = 0;
    for round in 0..plan.rounds.div_ceil(2) {
        if round % 4 == 0 {
            muster.check_second_is_refused();
            refused += 1;
        }
        // Few of them match: what counts here is that there are batches.
        let mut list = List::draw(&mut plan.rng, USERS, USERS / 4);
        let strangers = list.ids.len()..LONG;
        list.ids.extend(strangers.map(|n| format!("stranger-{n}")));
        let mut upload = Running::start(&mut plan, &shop, list);
        let durable = [0, 1, 10_001][plan.rng.random_range(0..3)];
        upload.until_durable(durable).await;
        let millis = plan.rng.random_range(0..100);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let postmaster = muster.postmaster().unwrap();
        muster.kill_9();
        tally.faults += 1;
        importing += u32::from(!upload.ended.is_finished());
        if plan.rng.random_bool(0.3) {
            kill(postmaster, Signal::SIGKILL).unwrap();
            with_postgres += 1;
        }
        if plan.rng.random_bool(0.4) {
            let millis = plan.rng.random_range(0..1_000);
            muster.kill_while_it_starts(Duration::from_millis(millis));
            tally.faults += 1;
            starting += 1;
        }
        let killed = Instant::now();
        let took = muster.start();
        assert!(took < START, "it took {took:?} to serve again");
        assert!(!process::runs(postmaster.as_raw().try_into().unwrap()));
        assert_eq!(muster.token(), token);
        tally.recovered(upload.check(&shop, killed, took).await);
        tally.rounds += 1;
    }
    let store = Store::connect(&Settings::new(muster.database_url())).unwrap();
    oracle::check_versions(&store).await;
    store.close().await;
    muster.stop();
    tally.note = format!(
        "{importing} in mid-import, {with_postgres} with Postgres, {starting} in mid-start; a \
         second one refused {refused} times"
    );
    tally
}

const COHORT: &str = "all-in-one";

/// An upload that is told to go on whatever happens.
struct Running {
    list: List,
    ended: tokio::task::JoinHandle<Result<Outcome, UploadError>>,
    told: mpsc::UnboundedReceiver<(Progress, Instant)>,
    durable: watch::Receiver<u64>,
}

impl Running {
    fn start(plan: &mut Plan, shop: &Shop, list: List) -> Self {
        let import_id = oracle::import_id(&mut plan.rng);
        let mut upload = oracle::upload(COHORT, Mode::Replace, &import_id);
        upload.retry = Retry {
            failures: 100,
            longest_wait: Duration::from_millis(200),
            ..Retry::default()
        };
        let (partner, source) = (shop.partner(), list.source());
        let (tell, told) = mpsc::unbounded_channel();
        let (reach, durable) = watch::channel(0);
        let ended = tokio::spawn(async move {
            let mut progress = move |event| {
                if let Progress::Acknowledged { durable } = event {
                    reach.send_replace(durable);
                }
                let _ = tell.send((event, Instant::now()));
            };
            upload.run(&partner, source, &mut progress).await
        });
        Self {
            list,
            ended,
            told,
            durable,
        }
    }

    async fn until_durable(&mut self, count: u64) {
        let durable = self.durable.wait_for(|durable| *durable >= count);
        let durable = tokio::time::timeout(process::PATIENCE, durable).await;
        durable.expect("the import goes on").unwrap();
    }

    /// That it is completed, and had lost nothing that was acknowledged; returns how long it took
    /// from the kill until it went on, or until Muster served if it had ended before.
    async fn check(mut self, shop: &Shop, killed: Instant, served: Duration) -> Duration {
        let outcome = self.ended.await.unwrap().unwrap();
        self.list.check_committed(&outcome);
        let (mut acknowledged, mut recovered) = (0, served);
        while let Ok((event, at)) = self.told.try_recv() {
            match event {
                Progress::Opened { durable } => {
                    let lost = format!("{acknowledged} were acknowledged, {durable} are there");
                    assert!(durable >= acknowledged, "{lost}");
                    if let Some(took) = at.checked_duration_since(killed) {
                        recovered = recovered.max(took);
                    }
                }
                Progress::Acknowledged { durable } => acknowledged = durable,
                Progress::Committing { .. } | Progress::Retrying { .. } => {}
            }
        }
        oracle::check_published(shop, COHORT, &self.list.known).await;
        recovered
    }
}

/// A `muster up` that is started over and over in one data directory.
struct AllInOne {
    grpc: SocketAddr,
    rest: SocketAddr,
    data_dir: PathBuf,
    // Dropped in this order; each but the last has ended before.
    servers: Vec<Server>,
    output: TempDir,
    _directory: TempDir,
}

impl AllInOne {
    fn new() -> Self {
        let directory = process::directory();
        Self {
            grpc: node::free_address(),
            rest: node::free_address(),
            data_dir: directory.path().join("data"),
            servers: Vec::new(),
            output: process::directory(),
            _directory: directory,
        }
    }

    fn command(&self) -> Command {
        let mut command = process::command(node::program());
        command
            .arg("up")
            .args(["--grpc-listen", &self.grpc.to_string()])
            .args(["--rest-listen", &self.rest.to_string()])
            .args(["--console-listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(&self.data_dir);
        command
    }

    /// Starts it and waits until it serves; returns how long that took.
    fn start(&mut self) -> Duration {
        let began = Instant::now();
        let output = self.output.path().join(self.servers.len().to_string());
        fs::create_dir(&output).unwrap();
        let server = block_in_place(|| Server::start(&mut self.command(), &output, &self.data_dir));
        self.servers.push(server);
        let took = began.elapsed();
        self.check_postmaster();
        took
    }

    /// That Postgres is its child, and not root's.
    fn check_postmaster(&mut self) {
        let status = format!("/proc/{}/status", self.postmaster().unwrap());
        let status = fs::read_to_string(status).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let first = line.and_then(|line| line.split_whitespace().next());
            first.unwrap().parse::<u32>().unwrap()
        };
        assert_eq!(field("PPid:"), self.server().pid(), "{status}");
        assert_ne!(field("Uid:"), 0, "{status}");
    }

    fn server(&mut self) -> &mut Server {
        self.servers.last_mut().unwrap()
    }

    fn kill_9(&mut self) {
        block_in_place(|| self.server().kill_9());
    }

    /// Starts it, and kills it so long afterwards.
    fn kill_while_it_starts(&mut self, after: Duration) {
        let output = self.output.path().join(self.servers.len().to_string());
        fs::create_dir(&output).unwrap();
        block_in_place(|| {
            let mut server = Server::spawn(&mut self.command(), &output, &self.data_dir);
            std::thread::sleep(after);
            server.kill_9();
            self.servers.push(server);
        });
    }

    /// That a second one on the same directory says who has it, and changes nothing.
    fn check_second_is_refused(&mut self) {
        let before = self.files();
        let postmaster = self.postmaster();
        let holder = format!("in use by another muster (process {})", self.server().pid());
        let mut second = process::command(node::program());
        let second = second
            .args(["up", "--grpc-listen", "127.0.0.1:0"])
            .args([
                "--rest-listen",
                "127.0.0.1:0",
                "--console-listen",
                "127.0.0.1:0",
            ])
            .arg("--data-dir")
            .arg(&self.data_dir);
        block_in_place(|| process::run(second, b"").code(1).says(&[&holder]));
        assert_eq!(self.files(), before, "a refused start changes files");
        assert_eq!(self.postmaster(), postmaster);
    }

    /// What lies in the data directory beside the cluster, with what is in it, if it is short.
    fn files(&self) -> BTreeSet<(PathBuf, Vec<u8>)> {
        let names = fs::read_dir(&self.data_dir).unwrap();
        let names = names.map(|entry| entry.unwrap().path());
        let content = |path: &Path| match path.extension() {
            // Postgres may say something at any time.
            Some(log) if log == "log" => Vec::new(),
            _ => fs::read(path).unwrap_or_default(),
        };
        names.map(|path| (path.clone(), content(&path))).collect()
    }

    fn postmaster(&self) -> Option<Pid> {
        let file = self.data_dir.join("postgres/postmaster.pid");
        let pid = fs::read_to_string(file).ok()?.lines().next()?.parse();
        Some(Pid::from_raw(pid.ok()?))
    }

    /// Its database, which lets root and Postgres' own account in.
    fn database_url(&self) -> String {
        let run = self.data_dir.join("run");
        format!("postgres://muster@localhost/muster?host={}", run.display())
    }

    fn token(&self) -> String {
        let file = self.data_dir.join("operator.token");
        fs::read_to_string(file).unwrap().trim().to_owned()
    }

    fn grpc(&self) -> String {
        format!("http://{}", self.grpc)
    }

    fn rest(&self) -> String {
        format!("http://{}", self.rest)
    }

    /// Stops it in order.
    fn stop(&mut self) {
        let server = self.server();
        server.signal(Signal::SIGTERM);
        let status = block_in_place(|| process::wait(&mut server.child, process::PATIENCE));
        assert_eq!(status.code(), Some(0), "{}", server.stderr());
        assert!(!self.data_dir.join("postgres/postmaster.pid").exists());
    }
}
