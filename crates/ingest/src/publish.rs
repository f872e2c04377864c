//! Publishing: the one place where a cohort changes.

use std::{collections::HashSet, sync::Arc};

use muster_domain::{
    error::{Error, Kind, Result},
    import::{Mode, Publication, Summary, Tally},
    user_set::UserSet,
};
use muster_service::{Caller, caller::credential_invalid, compute, consistency::ConsistencyToken};
use muster_storage::{
    Timestamp, Tx, WorkspaceId,
    audit::By,
    cohorts::{self, Cohort},
    credentials,
    directory::{self, Directory, feed::Position},
    imports::{self, Batch, Import, State},
    versions::{self, NewVersion},
};

use crate::{
    Ingest,
    batch::fenced,
    cohorts::record_for,
    imports::Named,
    open::finished,
    session::{Commit, Published, Writer},
};

/// How a commit ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Published(Published),
    /// It would remove too many; this is what it would do.
    AwaitingConfirmation(Summary),
}

/// The identifiers to publish.
pub(crate) enum Source {
    /// The batches staged under the import.
    Staged,
    /// A batch that never was staged.
    AtOnce(Batch),
}

/// A cohort that is locked, as the next import finds it, and the directory of this moment.
pub(crate) struct Head {
    cohort: Cohort,
    /// Of when it was locked. Whoever matches an import after that reads it again before it is planned.
    pub(crate) directory: Arc<Directory>,
    /// The users of the cohort, as the imports that were planned leave them.
    members: Arc<UserSet>,
    /// The latest source time of what was published into it since it was locked.
    source_time: Option<Timestamp>,
}

/// An import to publish, with what it makes of its cohort.
pub(crate) struct Planned<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) import: &'a Import,
    pub(crate) digest: &'a [u8],
    pub(crate) publication: Publication,
}

impl Ingest {
    /// Publishes a complete import, or gives the answer of the time it was published.
    pub(crate) async fn commit(
        &self,
        caller: &Caller,
        writer: &Writer,
        commit: &Commit,
    ) -> Result<Outcome> {
        let patience = self.settings.cohort_wait;
        let turn = self.gate.turn(writer.cohort.clone(), patience).await?;
        let (workspace, patience) = (writer.workspace, turn.patience_left());
        let begun = self
            .store
            .begin_waiting("commit_import", workspace, patience);
        let mut tx = begun.await?;
        let import = imports::lock(&mut tx, workspace, &writer.import_id).await?;
        match import.state {
            State::Open if import.fence != writer.fence => Err(fenced()),
            State::Open => {
                check_content(commit, import.next_offset, &writer.digest.finish())?;
                self.publish(tx, caller, workspace, &import, &commit.digest)
                    .await
            }
            State::AwaitingConfirmation | State::Committed => {
                let digest = import.digest.as_deref().expect("a check constraint");
                check_content(commit, import.next_offset, digest)?;
                self.answer(&mut tx, workspace, &import).await
            }
            State::Aborted | State::Expired => Err(finished(&import)),
        }
    }

    /// Publishes a replacement that a person has looked at. Returns `None`, having changed nothing,
    /// if the cohort has changed since such that more members would leave.
    pub(crate) async fn confirm(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
        import: &Import,
    ) -> Result<Option<Published>> {
        let digest = import.digest.as_deref().expect("a check constraint");
        let mut head = self.head(tx, workspace, import.cohort, &[caller]).await?;
        let publication = head.plan(tx, workspace, import, Source::Staged).await?;
        // What the person agreed to: this many leave, or fewer.
        let agreed = import.summary.map_or(0, |preview| preview.members_removed);
        if publication.summary.members_removed > agreed {
            return Ok(None);
        }
        let planned = Planned {
            caller,
            import,
            digest,
            publication,
        };
        let published = head.apply(tx, workspace, &[planned]).await?;
        imports::drop_batches(tx, workspace, &import.id).await?;
        Ok(published.into_iter().next())
    }

