//! A connection to the Muster the command line names, and how commands call it.

use std::time::Duration;

use muster_client::{Connection, Credential, Refusal};
use tonic::{Code, Response, Status};
use uuid::Uuid;

use crate::{
    endpoints::Endpoints,
    error::{CliError, Result},
    global::Global,
    output::Output,
};

/// Waits between the attempts of a call whose server cannot be reached.
const RETRY_WAITS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(900),
    Duration::from_millis(2_700),
];

/// Longest wait that a server may ask for before this command gives up instead.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(10);

/// What a command needs to talk to a running Muster.
#[derive(Debug)]
pub(crate) struct Session {
    /// The channel, with the credential.
    pub(crate) connection: Connection,
    /// Where results go.
    pub(crate) output: Output,
    endpoint: String,
    workspace: Option<String>,
}

impl Session {
    /// Finds endpoint and token; connects with the first call.
    ///
    /// # Errors
    /// If nothing says where Muster runs or what to authenticate with.
    pub(crate) fn open(global: &Global) -> Result<Self> {
        let (endpoint, token) = find(global)?;
        let credential = Credential::bearer(&token).map_err(|_| {
            CliError::Usage("the token has characters that no token has".to_owned())
        })?;
        let connection = global.connect(&endpoint, Some(credential))?;
        Ok(Self {
            connection,
            output: Output::new(global.output),
            endpoint,
            workspace: global.workspace().map(str::to_owned),
        })
    }

    /// The workspace to work in.
    ///
    /// # Errors
    /// If none was given.
    pub(crate) fn workspace(&self) -> Result<String> {
        self.workspace.clone().ok_or_else(|| {
            CliError::Usage("which workspace? Give --workspace or set MUSTER_WORKSPACE".to_owned())
        })
    }

    /// The workspace given, empty for none: what the contract means by "any".
    pub(crate) fn any_workspace(&self, ignore: bool) -> String {
        match &self.workspace {
            Some(slug) if !ignore => slug.clone(),
            _ => String::new(),
        }
    }

    /// Calls, and again a few times if the server is unavailable or the connection breaks. `attempt`
    /// must send the same request each time, with the same `request_id`: then a lost answer does no
    /// harm.
    pub(crate) async fn call<T>(
        &self,
        mut attempt: impl AsyncFnMut() -> Result<Response<T>, Status>,
    ) -> Result<T> {
        let mut waits = RETRY_WAITS.into_iter();
        loop {
            let refusal: Refusal = match attempt().await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status.into(),
            };
            match waits.next() {
                Some(wait) if refusal.code == Code::Unavailable || refusal.connection_lost => {
                    let wait = refusal.retry_after.unwrap_or(wait);
                    tokio::time::sleep(wait.min(MAX_RETRY_WAIT)).await;
                }
                _ => return Err(self.refused(refusal)),
            }
        }
    }

    /// The error that a refusal means to the user.
    pub(crate) fn refused(&self, refusal: impl Into<Refusal>) -> CliError {
        CliError::Refused {
            refusal: Box::new(refusal.into()),
            endpoint: self.endpoint.clone(),
        }
    }
}

/// A fresh `request_id`.
pub(crate) fn request_id() -> String {
    Uuid::now_v7().to_string()
}

/// Endpoint and token, from flags, variables or the data directory.
fn find(global: &Global) -> Result<(String, String)> {
    let data_dir = global.data_dir();
    let token = global
        .token
        .as_ref()
        .map(|secret| secret.reveal().to_owned());
    let token = token.filter(|token| !token.is_empty());
    let endpoint = global.endpoint.clone().filter(|url| !url.is_empty());
    match (endpoint, token) {
        (Some(endpoint), Some(token)) => Ok((endpoint, token)),
        (None, Some(token)) => Ok((Endpoints::read(&data_dir)?.grpc, token)),
        (None, None) => {
            let endpoints = Endpoints::read(&data_dir)?;
            let token = endpoints.operator_token(&data_dir)?;
            Ok((endpoints.grpc, token))
        }
        // The operator's token of this machine is for this machine's Muster, and for nobody who
        // listens at some other address.
        (Some(endpoint), None) => match Endpoints::read(&data_dir) {
            Ok(endpoints)
                if endpoints.grpc.trim_end_matches('/') == endpoint.trim_end_matches('/') =>
            {
                let token = endpoints.operator_token(&data_dir)?;
                Ok((endpoint, token))
            }
            _ => Err(CliError::Usage(format!(
                "which token for {endpoint}? Give --token or set MUSTER_TOKEN"
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::output::Format;

    fn global(data_dir: &Path, endpoint: Option<&str>, token: Option<&str>) -> Global {
        Global {
            data_dir: Some(data_dir.to_owned()),
            endpoint: endpoint.map(str::to_owned),
            token: token.and_then(|text| text.parse().ok()),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            tls_name: None,
            workspace: None,
            output: Format::Table,
        }
    }

    #[test]
    fn the_operator_token_goes_to_its_own_muster_only() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("operator.token"), "mst_op\n").unwrap();
        let endpoints = Endpoints {
            grpc: "http://127.0.0.1:7410".to_owned(),
            rest: None,
            console: None,
            operator_token_file: Some("operator.token".into()),
        };
        endpoints.write(directory.path()).unwrap();
        let find = |endpoint, token| find(&global(directory.path(), endpoint, token));
        let own = ("http://127.0.0.1:7410".to_owned(), "mst_op".to_owned());
        assert_eq!(find(None, None).unwrap(), own);
        assert_eq!(find(Some(""), Some("")).unwrap(), own);
        assert_eq!(find(Some("http://127.0.0.1:7410"), None).unwrap(), own);
        assert!(matches!(
            find(Some("http://evil:1"), None),
            Err(CliError::Usage(_))
        ));
        assert_eq!(find(Some("http://b:1"), Some("t")).unwrap().1, "t");
    }
}
