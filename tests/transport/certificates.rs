//! Authorities and what they sign.

use std::{fs, path::Path};

use muster_client::Tls;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The name that the servers' certificates have.
pub(crate) const SERVER_NAME: &str = "muster.test";

/// Somebody who signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate, in PEM.
    pub(crate) fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    /// A certificate for a server or a client, and its key, in PEM.
    pub(crate) fn issue(&self, usage: ExtendedKeyUsagePurpose) -> (Vec<u8>, Vec<u8>) {
        let mut params =
            CertificateParams::new([SERVER_NAME, "127.0.0.1"].map(str::to_owned)).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (
            certificate.pem().into_bytes(),
            key.serialize_pem().into_bytes(),
        )
    }

    /// Writes a certificate for a server, as its operator would replace it.
    pub(crate) fn certify_server(&self, directory: &Path) {
        let (certificate, key) = self.issue(ExtendedKeyUsagePurpose::ServerAuth);
        fs::write(directory.join("server.pem"), certificate).unwrap();
        fs::write(directory.join("server.key"), key).unwrap();
    }

    /// How a client trusts what this authority signed, and what it shows.
    pub(crate) fn tls(&self, identity: Option<(Vec<u8>, Vec<u8>)>) -> Tls {
        Tls {
            ca: Some(self.pem()),
            identity,
            server_name: Some(SERVER_NAME.to_owned()),
        }
    }
}
