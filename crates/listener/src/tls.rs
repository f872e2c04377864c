//! Certificates: read from files, and read again while the listener runs.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::Protocol;

/// How often the files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// Where the certificates are, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the server, then those that lead to a root.
    pub certificate: PathBuf,
    /// The private key of the first.
    pub key: PathBuf,
    /// Roots of the certificates that clients must show; `None` if they need none.
    pub client_ca: Option<PathBuf>,
}

/// TLS of a listener.
#[derive(Debug, Clone)]
pub struct Tls {
    files: TlsFiles,
    protocol: Protocol,
    read: Contents,
    config: Arc<RwLock<Arc<ServerConfig>>>,
}

/// Why a certificate is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {what}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// What the files held.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Contents(…)")
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// If one cannot be read, or they do not make a certificate with its key.
    pub fn load(files: TlsFiles, protocol: Protocol) -> Result<Self, TlsError> {
        let read = Contents::read(&files)?;
        let config = read.config(&files, protocol)?;
        Ok(Self {
            files,
            protocol,
            read,
            config: Arc::new(RwLock::new(Arc::new(config))),
        })
    }

    /// The configuration for the next handshake.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&config)
    }

    /// Looks at the files every second; new handshakes get what they hold. What is of no use is
    /// logged once, and the certificate before stays.
    pub(crate) async fn follow(mut self) {
        let mut failed = false;
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let files = self.files.clone();
            let read = tokio::task::spawn_blocking(move || Contents::read(&files)).await;
            let Ok(read) = read else { return };
            let config = match read {
                Ok(read) if read == self.read => continue,
                Ok(read) => {
                    // Half of a change may be there yet: then the next look sees the rest.
                    self.read = read;
                    self.read.config(&self.files, self.protocol)
                }
                Err(_) if failed => continue,
                Err(error) => Err(error),
            };
            failed = config.is_err();
            match config {
                Ok(config) => {
                    *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                    tracing::info!(certificate = %self.files.certificate.display(), "read a new certificate");
                }
                Err(error) => {
                    tracing::error!(%error, "cannot use the new certificate; the one before stays");
                }
            }
        }
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Unreadable {
                path: path.to_owned(),
                source,
            })
        };
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn config(&self, files: &TlsFiles, protocol: Protocol) -> Result<ServerConfig, TlsError> {
        let wrong = |path: &Path, what: &dyn std::fmt::Display| TlsError::Malformed {
            path: path.to_owned(),
            what: what.to_string(),
        };
        let chain = certificates(&files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| wrong(&files.key, &"no private key in PEM"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for both versions");
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(contents), Some(path)) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path, contents)? {
                    roots.add(root).map_err(|error| wrong(path, &error))?;
                }
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(
                    verifier.build().map_err(|error| wrong(path, &error))?,
                )
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| wrong(&files.certificate, &error))?;
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        }];
        Ok(config)
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError::Malformed {
            path: path.to_owned(),
            what: "no certificate in PEM".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn files(directory: &Path) -> TlsFiles {
        TlsFiles {
            certificate: directory.join("cert.pem"),
            key: directory.join("key.pem"),
            client_ca: None,
        }
    }

    fn write(files: &TlsFiles) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn what_is_wrong_is_told_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let load = |files: &TlsFiles| Tls::load(files.clone(), Protocol::Http2).map(|_| ());
        let error = || load(&files).unwrap_err().to_string();
        assert!(error().contains("cert.pem"), "{}", error());
        write(&files);
        load(&files).unwrap();
        fs::write(&files.key, "nonsense").unwrap();
        assert!(error().contains("key.pem: no private key"), "{}", error());
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        assert!(error().contains("cert.pem"), "{}", error());
        let asking = TlsFiles {
            client_ca: Some(files.key.clone()),
            ..files.clone()
        };
        write(&files);
        let error = load(&asking).unwrap_err().to_string();
        assert!(error.contains("key.pem: no certificate"), "{error}");
    }
}
