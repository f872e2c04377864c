//! The user directory of a workspace in memory: identifiers to users, and users to what audiences
//! print.
//!
//! Postgres is the only source of truth. An index answers exactly as SQL would at the epoch it says
//! it is at, or does not answer: then SQL does. Whoever asks first reads how far the directory is
//! ([`Position`]), and the index is brought there before it is looked into, so a change that
//! somebody was told of is always seen. Start with [`Identities`]; `index` is the data structure
//! over `arena` and `table`, `loading` how it comes from Postgres.

mod arena;
mod index;
mod loading;
mod memory;
mod snapshot;
mod table;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use muster_domain::identifier::IdentifierRef;
use muster_storage::{
    Connection, Result, Role, Store, WorkspaceId,
    directory::{
        self, Match,
        feed::{self, History, Point, Position},
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::index::Index;
pub use crate::{
    arena::Entry,
    snapshot::{Moment, Snapshot},
};

/// What a process holds.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Memory that all indices may take together, in bytes; 0 for none at all.
    pub memory_bytes: usize,
    /// Directories with fewer users are left to SQL, which is as quick there.
    pub least_users: u64,
    /// A directory that could not be read is left to SQL for so long.
    pub retry_pause: Duration,
    /// An index that nobody asks for is dropped after so long.
    pub idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory_bytes: 2 << 30,
            least_users: 1_000,
            retry_pause: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60 * 60),
        }
    }
}

/// The directories that a process holds in memory; cheap to clone.
#[derive(Debug, Clone)]
pub struct Identities(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    settings: Settings,
    shelf: Mutex<HashMap<WorkspaceId, Arc<Held>>>,
    /// From which uses are counted in milliseconds.
    began: Instant,
}

/// What is held of one workspace.
#[derive(Debug)]
struct Held {
    state: RwLock<State>,
    /// Held by whoever fetches what changed.
    following: tokio::sync::Mutex<()>,
    /// When it was last asked for, in milliseconds since the process began.
    used_at: AtomicU64,
    /// Memory taken, also while it is loaded, in bytes.
    bytes: AtomicUsize,
}

#[derive(Debug)]
enum State {
    /// Not held, and not to be loaded before this time.
    Absent(Instant),
    /// A task loads it, or brings it up to date.
    Loading,
    Ready(Ready),
}

#[derive(Debug)]
struct Ready {
    index: Index,
    history: History,
    epoch: i64,
}

impl Ready {
    fn snapshot(&self) -> Snapshot<'_> {
        let (history, epoch) = (self.history, self.epoch);
        Snapshot::new(&self.index, Moment { history, epoch })
    }
}

/// How an index stands to the directory.
enum Standing {
    /// It is not there.
    Absent,
    /// It is as the directory.
    Current,
    /// It is of an earlier epoch.
    Behind(i64),
    /// It is of a later epoch: the directory was looked at before somebody else followed it
    /// further, or it went back.
    Ahead,
    /// It is of another history.
    Foreign,
}

impl Identities {
    /// Nothing is held yet. Run [`keep_current`](Self::keep_current) beside it.
    pub fn new(store: Store, settings: Settings) -> Self {
        Self(Arc::new(Shared {
            store: store.acting_as(Role::Directory),
            settings,
            shelf: Mutex::default(),
            began: Instant::now(),
        }))
    }

    /// Matches well-formed identifiers as [`directory::match_identifiers`] does, and tells the epoch
    /// that the matches are right for; what has changed since is not in them.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn match_identifiers(
        &self,
        conn: &mut Connection,
        workspace: WorkspaceId,
        identifiers: &[IdentifierRef<'_>],
    ) -> Result<(i64, Vec<Match>)> {
        // Read first: SQL may see more than this epoch, never less.
        let position = feed::position(conn, workspace).await?;
        let look = |snapshot: &Snapshot<'_>| (snapshot.epoch(), snapshot.matches(identifiers));
        if let Some(matched) = self.look(conn, workspace, position, look).await? {
            return Ok(matched);
        }
        let matches = directory::match_identifiers(conn, workspace, identifiers).await?;
        Ok((position.epoch, matches))
    }