    /// Gives an import that awaits confirmation a preview relative to the cohort of this moment.
    pub(crate) async fn renew_preview(&self, caller: &Caller, wanted: Named<'_>) -> Result<()> {
        let workspace = wanted.workspace;
        let mut tx = self.store.begin_in("renew_preview", workspace).await?;
        let import = wanted.lock(&mut tx).await?;
        if let (State::AwaitingConfirmation, Some(digest)) = (import.state, &import.digest) {
            let mut head = self
                .head(&mut tx, workspace, import.cohort, &[caller])
                .await?;
            let plan = head
                .plan(&mut tx, workspace, &import, Source::Staged)
                .await?;
            self.set_awaiting(&mut tx, workspace, &import, digest, &plan.summary)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    /// Publishes what is staged under an import.
    async fn publish(
        &self,
        mut tx: Tx,
        caller: &Caller,
        workspace: WorkspaceId,
        import: &Import,
        digest: &[u8],
    ) -> Result<Outcome> {
        let mut head = self
            .head(&mut tx, workspace, import.cohort, &[caller])
            .await?;
        let publication = head
            .plan(&mut tx, workspace, import, Source::Staged)
            .await?;
        let summary = publication.summary;
        if needs_confirmation(import, &summary) {
            self.set_awaiting(&mut tx, workspace, import, digest, &summary)
                .await?;
            tx.commit().await?;
            return Ok(Outcome::AwaitingConfirmation(summary));
        }
        let planned = Planned {
            caller,
            import,
            digest,
            publication,
        };
        let published = head.apply(&mut tx, workspace, &[planned]).await?;
        imports::drop_batches(&mut tx, workspace, &import.id).await?;
        tx.commit().await?;
        self.remember(workspace, &head);
        let published = published.into_iter().next();
        Ok(Outcome::Published(published.expect("one in, one out")))
    }

    /// Locks a cohort for imports of these callers.
    pub(crate) async fn head(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        cohort: uuid::Uuid,
        callers: &[&Caller],
    ) -> Result<Head> {
        let cohort = cohorts::lock(tx, workspace, cohort).await?;
        cohort.check_not_archived()?;
        // Held until the transaction ends: a revocation that has returned was before this, and
        // nothing is published after it.
        let mut held = HashSet::new();
        for caller in callers {
            if held.insert((caller.credential, caller.peer))
                && !credentials::hold(tx, caller.credential, caller.peer).await?
            {
                return Err(credential_invalid());
            }
        }
        let directory = self.store.directory(tx, workspace).await?;
        let (id, version) = (cohort.id, cohort.version);
        let members = self.store.members(tx, workspace, &directory, id, version);
        Ok(Head {
            members: members.await?,
            cohort,
            directory,
            source_time: None,
        })
    }

    /// Remembers what was published, once it is committed: it is read again by the next import, and
    /// when the cohort is counted.
    pub(crate) fn remember(&self, workspace: WorkspaceId, head: &Head) {
        let (id, version) = (head.cohort.id, head.cohort.version);
        self.store
            .remember_members(workspace, &head.directory, id, version, &head.members);
    }

    async fn set_awaiting(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        import: &Import,
        digest: &[u8],
        preview: &Summary,
    ) -> Result<()> {
        let expiry = self.settings.import_expiry;
        imports::set_awaiting(tx, workspace, &import.id, digest, preview, expiry).await?;
        Ok(())
    }

    /// The answer that an import got when it was published, or when it stopped for confirmation.
    pub(crate) async fn answer(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        import: &Import,
    ) -> Result<Outcome> {
        let summary = import.summary.expect("a check constraint");
        let Some(version) = import.version else {
            return Ok(Outcome::AwaitingConfirmation(summary));
        };
        let epoch = directory::epoch(tx, workspace).await?;
        Ok(Outcome::Published(Published {
            summary,
            version,
            consistency_token: token(workspace, epoch, import.cohort, version),
        }))
    }
}

impl Head {
    /// How far the directory is.
    ///
    /// # Errors
    /// If the workspace has none, which is a defect.
    pub(crate) fn position(&self) -> Result<Position> {
        let position = self.directory.position();
        position.ok_or_else(|| Error::internal("the workspace has no directory"))
    }

    /// Works out what an import makes of the cohort, which the next one then finds as that.
    pub(crate) async fn plan(
        &mut self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        import: &Import,
        source: Source,
    ) -> Result<Publication> {
        if import.refuse_if_older {
            let applied = cohorts::applied_source_time(tx, workspace, self.cohort.id).await?;
            if applied.max(self.source_time) > import.source_time {
                return Err(out_of_order());
            }
        }
        let directory = &self.directory;
        let mut tally = Tally::default();
        match source {
            Source::AtOnce(batch) => {
                tally = fold(tx, workspace, directory, tally, vec![batch]).await?;
            }
            Source::Staged => {
                let mut from = 0;
                loop {
                    let page = imports::batches(tx, workspace, &import.id, from).await?;
                    let Some(last) = page.last() else { break };
                    from = last.first_offset + last.identifier_count;
                    tally = fold(tx, workspace, directory, tally, page).await?;
                }
            }
        }
        let publication = tally.publish(import.mode, &mut self.members, &directory.tombstones);
        if publication.summary.received != import.next_offset {
            // The promise of the product: nothing is published once it is broken.
            return Err(Error::internal(format!(
                "import {:?} received {} identifiers but accounts for {}",
                import.id, import.next_offset, publication.summary.received
            )));
        }
        self.source_time = self.source_time.max(import.source_time);
        Ok(publication)
    }

    /// Publishes what was planned, in that order: a version and an audit event for each import,
    /// however many identifiers it is made of.
    pub(crate) async fn apply(
        &mut self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        planned: &[Planned<'_>],
    ) -> Result<Vec<Published>> {
        let cohort = self.cohort.id;
        let new = planned.iter().map(|it| NewVersion {
            import: &it.import.id,
            import_id: &it.import.partner_import_id,
            source_time: it.import.source_time,
            digest: it.digest,
            publication: &it.publication,
        });
        let new: Vec<NewVersion<'_>> = new.collect();
        let first = versions::publish(tx, workspace, cohort, &new, &self.members).await?;
        let by: Vec<By<'_>> = planned.iter().map(|it| it.caller.by()).collect();
        record_for(tx, &by, workspace, "publish", self.cohort.key()).await?;
        let epoch = self.directory.epoch;
        let published = (first..).zip(planned).map(|(version, it)| Published {
            summary: it.publication.summary,
            version,
            consistency_token: token(workspace, epoch, cohort, version),
        });
        let published: Vec<Published> = published.collect();
        self.cohort.version = published.last().map_or(first, |last| last.version);
        Ok(published)
    }
}

/// A replacement that removes more than its share needs a person.
fn needs_confirmation(import: &Import, preview: &Summary) -> bool {
    import.mode == Mode::Replace
        && import
            .max_removed_fraction
            .is_some_and(|allowed| preview.removed_fraction() > allowed)
}

/// Folds batches into a tally, seen through the directory as it is now.
async fn fold(
    tx: &mut Tx,
    workspace: WorkspaceId,
    directory: &Arc<Directory>,
    mut tally: Tally,
    batches: Vec<Batch>,
) -> Result<Tally> {
    let matched_at = batches.iter().map(|batch| batch.directory_epoch).min();
    let matched_at = matched_at.unwrap_or(directory.epoch);
    // Device ids stop matching users, or their survivors, who became identified since.
    let devices = batches.iter().flat_map(|batch| &batch.runs);
    let devices = devices.filter(|run| run.by_device);
    let last = devices.filter_map(|run| directory.tombstones.normalise(run.users.clone()).max());
    let identified = match last.max() {
        Some(last) if matched_at != directory.epoch => {
            directory::identified_since(tx, workspace, matched_at, last).await?
        }
        _ => UserSet::new(),
    };
    let directory = Arc::clone(directory);
    let several = batches.len() > 1;
    let folded = move || {
        for batch in &batches {
            tally.count_unmatched(batch.unmatched);
        }
        let runs = batches.iter().flat_map(|batch| &batch.runs);
        tally.apply(runs, &directory.tombstones, &identified);
        tally
    };
    // A single one is over before another thread would have begun.
    if several {
        compute(folded).await
    } else {
        Ok(folded())
    }
}

/// Refuses a commit of something else than the server has.
pub(crate) fn check_content(commit: &Commit, total: u64, digest: &[u8]) -> Result<()> {
    if commit.total != total {
        return Err(Error::new(
            Kind::FailedPrecondition,
            "TOTAL_MISMATCH",
            format!(
                "the commit says {} identifiers, the import holds {total}",
                commit.total
            ),
        )
        .with("expected_offset", total));
    }
    if commit.digest != digest {
        return Err(Error::new(
            Kind::FailedPrecondition,
            "DIGEST_MISMATCH",
            "the digest of the commit is not that of the identifiers received",
        ));
    }
    Ok(())
}

fn out_of_order() -> Error {
    Error::new(
        Kind::FailedPrecondition,
        "OUT_OF_ORDER",
        "an import with a later source time was published before",
    )
}

fn token(workspace: WorkspaceId, epoch: i64, cohort: uuid::Uuid, version: i64) -> String {
    ConsistencyToken {
        workspace: workspace.0,
        directory_epoch: epoch,
        cohort: Some((cohort, version)),
    }
    .encode()
}
