//! A `muster up` of its own: the real binary, a private, durable Postgres, loopback.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use muster_client::{Connection, Credential};
use muster_proto::keys::v1 as keys;
use muster_testbed::process::{self, PATIENCE, Server};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::signal::Signal,
};
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use crate::{Arguments, Result};

/// Slug of the workspace.
pub(crate) const WORKSPACE: &str = "bench";

/// Slug of the partner.
pub(crate) const PARTNER: &str = "tinyclues";

/// How long the identity index may take to be loaded.
const INDEX_LOAD: Duration = Duration::from_secs(600);

/// What an identity index took.
#[derive(Debug)]
pub(crate) struct IndexLoad {
    /// Its memory.
    pub(crate) bytes: f64,
    /// How long it was read from Postgres.
    pub(crate) took: Duration,
}

impl IndexLoad {
    /// The line of the log that says so.
    fn parse(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        if line["message"] != "directory loaded" {
            return None;
        }
        let took = line["took"].as_str()?;
        let unit = took.find(|c: char| c.is_alphabetic() || c == 'µ')?;
        let (number, unit) = took.split_at(unit);
        let seconds = match unit {
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" => 1e-6,
            _ => return None,
        };
        Some(Self {
            bytes: line["bytes"].as_f64()?,
            took: Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?,
        })
    }
}

/// It runs until this is dropped, or the program ends in whatever way; then nothing is left of it.
pub(crate) struct Deployment {
    // Dropped in this order.
    server: Option<Server>,
    _clean_up: Child,
    directory: TempDir,
    program: PathBuf,
    /// With the operator's token.
    operator: Connection,
    /// With a service token of the workspace, as its backends have it.
    pub(crate) backend: Connection,
    /// With the data import key.
    pub(crate) partner: Connection,
    /// URL of the REST contract.
    pub(crate) rest: String,
    /// The partner's API key.
    pub(crate) partner_api_key: String,
    /// The data import key.
    pub(crate) client_secret: String,
    /// The service token of the workspace.
    service_token: String,
}

impl Deployment {
    /// Starts one, with the workspace and the partner.
    pub(crate) async fn start(arguments: &Arguments) -> Result<Self> {
        let program = match &arguments.muster {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("muster"),
        };
        if !program.exists() {
            let program = program.display();
            return Err(format!("there is no {program}: build muster-cli first").into());
        }
        // Postgres may run under an account of its own, which has to pass through.
        let directory = tempfile::Builder::new()
            .prefix("muster-bench-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(&arguments.directory)?;
        let data_dir = directory.path().join("data");
        // A Muster that this program can no longer end is ended by the one of `start_again`; this
        // one removes what is left if this program is killed.
        let nowhere = Connection::new("http://127.0.0.1:1", None)?;
        let clean_up = process::clean_up("", &data_dir, directory.path());
        let mut deployment = Self {
            server: None,
            _clean_up: clean_up,
            directory,
            program: std::path::absolute(program)?,
            operator: nowhere.clone(),
            backend: nowhere.clone(),
            partner: nowhere,
            rest: String::new(),
            partner_api_key: String::new(),
            client_secret: String::new(),
            service_token: String::new(),
        };
        deployment.run_again()?;
        deployment.set_up().await?;
        deployment.connect()?;
        Ok(deployment)
    }

    /// Where it keeps its data.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Ends it, forgets what the machine has in memory of its files, and starts it again.
    pub(crate) fn start_cold(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.signal(Signal::SIGTERM);
            let status = process::wait(&mut server.child, PATIENCE);
            if !status.success() {
                return Err(format!("muster ended with {status}: {}", server.stderr()).into());
            }
        }
        nix::unistd::sync();
        forget(&self.data_dir())?;
        self.run_again()?;
        self.connect()
    }

    fn run_again(&mut self) -> Result<()> {
        let output = tempfile::Builder::new().tempdir_in(self.directory.path())?;
        let mut command: Command = process::command(&self.program);
        command
            .arg("up")
            .args(["--grpc-listen", "127.0.0.1:0"])
            .args(["--rest-listen", "127.0.0.1:0"])
            // A bound, not what is taken: twenty million users come close to the default.
            .args(["--identity-memory", "8GiB"])
            .arg("--data-dir")
            .arg(self.data_dir());
        // The clean-up of the server removes its output.
        self.server = Some(Server::start(
            &mut command,
            &output.keep(),
            &self.data_dir(),
        ));
        Ok(())
    }

