//! From a segment or a filter to the users in it, at one snapshot.
//!
//! [`plan`] finds out, in the snapshot, which cohorts are to be read at which version, and
//! whether what the caller demands holds; [`Plan::evaluate`] reads them and applies the filter.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use muster_domain::{
    error::{Error, FieldContext as _, Kind, Result},
    filter::{ExpandedFilter, Filter, SavedFilter, SegmentRef, WrittenFilter},
    user_set::UserSet,
};
use muster_service::{ConsistencyToken, compute};
use muster_storage::{
    Connection, Store, Timestamp, Tx, WorkspaceId, audience,
    directory::Directory,
    resolutions::CohortRead,
    segments::{self, Segment},
    share::{Held, Shares},
};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::{
    references::{self, Named, Names, find_segment},
    segments::check_not_archived,
};

/// What is to be evaluated.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    Segment(SegmentRef),
    Filter(WrittenFilter),
}

/// What an evaluation must satisfy.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Demands {
    /// It must see this state.
    pub(crate) token: Option<ConsistencyToken>,
    /// Every cohort read must have been published within this time.
    pub(crate) max_cohort_age: Option<Duration>,
    /// How long to wait for the state to become visible.
    pub(crate) patience: Duration,
}

/// An evaluation about to be made, with the snapshot it is made at.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) tx: Tx,
    pub(crate) workspace: WorkspaceId,
    pub(crate) directory: Arc<Directory>,
    /// The segment, unless it is an inline filter.
    pub(crate) segment: Option<Uuid>,
    pub(crate) saved: SavedFilter,
    pub(crate) filter: ExpandedFilter,
    /// The cohorts to read, at their current version.
    pub(crate) cohorts: Vec<CohortRead>,
    /// The segments that it takes, by id.
    pub(crate) nested: HashMap<Uuid, Segment>,
}

/// The users of a segment or a filter at one snapshot.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) segment: Option<Uuid>,
    pub(crate) filter_text: String,
    pub(crate) users: UserSet,
    pub(crate) directory_epoch: i64,
    pub(crate) cohorts: Vec<CohortRead>,
}

/// The evaluations that a process makes at once: each holds all cohorts of its filter in memory. One
/// workspace makes half of them at most.
#[derive(Debug)]
pub(crate) struct Turns {
    free: Shares,
    patience: Duration,
}

impl Turns {
    /// So many at once; a call waits at most `patience` for its turn.
    pub(crate) fn new(at_once: usize, patience: Duration) -> Self {
        Self {
            free: Shares::halves(at_once),
            patience,
        }
    }

    /// Counts the users when it is this call's turn. Nothing of the database is held before.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` (`EVALUATIONS_BUSY`) if it does not come in time; else as [`plan`].
    pub(crate) async fn count(
        &self,
        store: &Store,
        workspace: WorkspaceId,
        source: &Source,
        demands: &Demands,
    ) -> Result<(u64, Vec<CohortRead>)> {
        let _turn = self.turn(workspace).await?;
        let plan = plan(store, workspace, source, demands).await?;
        plan.apply(store, Members::count).await
    }

    /// Evaluates when it is this call's turn. Nothing of the database is held before.
    ///
    /// # Errors
    /// As [`count`](Self::count).
    pub(crate) async fn evaluate(
        &self,
        store: &Store,
        workspace: WorkspaceId,
        source: &Source,
        demands: &Demands,
    ) -> Result<Evaluated> {
        let _turn = self.turn(workspace).await?;
        let mut plan = plan(store, workspace, source, demands).await?;
        let names = Names::of(&mut plan.tx, workspace, [&plan.saved]).await?;
        let filter_text = names.text(&plan.saved, |id| *id)?;
        let (segment, directory_epoch) = (plan.segment, plan.directory.epoch);
        let (users, cohorts) = plan.apply(store, Members::users).await?;
        Ok(Evaluated {
            segment,
            filter_text,
            users,
            directory_epoch,
            cohorts,
        })
    }

    /// Waits for a turn, which lasts until it is dropped.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` (`EVALUATIONS_BUSY`) if it does not come in time.
    pub(crate) async fn turn(&self, workspace: WorkspaceId) -> Result<Held> {
        let turn = timeout(self.patience, self.free.take(workspace)).await;
        turn.map_err(|_| {
            Error::new(
                Kind::ResourceExhausted,
                "EVALUATIONS_BUSY",
                "the server makes as many evaluations as it may; try again",
            )
            .retry_after(Duration::from_secs(1))
        })
    }
}

