//! Which users are live: kept in memory per workspace, brought up to date by epoch.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use muster_domain::user_set::{Tombstones, UserSet};
use sqlx::PgConnection;

use super::feed::{History, Position};
use crate::{Result, Store, Tx, WorkspaceId};

/// Who is live in a workspace at one epoch.
#[derive(Debug, Default)]
pub struct Directory {
    /// The epoch it describes.
    pub epoch: i64,
    /// Numbers from 0 to this one, exclusive, have been given out.
    pub next_user_no: u64,
    /// The users that are no longer live; shared, since most changes of a directory leave it alone.
    pub tombstones: Arc<Tombstones>,
    history: Option<History>,
}

impl Directory {
    /// Which history the epoch is of; `None` if the workspace has no directory.
    pub(crate) fn history(&self) -> Option<History> {
        self.history
    }

    /// How far the directory was; `None` if the workspace has none.
    pub fn position(&self) -> Option<Position> {
        Some(Position {
            history: self.history?,
            epoch: self.epoch,
            next_user_no: self.next_user_no,
        })
    }

    /// Every live user.
    pub fn live(&self) -> UserSet {
        self.tombstones.live(self.next_user_no)
    }
}

/// The newest state this process has seen of each workspace's directory.
#[derive(Debug, Clone, Default)]
pub struct DirectoryCache(Arc<Mutex<HashMap<WorkspaceId, Arc<Directory>>>>);

impl DirectoryCache {
    fn get(&self, workspace: WorkspaceId) -> Arc<Directory> {
        let known = self.0.lock().expect("no panic while locked");
        known.get(&workspace).cloned().unwrap_or_default()
    }

    fn forget(&self, workspace: WorkspaceId) {
        let mut known = self.0.lock().expect("no panic while locked");
        known.remove(&workspace);
    }

    fn put(&self, workspace: WorkspaceId, directory: Arc<Directory>) {
        let mut known = self.0.lock().expect("no panic while locked");
        let newest = known.entry(workspace).or_default();
        if newest.epoch < directory.epoch {
            *newest = directory;
        }
    }
}

impl Store {
    /// Begins a read-only transaction together with the directory exactly as it sees it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn directory_snapshot(
        &self,
        name: &'static str,
        workspace: WorkspaceId,
    ) -> Result<(Tx, Arc<Directory>)> {
        let mut tx = self.snapshot_in(name, workspace).await?;
        let directory = self.directory(&mut tx, workspace).await?;
        Ok((tx, directory))
    }

    /// The directory as the connection sees it.
    ///
    /// Inside a transaction that reads one snapshot it is the directory of that snapshot; otherwise
    /// it is the directory of this moment.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn directory(
        &self,
        conn: &mut PgConnection,
        workspace: WorkspaceId,
    ) -> Result<Arc<Directory>> {
        // One statement, so that epoch, numbers and tombstones are of one snapshot.
        let cached = self.directories().get(workspace);
        let current = load(&mut *conn, workspace, &cached).await?;
        let directory = match current {
            Some(directory) => directory,
            // Another call has brought the cache further than this snapshot reaches, or the database
            // went back, as after a restore: what is cached may be of a history that never was.
            None => {
                self.directories().forget(workspace);
                load(conn, workspace, &Directory::default())
                    .await?
                    .unwrap_or_default()
            }
        };
        let directory = if directory.epoch == cached.epoch && directory.history == cached.history {
            cached
        } else {
            Arc::new(directory)
        };
        self.directories().put(workspace, Arc::clone(&directory));
        Ok(directory)
    }
}

/// The directory as the connection sees it, from what was known at an earlier epoch; `None` if that
/// epoch is later than what the connection sees.
async fn load(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    known: &Directory,
) -> Result<Option<Directory>> {
    let rows = sqlx::query!(
        r#"SELECT d.epoch, d.next_user_no, pg_postmaster_start_time() AS "started_at!",
                  (SELECT oid FROM pg_database WHERE datname = current_database()) AS "database!",
                  d.tableoid AS "table!", u.user_no AS "user_no?", u.merged_into
           FROM directory d
           LEFT JOIN directory_user u
             ON u.workspace_id = d.workspace_id AND u.epoch > $2 AND u.state <> 1
           WHERE d.workspace_id = $1
           ORDER BY u.epoch"#,
        workspace.0,
        known.epoch,
    )
    .fetch_all(conn)
    .await?;
    let Some(first) = rows.first() else {
        return Ok(Some(Directory::default()));
    };
    let history = History::new(first.started_at, first.database, first.table);
    let other_history = known.history.is_some_and(|known| known != history);
    if first.epoch < known.epoch || other_history {
        return Ok(None);
    }
    let mut directory = Directory {
        epoch: first.epoch,
        next_user_no: number(first.next_user_no),
        tombstones: Arc::clone(&known.tombstones),
        history: Some(history),
    };
    for row in &rows {
        if let Some(user) = row.user_no {
            let tombstones = Arc::make_mut(&mut directory.tombstones);
            match row.merged_into {
                Some(into) => tombstones.merge(user_no(user), user_no(into)),
                None => tombstones.delete(user_no(user)),
            }
        }
    }
    Ok(Some(directory))
}

fn number(value: i64) -> u64 {
    u64::try_from(value).expect("a check constraint keeps it positive")
}

pub(super) fn user_no(value: i64) -> u32 {
    u32::try_from(value).expect("a check constraint keeps user numbers below 2³²")
}
