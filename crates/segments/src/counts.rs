//! Several counts at one snapshot, each cohort read once.

use std::{collections::HashMap, sync::Arc};

use muster_domain::{
    error::{Error, FieldContext as _, Result},
    filter::{ExpandedFilter, SavedFilter, WrittenFilter},
};
use muster_storage::{
    Store, WorkspaceId,
    resolutions::CohortRead,
    segments::{self, Segment},
};
use uuid::Uuid;

use crate::{
    evaluation::{Demands, Members, Turns, cohorts_of, compute_on, read, snapshot, weight},
    references::{self, Names},
};

/// How many users some filters hold.
#[derive(Debug)]
pub(crate) struct Counted {
    /// Each filter, in order, with the number of its users.
    pub(crate) filters: Vec<(SavedFilter, u64)>,
    /// What people call all that is in them.
    pub(crate) names: Names,
    /// Of the workspace.
    pub(crate) live_users: u64,
    pub(crate) cohorts: Vec<CohortRead>,
}

impl Turns {
    /// Counts the users of filters when it is this call's turn. Together they take one turn, since
    /// what an evaluation holds in memory is its cohorts.
    ///
    /// # Errors
    /// As [`count`](Self::count) for filters; the path of an error begins with `filters[i]`.
    pub(crate) async fn count_all(
        &self,
        store: &Store,
        workspace: WorkspaceId,
        filters: &[WrittenFilter],
        demands: &Demands,
    ) -> Result<Counted> {
        let _turn = self.turn(workspace).await?;
        let (mut tx, directory) = snapshot(store, workspace, demands).await?;
        let (saved, named) = references::resolve_all(&mut tx, workspace, filters).await?;
        let roots: Vec<Uuid> = saved
            .iter()
            .flat_map(SavedFilter::segment_refs)
            .copied()
            .collect();
        let nested = segments::with_used(&mut tx, workspace, &roots).await?;
        let nested: HashMap<Uuid, Segment> = nested.into_iter().map(|it| (it.id, it)).collect();
        let expanded = saved.iter().enumerate().map(|(index, filter)| {
            let filter = filter.expand(|id| nested.get(id).map(|segment| &segment.filter));
            filter.field(&format!("filters[{index}]"))
        });
        let expanded: Vec<ExpandedFilter> = expanded.collect::<Result<_>>()?;
        let cohorts = cohorts_of(&mut tx, workspace, &expanded, named).await?;
        let names = Names::of(&mut tx, workspace, &saved).await?;
        let stored = read(store, &mut tx, workspace, &directory, &cohorts).await?;
        // It changed nothing: nobody waits for its end.
        drop(tx);
        let directory = Arc::clone(&directory);
        let weight = weight(&directory, &expanded, &stored);
        let counted = compute_on(weight, move || {
            let (members, live) = (Members::of(&directory, stored), directory.live());
            let users = expanded.iter().map(|filter| members.count(filter, &live));
            Ok::<_, Error>((users.collect::<Result<Vec<u64>>>()?, live.len()))
        });
        let (users, live_users) = counted.await??;
        Ok(Counted {
            filters: saved.into_iter().zip(users).collect(),
            names,
            live_users,
            cohorts,
        })
    }
}
