//! The process under test, somebody who must be served all the while, and what it takes in memory.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use muster_client::{Credential, Tls};
use muster_proto::ingest::v1::ListCohortsRequest;
use muster_storage::{Settings, Store};
use muster_testbed::process::{self, Server};
use muster_tests::{Shop, WORKSPACE};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::oneshot, task::JoinHandle, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::certificates::{Authority, SERVER_NAME};

/// How long a caller may have to wait while others misbehave. A machine that tests run on may be busy
/// with others, so this says that callers are served, not how fast.
const SERVED_WITHIN: Duration = Duration::from_secs(15);

/// How much more memory the process may take, at its peak, while somebody misbehaves.
const MEMORY_BYTES: u64 = 32 * 1024 * 1024;

/// A `muster serve` of everything, with TLS, and the shop.
pub(crate) struct Deployment {
    pub(crate) server: Server,
    pub(crate) shop: Shop,
    pub(crate) grpc: SocketAddr,
    pub(crate) rest: SocketAddr,
    /// Signed the certificate of the server and, if there is one, that of its clients.
    pub(crate) authority: Authority,
    directory: TempDir,
}

impl Deployment {
    /// Starts one with further words on its command line.
    pub(crate) async fn start(words: &[&str]) -> Self {
        Self::start_in(process::directory(), Authority::new(), None, words).await
    }

    /// Starts one that asks its gRPC clients for a certificate.
    pub(crate) async fn start_mutual(words: &[&str]) -> Self {
        let (directory, authority) = (process::directory(), Authority::new());
        let roots = directory.path().join("clients.pem");
        fs::write(&roots, authority.pem()).unwrap();
        let identity = authority.issue(ExtendedKeyUsagePurpose::ClientAuth);
        fs::write(directory.path().join("client.pem"), &identity.0).unwrap();
        fs::write(directory.path().join("client.key"), &identity.1).unwrap();
        let words = [&["--client-ca", roots.to_str().unwrap()], words].concat();
        Self::start_in(directory, authority, Some(identity), &words).await
    }

    async fn start_in(
        directory: TempDir,
        authority: Authority,
        identity: Option<(Vec<u8>, Vec<u8>)>,
        words: &[&str],
    ) -> Self {
        authority.certify_server(directory.path());
        fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        let database_url = muster_testbed::database().await;
        let store = Store::connect(&Settings::new(&database_url)).unwrap();
        let operator = muster_keys::bootstrap_operator(&store).await.unwrap();
        let mut command = process::command(process::muster());
        command
            .args(["serve", "keys", "users", "ingest", "segments", "bridge"])
            .args(["--grpc-listen", "127.0.0.1:0"])
            .args(["--rest-listen", "127.0.0.1:0"])
            .args(["--output", "json"])
            .arg("--server-cert")
            .arg(directory.path().join("server.pem"))
            .arg("--server-key")
            .arg(directory.path().join("server.key"))
            .args(words)
            .arg("--data-dir")
            .arg(directory.path())
            .env("DATABASE_URL", &database_url);
        let server = tokio::task::block_in_place(|| {
            Server::start(&mut command, directory.path(), directory.path())
        });
        let ready: Value = serde_json::from_str(&server.ready).unwrap();
        let address = |what: &str| -> SocketAddr {
            let url = ready[what].as_str().unwrap();
            url.strip_prefix("https://").unwrap().parse().unwrap()
        };
        let (grpc, rest) = (address("grpc"), address("rest"));
        let shop = Shop::open_with(
            &authority.tls(identity),
            &format!("https://{grpc}"),
            &format!("https://{rest}"),
            operator.expose(),
        )
        .await;
        Self {
            server,
            shop,
            grpc,
            rest,
            authority,
            directory,
        }
    }

    /// The file of this name beside the certificates.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A connection to a listener, after the handshake.
    pub(crate) async fn dial(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        let protocol = if address == self.grpc {
            "h2"
        } else {
            "http/1.1"
        };
        handshake(address, &self.shop.tls, protocol).await.unwrap()
    }

