//! How an index comes from Postgres.
//!
//! It is read while the directory changes, over two connections, each half of the users. Then
//! whoever was touched since it began is read again, until nobody is: from there on it is exact.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use muster_domain::error::Error;
use muster_storage::{
    Result, WorkspaceId,
    directory::feed::{self, Point, RawRow},
};
use tokio::time::Instant;

use crate::{Held, Identities, Ready, State, arena::Full, index::Index};

/// A directory with fewer users is read over one connection.
const WORTH_TWO: u64 = 20_000;

/// Its place among the records, and in the hash table.
const LEAST_BYTES_PER_USER: usize = 16;

/// Rows gathered before they are added, in one go.
const BATCH: usize = 1_024;

/// How long a directory that does not fit is left to SQL.
const AFTER_TOO_LARGE: Duration = Duration::from_secs(600);

/// Why there is no index.
#[derive(Debug)]
enum Failure {
    TooLarge,
    Storage(muster_storage::Error),
}

impl From<muster_storage::Error> for Failure {
    fn from(error: muster_storage::Error) -> Self {
        Self::Storage(error)
    }
}

impl From<Full> for Failure {
    fn from(_: Full) -> Self {
        Self::TooLarge
    }
}

impl Identities {
    /// Begins to load a directory, unless that is going on, or has failed a short time ago.
    pub(crate) fn load(&self, workspace: WorkspaceId, held: &Arc<Held>) {
        {
            let mut state = held.state.write().expect("no panic while locked");
            match &*state {
                State::Absent(not_before) if *not_before <= Instant::now() => {}
                State::Absent(_) | State::Loading | State::Ready(_) => return,
            }
            *state = State::Loading;
        }
        let (identities, held) = (self.clone(), Arc::clone(held));
        tokio::spawn(async move {
            let begun = Instant::now();
            let loaded = identities.read(workspace, &held).await;
            if let Ok(ready) = &loaded {
                let (bytes, took) = (ready.index.bytes(), begun.elapsed());
                tracing::info!(workspace = workspace.0, bytes, ?took, "directory loaded");
            }
            identities.settle(workspace, &held, loaded);
        });
    }

    /// Brings an index that is far behind up to date, in the background.
    pub(crate) fn catch_up(&self, workspace: WorkspaceId, held: &Arc<Held>, ready: Ready) {
        let (identities, held) = (self.clone(), Arc::clone(held));
        tokio::spawn(async move {
            let caught_up = async {
                let mut conn = identities.0.store.feed_connection(workspace).await?;
                let since = Point::end_of(ready.epoch);
                identities
                    .follow_to_the_end(&mut conn, workspace, &held, ready, since)
                    .await
            };
            let caught_up = caught_up.await;
            identities.settle(workspace, &held, caught_up);
        });
    }

    /// Puts the outcome of a task where calls look.
    fn settle(&self, workspace: WorkspaceId, held: &Held, outcome: Result<Ready, Failure>) {
        let state = match outcome {
            Ok(ready) => {
                held.bytes.store(ready.index.bytes(), Ordering::Relaxed);
                State::Ready(ready)
            }
            Err(failure) => {
                held.bytes.store(0, Ordering::Relaxed);
                let pause = match failure {
                    Failure::TooLarge => {
                        tracing::warn!(
                            workspace = workspace.0,
                            "the directory exceeds the memory for indices; SQL matches it"
                        );
                        AFTER_TOO_LARGE
                    }
                    Failure::Storage(error) => {
                        let cause = &error as &dyn std::error::Error;
                        tracing::warn!(
                            workspace = workspace.0,
                            cause,
                            "the directory was not loaded; SQL matches it until it is"
                        );
                        self.0.settings.retry_pause
                    }
                };
                State::Absent(Instant::now() + pause)
            }
        };
        *held.state.write().expect("no panic while locked") = state;
    }

