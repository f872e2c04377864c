//! Publishing: the one place where a cohort changes.

use muster_domain::{
    error::{Error, Kind, Result},
    import::{ImportDigest, Mode, Publication, Summary, Tally},
    user_set::UserSet,
};
use muster_service::{Caller, caller::credential_invalid, consistency::ConsistencyToken};
use muster_storage::{
    Tx, WorkspaceId,
    cohorts::{self, Cohort},
    credentials,
    directory::{self, Directory},
    imports::{self, Batch, Import, State},
    rejected, versions,
};

use crate::{
    Ingest,
    batch::{Changes, fenced, resolve},
    cohorts::record,
    imports::Named,
    open::{Entry, finished},
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
enum Source {
    /// The batches staged under the import.
    Staged,
    /// A batch that never was staged.
    AtOnce(Batch),
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
        let mut tx = self
            .store
            .begin_in("commit_import", writer.workspace)
            .await?;
        tx.wait_for_locks(turn.patience_left()).await?;
        let import = imports::lock(&mut tx, writer.workspace, &writer.import_id).await?;
        match import.state {
            State::Open if import.fence != writer.fence => Err(fenced()),
            State::Open => {
                check_content(commit, import.next_offset, &writer.digest.finish())?;
                self.publish(
                    tx,
                    caller,
                    writer.workspace,
                    &import,
                    commit,
                    Source::Staged,
                )
                .await
            }
            State::AwaitingConfirmation | State::Committed => {
                let digest = import.digest.as_deref().expect("a check constraint");
                check_content(commit, import.next_offset, digest)?;
                self.answer(&mut tx, writer.workspace, &import).await
            }
            State::Aborted | State::Expired => Err(finished(&import)),
        }
    }

    /// Does the whole of a new, small import in one transaction. Returns `None`, having done
    /// nothing, if the import is not new.
    pub(crate) async fn import_at_once(
        &self,
        caller: &Caller,
        entry: &Entry<'_>,
        batch: &Changes,
        commit: &Commit,
    ) -> Result<Option<Outcome>> {
        batch.check(entry.open.mode)?;
        // A replacement that stops for confirmation is folded again later: it must be staged.
        if batch.offset != 0 || entry.open.max_removed_fraction.is_some() {
            return Ok(None);
        }
        let workspace = entry.workspace;
        caller.count_identifiers(workspace, batch.len())?;
        let patience = self.settings.cohort_wait;
        let turn = self.gate.turn(entry.gate_key(), patience).await?;
        let mut tx = self.store.begin_in("import_at_once", workspace).await?;
        tx.wait_for_locks(turn.patience_left()).await?;
        let cohort = entry.cohort(&mut tx, caller.by()).await?;
        let new = entry.new_import(caller, &cohort);
        let expiry = self.settings.import_expiry;
        let Some(id) = imports::insert(&mut tx, workspace, &new, expiry).await? else {
            return Ok(None);
        };
        let mut import = imports::lock(&mut tx, workspace, &id).await?;
        entry.name(&mut tx, caller.by(), &cohort).await?;
        let digest = batch.digest(ImportDigest::default());
        let identities = &self.identities;
        let state = digest.state();
        let resolution = resolve(identities, &mut tx, workspace, batch, &state).await?;
        import.next_offset = batch.end();
        check_content(commit, import.next_offset, &digest.finish())?;
        let rejections = batch.rejections(&resolution.rejected);
        rejected::insert(&mut tx, workspace, &id, 0, &rejections).await?;
        let source = Source::AtOnce(resolution.batch);
        let outcome = self.publish(tx, caller, workspace, &import, commit, source);
        Ok(Some(outcome.await?))
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
        let plan = self
            .plan(tx, caller, workspace, import, Source::Staged)
            .await?;
        // What the person agreed to: this many leave, or fewer.
        let agreed = import.summary.map_or(0, |preview| preview.members_removed);
        if plan.publication.summary.members_removed > agreed {
            return Ok(None);
        }
        Ok(Some(
            self.apply(tx, caller, workspace, import, digest, &plan)
                .await?,
        ))
    }

    /// Gives an import that awaits confirmation a preview relative to the cohort of this moment.
    pub(crate) async fn renew_preview(&self, caller: &Caller, wanted: Named<'_>) -> Result<()> {
        let mut tx = self
            .store
            .begin_in("renew_preview", wanted.workspace)
            .await?;
        let workspace = wanted.workspace;
        let import = wanted.lock(&mut tx).await?;
        if let (State::AwaitingConfirmation, Some(digest)) = (import.state, &import.digest) {
            let plan = self
                .plan(&mut tx, caller, workspace, &import, Source::Staged)
                .await?;
            self.set_awaiting(&mut tx, workspace, &import, digest, &plan)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn publish(
        &self,
        mut tx: Tx,
        caller: &Caller,
        workspace: WorkspaceId,
        import: &Import,
        commit: &Commit,
        source: Source,
    ) -> Result<Outcome> {
        let plan = self
            .plan(&mut tx, caller, workspace, import, source)
            .await?;
        let summary = plan.publication.summary;
        let outcome = if needs_confirmation(import, &summary) {
            self.set_awaiting(&mut tx, workspace, import, &commit.digest, &plan)
                .await?;
            Outcome::AwaitingConfirmation(summary)
        } else {
            let published = self.apply(&mut tx, caller, workspace, import, &commit.digest, &plan);
            Outcome::Published(published.await?)
        };
        tx.commit().await?;
        Ok(outcome)
    }

    /// Works out what an import makes of its cohort, which stays locked, against the directory of
    /// this moment.
    async fn plan(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
        import: &Import,
        source: Source,
    ) -> Result<Plan> {
        let cohort = cohorts::lock(tx, workspace, import.cohort).await?;
        cohort.check_not_archived()?;
        if import.refuse_if_older {
            let applied = cohorts::applied_source_time(tx, workspace, cohort.id).await?;
            if applied > import.source_time {
                return Err(out_of_order());
            }
        }
        // Held until the transaction ends: a revocation that has returned was before this, and
        // nothing is published after it.
        if !credentials::hold(tx, caller.credential, caller.peer).await? {
            return Err(credential_invalid());
        }
        let directory = self.store.directory(tx, workspace).await?;
        let mut tally = Tally::default();
        match source {
            Source::AtOnce(batch) => {
                fold(tx, workspace, &directory, &mut tally, &[batch]).await?;
            }
            Source::Staged => {
                let mut from = 0;
                loop {
                    let page = imports::batches(tx, workspace, &import.id, from).await?;
                    let Some(last) = page.last() else { break };
                    from = last.first_offset + last.identifier_count;
                    fold(tx, workspace, &directory, &mut tally, &page).await?;
                }
            }
        }
        let stored = versions::stored(tx, workspace, cohort.id, cohort.version).await?;
        let publication = tally.publish(import.mode, &stored, &directory.tombstones);
        if publication.summary.received != import.next_offset {
            // The promise of the product: nothing is published once it is broken.
            return Err(Error::internal(format!(
                "import {:?} received {} identifiers but accounts for {}",
                import.id, import.next_offset, publication.summary.received
            )));
        }
        Ok(Plan {
            cohort,
            publication,
            directory_epoch: directory.epoch,
        })
    }

    /// Publishes a plan, with one audit event however many identifiers it is made of.
    async fn apply(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        workspace: WorkspaceId,
        import: &Import,
        digest: &[u8],
        plan: &Plan,
    ) -> Result<Published> {
        let (cohort, publication) = (plan.cohort.id, &plan.publication);
        let time = import.source_time;
        let version = versions::publish(
            tx,
            workspace,
            cohort,
            &import.partner_import_id,
            time,
            publication,
        )
        .await?;
        let summary = publication.summary;
        imports::set_committed(tx, workspace, &import.id, digest, &summary, version).await?;
        record(tx, caller.by(), workspace, "publish", plan.cohort.key()).await?;
        Ok(Published {
            summary,
            version,
            consistency_token: token(workspace, plan.directory_epoch, cohort, version),
        })
    }

    async fn set_awaiting(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        import: &Import,
        digest: &[u8],
        plan: &Plan,
    ) -> Result<()> {
        let preview = &plan.publication.summary;
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

/// What an import makes of its cohort.
struct Plan {
    cohort: Cohort,
    publication: Publication,
    directory_epoch: i64,
}

/// A replacement that removes more than its share needs a person.
fn needs_confirmation(import: &Import, preview: &Summary) -> bool {
    import.mode == Mode::Replace
        && import
            .max_removed_fraction
            .is_some_and(|allowed| preview.removed_fraction() > allowed)
}

/// Folds batches into the tally, seen through the directory as it is now.
async fn fold(
    tx: &mut Tx,
    workspace: WorkspaceId,
    directory: &Directory,
    tally: &mut Tally,
    batches: &[Batch],
) -> Result<()> {
    let matched_at = batches.iter().map(|batch| batch.directory_epoch).min();
    let matched_at = matched_at.unwrap_or(directory.epoch);
    let runs = || batches.iter().flat_map(|batch| &batch.runs);
    // Device ids stop matching users, or their survivors, who became identified since.
    let devices = runs().filter(|run| run.by_device);
    let last = devices.filter_map(|run| directory.tombstones.normalise(run.users.clone()).max());
    let identified = match last.max() {
        Some(last) if matched_at != directory.epoch => {
            directory::identified_since(tx, workspace, matched_at, last).await?
        }
        _ => UserSet::new(),
    };
    for batch in batches {
        tally.count_unmatched(batch.unmatched);
    }
    for run in runs() {
        tally.apply(run, &directory.tombstones, &identified);
    }
    Ok(())
}

/// Refuses a commit of something else than the server has.
fn check_content(commit: &Commit, total: u64, digest: &[u8]) -> Result<()> {
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
