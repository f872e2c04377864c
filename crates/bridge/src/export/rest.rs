//! The partner's side of the HTTP contract: name the cohort, then add its people call by call.

use std::{
    io,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use muster_client::Retry;
use muster_domain::{
    identifier::{Identifier, IdentifierKind},
    import::Outcomes,
    name,
};
use reqwest::{Client, header::RETRY_AFTER, redirect};
use serde::Deserialize;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{sync::mpsc, time::Instant};

use super::{Delivery, Event, FileSource};
use crate::rest::MAX_IDENTIFIERS_PER_CALL;

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest sum of identifiers in a call, in bytes; a body of that size is well below what servers
/// take.
const MAX_CALL_BYTES: usize = 1024 * 1024;

/// Calls read ahead.
const READ_AHEAD: usize = 2;

/// An endpoint of the HTTP contract, and the keys to it.
#[derive(Clone)]
pub struct RestTarget {
    /// Such as `https://muster.example.com`; the `/partners/…` of the partner may stand behind it,
    /// as the integration page shows it.
    pub base_url: String,
    /// Slug of the partner.
    pub partner: String,
    /// The partner's key.
    pub partner_api_key: String,
    /// The workspace's data import key.
    pub client_secret: String,
}

impl RestTarget {
    /// What `/cohorts` and `/cohorts/users` follow.
    fn endpoint(&self) -> String {
        let base_url = self.base_url.trim_end_matches('/');
        let path = format!("/partners/{}", self.partner);
        if base_url.ends_with(&path) {
            base_url.to_owned()
        } else {
            format!("{base_url}{path}")
        }
    }
}

impl std::fmt::Debug for RestTarget {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "RestTarget({} as {}, …)", self.base_url, self.partner)
    }
}

/// Why a file was not, or not wholly, sent. What was is published, and adding it again does no
/// harm: the file may simply be sent again.
#[derive(Debug, thiserror::Error)]
#[error("{what}, after {sent} identifiers were added")]
pub struct RestError {
    /// What went wrong.
    #[source]
    pub what: RestFailure,
    /// Identifiers published before.
    pub sent: u64,
}

/// What went wrong with a call.
#[derive(Debug, thiserror::Error)]
pub enum RestFailure {
    /// The target cannot be called.
    #[error("cannot call the endpoint: {0}")]
    Target(String),
    /// The file could not be read.
    #[error("cannot read the file: {0}")]
    File(#[source] io::Error),
    /// The other side refuses it for good.
    #[error("the endpoint answered {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// Tried as often, or as long, as allowed.
    #[error("gave up after {failures} failed tries: {last}")]
    GaveUp {
        /// How many tries failed.
        failures: u32,
        /// The last failure.
        last: String,
    },
}

/// What the calls are about.
pub(super) struct Cohort<'a> {
    pub(super) id: &'a str,
    pub(super) name: &'a str,
    pub(super) created_at: SystemTime,
}

/// Names the cohort and adds everybody in the file.
pub(super) async fn send(
    target: &RestTarget,
    cohort: &Cohort<'_>,
    retry: &Retry,
    source: &FileSource,
    progress: &mut (dyn FnMut(Event) + Send),
) -> Result<Delivery, RestError> {
    let mut sent = 0;
    let result = Sender::new(target, retry, progress).map(|sender| (sender, &mut sent));
    let result = match result {
        Ok((mut sender, sent)) => sender.send(cohort, source, sent).await,
        Err(failure) => Err(failure),
    };
    result.map_err(|what| RestError { what, sent })
}

struct Sender<'a> {
    target: &'a RestTarget,
    retry: &'a Retry,
    client: Client,
    deadline: Instant,
    progress: &'a mut (dyn FnMut(Event) + Send),
}

/// What a good answer may tell; the contract only asks for a status.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    message: String,
    version: Option<u64>,
    counts: Option<Outcomes>,
}

impl<'a> Sender<'a> {
    fn new(
        target: &'a RestTarget,
        retry: &'a Retry,
        progress: &'a mut (dyn FnMut(Event) + Send),
    ) -> Result<Self, RestFailure> {
        name::check_slug(&target.partner)
            .map_err(|error| RestFailure::Target(error.within("partner").to_string()))?;
        // reqwest takes the process's default for TLS; whoever set one first is right.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(CALL_TIMEOUT)
            // The body holds secrets: it goes to the endpoint given and to nobody else.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| RestFailure::Target(in_full(&error)))?;
        Ok(Self {
            target,
            retry,
            client,
            deadline: Instant::now() + retry.deadline,
            progress,
        })
    }

    async fn send(
        &mut self,
        cohort: &Cohort<'_>,
        source: &FileSource,
        sent: &mut u64,
    ) -> Result<Delivery, RestFailure> {
        let created_at = OffsetDateTime::from(cohort.created_at).format(&Rfc3339);
        let created_at = created_at.map_err(|e| RestFailure::Target(e.to_string()))?;
        let naming = json!({ "name": cohort.name, "created_at": created_at });
        self.call("cohorts", cohort, naming).await?;
        let mut calls = 0;
        let mut version = None;
        let mut outcomes = Some(Outcomes::default());
        let mut lists = read_lists(source.clone());
        while let Some(list) = lists.recv().await {
            let list = list.map_err(RestFailure::File)?;
            let identifiers = list.len() as u64;
            let changes = json!({ "cohort_changes": [change(list)] });
            let answer = self.call("cohorts/users", cohort, changes).await?;
            calls += 1;
            *sent += identifiers;
            version = answer.version.or(version);
            outcomes = outcomes.zip(answer.counts).map(|(a, b)| sum(a, b));
            (self.progress)(Event::Advanced {
                read_bytes: source.read_bytes(),
                total_bytes: source.total_bytes(),
                durable: *sent,
            });
        }
        Ok(Delivery::Calls {
            calls,
            outcomes,
            version,
        })
    }