    fn endpoints(&self) -> Result<(String, String, String)> {
        let data_dir = self.data_dir();
        let text = fs::read_to_string(data_dir.join("endpoints.json"))?;
        let endpoints: Value = serde_json::from_str(&text)?;
        let text = |name: &str| {
            let value = endpoints[name].as_str().map(str::to_owned);
            value.ok_or_else(|| format!("endpoints.json has no {name}"))
        };
        let token = fs::read_to_string(data_dir.join(text("operator_token_file")?))?;
        Ok((text("grpc")?, text("rest")?, token.trim().to_owned()))
    }

    fn connect(&mut self) -> Result<()> {
        let (grpc, rest, token) = self.endpoints()?;
        self.rest = rest;
        self.operator = Connection::new(&grpc, Some(Credential::bearer(&token)?))?;
        let backend = Credential::bearer(&self.service_token)?;
        self.backend = Connection::new(&grpc, Some(backend))?;
        let partner = Credential::bearer(&self.client_secret)?;
        self.partner = Connection::new(&grpc, Some(partner))?;
        Ok(())
    }

    async fn set_up(&mut self) -> Result<()> {
        self.connect()?;
        let mut integrations = self.operator.integrations();
        let workspace = keys::CreateWorkspaceRequest {
            workspace: WORKSPACE.to_owned(),
            ..Default::default()
        };
        integrations.create_workspace(workspace).await?;
        let partner = keys::CreatePartnerRequest {
            partner: PARTNER.to_owned(),
            ..Default::default()
        };
        integrations.create_partner(partner).await?;
        let enable = keys::EnablePartnerRequest {
            workspace: WORKSPACE.to_owned(),
            partner: PARTNER.to_owned(),
            ..Default::default()
        };
        integrations.enable_partner(enable).await?;
        let key = keys::CreatePartnerApiKeyRequest {
            partner: PARTNER.to_owned(),
            ..Default::default()
        };
        let key = integrations.create_partner_api_key(key).await?;
        self.partner_api_key = key.into_inner().secret;
        let key = keys::CreateKeyRequest {
            workspace: WORKSPACE.to_owned(),
            partner: PARTNER.to_owned(),
            ..Default::default()
        };
        let key = self.operator.keys().create_key(key).await?;
        self.client_secret = key.into_inner().secret;
        let token = keys::CreateServiceTokenRequest {
            workspace: WORKSPACE.to_owned(),
            label: "bench".to_owned(),
            scopes: ["users:write", "segments:read", "audiences:read"]
                .map(str::to_owned)
                .into(),
            ..Default::default()
        };
        let token = integrations.create_service_token(token).await?;
        self.service_token = token.into_inner().secret;
        Ok(())
    }

    /// A connection to a database of its Postgres.
    pub(crate) async fn database(&self, name: &str) -> Result<PgConnection> {
        let url = muster_launcher::url(&self.data_dir(), name)?;
        Ok(PgConnection::connect(&url).await?)
    }

    /// What the identity index of the workspace took, once it is in memory; its load has to have
    /// begun.
    pub(crate) async fn index_loaded(&self) -> Result<IndexLoad> {
        let deadline = Instant::now() + INDEX_LOAD;
        loop {
            let server = self.server.as_ref().ok_or("muster does not run")?;
            if let Some(loaded) = server.stderr().lines().find_map(IndexLoad::parse) {
                return Ok(loaded);
            }
            if Instant::now() > deadline {
                return Err(format!("no index was loaded: {}", server.stderr()).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The most memory that the process had at once so far, in MiB.
    pub(crate) fn peak_memory_mib(&self) -> Result<f64> {
        let server = self.server.as_ref().ok_or("muster does not run")?;
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: f64 = kib.ok_or("/proc does not tell the memory")?.parse()?;
        Ok(kib / 1024.0)
    }
}

/// Has the files of a directory read from the disk again. Needs no rights beyond reading them.
fn forget(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            forget(&entry.path())?;
        } else if kind.is_file() {
            let file = File::open(entry.path())?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_what_an_index_took() {
        let line = r#"{"message":"directory loaded","workspace":1,"bytes":4200,"took":"52.5ms"}"#;
        let loaded = IndexLoad::parse(line).unwrap();
        assert_eq!(loaded.bytes, 4_200.0);
        assert_eq!(loaded.took, Duration::from_micros(52_500));
        assert!(IndexLoad::parse("PostgreSQL accepts connections").is_none());
        assert!(IndexLoad::parse(r#"{"message":"ready"}"#).is_none());
    }
}
