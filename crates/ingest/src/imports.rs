//! Imports as things to look at and decide about.

use muster_domain::error::{Error, FieldContext as _, Kind, Result};
use muster_service::{Caller, Page, page};
use muster_storage::{
    Connection, Timestamp, Tx, WorkspaceId, audit,
    cohorts::CohortKey,
    imports::{self, Import, Selection, State},
    rejected::{self, Rejected},
};

use crate::{Ingest, cohorts, open::finished, publish::Outcome, session::Published};

/// Rejected identifiers on a page if the caller does not say.
pub(crate) const DEFAULT_REJECTED: i64 = 1_000;

/// Most rejected identifiers on a page.
pub(crate) const MAX_REJECTED: i64 = 10_000;

/// Which imports to list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) partner: Option<&'a str>,
    /// The partner's id of the cohort; empty for all.
    pub(crate) cohort_id: &'a str,
    pub(crate) state: Option<State>,
    pub(crate) since: Option<Timestamp>,
}

/// An import as a request names it: of the partner of the caller, or of the one it says, or of the
/// only one that has such an import.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'a> {
    pub(crate) workspace: WorkspaceId,
    partner: Option<&'a str>,
    import_id: &'a str,
}

impl<'a> Named<'a> {
    /// Of another partner than its own a caller can name nothing.
    pub(crate) fn by(
        caller: &'a Caller,
        workspace: WorkspaceId,
        partner: &'a str,
        import_id: &'a str,
    ) -> Result<Self> {
        let partner = caller.partner(partner)?;
        Ok(Self {
            workspace,
            partner: Some(partner).filter(|partner| !partner.is_empty()),
            import_id,
        })
    }

    async fn find(self, conn: &mut Connection) -> Result<Import> {
        Ok(imports::named(conn, self.workspace, self.partner, self.import_id).await?)
    }

    /// Finds it, and locks it until the transaction ends.
    pub(crate) async fn lock(self, conn: &mut Connection) -> Result<Import> {
        let found = self.find(conn).await?;
        Ok(imports::lock(conn, self.workspace, &found.id).await?)
    }
}

impl Ingest {
    /// An import.
    pub(crate) async fn import(&self, wanted: Named<'_>) -> Result<Import> {
        let mut connection = self.store.read_in("get_import", wanted.workspace).await?;
        wanted.find(&mut connection).await
    }

    /// A page of imports and the token of the next one.
    pub(crate) async fn imports(
        &self,
        workspace: WorkspaceId,
        wanted: Wanted<'_>,
        page: &Page<(i128, String)>,
    ) -> Result<(Vec<Import>, String)> {
        let mut connection = self.store.read_in("list_imports", workspace).await?;
        let cohort = match (wanted.partner, wanted.cohort_id) {
            (_, "") => None,
            (None, _) => return Err(Error::field("partner", "is required with cohort_id")),
            (Some(partner), partner_cohort_id) => {
                let key = CohortKey {
                    partner,
                    partner_cohort_id,
                };
                Some(cohorts::find(&mut connection, workspace, key).await?.id)
            }
        };
        let selection = Selection {
            partner: wanted.partner,
            cohort,
            state: wanted.state,
            since: wanted.since,
        };
        let before = match &page.after {
            None => None,
            Some((nanos, id)) => {
                let moment = Timestamp::from_unix_timestamp_nanos(*nanos);
                let moment = moment.map_err(|_| Error::field("", "is out of range"));
                Some((moment.field("page_token")?, id.as_str()))
            }
        };
        let limit = page.limit();
        let mut found = imports::list(&mut connection, workspace, selection, before, limit).await?;
        let next = page.cut(&mut found, |last| {
            (last.created_at.unix_timestamp_nanos(), last.id.clone())
        });
        Ok((found, next))
    }

    /// A page of the identifiers of an import that had no effect.
    pub(crate) async fn rejected(
        &self,
        wanted: Named<'_>,
        page: &Page<u64>,
    ) -> Result<(Vec<Rejected>, String)> {
        let workspace = wanted.workspace;
        let mut connection = self.store.read_in("list_rejected", workspace).await?;
        let id = wanted.find(&mut connection).await?.id;
        let from = page.after.map_or(0, |last| last.saturating_add(1));
        let limit = usize::try_from(page.limit()).expect("a page size is small and positive");
        let mut found = rejected::list(&mut connection, workspace, &id, from, limit).await?;
        let mut next = page.cut(&mut found.identifiers, |last| last.position);
        if next.is_empty() && found.more {
            let last = found.identifiers.last().map(|last| last.position);
            next = last.map(|last| page::encode(&last)).unwrap_or_default();
        }
        Ok((found.identifiers, next))
    }

    /// Publishes a replacement that awaits confirmation, in a transaction of the caller's. Returns
    /// `None` if the cohort has changed since the preview.
    pub(crate) async fn confirm_import(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        wanted: Named<'_>,
    ) -> Result<Option<Published>> {
        let workspace = wanted.workspace;
        let import = wanted.lock(tx).await?;
        match import.state {
            State::AwaitingConfirmation => {
                let confirmed = self.confirm(tx, caller, workspace, &import).await?;
                if confirmed.is_some() {
                    record(tx, caller, workspace, "confirm", wanted.import_id).await?;
                }
                return Ok(confirmed);
            }
            // The answer of a first call may have been lost.
            State::Committed => {
                if let Outcome::Published(published) = self.answer(tx, workspace, &import).await? {
                    return Ok(Some(published));
                }
            }
            State::Open | State::Aborted | State::Expired => {}
        }
        Err(Error::new(
            Kind::FailedPrecondition,
            "IMPORT_NOT_AWAITING_CONFIRMATION",
            format!("import {:?} does not await confirmation", wanted.import_id),
        ))
    }

    /// Ends an import without publishing it.
    pub(crate) async fn abort_import(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        wanted: Named<'_>,
    ) -> Result<Import> {
        let workspace = wanted.workspace;
        let import = wanted.lock(tx).await?;
        match import.state {
            State::Open | State::AwaitingConfirmation => {
                imports::set_aborted(tx, workspace, &import.id).await?;
                record(tx, caller, workspace, "abort", wanted.import_id).await?;
            }
            State::Aborted => {}
            State::Committed | State::Expired => return Err(finished(&import)),
        }
        Ok(imports::lock(tx, workspace, &import.id).await?)
    }
}

async fn record(
    conn: &mut Connection,
    caller: &Caller,
    workspace: WorkspaceId,
    verb: &str,
    id: &str,
) -> Result<()> {
    let (action, resource) = (format!("import.{verb}"), format!("import:{id}"));
    Ok(audit::append(conn, Some(workspace), caller.by(), &action, &resource).await?)
}

/// The reason why a confirmation was refused although the import awaits it.
pub(crate) fn preview_outdated() -> Error {
    Error::new(
        Kind::FailedPrecondition,
        "PREVIEW_OUTDATED",
        "the cohort has changed since the preview; look at the new one and confirm again",
    )
}
