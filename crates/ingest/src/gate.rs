//! One at a time: imports that publish into the same cohort queue here, in memory.
//!
//! The row lock of the cohort is what keeps versions in order, across processes too. But whoever
//! waits for a row lock holds a database connection, and one busy cohort would take them all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_domain::error::{Error, Kind, Result};
use muster_storage::WorkspaceId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// A cohort as its partner names it.
pub(crate) type Cohort = (WorkspaceId, String, String);

/// The queues; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<HashMap<Cohort, Arc<Semaphore>>>>);

/// The right to publish into a cohort; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Turn {
    gate: Gate,
    cohort: Cohort,
    permit: Option<OwnedSemaphorePermit>,
    /// Until when whoever has the turn may wait.
    deadline: Instant,
}

impl Gate {
    /// Waits for the turn.
    ///
    /// # Errors
    /// `ABORTED` (`COHORT_LOCKED`) if it does not come in time.
    pub(crate) async fn turn(&self, cohort: Cohort, patience: Duration) -> Result<Turn> {
        let queue = {
            let mut queues = self.0.lock().expect("no panic while locked");
            let queue = queues.entry(cohort.clone());
            Arc::clone(queue.or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        // From here on, also if the caller goes away while it waits, the queue is tidied up.
        let mut turn = Turn {
            gate: self.clone(),
            cohort,
            permit: None,
            deadline: Instant::now() + patience,
        };
        let permit = timeout_at(turn.deadline, queue.acquire_owned()).await;
        let permit = permit.map_err(|_| locked())?;
        turn.permit = Some(permit.expect("the semaphore is never closed"));
        Ok(turn)
    }
}

impl Turn {
    /// What is left of the patience: the row lock, which another process may hold, is waited for
    /// out of the same. Never nothing, since a queue that has just ended says little of the lock.
    pub(crate) fn patience_left(&self) -> Duration {
        const LEAST: Duration = Duration::from_millis(100);
        self.deadline.duration_since(Instant::now()).max(LEAST)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.permit = None;
        let mut queues = self.gate.0.lock().expect("no panic while locked");
        // Ours was the last interest in this cohort.
        if queues
            .get(&self.cohort)
            .is_some_and(|queue| Arc::strong_count(queue) == 1)
        {
            queues.remove(&self.cohort);
        }
    }
}

fn locked() -> Error {
    Error::new(
        Kind::Aborted,
        "COHORT_LOCKED",
        "the cohort is held by another import; try again",
    )
    .retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cohort(id: &str) -> Cohort {
        (WorkspaceId(1), "tinyclues".to_owned(), id.to_owned())
    }

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left_behind() {
        let gate = Gate::default();
        let first = gate.turn(cohort("a"), Duration::ZERO).await.unwrap();
        let refused = gate
            .turn(cohort("a"), Duration::from_millis(1))
            .await
            .unwrap_err();
        assert_eq!(refused.reason, "COHORT_LOCKED");
        let other = gate.turn(cohort("b"), Duration::ZERO).await.unwrap();
        let second = tokio::spawn({
            let gate = gate.clone();
            async move {
                gate.turn(cohort("a"), Duration::from_secs(10))
                    .await
                    .map(drop)
            }
        });
        drop(first);
        second.await.unwrap().unwrap();
        drop(other);
        assert!(gate.0.lock().unwrap().is_empty());
    }
}
