//! A channel to a Muster deployment with the caller's credential on every call.

use std::{fmt, io, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use muster_proto::{
    ingest::v1::ingest_service_client::IngestServiceClient,
    keys::v1::{
        integration_service_client::IntegrationServiceClient, key_service_client::KeyServiceClient,
    },
    segments::v1::segment_service_client::SegmentServiceClient,
    users::v1::user_service_client::UserServiceClient,
};
use tokio::io::DuplexStream;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue, errors::InvalidMetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity},
};

/// Largest message a client accepts, in bytes: an audience batch of 4,096 full records fits.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Flow-control window of a stream and of the connection, in bytes; the default of 64 KiB throttles
/// batches of up to 1 MiB.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Largest frame that a server may send, in bytes: with its head of 9 bytes it fills what an allocator hands
/// out, and an audience has fewer than of the usual 16 KiB.
const MAX_FRAME_BYTES: u32 = 32 * 1024 - 9;

/// What a caller authenticates with.
#[derive(Clone)]
pub struct Credential {
    bearer: MetadataValue<Ascii>,
    partner_api_key: Option<MetadataValue<Ascii>>,
    caller_address: Option<MetadataValue<Ascii>>,
}

impl Credential {
    /// A service token, or a data import key, as `authorization: Bearer …`.
    ///
    /// # Errors
    /// If the secret has characters that a header cannot carry.
    pub fn bearer(secret: &str) -> Result<Self, InvalidMetadataValue> {
        Ok(Self {
            bearer: secret_value(&format!("Bearer {secret}"))?,
            partner_api_key: None,
            caller_address: None,
        })
    }

    /// A data import key together with the partner's API key, as the REST contract has them; the
    /// second goes as `muster-partner-api-key`.
    ///
    /// # Errors
    /// If a secret has characters that a header cannot carry.
    pub fn partner(
        data_import_key: &str,
        partner_api_key: &str,
    ) -> Result<Self, InvalidMetadataValue> {
        Ok(Self {
            partner_api_key: Some(secret_value(partner_api_key)?),
            ..Self::bearer(data_import_key)?
        })
    }

    /// The same credential, presented by somebody at this address. Servers believe that only of a
    /// caller in their own process, such as the bridge of `muster up`, and of one with a certificate.
    #[must_use]
    pub fn presented_from(mut self, address: IpAddr) -> Self {
        let text = address.to_string().parse();
        self.caller_address = Some(text.expect("an address is plain ASCII"));
        self
    }
}

fn secret_value(text: &str) -> Result<MetadataValue<Ascii>, InvalidMetadataValue> {
    let mut value: MetadataValue<Ascii> = text.parse()?;
    // Keeps the secret out of debug output and of HPACK's shared table.
    value.set_sensitive(true);
    Ok(value)
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Credential(…)")
    }
}

/// Puts a credential on every call.
#[derive(Debug, Clone)]
pub struct Authenticated(Option<Credential>);

impl Interceptor for Authenticated {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(credential) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", credential.bearer.clone());
            if let Some(key) = &credential.partner_api_key {
                metadata.insert("muster-partner-api-key", key.clone());
            }
            if let Some(address) = &credential.caller_address {
                metadata.insert("muster-caller-address", address.clone());
            }
        }
        Ok(request)
    }
}

/// The channel that every generated client runs over.
pub type Client = InterceptedService<Channel, Authenticated>;

/// How an `https` endpoint is trusted, and how the caller shows who it is; PEM throughout.
#[derive(Clone, Default)]
pub struct Tls {
    /// Roots that the certificate of the server may lead to; `None` for those of the system.
    pub ca: Option<Vec<u8>>,
    /// The certificates and the private key that the caller shows to servers that ask for it.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that the certificate of the server must have; `None` for that in the URL.
    pub server_name: Option<String>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Tls(…)")
    }
}

impl Tls {
    fn config(&self) -> ClientTlsConfig {
        let mut config = ClientTlsConfig::new();
        config = match &self.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(ca)),
            None => config.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        config
    }
}

type Dial =
    dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<DuplexStream>> + Send>> + Send + Sync;

/// Where a channel leads.
#[derive(Clone)]
enum Target {
    Network(Arc<Endpoint>),
    Process(Arc<Endpoint>, Arc<Dial>),
}