    async fn read(&self, workspace: WorkspaceId, held: &Held) -> Result<Ready, Failure> {
        let mut conn = self.0.store.feed_connection(workspace).await?;
        // Everything is read after this, so whatever it lacks was touched after this epoch.
        let position = feed::position(&mut conn, workspace).await?;
        // At the very least, each user takes this much.
        let users = usize::try_from(position.next_user_no).map_err(|_| Failure::TooLarge)?;
        self.make_room(held, users.saturating_mul(LEAST_BYTES_PER_USER))?;
        let builder = Builder {
            identities: self,
            held,
            index: Mutex::new(Index::with_capacity(users, 2 * users)?),
        };
        let (end, middle) = (position.next_user_no, position.next_user_no / 2);
        if end < WORTH_TWO {
            builder.read(&mut conn, workspace, 0..end).await?;
        } else {
            let mut second = self.0.store.feed_connection(workspace).await?;
            tokio::try_join!(
                builder.read(&mut conn, workspace, 0..middle),
                builder.read(&mut second, workspace, middle..end),
            )?;
        }
        let ready = Ready {
            index: builder.index.into_inner().expect("no panic while locked"),
            history: position.history,
            epoch: position.epoch,
        };
        let since = Point::end_of(position.epoch);
        self.follow_to_the_end(&mut conn, workspace, held, ready, since)
            .await
    }

    async fn follow_to_the_end(
        &self,
        conn: &mut muster_storage::Connection,
        workspace: WorkspaceId,
        held: &Held,
        mut ready: Ready,
        mut since: Point,
    ) -> Result<Ready, Failure> {
        loop {
            let touched = feed::touched_since(conn, workspace, since).await?;
            if touched.position.history != ready.history || touched.position.epoch < ready.epoch {
                let error = Error::internal("the database was restored while it was read");
                return Err(Failure::Storage(error.into()));
            }
            ready.index.apply(&touched.users)?;
            self.make_room(held, ready.index.bytes())?;
            match touched.more {
                Some(next) => since = next,
                None => {
                    ready.epoch = touched.position.epoch;
                    return Ok(ready);
                }
            }
        }
    }

    /// Lets go of the indices that were asked for longest ago until one of this size fits.
    fn make_room(&self, held: &Held, bytes: usize) -> Result<(), Failure> {
        if bytes > self.0.settings.memory_bytes {
            // Nobody needs to go for what does not fit even alone.
            return Err(Failure::TooLarge);
        }
        held.bytes.store(bytes, Ordering::Relaxed);
        while self.bytes() > self.0.settings.memory_bytes {
            let others = self
                .all()
                .into_iter()
                .map(|(_, other)| other)
                .filter(|other| {
                    let is_ready = || {
                        matches!(
                            &*other.state.read().expect("no panic while locked"),
                            State::Ready(_)
                        )
                    };
                    !std::ptr::eq(&**other, held) && is_ready()
                });
            let oldest = others.min_by_key(|other| other.used_at.load(Ordering::Relaxed));
            oldest.ok_or(Failure::TooLarge)?.drop_index(Instant::now());
        }
        Ok(())
    }
}

/// An index being built.
struct Builder<'a> {
    identities: &'a Identities,
    held: &'a Held,
    index: Mutex<Index>,
}

impl Builder<'_> {
    /// Reads the users in a range of numbers.
    async fn read(
        &self,
        conn: &mut muster_storage::Connection,
        workspace: WorkspaceId,
        users: std::ops::Range<u64>,
    ) -> Result<(), Failure> {
        let mut rows: Vec<RawRow> = Vec::with_capacity(BATCH);
        let mut full = None;
        let copied = feed::copy_users(conn, workspace, users, |row| {
            rows.push(row);
            if rows.len() < BATCH {
                return Ok(());
            }
            match self.add(&mut rows) {
                Err(Failure::Storage(error)) => Err(error),
                Err(Failure::TooLarge) => {
                    full = Some(Failure::TooLarge);
                    Err(Error::internal("too large").into())
                }
                Ok(()) => Ok(()),
            }
        });
        let copied = copied.await;
        if let Some(failure) = full {
            return Err(failure);
        }
        copied?;
        self.add(&mut rows)
    }

    /// Adds users, and takes them off the list.
    fn add(&self, rows: &mut Vec<RawRow>) -> Result<(), Failure> {
        let mut index = self.index.lock().expect("no panic while locked");
        let mut adding = index.adding();
        let mut identifiers = Vec::new();
        for row in &*rows {
            let (user, printed) = feed::row(row, &mut identifiers)?;
            if !identifiers.is_empty() {
                adding.insert(user, printed, &identifiers)?;
            }
        }
        drop(adding);
        let bytes = index.bytes();
        drop(index);
        rows.clear();
        self.identities.make_room(self.held, bytes)
    }
}
