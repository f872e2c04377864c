//! Opening an import: who may write what into which cohort, and where to go on.

use muster_domain::{
    error::{Error, FieldContext as _, Kind, Result},
    import::{ImportDigest, Mode},
    name,
};
use muster_service::Caller;
use muster_storage::{
    Connection, WorkspaceId,
    audit::By,
    cohorts::{self, Cohort, CohortKey},
    imports::{self, Import, NewImport, State},
    partners,
};

use crate::{
    Ingest,
    cohorts::record,
    gate,
    session::{Open, Writer},
};

/// A well-formed wish to open an import, for a workspace and partner the caller may write to.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) open: &'a Open,
    pub(crate) workspace: WorkspaceId,
    pub(crate) partner: &'a str,
}

impl<'a> Entry<'a> {
    /// Checks everything that does not need the cohort.
    pub(crate) async fn check(
        ingest: &Ingest,
        caller: &'a Caller,
        open: &'a Open,
    ) -> Result<Entry<'a>> {
        let workspace = caller.workspace(&ingest.store, &open.workspace).await;
        let workspace = workspace.field("open")?;
        let partner = caller.partner(&open.partner)?;
        check_fields(open).field("open")?;
        // That of a key was looked up when the call was admitted, and is again before it publishes.
        if caller.partner.is_none() {
            let mut connection = ingest.store.connection().await?;
            check_partner(&mut connection, workspace, partner).await?;
        }
        Ok(Self {
            open,
            workspace,
            partner,
        })
    }

    pub(crate) fn cohort_key(&self) -> CohortKey<'a> {
        CohortKey {
            partner: self.partner,
            partner_cohort_id: &self.open.cohort_id,
        }
    }

    /// What imports into the cohort queue for.
    pub(crate) fn gate_key(&self) -> gate::Cohort {
        let (partner, id) = (self.partner.to_owned(), self.open.cohort_id.clone());
        (self.workspace, partner, id)
    }

    pub(crate) fn new_import<'b>(&'b self, caller: &'b Caller) -> NewImport<'b> {
        NewImport {
            partner_import_id: &self.open.import_id,
            mode: self.open.mode,
            source_time: self.open.source_time,
            refuse_if_older: self.open.refuse_if_older,
            max_removed_fraction: self.open.max_removed_fraction,
            created_by: &caller.actor,
        }
    }

    /// The cohort, created if it does not exist.
    pub(crate) async fn cohort(&self, conn: &mut Connection, by: By<'_>) -> Result<Cohort> {
        let key = self.cohort_key();
        let mut found = cohorts::find(conn, self.workspace, key).await?;
        if found.is_none() {
            if cohorts::ensure(conn, self.workspace, key).await? {
                record(conn, by, self.workspace, "create", key).await?;
            }
            found = cohorts::find(conn, self.workspace, key).await?;
        }
        let cohort = found.expect("it exists or was created in this transaction");
        cohort.check_not_archived()?;
        Ok(cohort)
    }

    /// Gives the cohort the name that came with the import, if any. Locks the cohort, so the import
    /// must be locked before: that is the order everywhere.
    pub(crate) async fn name(
        &self,
        conn: &mut Connection,
        by: By<'_>,
        cohort: &mut Cohort,
    ) -> Result<()> {
        if !self.open.name.is_empty() && self.open.name != cohort.name {
            cohorts::rename(conn, self.workspace, cohort.id, &self.open.name).await?;
            record(conn, by, self.workspace, "rename", cohort.key()).await?;
            cohort.name.clone_from(&self.open.name);
        }
        Ok(())
    }
}