/// Takes a snapshot and finds out what is to be read in it.
///
/// # Errors
/// `NOT_FOUND` or `FAILED_PRECONDITION` (`SEGMENT_ARCHIVED`) for the segment; `INVALID_ARGUMENT`
/// for the filter; `UNAVAILABLE` (`NOT_YET_VISIBLE`) and `FAILED_PRECONDITION` (`COHORT_TOO_OLD`)
/// for the demands.
pub(crate) async fn plan(
    store: &Store,
    workspace: WorkspaceId,
    source: &Source,
    demands: &Demands,
) -> Result<Plan> {
    let (mut tx, directory) = snapshot(store, workspace, demands).await?;
    let (segment, saved, named) = match source {
        Source::Segment(segment) => {
            let found = find_segment(&mut tx, workspace, segment).await?;
            check_not_archived(&found)?;
            (Some(found.id), found.filter, Named::new())
        }
        Source::Filter(filter) => {
            let resolved = references::resolve(&mut tx, workspace, filter).await;
            let (saved, named) = resolved.field("filter")?;
            (None, saved, named)
        }
    };
    let roots: Vec<Uuid> = saved.segment_refs().copied().collect();
    let nested = segments::with_used(&mut tx, workspace, &roots).await?;
    let nested: HashMap<Uuid, Segment> = nested.into_iter().map(|it| (it.id, it)).collect();
    let filter = saved
        .expand(|id| nested.get(id).map(|segment| &segment.filter))
        .field("filter")?;
    let filters = std::slice::from_ref(&filter);
    let cohorts = cohorts_of(&mut tx, workspace, filters, named).await?;
    if let Some(max_age) = demands.max_cohort_age {
        let now = audience::now(&mut tx).await?;
        check_age(&cohorts, now, max_age)?;
    }
    Ok(Plan {
        tx,
        workspace,
        directory,
        segment,
        saved,
        filter,
        cohorts,
        nested,
    })
}

impl Plan {
    /// Reads the cohorts and applies the filter: gives what `with` makes of them.
    async fn apply<T: Send + 'static>(
        mut self,
        store: &Store,
        with: fn(&Members, &ExpandedFilter, &UserSet) -> Result<T>,
    ) -> Result<(T, Vec<CohortRead>)> {
        let (tx, cohorts) = (&mut self.tx, &self.cohorts);
        let stored = read(store, tx, self.workspace, &self.directory, cohorts).await?;
        // It changed nothing: nobody waits for its end.
        drop(self.tx);
        let (directory, filter) = (Arc::clone(&self.directory), self.filter);
        let weight = weight(&directory, std::slice::from_ref(&filter), &stored);
        let applied = compute_on(weight, move || {
            with(&Members::of(&directory, stored), &filter, &directory.live())
        });
        Ok((applied.await??, self.cohorts))
    }

    /// What people call all that is in the filter and in the segments nested in it.
    pub(crate) async fn names(&mut self) -> Result<Names> {
        let nested = self.nested.values().map(|segment| &segment.filter);
        let filters = nested.chain([&self.saved]);
        Names::of(&mut self.tx, self.workspace, filters).await
    }
}

/// The users of cohorts as stored, at the version read.
pub(crate) async fn read(
    store: &Store,
    conn: &mut Connection,
    workspace: WorkspaceId,
    directory: &Directory,
    cohorts: &[CohortRead],
) -> Result<HashMap<Uuid, Arc<UserSet>>> {
    let mut stored = HashMap::new();
    for cohort in cohorts {
        // A cohort that nothing was imported into is the empty set.
        let users = if cohort.version == 0 {
            Arc::default()
        } else {
            let (id, version) = (cohort.id, cohort.version);
            let members = store.members(conn, workspace, directory, id, version);
            members.await?
        };
        stored.insert(cohort.id, users);
    }
    Ok(stored)
}

/// How many bytes of sets an evaluation of filters goes through.
pub(crate) fn weight(
    directory: &Directory,
    filters: &[ExpandedFilter],
    stored: &HashMap<Uuid, Arc<UserSet>>,
) -> usize {
    /// What has become of a user is looked up, which takes as long as this many bytes.
    const LOOK_UP: usize = 256;
    let size = |users: u64| usize::try_from(users).unwrap_or(usize::MAX);
    let look_ups = size(directory.tombstones.gone().len()).saturating_mul(LOOK_UP * stored.len());
    // Everyone is a bit each.
    let mut weight = look_ups.saturating_add(size(directory.next_user_no / 8));
    for filter in filters {
        visit_cohorts(filter, &mut |id| {
            let bytes = stored.get(id).map_or(0, |users| users.serialized_size());
            weight = weight.saturating_add(bytes);
        });
    }
    weight
}

/// Computes what goes through so many bytes of sets.
///
/// # Errors
/// As [`compute`].
pub(crate) async fn compute_on<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    /// Some tenths of a millisecond, as long as it takes another thread to begin and to say that it
    /// is done.
    const LITTLE: usize = 2 << 20;
    if bytes <= LITTLE {
        Ok(work())
    } else {
        compute(work).await
    }
}

/// The live members of the cohorts of a filter.
pub(crate) struct Members(HashMap<Uuid, Arc<UserSet>>);

