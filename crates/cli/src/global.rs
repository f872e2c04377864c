//! The flags every command takes, and where their defaults come from.

use std::{convert::Infallible, env, path::PathBuf, str::FromStr};

use muster_client::{Connection, Credential, Tls};

use crate::{
    endpoints::{Endpoints, EndpointsError},
    error::{CliError, Result},
    output::Format,
};

/// The flags every command takes, before or after its name.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Where Muster keeps its data [default: /var/lib/muster for root, otherwise
    /// $XDG_DATA_HOME/muster or ~/.local/share/muster]
    #[arg(
        long,
        global = true,
        env = "MUSTER_DATA_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// URL of Muster's gRPC endpoint [default: from DIR/endpoints.json]
    #[arg(
        long,
        global = true,
        env = "MUSTER_ENDPOINT",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) endpoint: Option<String>,
    /// Service token to call with; prefer the variable, since other users of the machine can read
    /// command lines [default: the operator's, from DIR/endpoints.json]
    #[arg(
        long,
        global = true,
        env = "MUSTER_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<Secret>,
    /// File of roots that the certificate of an https endpoint may lead to [default: the system's]
    #[arg(
        long,
        global = true,
        env = "MUSTER_TLS_CA",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) tls_ca: Option<PathBuf>,
    /// File of the certificate to show to a server that asks for one
    #[arg(
        long,
        global = true,
        env = "MUSTER_TLS_CERT",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) tls_cert: Option<PathBuf>,
    /// File of the private key of that certificate
    #[arg(
        long,
        global = true,
        env = "MUSTER_TLS_KEY",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) tls_key: Option<PathBuf>,
    /// Name that the certificate of the server has [default: the host of the URL]
    #[arg(
        long,
        global = true,
        env = "MUSTER_TLS_NAME",
        value_name = "NAME",
        hide_env_values = true
    )]
    pub(crate) tls_name: Option<String>,
    /// Workspace to work in
    #[arg(
        long,
        global = true,
        env = "MUSTER_WORKSPACE",
        value_name = "SLUG",
        hide_env_values = true
    )]
    pub(crate) workspace: Option<String>,
    /// How to print results
    #[arg(
        long,
        global = true,
        env = "MUSTER_OUTPUT",
        value_name = "FORMAT",
        default_value = "table",
        hide_env_values = true
    )]
    pub(crate) output: Format,
}

impl Global {
    /// The directory given, or the default one.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| {
            default_data_dir(nix::unistd::geteuid().is_root(), |name| env::var_os(name))
        })
    }

    /// The gRPC endpoint given, or that of the Muster which runs from the data directory.
    pub(crate) fn endpoint(&self) -> std::result::Result<String, EndpointsError> {
        match self.endpoint.as_deref().filter(|url| !url.is_empty()) {
            Some(url) => Ok(url.to_owned()),
            None => Ok(Endpoints::read(&self.data_dir())?.grpc),
        }
    }

    /// How to trust an https endpoint, and what to show it.
    pub(crate) fn tls(&self) -> Result<Tls> {
        let read = |path: &Option<PathBuf>| match path {
            Some(path) if !path.as_os_str().is_empty() => std::fs::read(path)
                .map(Some)
                .map_err(|error| CliError::Failed(format!("{}: {error}", path.display()))),
            _ => Ok(None),
        };
        let identity = match (read(&self.tls_cert)?, read(&self.tls_key)?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                let text = "--tls-cert and --tls-key go together";
                return Err(CliError::Usage(text.to_owned()));
            }
        };
        Ok(Tls {
            ca: read(&self.tls_ca)?,
            identity,
            server_name: self.tls_name.clone().filter(|name| !name.is_empty()),
        })
    }

    /// Connects to an endpoint, with the first call.
    pub(crate) fn connect(
        &self,
        endpoint: &str,
        credential: Option<Credential>,
    ) -> Result<Connection> {
        // Without a scheme it would pass for a URL, and each call would fail in an obscure way.
        let is_url = ["http://", "https://"]
            .iter()
            .any(|s| endpoint.starts_with(s));
        if !is_url || endpoint.parse::<tonic::transport::Uri>().is_err() {
            return Err(CliError::Usage(format!(
                "--endpoint {endpoint:?} is not a URL such as http://127.0.0.1:7410"
            )));
        }
        Connection::with_tls(endpoint, &self.tls()?, credential).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            CliError::Failed(format!(
                "cannot use TLS with {endpoint}: {}; see --tls-ca, --tls-cert and --tls-key",
                cause.unwrap_or_else(|| error.to_string())
            ))
        })
    }

    /// The workspace given; an empty variable counts as none.
    pub(crate) fn workspace(&self) -> Option<&str> {
        self.workspace.as_deref().filter(|slug| !slug.is_empty())
    }
}

fn default_data_dir(root: bool, variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> PathBuf {
    let absolute = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if root {
        return PathBuf::from("/var/lib/muster");
    }
    match (absolute("XDG_DATA_HOME"), absolute("HOME")) {
        (Some(data), _) => data.join("muster"),
        (None, Some(home)) => home.join(".local/share/muster"),
        (None, None) => PathBuf::from("muster-data"),
    }
}

/// A secret from the command line; shows itself only when asked.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// The secret itself.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        Ok(Self(text.trim().to_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_directory_follows_the_user() {
        let home = |name: &str| (name == "HOME").then(|| "/home/ann".into());
        let both = |name: &str| Some(if name == "HOME" { "/home/ann" } else { "/data" }.into());
        let relative = |name: &str| Some(if name == "HOME" { "/home/ann" } else { "data" }.into());
        let cases = [
            (default_data_dir(true, both), "/var/lib/muster"),
            (default_data_dir(false, both), "/data/muster"),
            (
                default_data_dir(false, home),
                "/home/ann/.local/share/muster",
            ),
            // A relative XDG_DATA_HOME is invalid and has to be ignored, says the specification.
            (
                default_data_dir(false, relative),
                "/home/ann/.local/share/muster",
            ),
        ];
        for (actual, expected) in cases {
            assert_eq!(actual, PathBuf::from(expected));
        }
    }
}