    /// Makes a call, again and again while it may pass.
    async fn call(
        &mut self,
        path: &str,
        cohort: &Cohort<'_>,
        mut body: Value,
    ) -> Result<Answer, RestFailure> {
        let url = format!("{}/{path}", self.target.endpoint());
        body["partner_api_key"] = self.target.partner_api_key.as_str().into();
        body["client_secret"] = self.target.client_secret.as_str().into();
        body["cohort_id"] = cohort.id.into();
        let mut failures = 0;
        loop {
            let (cause, asked) = match Self::try_once(&self.client, &url, &body).await? {
                Tried::Done(answer) => return Ok(answer),
                Tried::Again { cause, wait } => (cause, wait),
            };
            failures += 1;
            let wait = self.retry.wait(failures, asked);
            if failures >= self.retry.failures || Instant::now() + wait >= self.deadline {
                return Err(RestFailure::GaveUp {
                    failures,
                    last: cause,
                });
            }
            (self.progress)(Event::Retrying { wait, cause });
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes the client alone: `progress` cannot be shared, and a future that holds `&self` could
    /// not be moved between threads.
    async fn try_once(client: &Client, url: &str, body: &Value) -> Result<Tried, RestFailure> {
        let response = match client.post(url).json(body).send().await {
            Ok(response) => response,
            Err(error) if error.is_builder() => {
                return Err(RestFailure::Target(in_full(&error)));
            }
            Err(error) => {
                return Ok(Tried::Again {
                    cause: in_full(&error),
                    wait: None,
                });
            }
        };
        let status = response.status();
        let wait = response.headers().get(RETRY_AFTER);
        let wait = wait.and_then(|wait| wait.to_str().ok()?.parse().ok());
        let wait = wait.map(Duration::from_secs);
        // Whether it is done is in the status; an answer that breaks off after it changes nothing.
        let answer = response.bytes().await.unwrap_or_default();
        let answer: Answer = serde_json::from_slice(&answer).unwrap_or_default();
        if status.is_success() {
            Ok(Tried::Done(answer))
        } else if may_pass(status) {
            let cause = format!("{status}: {}", answer.message);
            Ok(Tried::Again { cause, wait })
        } else {
            Err(RestFailure::Refused {
                status: status.as_u16(),
                message: answer.message,
            })
        }
    }
}

enum Tried {
    Done(Answer),
    Again {
        cause: String,
        wait: Option<Duration>,
    },
}

/// Which answers clients of the contract take for passing.
fn may_pass(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::LOCKED | StatusCode::TOO_MANY_REQUESTS
    ) || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
}

/// An error with its causes; reqwest's own text says little. The body, which holds the secrets, is
/// in none of them.
fn in_full(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Reads a file in lists that make a call each, on a thread that may block.
fn read_lists(source: FileSource) -> mpsc::Receiver<io::Result<Vec<Identifier>>> {
    let (sender, lists) = mpsc::channel(READ_AHEAD);
    // If nobody listens any more the thread ends.
    tokio::task::spawn_blocking(move || {
        let read = || -> io::Result<()> {
            let (mut list, mut bytes) = (Vec::new(), 0);
            for row in source.read()? {
                let (_, identifier) = row?;
                let length = identifier.id.len() + identifier.label.len();
                if list.len() == MAX_IDENTIFIERS_PER_CALL || bytes + length > MAX_CALL_BYTES {
                    let full = std::mem::take(&mut list);
                    bytes = 0;
                    if sender.blocking_send(Ok(full)).is_err() {
                        return Ok(());
                    }
                }
                bytes += length;
                list.push(identifier);
            }
            if !list.is_empty() {
                let _ = sender.blocking_send(Ok(list));
            }
            Ok(())
        };
        if let Err(error) = read() {
            let _ = sender.blocking_send(Err(error));
        }
    });
    lists
}

/// One object of `cohort_changes`, with all three arrays, as real clients send it.
fn change(list: Vec<Identifier>) -> Value {
    let (mut user_ids, mut device_ids, mut aliases) = (Vec::new(), Vec::new(), Vec::new());
    for identifier in list {
        match identifier.kind {
            IdentifierKind::ExternalId => user_ids.push(identifier.id),
            IdentifierKind::DeviceId => device_ids.push(identifier.id),
            IdentifierKind::Alias => aliases.push(json!({
                "alias_name": identifier.id,
                "alias_label": identifier.label,
            })),
        }
    }
    json!({ "user_ids": user_ids, "device_ids": device_ids, "aliases": aliases })
}

fn sum(a: Outcomes, b: Outcomes) -> Outcomes {
    Outcomes {
        added: a.added + b.added,
        already_member: a.already_member + b.already_member,
        removed: a.removed + b.removed,
        not_member: a.not_member + b.not_member,
        unknown: a.unknown + b.unknown,
        device_of_identified_user: a.device_of_identified_user + b.device_of_identified_user,
        duplicate: a.duplicate + b.duplicate,
        superseded: a.superseded + b.superseded,
        invalid: a.invalid + b.invalid,
    }
}

#[cfg(test)]
mod tests;
