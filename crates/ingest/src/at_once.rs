//! Small imports that arrive whole: done in one transaction, without anything being staged. Those into
//! one cohort that wait for each other share it (group commit), so that many small calls cost little
//! more than one large one; each is an import and a version of its own nevertheless.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use muster_domain::{
    error::{Error, Kind, Result},
    import::ImportDigest,
};
use muster_identity::Identities;
use muster_service::Caller;
use muster_storage::{
    WorkspaceId,
    imports::{self, NewImport},
    rejected,
};
use tokio::sync::oneshot;

use crate::{
    Ingest,
    batch::Changes,
    gate::{self, Turn},
    matching::Resolved,
    open::Entry,
    publish::{Outcome, Planned, Source, check_content},
    session::{Commit, Open},
};

/// Most imports that share a transaction.
const MAX_TOGETHER: usize = 16;

/// An import that arrived whole, and was matched.
#[derive(Debug)]
pub(crate) struct Whole {
    caller: Caller,
    open: Open,
    workspace: WorkspaceId,
    partner: String,
    batch: Resolved,
    commit: Commit,
}

impl Whole {
    /// Checks and matches a whole import.
    ///
    /// # Errors
    /// What is wrong with its batch, or that the commit is of something else; `RESOURCE_EXHAUSTED`
    /// (`RATE_LIMITED`).
    pub(crate) fn new(
        identities: &Identities,
        caller: &Caller,
        entry: &Entry<'_>,
        batch: Changes,
        commit: Commit,
    ) -> Result<Self> {
        batch.check(entry.open.mode)?;
        caller.count_identifiers(entry.workspace, batch.len())?;
        let digest = batch.digest(ImportDigest::default());
        check_content(&commit, batch.end(), &digest.finish())?;
        Ok(Self {
            caller: caller.clone(),
            open: entry.open.clone(),
            workspace: entry.workspace,
            partner: entry.partner.to_owned(),
            batch: Resolved::glance(identities, entry.workspace, batch, digest.state()),
            commit,
        })
    }

    fn entry(&self) -> Entry<'_> {
        Entry {
            open: &self.open,
            workspace: self.workspace,
            partner: &self.partner,
        }
    }

    /// What it was made of.
    pub(crate) fn into_parts(self) -> (Changes, Commit) {
        (self.batch.changes, self.commit)
    }
}

/// What came of a whole import; it comes back, with nothing done, if the partner has one with its id.
type Answer = Result<Result<Outcome, Box<Whole>>>;

/// An import that waits for a transaction.
#[derive(Debug)]
struct Waiting {
    whole: Box<Whole>,
    /// Closed if nobody waits for the answer any more.
    tell: oneshot::Sender<Answer>,
}

/// The imports that wait, by cohort; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group(Arc<Mutex<HashMap<gate::Cohort, VecDeque<Waiting>>>>);

impl Group {
    fn join(&self, cohort: gate::Cohort, waiting: Waiting) {
        let mut queues = self.0.lock().expect("no panic while locked");
        queues.entry(cohort).or_default().push_back(waiting);
    }

    /// Those who have waited longest, and still do.
    fn leave(&self, cohort: &gate::Cohort, at_most: usize) -> Vec<Waiting> {
        let mut queues = self.0.lock().expect("no panic while locked");
        let Some(queue) = queues.get_mut(cohort) else {
            return Vec::new();
        };
        let mut left = Vec::new();
        while left.len() < at_most
            && let Some(waiting) = queue.pop_front()
        {
            if !waiting.tell.is_closed() {
                left.push(waiting);
            }
        }
        if queue.is_empty() {
            queues.remove(cohort);
        }
        left
    }
}

impl Ingest {
    /// Does a whole import, or gives it back if the partner has one with its id.
    pub(crate) async fn import_at_once(&self, whole: Box<Whole>) -> Answer {
        let cohort = whole.entry().gate_key();
        let (tell, answer) = oneshot::channel();
        self.group.join(cohort.clone(), Waiting { whole, tell });
        // Apart from the call, which may end while others are done with it.
        let ingest = self.clone();
        tokio::spawn(async move { ingest.lead(cohort).await });
        answer.await.unwrap_or_else(|_| Err(left_undone()))
    }

    /// Waits for the turn of one import, and does those that wait by then. As many lead as wait or
    /// more, so none is left over.
    async fn lead(&self, cohort: gate::Cohort) {
        let turn = match self
            .gate
            .turn(cohort.clone(), self.settings.cohort_wait)
            .await
        {
            Ok(turn) => turn,
            Err(error) => {
                // Whoever has waited longest has waited for as long as this.
                if let Some(first) = self.group.leave(&cohort, 1).pop() {
                    let _ = first.tell.send(Err(error));
                }
                return;
            }
        };
        let mut group = self.group.leave(&cohort, MAX_TOGETHER);
        match self.import_together(&turn, &mut group).await {
            Ok(outcomes) => {
                for (it, outcome) in group.into_iter().zip(outcomes) {
                    let _ = it.tell.send(Ok(outcome.ok_or(it.whole)));
                }
            }
            Err(error) if group.len() < 2 => {
                if let Some(only) = group.pop() {
                    let _ = only.tell.send(Err(error));
                }
            }
            // One of them spoils it for the others.
            Err(_) => self.import_each(&turn, group).await,
        }
    }

