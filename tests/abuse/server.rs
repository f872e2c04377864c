//! A `muster serve` to be abused, and honest callers of it.

use std::{net::SocketAddr, time::Duration};

use muster_proto::keys::v1::ListWorkspacesRequest;
use muster_storage::{Settings, Store};
use muster_testbed::process::{self, Server};
use muster_tests::{Shop, connect};
use serde_json::json;
use tempfile::TempDir;

/// How long an honest call may take while others misbehave.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much more memory the server may take under any abuse, in MiB.
const MORE_MEMORY_MIB: u64 = 192;

/// The server.
pub(crate) struct Target {
    pub(crate) shop: Shop,
    pub(crate) grpc: SocketAddr,
    pub(crate) rest: SocketAddr,
    process: Server,
    peak_before: u64,
    _store: Store,
    _directory: TempDir,
}

/// The `muster` that was built beside this suite.
pub(crate) fn program() -> std::path::PathBuf {
    let suite = std::env::current_exe().unwrap();
    suite.ancestors().nth(2).unwrap().join("muster")
}

/// A loopback address that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

impl Target {
    /// Starts it with further words on its command line.
    pub(crate) async fn start(words: &[&str]) -> Self {
        let database = muster_testbed::database().await;
        let store = Store::connect(&Settings::new(&database)).unwrap();
        let operator = muster_keys::bootstrap_operator(&store).await.unwrap();
        let (grpc, rest) = (free_address(), free_address());
        let directory = process::directory();
        let mut command = process::command(program());
        command
            .args(["serve", "keys", "users", "ingest", "segments", "bridge"])
            .args(["--grpc-listen", &grpc.to_string()])
            .args(["--rest-listen", &rest.to_string()])
            .args(words)
            .arg("--data-dir")
            .arg(directory.path())
            .env("DATABASE_URL", &database);
        let process = tokio::task::block_in_place(|| {
            Server::start(&mut command, directory.path(), directory.path())
        });
        let (grpc_url, rest_url) = (format!("http://{grpc}"), format!("http://{rest}"));
        let shop = Shop::open(&grpc_url, &rest_url, operator.expose()).await;
        let mut target = Self {
            shop,
            grpc,
            rest,
            process,
            peak_before: 0,
            _store: store,
            _directory: directory,
        };
        target.serves_others().await;
        target.peak_before = target.peak_mib();
        target
    }

    /// The most memory it ever took, in MiB.
    fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()));
        let status = status.expect("the server runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() / 1024
    }

    /// Checks that somebody else is served, over new connections, by gRPC and REST.
    pub(crate) async fn serves_others(&self) {
        let served = async {
            let operator = connect(&self.shop.grpc, &self.shop.operator_token);
            let request = ListWorkspacesRequest::default();
            operator
                .integrations()
                .list_workspaces(request)
                .await
                .unwrap();
            self.shop
                .rest()
                .change("probe", json!([]))
                .await
                .succeeded();
        };
        let served = tokio::time::timeout(PATIENCE, served).await;
        served.expect("an honest caller is served");
    }

    /// Checks that its memory stayed where it was.
    pub(crate) fn stayed_small(&self) {
        let grown = self.peak_mib() - self.peak_before;
        eprintln!("memory grew by {grown} MiB");
        assert!(grown <= MORE_MEMORY_MIB, "memory grew by {grown} MiB");
    }
}
