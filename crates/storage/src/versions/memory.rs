//! Cohorts in memory, as they were read last.
//!
//! Which version a transaction sees is always asked of the database, under its row-level security;
//! only what a version holds, which never changes, is taken from here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use muster_domain::user_set::UserSet;
use sqlx::PgConnection;
use uuid::Uuid;

use super::bring_forward;
use crate::{
    Result, Store, WorkspaceId,
    directory::{Directory, feed::History},
};

/// Memory that the cohorts of a process may take together, in bytes.
const MAX_BYTES: usize = 256 << 20;

/// What an entry takes beside its users, in bytes.
const OVERHEAD: usize = 256;

/// The newest version of each cohort that was read; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CohortCache(Arc<Mutex<Shelf>>);

#[derive(Debug)]
struct Shelf {
    cohorts: HashMap<(WorkspaceId, Uuid), Known>,
    bytes: usize,
    max_bytes: usize,
    /// Counts uses, so that what was not used for longest is known.
    uses: u64,
}

#[derive(Debug)]
struct Known {
    version: Version,
    users: Arc<UserSet>,
    bytes: usize,
    used: u64,
}

/// A version of a cohort. The same number means another version in another history, as after a
/// restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    history: History,
    number: i64,
}

impl Default for CohortCache {
    fn default() -> Self {
        Self::with_capacity(MAX_BYTES)
    }
}

impl CohortCache {
    fn with_capacity(max_bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(Shelf {
            cohorts: HashMap::new(),
            bytes: 0,
            max_bytes,
            uses: 0,
        })))
    }

    fn get(&self, cohort: (WorkspaceId, Uuid), history: History) -> Option<(i64, Arc<UserSet>)> {
        let mut shelf = self.0.lock().expect("no panic while locked");
        shelf.uses += 1;
        let now = shelf.uses;
        let known = shelf.cohorts.get_mut(&cohort)?;
        known.used = now;
        let of_history = known.version.history == history;
        of_history.then(|| (known.version.number, Arc::clone(&known.users)))
    }

    fn put(&self, cohort: (WorkspaceId, Uuid), version: Version, users: &Arc<UserSet>) {
        let mut shelf = self.0.lock().expect("no panic while locked");
        if shelf.cohorts.get(&cohort).is_some_and(|known| {
            known.version.history == version.history && known.version.number > version.number
        }) {
            return;
        }
        shelf.forget(cohort);
        let bytes = users.serialized_size() + OVERHEAD;
        if bytes > shelf.max_bytes / 2 {
            return;
        }
        while shelf.bytes + bytes > shelf.max_bytes {
            let oldest = shelf.cohorts.iter().min_by_key(|(_, known)| known.used);
            let oldest = *oldest.expect("bytes are taken by something").0;
            shelf.forget(oldest);
        }
        shelf.uses += 1;
        let known = Known {
            version,
            users: Arc::clone(users),
            bytes,
            used: shelf.uses,
        };
        shelf.bytes += bytes;
        shelf.cohorts.insert(cohort, known);
    }
}

impl Shelf {
    fn forget(&mut self, cohort: (WorkspaceId, Uuid)) {
        if let Some(known) = self.cohorts.remove(&cohort) {
            self.bytes -= known.bytes;
        }
    }
}

impl Store {
    /// The users of a cohort at a version that is committed, as [`stored`](super::stored) reads them;
    /// what is known of an earlier version is not read again. `directory` is as the connection sees
    /// it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn members(
        &self,
        conn: &mut PgConnection,
        workspace: WorkspaceId,
        directory: &Directory,
        cohort: Uuid,
        version: i64,
    ) -> Result<Arc<UserSet>> {
        let key = (workspace, cohort);
        let history = directory.history();
        let known = history.and_then(|history| self.cohorts().get(key, history));
        let (from, mut users) = match known {
            Some((number, users)) if number == version => return Ok(users),
            Some((number, users)) if number < version => (number, users),
            // Read at a snapshot from before what is known.
            Some(_) | None => (0, Arc::default()),
        };
        let set = Arc::make_mut(&mut users);
        bring_forward(conn, workspace, cohort, set, from..version).await?;
        self.remember_members(workspace, directory, cohort, version, &users);
        Ok(users)
    }

    /// Remembers the users of a version that is committed, for those who ask for its
    /// [`members`](Self::members).
    pub fn remember_members(
        &self,
        workspace: WorkspaceId,
        directory: &Directory,
        cohort: Uuid,
        version: i64,
        users: &Arc<UserSet>,
    ) {
        if let Some(history) = directory.history() {
            let version = Version {
                history,
                number: version,
            };
            self.cohorts().put((workspace, cohort), version, users);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: WorkspaceId = WorkspaceId(1);

    fn version(database: u32, number: i64) -> Version {
        let history = History::of_database(database);
        Version { history, number }
    }

    fn set(users: impl IntoIterator<Item = u32>) -> Arc<UserSet> {
        Arc::new(users.into_iter().collect())
    }

    #[test]
    fn a_version_is_known_in_its_own_history_only_and_never_gives_way_to_an_older_one() {
        let (cache, cohort) = (CohortCache::default(), (SHOP, Uuid::from_u128(1)));
        let (old, new) = (version(1, 3), version(1, 4));
        assert_eq!(cache.get(cohort, new.history), None);
        cache.put(cohort, new, &set([1, 2]));
        cache.put(cohort, old, &set([1]));
        let known = Some((4, set([1, 2])));
        assert_eq!(cache.get(cohort, new.history), known);
        let restored = version(2, 3);
        assert_eq!(cache.get(cohort, restored.history), None);
        cache.put(cohort, restored, &set([9]));
        assert_eq!(cache.get(cohort, new.history), None);
        let other_workspace = (WorkspaceId(2), cohort.1);
        assert_eq!(cache.get(other_workspace, restored.history), None);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_when_memory_is_full() {
        let users = set(0..100);
        let bytes = users.serialized_size() + OVERHEAD;
        let cache = CohortCache::with_capacity(4 * bytes);
        let (cohort, at) = (|id| (SHOP, Uuid::from_u128(id)), version(1, 1));
        let known = |id| cache.get(cohort(id), at.history).is_some();
        for id in 0..4 {
            cache.put(cohort(id), at, &users);
        }
        assert!(known(0));
        cache.put(cohort(4), at, &users);
        assert!(known(0) && !known(1) && known(2) && known(3) && known(4));
        // What would take most of it is not kept.
        cache.put(cohort(5), at, &set((0..100_000).step_by(3)));
        assert!(!known(5) && known(0));
    }
}
