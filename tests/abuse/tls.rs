//! TLS, on the real binary: who is let in, who is not, and how certificates are changed.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_client::{Connection, Credential, Tls};
use muster_proto::keys::v1::ListWorkspacesRequest;
use muster_storage::{Settings, Store};
use muster_testbed::process::{self, Server};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use tempfile::TempDir;

use crate::server::{free_address, program};

/// Within which a changed certificate is in use; the server looks every second.
const RELOAD: Duration = Duration::from_secs(20);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for loopback and its key, in PEM.
fn issue(issuer: &Authority, usage: ExtendedKeyUsagePurpose, expired: bool) -> (String, String) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![usage];
    if expired {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// Two authorities, and the files of a server.
pub(crate) struct Certificates {
    servers: Authority,
    clients: Authority,
    directory: TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let certificates = Self {
            servers: authority(),
            clients: authority(),
            directory: process::directory(),
        };
        certificates.renew(false);
        fs::write(certificates.path("clients.pem"), certificates.clients.pem()).unwrap();
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Gives the server a new certificate.
    fn renew(&self, expired: bool) {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let (certificate, key) = issue(&self.servers, usage, expired);
        fs::write(self.path("server.pem"), certificate).unwrap();
        fs::write(self.path("server.key"), key).unwrap();
    }

    /// What a client trusts and shows; its certificate comes from this authority.
    fn client(&self, issuer: &Authority, expired: bool) -> Tls {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let (certificate, key) = issue(issuer, usage, expired);
        Tls {
            ca: Some(self.servers.pem().into_bytes()),
            identity: Some((certificate.into_bytes(), key.into_bytes())),
            server_name: None,
        }
    }

    /// Starts a server with them and further words.
    pub(crate) async fn serve(self, words: &[&str]) -> Secured {
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
            .arg("--server-cert")
            .arg(self.path("server.pem"))
            .arg("--server-key")
            .arg(self.path("server.key"))
            .args(words)
            .arg("--data-dir")
            .arg(directory.path())
            .env("DATABASE_URL", &database);
        let server = tokio::task::block_in_place(|| {
            Server::start(&mut command, directory.path(), directory.path())
        });
        Secured {
            certificates: self,
            grpc,
            rest,
            token: operator.expose().to_owned(),
            _server: server,
            _store: store,
            _directory: directory,
        }
    }
}

/// A server with TLS.
pub(crate) struct Secured {
    certificates: Certificates,
    pub(crate) grpc: SocketAddr,
    pub(crate) rest: SocketAddr,
    token: String,
    _server: Server,
    _store: Store,
    _directory: TempDir,
}

impl Secured {
    /// Whether a call is answered over a new connection.
    async fn accepts(&self, url: &str, tls: &Tls) -> bool {
        let credential = Credential::bearer(&self.token).unwrap();
        let connection = Connection::with_tls(url, tls, Some(credential)).unwrap();
        let mut integrations = connection.integrations();
        let call = integrations.list_workspaces(ListWorkspacesRequest::default());
        call.await.is_ok()
    }

    fn url(&self) -> String {
        format!("https://{}", self.grpc)
    }

    fn anonymous(&self) -> Tls {
        Tls {
            ca: Some(self.certificates.servers.pem().into_bytes()),
            ..Tls::default()
        }
    }

    pub(crate) async fn is_served(&self) {
        assert!(self.accepts(&self.url(), &self.anonymous()).await);
        assert_eq!(self.rest_status("https").await, Some(404));
    }

    /// What REST answers to a client that trusts the authority; `None` if there is no answer.
    async fn rest_status(&self, scheme: &str) -> Option<u16> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = self.certificates.servers.pem();
        let root = reqwest::Certificate::from_pem(root.as_bytes()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([root])
            .build()
            .unwrap();
        let url = format!("{scheme}://{}/nowhere", self.rest);
        let answer = client.get(url).send().await.ok()?;
        Some(answer.status().as_u16())
    }

    /// The certificate that a new handshake is shown.
    async fn shown(&self) -> Vec<u8> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificates.servers.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(self.rest).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector
            .connect("localhost".try_into().unwrap(), stream)
            .await
            .unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_plaintext_and_other_authorities_are_refused() {
    let server = Certificates::new().serve(&[]).await;
    server.is_served().await;
    let plain = format!("http://{}", server.grpc);
    assert!(!server.accepts(&plain, &server.anonymous()).await);
    assert_eq!(server.rest_status("http").await, None);
    let stranger = Tls {
        ca: Some(authority().pem().into_bytes()),
        ..Tls::default()
    };
    assert!(!server.accepts(&server.url(), &stranger).await);
    assert!(!server.accepts(&server.url(), &Tls::default()).await);
    let other_name = Tls {
        server_name: Some("muster.example.com".to_owned()),
        ..server.anonymous()
    };
    assert!(!server.accepts(&server.url(), &other_name).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_authority_grpc_lets_in_only_its_certificates() {
    let certificates = Certificates::new();
    let authority_file = certificates.path("clients.pem");
    let words = ["--client-ca", authority_file.to_str().unwrap()];
    let server = certificates.serve(&words).await;
    let (url, certificates) = (server.url(), &server.certificates);
    let known = certificates.client(&certificates.clients, false);
    assert!(server.accepts(&url, &known).await);
    assert!(!server.accepts(&url, &server.anonymous()).await);
    let stranger = certificates.client(&authority(), false);
    assert!(!server.accepts(&url, &stranger).await);
    let expired = certificates.client(&certificates.clients, true);
    assert!(!server.accepts(&url, &expired).await);
    // Partners have no certificate, and the bridge needs none within the process: it asks the
    // servers, which do not know these keys.
    assert_eq!(server.rest_status("https").await, Some(404));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_server_is_refused() {
    let certificates = Certificates::new();
    certificates.renew(true);
    let server = certificates.serve(&[]).await;
    assert!(!server.accepts(&server.url(), &server.anonymous()).await);
    assert_eq!(server.rest_status("https").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_used_without_restart_and_a_broken_one_is_not() {
    let server = Certificates::new().serve(&[]).await;
    let before = server.shown().await;
    assert_eq!(server.shown().await, before);
    let credential = Credential::bearer(&server.token).unwrap();
    let open = Connection::with_tls(&server.url(), &server.anonymous(), Some(credential)).unwrap();
    let list = async || {
        let request = ListWorkspacesRequest::default();
        open.integrations().list_workspaces(request).await.unwrap();
    };
    list().await;
    fs::write(server.certificates.path("server.pem"), "broken").unwrap();
    let log = server._directory.path().to_owned();
    let said = || {
        let entries = fs::read_dir(&log).unwrap().flatten();
        entries
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .any(|text| text.contains("cannot use the new certificate"))
    };
    until(async || said()).await;
    assert_eq!(server.shown().await, before);
    server.certificates.renew(false);
    until(async || server.shown().await != before).await;
    server.is_served().await;
    // Connections that were open stay so.
    list().await;
}

async fn until(condition: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < RELOAD, "it did not come about");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn plaintext_is_for_loopback_unless_one_insists() {
    let refused = |words: &[&str]| {
        let mut command: Command = process::command(program());
        command
            .args(words)
            .env("DATABASE_URL", "postgres://127.0.0.1:1/x");
        let done = command.output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let serve = ["serve", "bridge", "--endpoint", "http://127.0.0.1:1"];
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let (code, text) = refused(&[&serve[..], &["--rest-listen", address]].concat());
        assert_eq!(code, Some(2), "{text}");
        for flag in ["--server-cert", "--server-key", "--insecure"] {
            assert!(text.contains(flag), "{text}");
        }
    }
    let insist = ["--rest-listen", "192.0.2.1:80", "--insecure"];
    let (code, text) = refused(&[&serve[..], &insist].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("cannot listen on 192.0.2.1:80"), "{text}");
}
