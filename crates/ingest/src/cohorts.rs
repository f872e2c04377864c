//! Cohorts: naming, finding and archiving them.

use muster_domain::{
    error::{Error, FieldContext as _, Kind, Result},
    name,
};
use muster_service::{Caller, Page};
use muster_storage::{
    Connection, Tx, WorkspaceId,
    audit::{self, By},
    cohorts::{self, Cohort, CohortKey, Position, Selection},
    versions::{self, Version},
};
use uuid::Uuid;

use crate::{Ingest, open::check_partner};

/// Versions that a cohort is shown with.
const RECENT_VERSIONS: i64 = 20;

/// A cohort with its last versions, oldest first.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) cohort: Cohort,
    pub(crate) recent: Vec<Version>,
}

impl From<Cohort> for Described {
    /// For answers to changes, which do not look the versions up.
    fn from(cohort: Cohort) -> Self {
        let recent = Vec::new();
        Self { cohort, recent }
    }
}

impl Ingest {
    /// Names a cohort, which is created if it does not exist. Says whether it was.
    pub(crate) async fn upsert_cohort(
        &self,
        tx: &mut Tx,
        by: By<'_>,
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
        let change = if created { "create" } else { "rename" };
        record(tx, by, workspace, change, key).await?;
        Ok((find(tx, workspace, key).await?, created))
    }

    /// A cohort with the number of its live members.
    pub(crate) async fn cohort(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        key: CohortKey<'_>,
    ) -> Result<(Described, u64)> {
        if !caller.sees_partner(key.partner) {
            return Err(Error::not_found("cohort", key.partner_cohort_id));
        }
        let snapshot = self.store.directory_snapshot("get_cohort", workspace);
        let (mut tx, directory) = snapshot.await?;
        let cohort = find(&mut tx, workspace, key).await?;
        let (id, version) = (cohort.id, cohort.version);
        let stored = self
            .store
            .members(&mut tx, workspace, &directory, id, version);
        let stored = stored.await?;
        let described = describe(&mut tx, workspace, vec![cohort]).await?;
        let described = described.into_iter().next();
        let described = described.expect("one cohort in, one out");
        let members = directory.tombstones.normalise_shared(stored).len();
        Ok((described, members))
    }

    /// A page of the versions of a cohort and the token of the next one.
    pub(crate) async fn cohort_versions(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        key: CohortKey<'_>,
        page: &Page<i64>,
    ) -> Result<(Vec<Version>, String)> {
        if !caller.sees_partner(key.partner) {
            return Err(Error::not_found("cohort", key.partner_cohort_id));
        }
        let read = self.store.read_in("list_versions", workspace);
        let mut conn = read.await?;
        let cohort = find(&mut conn, workspace, key).await?;
        let (before, limit) = (page.after, page.limit());
        let mut found = versions::list(&mut conn, workspace, cohort.id, before, limit).await?;
        let next = page.cut(&mut found, |last| last.version);
        Ok((found, next))
    }

    /// A page of cohorts and the token of the next one.
    pub(crate) async fn cohorts(
        &self,
        workspace: WorkspaceId,
        selection: Selection<'_>,
        page: &Page<Position>,
    ) -> Result<(Vec<Described>, String)> {
        name::check_label(selection.name_contains).field("name_contains")?;
        let (after, limit, order) = (page.after.as_ref(), page.limit(), selection.order);
        if after.is_some_and(|position| position.order != order) {
            return Err(Error::field("page_token", "is of a list in another order"));
        }
        let mut conn = self.store.read_in("list_cohorts", workspace).await?;
        let mut found = cohorts::list(&mut conn, workspace, selection, after, limit).await?;
        let next = page.cut(&mut found, |last| Position::of(last, order));
        Ok((describe(&mut conn, workspace, found).await?, next))
    }

    /// Archives a cohort that no segment uses.
    pub(crate) async fn archive_cohort(
        &self,
        tx: &mut Tx,
        by: By<'_>,
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
        record(tx, by, workspace, "archive", key).await?;
        find(tx, workspace, key).await
    }
}

/// Writes the audit event of a change of a cohort.
pub(crate) async fn record(
    conn: &mut Connection,
    by: By<'_>,
    workspace: WorkspaceId,
    change: &str,
    key: CohortKey<'_>,
) -> Result<()> {
    record_for(conn, &[by], workspace, change, key).await
}

/// Writes the audit events of the same change of a cohort by each of some callers.
pub(crate) async fn record_for(
    conn: &mut Connection,
    by: &[By<'_>],
    workspace: WorkspaceId,
    change: &str,
    key: CohortKey<'_>,
) -> Result<()> {
    let action = format!("cohort.{change}");
    let resource = format!("cohort:{}/{}", key.partner, key.partner_cohort_id);
    Ok(audit::append_for(conn, Some(workspace), by, &action, &resource).await?)
}

/// Looks the last versions of all these cohorts up at once.
async fn describe(
    conn: &mut Connection,
    workspace: WorkspaceId,
    found: Vec<Cohort>,
) -> Result<Vec<Described>> {
    let ids: Vec<Uuid> = found.iter().map(|cohort| cohort.id).collect();
    let mut recent = versions::recent(conn, workspace, &ids, RECENT_VERSIONS).await?;
    let described = found.into_iter().map(|cohort| Described {
        recent: recent.remove(&cohort.id).unwrap_or_default(),
        cohort,
    });
    Ok(described.collect())
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
