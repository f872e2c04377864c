//! Real processes of Muster on a database, to be killed and started again.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use muster_storage::{Settings, Store};
use muster_testbed::process::{self, PATIENCE, Server};
use muster_tests::Shop;
use tempfile::TempDir;

/// The `muster` that was built beside this suite.
pub(crate) fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(process::muster)
}

/// A loopback address that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// A `muster serve` of some servers. It keeps its addresses when it is started again.
pub(crate) struct Node {
    servers: &'static [&'static str],
    words: Vec<String>,
    database_url: String,
    grpc: SocketAddr,
    rest: SocketAddr,
    process: Option<Server>,
    directory: TempDir,
}

/// All servers, for [`Node::start`].
pub(crate) const EVERYTHING: &[&str] = &["keys", "users", "ingest", "segments", "bridge"];

impl Node {
    /// Starts one with further words on its command line and waits until it is ready.
    pub(crate) fn start(
        servers: &'static [&'static str],
        database_url: &str,
        words: &[&str],
    ) -> Self {
        let mut node = Self {
            servers,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            database_url: database_url.to_owned(),
            grpc: free_address(),
            rest: free_address(),
            process: None,
            directory: process::directory(),
        };
        node.start_again();
        node
    }

    /// Its command line.
    pub(crate) fn command(&self) -> Command {
        let mut command = process::command(program());
        command
            .arg("serve")
            .args(self.servers)
            .args(["--grpc-listen", &self.grpc.to_string()])
            .args(["--rest-listen", &self.rest.to_string()])
            .args(&self.words)
            .arg("--data-dir")
            .arg(self.directory.path())
            .env("DATABASE_URL", &self.database_url);
        command
    }

    /// Starts it after its end, and waits until it is ready; returns how long that took.
    pub(crate) fn start_again(&mut self) -> Duration {
        let begun = Instant::now();
        tokio::task::block_in_place(|| {
            // The clean-up of the one before removes its directory.
            drop(self.process.take());
            std::fs::create_dir_all(self.directory.path()).unwrap();
            let directory = self.directory.path();
            let server = Server::start(&mut self.command(), directory, directory);
            self.process = Some(server);
        });
        begun.elapsed()
    }

    /// The process.
    pub(crate) fn process(&mut self) -> &mut Server {
        self.process.as_mut().unwrap()
    }

    /// Whether it runs.
    pub(crate) fn runs(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| process::runs(process.pid()))
    }

    /// Kills it with SIGKILL and waits for its end.
    pub(crate) fn kill_9(&mut self) {
        tokio::task::block_in_place(|| self.process().kill_9());
    }

    /// Asks it to end with SIGTERM and waits; returns its exit code and how long that took.
    pub(crate) fn terminate(&mut self) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        let status = tokio::task::block_in_place(|| {
            self.process().signal(nix::sys::signal::Signal::SIGTERM);
            process::wait(&mut self.process().child, PATIENCE)
        });
        (status.code(), begun.elapsed())
    }

    /// URL of its gRPC services.
    pub(crate) fn grpc(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// URL of its REST contract.
    pub(crate) fn rest(&self) -> String {
        format!("http://{}", self.rest)
    }
}

/// A database, one process that serves everything on it, and the shop.
pub(crate) struct Deployment {
    /// The process.
    pub(crate) node: Node,
    /// The database, to look behind the scenes.
    pub(crate) store: Store,
    /// Its URL, for further processes.
    pub(crate) database_url: String,
    /// The people of the story.
    pub(crate) shop: Shop,
}

impl Deployment {
    /// Starts one on a fresh database, with further words on its command line.
    pub(crate) async fn start(words: &[&str]) -> Self {
        Self::start_on(muster_testbed::database().await, words).await
    }

    /// Starts one on a database that is migrated and empty.
    pub(crate) async fn start_on(database_url: String, words: &[&str]) -> Self {
        let store = Store::connect(&Settings::new(&database_url)).unwrap();
        let operator = muster_keys::bootstrap_operator(&store).await.unwrap();
        let node = Node::start(EVERYTHING, &database_url, words);
        let shop = Shop::open(&node.grpc(), &node.rest(), operator.expose()).await;
        Self {
            node,
            store,
            database_url,
            shop,
        }
    }
}