    /// Does something hostile: meanwhile others are served, and memory stays what it is.
    pub(crate) async fn withstands<T>(&self, what: &str, attack: impl Future<Output = T>) -> T {
        self.withstands_in(MEMORY_BYTES, what, attack).await
    }

    /// The same, with this many bytes more in memory at most.
    pub(crate) async fn withstands_in<T>(
        &self,
        memory_bytes: u64,
        what: &str,
        attack: impl Future<Output = T>,
    ) -> T {
        let bystander = Bystander::watch(&self.shop);
        let memory = Memory::watch(self.server.pid());
        let result = attack.await;
        bystander.was_served(what).await;
        let grown = memory.grown();
        assert!(grown < memory_bytes, "{what}: {} KiB more", grown / 1024);
        eprintln!("{what}: {} KiB more", grown / 1024);
        result
    }
}

/// A handshake by hand; what is not PEM in `tls` was made by an [`Authority`].
pub(crate) async fn handshake(
    address: SocketAddr,
    tls: &Tls,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    handshake_over(stream, tls, protocol).await
}

/// The same over a connection that is there.
pub(crate) async fn handshake_over(
    stream: TcpStream,
    tls: &Tls,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

    let certificate = |pem: &[u8]| CertificateDer::from_pem_slice(pem).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate(tls.ca.as_ref().unwrap())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).unwrap();
            config
                .with_client_auth_cert(vec![certificate(chain)], key)
                .unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await
}

/// Somebody honest, who calls over gRPC and REST again and again, each time over new connections.
pub(crate) struct Bystander {
    stop: oneshot::Sender<()>,
    calling: JoinHandle<Result<u32, String>>,
}

impl Bystander {
    pub(crate) fn watch(shop: &Shop) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let shop = shop.clone();
        let calling = tokio::spawn(async move {
            let mut rounds = 0;
            // One round begins after the attack has ended.
            let mut last = false;
            while !last {
                last = stopped.try_recv().is_ok();
                let begun = Instant::now();
                match timeout(SERVED_WITHIN, round(&shop)).await {
                    Ok(Ok(())) => rounds += 1,
                    Ok(Err(error)) => return Err(format!("after {:?}: {error}", begun.elapsed())),
                    Err(_) => return Err(format!("no answer within {SERVED_WITHIN:?}")),
                }
            }
            Ok(rounds)
        });
        Self { stop, calling }
    }

    /// That it was.
    pub(crate) async fn was_served(self, what: &str) {
        let _ = self.stop.send(());
        let served = self.calling.await.unwrap();
        let rounds = served.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(rounds > 0);
    }
}

/// A call over gRPC, and one over REST, each over a connection of its own.
async fn round(shop: &Shop) -> Result<(), String> {
    served(shop).await?;
    let answer = shop.rest().try_change("anybody", json!([])).await;
    let answer = answer.map_err(|error| format!("REST: {error:?}"))?;
    match answer.status {
        201 => Ok(()),
        _ => Err(format!("REST: {answer:?}")),
    }
}

/// A call over gRPC on the account of the workspace, over a connection of its own.
pub(crate) async fn served(shop: &Shop) -> Result<(), String> {
    let key = Credential::bearer(&shop.client_secret).map_err(|error| error.to_string())?;
    let connection = shop.operator.renewed().with_credential(key);
    let mut ingest = connection.ingest();
    let cohorts = ListCohortsRequest {
        workspace: WORKSPACE.into(),
        ..Default::default()
    };
    let listed = ingest.list_cohorts(cohorts).await;
    listed.map_err(|status| format!("gRPC: {status:?}"))?;
    Ok(())
}

/// Looks at what a process takes in memory.
pub(crate) struct Memory {
    pid: u32,
    before: u64,
}

impl Memory {
    /// From now on.
    pub(crate) fn watch(pid: u32) -> Self {
        // Forgets the peak so far.
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        Self {
            pid,
            before: status(pid, "VmRSS:"),
        }
    }

    /// How many bytes more there were at the peak.
    pub(crate) fn grown(&self) -> u64 {
        status(self.pid, "VmHWM:").saturating_sub(self.before)
    }
}

fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kibibytes = line.split_whitespace().nth(1).unwrap();
    kibibytes.parse::<u64>().unwrap() * 1024
}