impl Members {
    pub(crate) fn of(directory: &Directory, stored: HashMap<Uuid, Arc<UserSet>>) -> Self {
        let sets = stored
            .into_iter()
            .map(|(id, users)| (id, directory.tombstones.normalise_shared(users)));
        Self(sets.collect())
    }

    /// The users of a filter over them, among those who are `live`.
    pub(crate) fn users(&self, filter: &ExpandedFilter, live: &UserSet) -> Result<UserSet> {
        filter.evaluate(live, &mut |id| self.of_cohort(id))
    }

    /// How many users that are.
    pub(crate) fn count(&self, filter: &ExpandedFilter, live: &UserSet) -> Result<u64> {
        filter.count(live, &mut |id| self.of_cohort(id))
    }

    fn of_cohort(&self, id: &Uuid) -> Result<Arc<UserSet>> {
        let users = self.0.get(id).map(Arc::clone);
        users.ok_or_else(|| Error::internal(format!("cohort {id} of a filter does not exist")))
    }
}

/// A snapshot that sees what the token stands for.
pub(crate) async fn snapshot(
    store: &Store,
    workspace: WorkspaceId,
    demands: &Demands,
) -> Result<(Tx, Arc<Directory>)> {
    const PAUSE: Duration = Duration::from_millis(50);
    if let Some(token) = demands.token
        && token.workspace != workspace.0
    {
        return Err(Error::field("consistency_token", "is of another workspace"));
    }
    let deadline = Instant::now() + demands.patience;
    loop {
        let (mut tx, directory) = store.directory_snapshot("evaluate", workspace).await?;
        let visible = match &demands.token {
            None => true,
            Some(token) => {
                let cohort = match token.cohort {
                    Some((id, version)) => {
                        audience::cohort_version(&mut tx, workspace, id).await? >= version
                    }
                    None => true,
                };
                cohort && directory.epoch >= token.directory_epoch
            }
        };
        if visible {
            return Ok((tx, directory));
        }
        drop(tx);
        if Instant::now() + PAUSE > deadline {
            return Err(Error::new(
                Kind::Unavailable,
                "NOT_YET_VISIBLE",
                "what the consistency token stands for cannot be seen here yet; try again",
            )
            .retry_after(Duration::from_secs(1)));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The cohorts that filters read, at their current version. Those that were found by name are not
/// looked up again.
pub(crate) async fn cohorts_of(
    conn: &mut Connection,
    workspace: WorkspaceId,
    filters: &[ExpandedFilter],
    mut named: Named,
) -> Result<Vec<CohortRead>> {
    let mut used = BTreeSet::new();
    for filter in filters {
        visit_cohorts(filter, &mut |id| {
            used.insert(*id);
        });
    }
    let missing: Vec<Uuid> = used
        .iter()
        .filter(|id| !named.contains_key(id))
        .copied()
        .collect();
    let mut cohorts = if missing.is_empty() {
        Vec::new()
    } else {
        audience::cohorts_now(conn, workspace, &missing).await?
    };
    cohorts.extend(used.iter().filter_map(|id| named.remove(id)));
    let by_key = |a: &CohortRead, b: &CohortRead| {
        (&a.partner, &a.partner_cohort_id).cmp(&(&b.partner, &b.partner_cohort_id))
    };
    cohorts.sort_unstable_by(by_key);
    Ok(cohorts)
}

/// Goes through the cohorts that a filter reads, as often as it does.
fn visit_cohorts(filter: &ExpandedFilter, visit: &mut impl FnMut(&Uuid)) {
    match filter {
        Filter::Cohort { cohorts, .. } => cohorts.iter().for_each(visit),
        Filter::AllOf(members) | Filter::AnyOf(members) => {
            for member in members {
                visit_cohorts(member, visit);
            }
        }
        Filter::Not(inner) => visit_cohorts(inner, visit),
        Filter::Segment(segment) => visit_cohorts(&segment.filter, visit),
    }
}

fn check_age(cohorts: &[CohortRead], now: Timestamp, max_age: Duration) -> Result<()> {
    let too_old = |cohort: &&CohortRead| match cohort.published_at {
        Some(published_at) => now - published_at > max_age,
        None => true,
    };
    let old: Vec<_> = cohorts.iter().filter(too_old).collect();
    if old.is_empty() {
        return Ok(());
    }
    let described = old.iter().map(|cohort| {
        let when = match cohort.published_at {
            Some(published_at) => format!("published {}", crate::check::date(published_at)),
            None => "never imported".to_owned(),
        };
        format!("{:?} of {} ({when})", cohort.name, cohort.partner)
    });
    let described = described.collect::<Vec<_>>().join(", ");
    let ids = old
        .iter()
        .map(|cohort| format!("{}:{}", cohort.partner, cohort.partner_cohort_id));
    Err(Error::new(
        Kind::FailedPrecondition,
        "COHORT_TOO_OLD",
        format!("not imported within the time asked for: {described}"),
    )
    .with("cohorts", ids.collect::<Vec<_>>().join("\n")))
}
