//! Cohorts: naming, finding and archiving them.

use muster_domain::{
    error::{Error, FieldContext as _, Kind, Result},
    name,
};
use muster_service::{Caller, Page};
use muster_storage::{
    Connection, Tx, WorkspaceId,
    cohorts::{self, Cohort, CohortKey, Selection},
    versions,
};
use uuid::Uuid;

use crate::{Ingest, open::check_partner};

impl Ingest {
    /// Names a cohort, which is created if it does not exist. Says whether it was.
    pub(crate) async fn upsert_cohort(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        key: CohortKey<'_>,
        new_name: &str,
        etag: &str,
    ) -> Result<(Cohort, bool)> {
        name::check_name(key.partner_cohort_id).field("cohort_id")?;
        name::check_name(new_name).field("name")?;
        check_partner(tx, workspace, key.partner).await?;
        let created = cohorts::ensure(tx, workspace, key).await?;
        let cohort = lock(tx, workspace, key).await?;
        check_etag(&cohort, etag)?;
        cohort.check_not_archived()?;
        cohorts::rename(tx, workspace, cohort.id, new_name).await?;
        Ok((find(tx, workspace, key).await?, created))
    }

    /// A cohort with the number of its live members.
    pub(crate) async fn cohort(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        key: CohortKey<'_>,
    ) -> Result<(Cohort, u64)> {
        if !caller.sees_partner(key.partner) {
            return Err(Error::not_found("cohort", key.partner_cohort_id));
        }
        let snapshot = self.store.directory_snapshot("get_cohort", workspace);
        let (mut tx, directory) = snapshot.await?;
        let cohort = find(&mut tx, workspace, key).await?;
        let stored = versions::stored(&mut tx, workspace, cohort.id, cohort.version).await?;
        let members = directory.tombstones.normalise(stored).len();
        Ok((cohort, members))
    }

    /// A page of cohorts and the token of the next one.
    pub(crate) async fn cohorts(
        &self,
        workspace: WorkspaceId,
        selection: Selection<'_>,
        page: &Page<Uuid>,
    ) -> Result<(Vec<Cohort>, String)> {
        name::check_label(selection.name_contains).field("name_contains")?;
        let mut connection = self.store.read_in("list_cohorts", workspace).await?;
        let (before, limit) = (page.after, page.limit());
        let mut found = cohorts::list(&mut connection, workspace, selection, before, limit).await?;
        let next = page.cut(&mut found, |last| last.id);
        Ok((found, next))
    }

    /// Archives a cohort that no segment uses.
    pub(crate) async fn archive_cohort(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        key: CohortKey<'_>,
        etag: &str,
    ) -> Result<Cohort> {
        let cohort = lock(tx, workspace, key).await?;
        check_etag(&cohort, etag)?;
        let segments = cohorts::used_by(tx, workspace, cohort.id).await?;
        if !segments.is_empty() {
            let names: Vec<String> = segments.iter().map(|name| format!("{name:?}")).collect();
            return Err(Error::new(
                Kind::FailedPrecondition,
                "COHORT_IN_USE",
                format!("the cohort is used by the segments {}", names.join(", ")),
            ));
        }
        cohorts::archive(tx, workspace, cohort.id).await?;
        find(tx, workspace, key).await
    }
}

/// Finds a cohort that must exist.
pub(crate) async fn find(
    conn: &mut Connection,
    workspace: WorkspaceId,
    key: CohortKey<'_>,
) -> Result<Cohort> {
    let found = cohorts::find(conn, workspace, key).await?;
    found.ok_or_else(|| Error::not_found("cohort", key.partner_cohort_id))
}

/// Locks a cohort that must exist.
async fn lock(conn: &mut Connection, workspace: WorkspaceId, key: CohortKey<'_>) -> Result<Cohort> {
    let found = find(conn, workspace, key).await?;
    Ok(cohorts::lock(conn, workspace, found.id).await?)
}

fn check_etag(cohort: &Cohort, etag: &str) -> Result<()> {
    if etag.is_empty() || etag == cohort.revision.to_string() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Aborted,
        "ETAG_MISMATCH",
        "the cohort has changed since the etag was read",
    ))
}
