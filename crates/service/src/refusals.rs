//! Refusals of known credentials in the audit trail: whoever waits for a partner shall learn why nothing
//! comes, and whoever runs Muster that somebody tries what their credential is not for.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_domain::credential::Kind;
use muster_storage::{
    Connection, Store, WorkspaceId,
    audit::{self, By},
    credentials::{self, Credential},
};
use tokio::time::Instant;
use uuid::Uuid;

/// How long the same refusal is no news: whoever tries on and on fills no table.
const ONCE_IN: Duration = Duration::from_secs(60 * 60);

/// At most so many are told within that time, whatever there is.
const MOST: usize = 10_000;

/// A credential that was refused, and what for.
#[derive(Debug)]
pub(crate) struct Refused {
    credential: Uuid,
    actor: String,
    /// The workspace that the credential is bound to.
    workspace: Option<WorkspaceId>,
    peer: Option<IpAddr>,
    wanted: Wanted,
    reason: &'static str,
}

/// What a credential was refused for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wanted {
    /// Whatever it is used for.
    Anything(Kind),
    /// An rpc, as `/package.Service/Method`.
    Rpc(&'static str),
}

impl Refused {
    /// A credential that is good for nothing at the moment.
    pub(crate) fn to_enter(
        credential: &Credential,
        peer: Option<IpAddr>,
        reason: &'static str,
    ) -> Self {
        Self {
            credential: credential.id,
            actor: credential.actor(),
            workspace: credential.workspace.as_ref().map(|(id, _)| *id),
            peer,
            wanted: Wanted::Anything(credential.kind),
            reason,
        }
    }

    /// A call that the credential is not for.
    pub(crate) fn to_call(
        credential: Uuid,
        by: By<'_>,
        workspace: Option<WorkspaceId>,
        rpc: &'static str,
        reason: &'static str,
    ) -> Self {
        Self {
            credential,
            actor: by.actor.to_owned(),
            workspace,
            peer: by.peer,
            wanted: Wanted::Rpc(rpc),
            reason,
        }
    }

    async fn append(&self, connection: &mut Connection) -> muster_storage::Result<()> {
        let by = By {
            actor: &self.actor,
            peer: self.peer,
        };
        let (action, resource) = match self.wanted {
            Wanted::Anything(kind) => (
                format!("{}.use", credentials::noun(kind)),
                self.actor.clone(),
            ),
            Wanted::Rpc(rpc) => (
                "call.refuse".to_owned(),
                format!("rpc:{}", rpc.trim_start_matches('/')),
            ),
        };
        let (workspace, reason) = (self.workspace, self.reason);
        audit::append_refusal(connection, workspace, by, &action, &resource, reason).await
    }

    fn told(&self, result: muster_storage::Result<()>) {
        if let Err(error) = result {
            let cause: &dyn std::error::Error = &error;
            tracing::warn!(cause, refused = ?self, "a refusal is missing in the audit trail");
        }
    }
}

/// When what was told last in this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals(Arc<Mutex<Told>>);

impl Refusals {
    /// Puts a refusal into the trail if it is news. The caller's answer stays the same if that fails.
    pub(crate) async fn tell(&self, connection: &mut Connection, refused: Refused) {
        if self.is_news(&refused) {
            let told = refused.append(connection).await;
            refused.told(told);
        }
    }

    /// The same where no connection is at hand: one is taken for news only.
    pub(crate) async fn tell_through(&self, store: &Store, refused: Refused) {
        if self.is_news(&refused) {
            let told = match store.credential_connection().await {
                Ok(mut connection) => refused.append(&mut connection).await,
                Err(error) => Err(error),
            };
            refused.told(told);
        }
    }

    fn is_news(&self, refused: &Refused) -> bool {
        let key = (refused.credential, refused.wanted, refused.reason);
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_news(key, Instant::now())
    }
}

type Key = (Uuid, Wanted, &'static str);

#[derive(Debug, Default)]
struct Told(HashMap<Key, Instant>);

impl Told {
    fn is_news(&mut self, key: Key, now: Instant) -> bool {
        let recent = |told: &Instant| now.duration_since(*told) < ONCE_IN;
        if self.0.get(&key).is_some_and(recent) {
            return false;
        }
        if self.0.len() >= MOST {
            self.0.retain(|_, told| recent(told));
        }
        let room = self.0.len() < MOST;
        if room {
            self.0.insert(key, now);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_news_once_an_hour_and_a_flood_is_bounded() {
        let (mut told, began) = (Told::default(), Instant::now());
        let later = began + ONCE_IN;
        let key = |credential, rpc| (Uuid::from_u128(credential), Wanted::Rpc(rpc), "WHY");
        assert!(told.is_news(key(0, "a"), began));
        assert!(!told.is_news(key(0, "a"), began + ONCE_IN / 2));
        assert!(told.is_news(key(0, "b"), began));
        let (id, _, reason) = key(0, "a");
        assert!(told.is_news((id, Wanted::Anything(Kind::DataImportKey), reason), began));
        assert!(told.is_news((id, Wanted::Rpc("a"), "WHY_ELSE"), began));
        assert!(told.is_news(key(0, "a"), later));
        for other in 1..2 * MOST as u128 {
            told.is_news(key(other, "a"), later);
        }
        assert_eq!(told.0.len(), MOST);
        assert!(!told.is_news(key(0, "c"), later));
        assert!(told.is_news(key(0, "c"), later + ONCE_IN));
    }
}