    /// Does imports one by one, until the database goes away.
    async fn import_each(&self, turn: &Turn, group: Vec<Waiting>) {
        for it in group {
            let mut alone = [it];
            let done = self.import_together(turn, &mut alone).await;
            let [it] = alone;
            let unavailable = matches!(&done, Err(error) if error.kind == Kind::Unavailable);
            let answer = done.map(|mut outcomes| outcomes.pop().flatten().ok_or(it.whole));
            let _ = it.tell.send(answer);
            if unavailable {
                return;
            }
        }
    }

    /// Does imports into one cohort in one transaction, in order. `None` stands for one whose id the
    /// partner has used.
    async fn import_together(
        &self,
        turn: &Turn,
        group: &mut [Waiting],
    ) -> Result<Vec<Option<Outcome>>> {
        let Some(first) = group.first() else {
            return Ok(Vec::new());
        };
        let (workspace, patience) = (first.whole.workspace, turn.patience_left());
        let begun = self
            .store
            .begin_waiting("import_at_once", workspace, patience);
        let mut tx = begun.await?;
        let by = first.whole.caller.by();
        let mut cohort = first.whole.entry().cohort(&mut tx, by).await?;
        let entries: Vec<Entry<'_>> = group.iter().map(|it| it.whole.entry()).collect();
        let new = entries.iter().zip(&*group);
        let new = new.map(|(entry, it)| entry.new_import(&it.whole.caller));
        let new: Vec<NewImport<'_>> = new.collect();
        let expiry = self.settings.import_expiry;
        let created = imports::insert(&mut tx, workspace, &cohort, &new, expiry).await?;
        for it in group
            .iter()
            .zip(&created)
            .filter_map(|(it, new)| new.as_ref().and(Some(it)))
        {
            let by = it.whole.caller.by();
            it.whole.entry().name(&mut tx, by, &mut cohort).await?;
        }
        let mut outcomes: Vec<Option<Outcome>> = group.iter().map(|_| None).collect();
        let callers = group.iter().zip(&created).filter_map(|(it, new)| {
            let caller = &it.whole.caller;
            new.as_ref().map(|_| caller)
        });
        let callers: Vec<&Caller> = callers.collect();
        if callers.is_empty() {
            return Ok(outcomes);
        }
        let mut head = self.head(&mut tx, workspace, cohort.id, &callers).await?;
        // Read after they had arrived: every user there was before must have been seen.
        let position = head.position()?;
        let (mut imports, mut batches) = (Vec::new(), Vec::new());
        let mut looked_again = false;
        for (place, (it, import)) in group.iter_mut().zip(created).enumerate() {
            let Some(mut import) = import else { continue };
            let batch = &mut it.whole.batch;
            looked_again |= !batch.has_seen(position);
            let settled = batch.settle(&self.identities, &mut tx, workspace, position);
            let resolution = settled.await?;
            import.next_offset = batch.changes.end();
            let rejections = batch.changes.rejections(&resolution.rejected);
            rejected::insert(&mut tx, workspace, &import.id, 0, &rejections).await?;
            imports.push((place, import));
            batches.push(resolution.batch);
        }
        if looked_again {
            // That may have found people who are nobody yet in the directory as it was read before. The
            // cohort is held meanwhile, which nearly always is milliseconds.
            head.directory = self.store.directory(&mut tx, workspace).await?;
        }
        let mut planned = Vec::new();
        for ((place, import), batch) in imports.iter().zip(batches) {
            let source = Source::AtOnce(batch);
            let publication = head.plan(&mut tx, workspace, import, source).await?;
            let whole = &group[*place].whole;
            planned.push(Planned {
                caller: &whole.caller,
                import,
                digest: &whole.commit.digest,
                publication,
            });
        }
        let published = head.apply(&mut tx, workspace, &planned).await?;
        tx.commit().await?;
        self.remember(workspace, &head);
        for ((place, _), published) in imports.iter().zip(published) {
            outcomes[*place] = Some(Outcome::Published(published));
        }
        Ok(outcomes)
    }
}

/// The transaction that it waited for failed for a reason of its own.
fn left_undone() -> Error {
    Error::new(
        Kind::Unavailable,
        "DATABASE_UNAVAILABLE",
        "the import was not done, because the database went away; try again",
    )
    .retry_after(Duration::from_secs(1))
}
