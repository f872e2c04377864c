//! Fair shares of what is scarce: connections, turns, memory.
//!
//! One workspace holds at most its share, however much it asks for; what it asks for beyond that waits
//! behind its own. So whoever asks for little finds something free, or waits behind little.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::WorkspaceId;

/// Workspaces remembered before those that hold and want nothing are looked for.
const MANY: usize = 1_000;

/// So much of something; cheap to clone.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: Arc<Semaphore>,
    share: usize,
    of: Mutex<HashMap<WorkspaceId, Arc<Semaphore>>>,
}

/// What somebody holds of it until this is dropped.
#[derive(Debug)]
pub struct Held {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

impl Shares {
    /// So much in all, of which one workspace may hold half, and one at least.
    pub fn halves(all: usize) -> Self {
        let all = all.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            all: Arc::new(Semaphore::new(all)),
            share: (all / 2).max(1),
            of: Mutex::default(),
        }))
    }

    /// Takes one for a workspace; waits first for what the workspace itself holds, then for what
    /// others do.
    pub async fn take(&self, workspace: WorkspaceId) -> Held {
        const NEVER: &str = "the semaphores are never closed";
        let own = self.own(workspace).acquire_owned().await.expect(NEVER);
        let all = Arc::clone(&self.0.all).acquire_owned();
        Held {
            own,
            all: all.await.expect(NEVER),
        }
    }

    /// Takes so much for a workspace if it may have all of it now.
    pub fn try_take(&self, workspace: WorkspaceId, amount: u32) -> Option<Held> {
        let (own, all) = (self.own(workspace), Arc::clone(&self.0.all));
        Some(Held {
            own: own.try_acquire_many_owned(amount).ok()?,
            all: all.try_acquire_many_owned(amount).ok()?,
        })
    }

    fn own(&self, workspace: WorkspaceId) -> Arc<Semaphore> {
        let mut of = self.0.of.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() > MANY {
            // Whoever holds or wants some has a reference besides ours.
            of.retain(|_, own| Arc::strong_count(own) > 1);
        }
        let own = of.entry(workspace);
        Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(self.0.share))))
    }
}

impl Held {
    /// How much it is.
    pub fn amount(&self) -> usize {
        self.own.num_permits()
    }

    /// Makes one of this and more that the same workspace holds.
    pub fn add(&mut self, more: Held) {
        self.own.merge(more.own);
        self.all.merge(more.all);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const FLOOD: WorkspaceId = WorkspaceId(1);
    const OTHER: WorkspaceId = WorkspaceId(2);

    #[tokio::test]
    async fn one_workspace_never_holds_all() {
        let shares = Shares::halves(5);
        let mut held = vec![shares.take(FLOOD).await, shares.take(FLOOD).await];
        let more = shares.take(FLOOD).now_or_never();
        assert!(more.is_none(), "half of five is two");
        for _ in 0..2 {
            let other = shares.take(OTHER).now_or_never();
            held.push(other.expect("it waits for nobody"));
        }
        assert!(shares.try_take(OTHER, 1).is_none());
        drop(held.pop());
        // What was held comes back.
        held.remove(0);
        assert!(shares.take(FLOOD).now_or_never().is_some());
    }

    #[tokio::test]
    async fn much_is_taken_whole_or_not_at_all() {
        let shares = Shares::halves(10);
        assert!(shares.try_take(FLOOD, 6).is_none(), "half of ten is five");
        let mut held = shares.try_take(FLOOD, 3).unwrap();
        held.add(shares.try_take(FLOOD, 1).unwrap());
        assert_eq!(held.amount(), 4);
        assert!(shares.try_take(FLOOD, 2).is_none());
        let others = [OTHER, WorkspaceId(3)].map(|other| shares.try_take(other, 4));
        assert!(others[0].is_some() && others[1].is_none());
        drop(held);
        assert!(shares.try_take(FLOOD, 5).is_some());
    }

    #[tokio::test]
    async fn workspaces_that_want_nothing_are_forgotten() {
        let shares = Shares::halves(2);
        let held = shares.take(FLOOD).await;
        for workspace in 10..2 * MANY as i64 {
            drop(shares.take(WorkspaceId(workspace)).await);
        }
        let of = shares.0.of.lock().unwrap();
        assert!(of.len() <= MANY + 1 && of.contains_key(&FLOOD));
        drop(held);
    }
}
