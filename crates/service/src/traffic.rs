//! How much a caller may ask for: calls and identifiers in a while, calls and bytes of messages at once.
//!
//! Of each there is a limit for every credential, or for every partner of a workspace, and one for
//! the workspace. Who exceeds it is told how long to wait, if it is known from a call before without
//! any work: a flood that is refused costs little.

use std::{num::NonZeroU32, time::Duration};

use muster_domain::error::{Error, Kind};
use muster_storage::{
    WorkspaceId,
    share::{Held, Shares},
};
use uuid::Uuid;

use crate::{Caller, allowance::Allowance, intake::Messages};

/// A limit in a second holds on average over this while: so much of it may come at once.
const WHILE: Duration = Duration::from_secs(10);

/// How long to wait where other calls have to end first.
pub(crate) const SHORTLY: Duration = Duration::from_secs(1);

/// Calls of tokens for all workspaces are in none; they have one share together.
const EVERYWHERE: WorkspaceId = WorkspaceId(0);

/// What callers may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Calls in a second of one token, or of one partner in one workspace.
    pub calls_per_second: NonZeroU32,
    /// Calls in a second for one workspace.
    pub workspace_calls_per_second: NonZeroU32,
    /// Identifiers to import or to change in a second of one token, or of one partner in one
    /// workspace.
    pub identifiers_per_second: NonZeroU32,
    /// Identifiers to import or to change in a second for one workspace.
    pub workspace_identifiers_per_second: NonZeroU32,
    /// Calls at once, streams among them; a workspace has half of them at most.
    pub concurrent_calls: NonZeroU32,
    /// Bytes of messages that arrive or are worked on; a workspace has half of them at most.
    pub message_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        const fn number(number: u32) -> NonZeroU32 {
            NonZeroU32::new(number).expect("it is not 0")
        }
        Self {
            calls_per_second: number(2_000),
            workspace_calls_per_second: number(4_000),
            identifiers_per_second: number(5_000_000),
            workspace_identifiers_per_second: number(10_000_000),
            concurrent_calls: number(1_024),
            message_bytes: 256 * 1024 * 1024,
        }
    }
}

/// Whose calls count together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Party {
    /// All data import keys of one partner in one workspace.
    Partner(WorkspaceId, String),
    /// A service token.
    Token(Uuid),
}

impl Party {
    fn of(caller: &Caller) -> Self {
        match (&caller.bound_to, &caller.partner) {
            (Some((workspace, _)), Some(partner)) => Self::Partner(*workspace, partner.clone()),
            _ => Self::Token(caller.credential),
        }
    }
}

/// Whose account a caller's calls go on, known without looking it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    party: Party,
    workspace: Option<WorkspaceId>,
}

impl Account {
    #[cfg(test)]
    pub(crate) fn of_token(id: Uuid) -> Self {
        Self {
            party: Party::Token(id),
            workspace: None,
        }
    }

    pub(crate) fn of(caller: &Caller) -> Self {
        Self {
            party: Party::of(caller),
            workspace: caller.bound_to.as_ref().map(|(workspace, _)| *workspace),
        }
    }
}

/// The calls of this process.
#[derive(Debug)]
pub(crate) struct Traffic {
    calls: Allowance<Party>,
    workspace_calls: Allowance<WorkspaceId>,
    identifiers: Allowance<Party>,
    workspace_identifiers: Allowance<WorkspaceId>,
    at_once: Shares,
    message_bytes: Shares,
}

impl Traffic {
    pub(crate) fn new(settings: &Settings) -> Self {
        fn allowance<K: Eq + std::hash::Hash + Clone>(per_second: NonZeroU32) -> Allowance<K> {
            Allowance::new(u64::from(per_second.get()) * WHILE.as_secs(), WHILE)
        }
        let at_once = usize::try_from(settings.concurrent_calls.get()).unwrap_or(usize::MAX);
        Self {
            calls: allowance(settings.calls_per_second),
            workspace_calls: allowance(settings.workspace_calls_per_second),
            identifiers: allowance(settings.identifiers_per_second),
            workspace_identifiers: allowance(settings.workspace_identifiers_per_second),
            at_once: Shares::halves(at_once),
            message_bytes: Shares::halves(settings.message_bytes),
        }
    }

