//! Refused calls in the audit trail: somebody with a credential asked for what it is not for.
//!
//! Told beside the call, so that its answer and the time it takes give nothing away, and once a minute
//! for each credential and rpc in each process, so that asking again and again fills no table.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use muster_storage::{
    Store, WorkspaceId,
    audit::{self, By},
};
use tokio::time::Instant;
use uuid::Uuid;

/// How long a credential that is refused an rpc again is no news.
const ONCE_IN: Duration = Duration::from_secs(60);

/// At most so many are told within that time, whatever there is.
const MOST: usize = 4_096;

/// The reason why a workspace was not found by a credential that is bound to another one.
pub(crate) const OTHER_WORKSPACE: &str = "OTHER_WORKSPACE";

/// When what was told last.
static TOLD: LazyLock<Mutex<Told>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Told(HashMap<(Uuid, &'static str), Instant>);

impl Told {
    fn is_news(&mut self, credential: Uuid, rpc: &'static str, now: Instant) -> bool {
        let recent = |told: &Instant| now.duration_since(*told) < ONCE_IN;
        if self.0.get(&(credential, rpc)).is_some_and(recent) {
            return false;
        }
        if self.0.len() >= MOST {
            self.0.retain(|_, told| recent(told));
        }
        let room = self.0.len() < MOST;
        if room {
            self.0.insert((credential, rpc), now);
        }
        room
    }
}

/// Who was refused which rpc.
pub(crate) struct Refused {
    pub(crate) credential: Uuid,
    pub(crate) actor: String,
    /// The workspace that the credential is bound to.
    pub(crate) workspace: Option<WorkspaceId>,
    pub(crate) peer: Option<IpAddr>,
    /// As `/package.Service/Method`.
    pub(crate) rpc: &'static str,
}

impl Refused {
    /// Puts it into the trail, soon, if it is news.
    pub(crate) fn tell(self, store: &Store, reason: &'static str) {
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.is_news(self.credential, self.rpc, Instant::now()) {
            return;
        }
        drop(told);
        let store = store.clone();
        tokio::spawn(async move {
            if let Err(error) = self.append(&store, reason).await {
                let cause: &dyn std::error::Error = &error;
                tracing::warn!(cause, "a refused call is missing in the audit trail");
            }
        });
    }

    async fn append(&self, store: &Store, reason: &str) -> muster_storage::Result<()> {
        let by = By {
            actor: &self.actor,
            peer: self.peer,
        };
        let resource = format!("rpc:{}", self.rpc.trim_start_matches('/'));
        let mut connection = store.credential_connection().await?;
        audit::append_refusal(
            &mut connection,
            self.workspace,
            by,
            "call.refuse",
            &resource,
            reason,
        )
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_news_once_a_minute_and_a_flood_is_bounded() {
        let (mut told, began) = (Told::default(), Instant::now());
        let id = Uuid::from_u128;
        assert!(told.is_news(id(0), "a", began));
        assert!(!told.is_news(id(0), "a", began + ONCE_IN / 2));
        assert!(told.is_news(id(0), "b", began));
        assert!(told.is_news(id(0), "a", began + ONCE_IN));
        for other in 1..2 * MOST as u128 {
            told.is_news(id(other), "a", began + ONCE_IN);
        }
        assert_eq!(told.0.len(), MOST);
        assert!(!told.is_news(id(0), "c", began + ONCE_IN));
        assert!(told.is_news(id(0), "c", began + 2 * ONCE_IN));
    }
}
