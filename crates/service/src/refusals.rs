//! Tells of calls that were refused although their credential is known: whoever waits for them shall
//! learn why nothing comes.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_domain::error::Result;
use muster_storage::{
    Connection,
    audit::{self, By},
    credentials::{self, Credential},
};
use tokio::time::Instant;
use uuid::Uuid;

/// How long nothing more is told of the same credential and reason.
const PAUSE: Duration = Duration::from_secs(60 * 60);

/// What is remembered before the oldest is forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// Writes refusals into the audit trail; of a caller that tries on and on, one an hour.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals {
    told: Arc<Mutex<HashMap<(Uuid, &'static str), Instant>>>,
}

impl Refusals {
    /// Tells that a credential was refused, and why.
    pub(crate) async fn tell(
        &self,
        connection: &mut Connection,
        credential: &Credential,
        peer: Option<IpAddr>,
        reason: &'static str,
    ) -> Result<()> {
        if !self.is_due(credential.id, reason) {
            return Ok(());
        }
        let actor = credential.actor();
        let by = By {
            actor: &actor,
            peer,
        };
        let workspace = credential.workspace.as_ref().map(|(id, _)| *id);
        let action = format!("{}.use", credentials::noun(credential.kind));
        audit::append_refusal(connection, workspace, by, &action, &actor, reason).await?;
        Ok(())
    }

    fn is_due(&self, credential: Uuid, reason: &'static str) -> bool {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.get(&(credential, reason));
        if before.is_some_and(|before| now.duration_since(*before) < PAUSE) {
            return false;
        }
        if told.len() >= MAX_REMEMBERED {
            told.retain(|_, before| now.duration_since(*before) < PAUSE);
        }
        if told.len() >= MAX_REMEMBERED {
            let oldest = told.iter().min_by_key(|(_, before)| **before);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                told.remove(&oldest);
            }
        }
        told.insert((credential, reason), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_refusal_is_told_once_an_hour() {
        let refusals = Refusals::default();
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert!(refusals.is_due(one, "CREDENTIAL_EXPIRED"));
        assert!(!refusals.is_due(one, "CREDENTIAL_EXPIRED"));
        assert!(refusals.is_due(one, "CREDENTIAL_REVOKED"));
        assert!(refusals.is_due(other, "CREDENTIAL_EXPIRED"));
        tokio::time::advance(PAUSE).await;
        assert!(refusals.is_due(one, "CREDENTIAL_EXPIRED"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_does_not_grow_for_ever() {
        let refusals = Refusals::default();
        for credential in 0..MAX_REMEMBERED as u128 + 100 {
            assert!(refusals.is_due(Uuid::from_u128(credential), "CREDENTIAL_EXPIRED"));
        }
        assert_eq!(refusals.told.lock().unwrap().len(), MAX_REMEMBERED);
    }
}