    /// Looks into the directory of a workspace as it was at `position` or later; `None` if it is not
    /// held. It is then loaded in the background, if it can be. The connection is not inside a
    /// snapshot: what it reads next may be later than what it read before.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn look<T>(
        &self,
        conn: &mut Connection,
        workspace: WorkspaceId,
        position: Position,
        look: impl FnOnce(&Snapshot<'_>) -> T,
    ) -> Result<Option<T>> {
        let settings = &self.0.settings;
        if settings.memory_bytes == 0 || position.next_user_no < settings.least_users {
            return Ok(None);
        }
        let held = self.held(workspace);
        held.used_at.store(self.now(), Ordering::Relaxed);
        if !self.bring_up(conn, workspace, &held, position).await? {
            return Ok(None);
        }
        Ok(held.glance(|snapshot| snapshot.moment().includes(position).then(|| look(snapshot))))
    }

    /// Looks into the directory of a workspace as it is held, if it is, without asking how far the
    /// directory is. Whoever does has to ask that later, and to look again if the
    /// [moment](Snapshot::moment) does not [include](Moment::includes) it.
    pub fn glance<T>(
        &self,
        workspace: WorkspaceId,
        look: impl FnOnce(&Snapshot<'_>) -> T,
    ) -> Option<T> {
        self.held(workspace).glance(|snapshot| Some(look(snapshot)))
    }

    /// Brings an index to a position or beyond. Returns whether it is there.
    async fn bring_up(
        &self,
        conn: &mut Connection,
        workspace: WorkspaceId,
        held: &Arc<Held>,
        position: Position,
    ) -> Result<bool> {
        match held.standing(position) {
            Standing::Current => return Ok(true),
            Standing::Absent => {
                self.load(workspace, held);
                return Ok(false);
            }
            Standing::Behind(_) | Standing::Ahead | Standing::Foreign => {}
        }
        // One call fetches what changed, for all that wait.
        let _following = held.following.lock().await;
        // Whoever was ahead of what this call had read is still ahead of what it reads now only if
        // the directory went back.
        let position = match held.standing(position) {
            Standing::Current => return Ok(true),
            Standing::Ahead | Standing::Foreign => feed::position(conn, workspace).await?,
            Standing::Absent | Standing::Behind(_) => position,
        };
        match held.standing(position) {
            Standing::Current => Ok(true),
            Standing::Absent => Ok(false),
            Standing::Behind(epoch) => {
                let touched = feed::touched_since(conn, workspace, Point::end_of(epoch)).await?;
                Ok(self.follow(workspace, held, touched))
            }
            Standing::Ahead | Standing::Foreign => {
                tracing::warn!(
                    workspace = workspace.0,
                    "the directory is of another history than its index, which is loaded anew"
                );
                held.drop_index(Instant::now());
                self.load(workspace, held);
                Ok(false)
            }
        }
    }

    /// Applies what changed, all of it or, in the background, none of it yet. Returns whether the
    /// index is as far as that.
    fn follow(&self, workspace: WorkspaceId, held: &Arc<Held>, touched: feed::Touched) -> bool {
        let mut state = held.state.write().expect("no panic while locked");
        let State::Ready(ready) = &mut *state else {
            return false;
        };
        let follows =
            ready.history == touched.position.history && ready.epoch <= touched.position.epoch;
        if !follows {
            *state = State::Absent(Instant::now());
            held.bytes.store(0, Ordering::Relaxed);
            return false;
        }
        if touched.more.is_some() {
            let State::Ready(ready) = std::mem::replace(&mut *state, State::Loading) else {
                unreachable!("looked at above, under the same lock")
            };
            self.catch_up(workspace, held, ready);
            return false;
        }
        if ready.index.apply(&touched.users).is_err() || ready.index.is_worn() {
            *state = State::Absent(Instant::now());
            held.bytes.store(0, Ordering::Relaxed);
            return false;
        }
        ready.epoch = touched.position.epoch;
        held.bytes.store(ready.index.bytes(), Ordering::Relaxed);
        true
    }

    /// Follows the directories that are held, so that what was erased there is soon erased here, and
    /// lets go of those that nobody asks for, until `shutdown`.
    pub async fn keep_current(self, shutdown: CancellationToken) {
        const PERIOD: Duration = Duration::from_secs(5);
        let rounds = async {
            loop {
                tokio::time::sleep(PERIOD).await;
                for (workspace, held) in self.all() {
                    let idle = self
                        .now()
                        .saturating_sub(held.used_at.load(Ordering::Relaxed));
                    if u128::from(idle) > self.0.settings.idle_timeout.as_millis() {
                        held.drop_index(Instant::now());
                    } else if let Err(error) = self.refresh(workspace, &held).await {
                        let cause = &error as &dyn std::error::Error;
                        tracing::warn!(cause, "a directory was not followed; trying again");
                    }
                }
            }
        };
        shutdown.run_until_cancelled(rounds).await;
    }

    async fn refresh(&self, workspace: WorkspaceId, held: &Arc<Held>) -> Result<()> {
        if matches!(
            &*held.state.read().expect("no panic while locked"),
            State::Ready(_)
        ) {
            let mut conn = self.0.store.read_in("follow_directory", workspace).await?;
            let position = feed::position(&mut conn, workspace).await?;
            self.bring_up(&mut conn, workspace, held, position).await?;
        }
        Ok(())
    }

    /// The database that they are held of, in a role that reads directories only.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Memory that the indices take now, in bytes.
    pub fn bytes(&self) -> usize {
        self.all()
            .iter()
            .map(|(_, held)| held.bytes.load(Ordering::Relaxed))
            .sum()
    }

    fn held(&self, workspace: WorkspaceId) -> Arc<Held> {
        let mut shelf = self.0.shelf.lock().expect("no panic while locked");
        Arc::clone(shelf.entry(workspace).or_insert_with(|| {
            Arc::new(Held {
                state: RwLock::new(State::Absent(self.0.began)),
                following: tokio::sync::Mutex::default(),
                used_at: AtomicU64::default(),
                bytes: AtomicUsize::default(),
            })
        }))
    }

    fn all(&self) -> Vec<(WorkspaceId, Arc<Held>)> {
        let shelf = self.0.shelf.lock().expect("no panic while locked");
        shelf
            .iter()
            .map(|(id, held)| (*id, Arc::clone(held)))
            .collect()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Held {
    fn glance<T>(&self, look: impl FnOnce(&Snapshot<'_>) -> Option<T>) -> Option<T> {
        match &*self.state.read().expect("no panic while locked") {
            State::Ready(ready) => look(&ready.snapshot()),
            State::Absent(_) | State::Loading => None,
        }
    }

    fn standing(&self, position: Position) -> Standing {
        match &*self.state.read().expect("no panic while locked") {
            State::Absent(_) | State::Loading => Standing::Absent,
            State::Ready(ready) if ready.history != position.history => Standing::Foreign,
            State::Ready(ready) => match ready.epoch.cmp(&position.epoch) {
                std::cmp::Ordering::Less => Standing::Behind(ready.epoch),
                std::cmp::Ordering::Equal => Standing::Current,
                std::cmp::Ordering::Greater => Standing::Ahead,
            },
        }
    }

    /// Lets go of the index, if it is there.
    fn drop_index(&self, not_before: Instant) {
        let mut state = self.state.write().expect("no panic while locked");
        if matches!(&*state, State::Ready(_)) {
            *state = State::Absent(not_before);
            self.bytes.store(0, Ordering::Relaxed);
        }
    }
}