fn check_fields(open: &Open) -> Result<()> {
    name::check_name(&open.cohort_id).field("cohort_id")?;
    name::check_label(&open.name).field("name")?;
    name::check_name(&open.import_id).field("import_id")?;
    if open.refuse_if_older && open.source_time.is_none() {
        return Err(Error::field(
            "source_time",
            "is required with refuse_if_older",
        ));
    }
    if open.refuse_if_older && open.mode == Mode::Replace {
        return Err(Error::field("refuse_if_older", "goes with DELTA only"));
    }
    match open.max_removed_fraction {
        Some(_) if open.mode == Mode::Delta => Err(Error::field(
            "max_removed_fraction",
            "goes with REPLACE only",
        )),
        Some(fraction) if !(0.0..=1.0).contains(&fraction) => {
            Err(Error::field("max_removed_fraction", "must be 0 to 1"))
        }
        _ => Ok(()),
    }
}

/// Refuses a partner that does not exist or that the workspace has not enabled.
pub(crate) async fn check_partner(
    conn: &mut Connection,
    workspace: WorkspaceId,
    partner: &str,
) -> Result<()> {
    name::check_slug(partner).field("partner")?;
    if partners::is_enabled(conn, workspace, partner).await? {
        return Ok(());
    }
    match partners::find(conn, partner).await? {
        None => Err(Error::not_found("partner", partner)),
        Some(_) => Err(Error::new(
            Kind::FailedPrecondition,
            "PARTNER_NOT_ENABLED",
            format!("the workspace has not enabled {partner}"),
        )),
    }
}

impl Ingest {
    /// Creates an import, or takes over one that is there.
    pub(crate) async fn open(&self, caller: &Caller, entry: &Entry<'_>) -> Result<Writer> {
        let mut tx = self.store.begin_in("open_import", entry.workspace).await?;
        let mut cohort = entry.cohort(&mut tx, caller.by()).await?;
        let new = entry.new_import(caller);
        let (workspace, expiry) = (entry.workspace, self.settings.import_expiry);
        let created = imports::insert(&mut tx, workspace, &cohort, &[new], expiry).await?;
        let import = match created.into_iter().next().flatten() {
            Some(import) => {
                // Only once: a cohort renamed since must not get its old name back from a resume.
                entry.name(&mut tx, caller.by(), &mut cohort).await?;
                import
            }
            None => {
                let (partner, id) = (Some(entry.partner), new.partner_import_id);
                let found = imports::named(&mut tx, workspace, partner, id).await?;
                let mut import = imports::lock(&mut tx, workspace, &found.id).await?;
                check_same(&import, &cohort, &new)?;
                if import.state == State::Open {
                    import.fence =
                        imports::take_over(&mut tx, workspace, &import.id, expiry).await?;
                }
                import
            }
        };
        tx.commit().await?;
        Ok(Writer {
            workspace,
            cohort: entry.gate_key(),
            mode: import.mode,
            fence: import.fence,
            next_offset: import.next_offset,
            digest: match import.state {
                State::Open => ImportDigest::from_state(&import.digest_state)?,
                _ => ImportDigest::default(),
            },
            complete: match import.state {
                State::Open => false,
                State::AwaitingConfirmation | State::Committed => true,
                State::Aborted | State::Expired => return Err(finished(&import)),
            },
            import_id: import.id,
        })
    }
}

/// Refuses to resume an import as something else than it was opened as.
fn check_same(import: &Import, cohort: &Cohort, new: &NewImport<'_>) -> Result<()> {
    let same = import.cohort == cohort.id
        && import.mode == new.mode
        && import.source_time == new.source_time
        && import.refuse_if_older == new.refuse_if_older
        && import.max_removed_fraction == new.max_removed_fraction;
    if same {
        return Ok(());
    }
    Err(Error::new(
        Kind::FailedPrecondition,
        "IMPORT_MISMATCH",
        format!(
            "import {:?} was opened before for another cohort or with other options",
            import.partner_import_id
        ),
    ))
}

/// The import takes no more batches and publishes nothing.
pub(crate) fn finished(import: &Import) -> Error {
    let how = match import.state {
        State::Open => "open",
        State::AwaitingConfirmation => "awaiting confirmation",
        State::Committed => "committed",
        State::Aborted => "aborted",
        State::Expired => "expired",
    };
    Error::new(
        Kind::FailedPrecondition,
        "IMPORT_FINISHED",
        format!("import {:?} is {how}", import.partner_import_id),
    )
}
