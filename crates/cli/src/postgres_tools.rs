//! Postgres' own programs for backups, run as our children.
//!
//! The data goes through a pipe of ours, so that we see how far it is, and so that the program ends
//! with us: after a `kill -9` it finds the pipe closed. The password of the database goes through
//! the environment, which, unlike a command line, other users of the machine cannot read.

use std::{
    path::Path,
    process::{ExitStatus, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::mpsc,
    task::JoinHandle,
};

use crate::error::{CliError, Result};

/// Lines of a program's complaints that are passed on at most.
const SHOWN: usize = 10;

/// A database as a program of Postgres is told it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    /// The URL without its password.
    url: String,
    password: Option<String>,
}

impl Target {
    /// Takes the password out of a URL.
    pub(crate) fn new(url: &str) -> Self {
        let mut password = None;
        let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
        let (place, query) = match rest.split_once('?') {
            Some((place, query)) => (place, query),
            None => (rest, ""),
        };
        let authority_end = place.find('/').unwrap_or(place.len());
        let (authority, path) = place.split_at(authority_end);
        let authority = match authority.rsplit_once('@') {
            Some((user, host)) => match user.split_once(':') {
                Some((user, secret)) => {
                    password = Some(decoded(secret));
                    format!("{user}@{host}")
                }
                None => authority.to_owned(),
            },
            None => authority.to_owned(),
        };
        let mut kept = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("password", secret)) => password = Some(decoded(secret)),
                // It concerns our own connections; Postgres' programs would refuse it.
                Some(("statement-cache-capacity", _)) => {}
                Some(("ssl-mode", mode)) => kept.push(format!("sslmode={mode}")),
                _ => kept.push(pair.to_owned()),
            }
        }
        let query = match kept.is_empty() {
            true => String::new(),
            false => format!("?{}", kept.join("&")),
        };
        Self {
            url: format!("{scheme}://{authority}{path}{query}"),
            password,
        }
    }

    /// Tells it to a program.
    fn tell(&self, command: &mut Command) {
        command.arg(format!("--dbname={}", self.url));
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password);
        }
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = match (first, tail) {
            (b'%', [high, low, ..]) => {
                let digits = [*high, *low];
                std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            }
            _ => None,
        };
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program that runs.
pub(crate) struct Tool {
    name: String,
    /// Its standard streams are pipes, as far as nobody has taken them.
    pub(crate) child: Child,
    /// Its remarks, as they come.
    pub(crate) remarks: mpsc::UnboundedReceiver<String>,
    complaints: JoinHandle<Vec<String>>,
}

impl Tool {
    /// Starts a program, connected to a database if one is given.
    pub(crate) fn start(program: &Path, words: &[&str], target: Option<&Target>) -> Result<Self> {
        let name = program.file_name().unwrap_or(program.as_os_str());
        let name = name.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command
            .args(words)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C must reach us alone, so that we can stop things in order.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(target) = target {
            // Meant for whatever the operator works with by hand.
            for name in ["PGOPTIONS", "PGDATABASE", "PGSERVICE", "PGAPPNAME"] {
                command.env_remove(name);
            }
            command.env("PGAPPNAME", format!("muster {name}"));
            target.tell(&mut command);
        }
        let mut child = command
            .spawn()
            .map_err(|error| CliError::Failed(format!("{}: {error}", program.display())))?;
        let stderr = child.stderr.take().expect("it is a pipe");
        let (tell, remarks) = mpsc::unbounded_channel();
        let complaints = tokio::spawn(listen(stderr, tell));
        Ok(Self {
            name,
            child,
            remarks,
            complaints,
        })
    }

    /// Waits for its end, which must be a good one.
    pub(crate) async fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait().await;
        let status = status.map_err(|error| CliError::Failed(format!("{}: {error}", self.name)))?;
        let complaints = self.complaints.await.unwrap_or_default();
        if status.success() {
            return Ok(());
        }
        Err(CliError::Failed(told(&self.name, status, &complaints)))
    }
}

/// Reads what a program says; what it complains about is kept.
async fn listen(from: impl AsyncRead + Unpin, tell: mpsc::UnboundedSender<String>) -> Vec<String> {
    let mut lines = BufReader::new(from).split(b'\n');
    let mut complaints = Vec::new();
    let mut last = String::new();
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).into_owned();
        let complains = [
            "error:", "fatal:", "FATAL:", "ERROR:", "DETAIL:", "HINT:", "detail:",
        ];
        if complains.iter().any(|word| line.contains(word)) && complaints.len() < SHOWN {
            complaints.push(line.clone());
        }
        if !line.trim().is_empty() {
            last.clone_from(&line);
        }
        // Nobody may want to know.
        let _ = tell.send(line);
    }
    if complaints.is_empty() && !last.is_empty() {
        complaints.push(last);
    }
    complaints
}

fn told(name: &str, status: ExitStatus, complaints: &[String]) -> String {
    let mut text = format!("{name} failed ({status})");
    for complaint in complaints {
        let prefix = format!("{name}: ");
        let complaint = complaint.strip_prefix(&prefix).unwrap_or(complaint);
        text.push_str(&format!("\n  {complaint}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_never_stays_in_the_url() {
        let cases = [
            (
                "postgres://ann:s%40cret@db:5433/muster?sslmode=require",
                "postgres://ann@db:5433/muster?sslmode=require",
                Some("s@cret"),
            ),
            (
                "postgres://ann@db/muster?password=a%25b&statement-cache-capacity=3&ssl-mode=prefer",
                "postgres://ann@db/muster?sslmode=prefer",
                Some("a%b"),
            ),
            (
                "postgres:///muster?host=%2Frun&user=muster",
                "postgres:///muster?host=%2Frun&user=muster",
                None,
            ),
            ("postgresql://db", "postgresql://db", None),
        ];
        for (given, url, password) in cases {
            let target = Target::new(given);
            assert_eq!(target.url, url);
            assert_eq!(target.password.as_deref(), password, "{given}");
        }
    }
}