impl Target {
    fn channel(&self) -> Channel {
        match self {
            Self::Network(endpoint) => endpoint.connect_lazy(),
            Self::Process(endpoint, dial) => {
                let dial = Arc::clone(dial);
                endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
                    let stream = dial();
                    async move { stream.await.map(TokioIo::new) }
                }))
            }
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Network(endpoint) | Self::Process(endpoint, _)) = self;
        write!(out, "Target({})", endpoint.uri())
    }
}

/// A channel to a deployment, with or without a credential; cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    target: Target,
    channel: Channel,
    credential: Authenticated,
}

impl Connection {
    /// Connects lazily to `http://host:port`, or to `https://host:port` by the roots of the system;
    /// the first call connects, and a lost connection is made again by the next one.
    ///
    /// # Errors
    /// If the endpoint is not a URL.
    pub fn new(endpoint: &str, credential: Option<Credential>) -> Result<Self, Error> {
        Self::with_tls(endpoint, &Tls::default(), credential)
    }

    /// The same, with TLS to one's liking, which an `http` endpoint does not use.
    ///
    /// # Errors
    /// If the endpoint is not a URL, or a certificate or key cannot be read.
    pub fn with_tls(
        endpoint: &str,
        tls: &Tls,
        credential: Option<Credential>,
    ) -> Result<Self, Error> {
        let mut endpoint = settings(Endpoint::from_shared(endpoint.to_owned())?);
        if endpoint.uri().scheme_str() == Some("https") {
            endpoint = endpoint.tls_config(tls.config())?;
        }
        Ok(Self::to(Target::Network(Arc::new(endpoint)), credential))
    }

    /// Connects, as lazily, within the process: each connection is what `dial` gives.
    pub fn within<D, F>(dial: D, credential: Option<Credential>) -> Self
    where
        D: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<DuplexStream>> + Send + 'static,
    {
        let endpoint = settings(Endpoint::from_static("http://muster.internal"));
        let dial: Arc<Dial> = Arc::new(move || Box::pin(dial()));
        Self::to(Target::Process(Arc::new(endpoint), dial), credential)
    }

    fn to(target: Target, credential: Option<Credential>) -> Self {
        Self {
            channel: target.channel(),
            target,
            credential: Authenticated(credential),
        }
    }

    /// The same endpoint and credential over a connection of its own.
    ///
    /// A peer that falls silent says nothing of whether it or the network in between is gone, and
    /// until keepalive finds out, up to 30 s later, every call on the old connection shares its
    /// fate.
    #[must_use]
    pub fn renewed(&self) -> Self {
        Self {
            channel: self.target.channel(),
            ..self.clone()
        }
    }

    /// The same channel with another credential.
    #[must_use]
    pub fn with_credential(&self, credential: Credential) -> Self {
        Self {
            credential: Authenticated(Some(credential)),
            ..self.clone()
        }
    }

    /// The same, with the credential presented by somebody at this address, as
    /// [`Credential::presented_from`] has it.
    #[must_use]
    pub fn presented_from(&self, address: IpAddr) -> Self {
        let credential = self.credential.0.clone();
        Self {
            credential: Authenticated(credential.map(|it| it.presented_from(address))),
            ..self.clone()
        }
    }

    pub(crate) fn client(&self) -> Client {
        InterceptedService::new(self.channel.clone(), self.credential.clone())
    }

    /// Data import keys.
    pub fn keys(&self) -> KeyServiceClient<Client> {
        KeyServiceClient::new(self.client())
    }

    /// Workspaces, partners, tokens, audit.
    pub fn integrations(&self) -> IntegrationServiceClient<Client> {
        IntegrationServiceClient::new(self.client())
    }

    /// The user directory.
    pub fn users(&self) -> UserServiceClient<Client> {
        UserServiceClient::new(self.client())
    }

    /// Cohorts and imports.
    pub fn ingest(&self) -> IngestServiceClient<Client> {
        IngestServiceClient::new(self.client()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Segments and audiences.
    pub fn segments(&self) -> SegmentServiceClient<Client> {
        SegmentServiceClient::new(self.client()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

fn settings(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(Duration::from_secs(5))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .tcp_nodelay(true)
}