    /// Whether a call on this account would be refused anyway.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub(crate) fn check(&self, account: &Account) -> Result<(), Error> {
        if let Some(wait) = self.calls.wait(&account.party) {
            return Err(too_fast("calls", wait));
        }
        match account
            .workspace
            .and_then(|of| self.workspace_calls.wait(&of))
        {
            Some(wait) => Err(too_fast("calls", wait)),
            None => Ok(()),
        }
    }

    /// Begins a call, which lasts until what is returned is dropped.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`: `RATE_LIMITED`, or `TOO_MANY_CALLS` if too many are open.
    pub(crate) fn begin(&self, account: &Account) -> Result<Held, Error> {
        let limited = |wait| too_fast("calls", wait);
        self.calls.take(&account.party, 1).map_err(limited)?;
        if let Some(workspace) = account.workspace {
            self.workspace_call(workspace)?;
        }
        let of = account.workspace.unwrap_or(EVERYWHERE);
        self.at_once.try_take(of, 1).ok_or_else(|| {
            Error::new(
                Kind::ResourceExhausted,
                "TOO_MANY_CALLS",
                "too many calls are open; wait for some of them to end",
            )
            .retry_after(SHORTLY)
        })
    }

    /// The memory for the messages of a call, of a caller bound to a workspace or to none.
    pub(crate) fn messages(&self, of: Option<WorkspaceId>) -> Messages {
        Messages::new(self.message_bytes.clone(), of.unwrap_or(EVERYWHERE))
    }

    /// Counts a call about a workspace.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` (`RATE_LIMITED`).
    pub(crate) fn workspace_call(&self, workspace: WorkspaceId) -> Result<(), Error> {
        let taken = self.workspace_calls.take(&workspace, 1);
        taken.map_err(|wait| too_fast("calls", wait))
    }

    /// Counts identifiers to import or to change.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` (`RATE_LIMITED`).
    pub(crate) fn identifiers(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        amount: u64,
    ) -> Result<(), Error> {
        let limited = |wait| too_fast("identifiers", wait);
        let own = self.identifiers.take(&Party::of(caller), amount);
        own.map_err(limited)?;
        let of_all = self.workspace_identifiers.take(&workspace, amount);
        of_all.map_err(limited)
    }
}

fn too_fast(what: &'static str, wait: Duration) -> Error {
    Error::new(
        Kind::ResourceExhausted,
        "RATE_LIMITED",
        format!("more {what} than this caller or its workspace may send; wait before the next"),
    )
    .with("limited", what)
    .retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: WorkspaceId = WorkspaceId(1);
    const RIVAL: WorkspaceId = WorkspaceId(2);

    fn traffic() -> Traffic {
        let number = |number| NonZeroU32::new(number).unwrap();
        Traffic::new(&Settings {
            calls_per_second: number(1),
            workspace_calls_per_second: number(2),
            concurrent_calls: number(8),
            ..Settings::default()
        })
    }

    fn account(workspace: WorkspaceId, partner: &str) -> Account {
        Account {
            party: Party::Partner(workspace, partner.into()),
            workspace: Some(workspace),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn partners_and_their_workspace_are_limited_and_others_are_not() {
        let traffic = traffic();
        let refused = |account: &Account| {
            let error = traffic.begin(account).map(drop).unwrap_err();
            assert_eq!(traffic.check(account).unwrap_err().reason, error.reason);
            (error.reason, error.retry_after)
        };
        let second = Some(Duration::from_secs(1));
        for partner in ["one", "two"] {
            let account = account(SHOP, partner);
            for _ in 0..10 {
                traffic.check(&account).unwrap();
                traffic.begin(&account).unwrap();
            }
            assert_eq!(refused(&account), ("RATE_LIMITED", second));
        }
        // Two partners with all that each may have is what the workspace may have.
        let half = Some(Duration::from_millis(500));
        assert_eq!(refused(&account(SHOP, "three")), ("RATE_LIMITED", half));
        traffic.begin(&account(RIVAL, "one")).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        traffic.begin(&account(SHOP, "one")).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_workspace_never_has_all_calls_open() {
        let traffic = traffic();
        let mut open: Vec<Held> = (0..4)
            .map(|_| traffic.begin(&account(SHOP, "one")).unwrap())
            .collect();
        let refused = traffic.begin(&account(SHOP, "one")).unwrap_err();
        assert_eq!(refused.reason, "TOO_MANY_CALLS");
        assert_eq!(refused.retry_after, Some(SHORTLY));
        open.push(traffic.begin(&account(RIVAL, "one")).unwrap());
        open.remove(0);
        traffic.begin(&account(SHOP, "one")).unwrap();
    }
}
