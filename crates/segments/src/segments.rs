//! Segments: saved, changed, archived.
//!
//! Every change is made under [`storage::lock`], so each is checked against what all others left.

use std::collections::HashMap;

use muster_domain::{
    error::{Error, FieldContext as _, Kind, Result},
    filter::{SavedFilter, SegmentRef, WrittenFilter},
};
use muster_service::Page;
use muster_storage::{
    Connection, Store, WorkspaceId,
    audit::{self, By},
    cohorts::{self, CohortKey},
    references as names,
    segments::{self as storage, Segment, Selection},
};
use uuid::Uuid;

use crate::references::{self, Names, find_segment};

/// A segment, and the names its filter is printed with.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) segment: Segment,
    pub(crate) names: Names,
}

/// What to change of a segment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) name: Option<String>,
    pub(crate) filter: Option<WrittenFilter>,
}

/// Saves a filter under a name.
pub(crate) async fn create(
    conn: &mut Connection,
    workspace: WorkspaceId,
    name: &str,
    filter: &WrittenFilter,
) -> Result<Described> {
    storage::lock(conn, workspace).await?;
    let filter = settle(conn, workspace, None, filter)
        .await
        .field("filter")?;
    let segment = storage::insert(conn, workspace, name, &filter).await?;
    describe(conn, workspace, segment).await
}

/// Writes the audit event of a change of a segment.
pub(crate) async fn record(
    conn: &mut Connection,
    by: By<'_>,
    workspace: WorkspaceId,
    change: &str,
    changed: &Described,
) -> Result<()> {
    let action = format!("segment.{change}");
    let resource = format!("segment:{}", changed.segment.id);
    Ok(audit::append(conn, Some(workspace), by, &action, &resource).await?)
}

/// Finds a segment, archived or not.
pub(crate) async fn get(
    store: &Store,
    workspace: WorkspaceId,
    segment: &SegmentRef,
) -> Result<Described> {
    let mut conn = store.read_in("get_segment", workspace).await?;
    let segment = find_segment(&mut conn, workspace, segment).await?;
    describe(&mut conn, workspace, segment).await
}

/// Which segments to list.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) name_contains: &'a str,
    /// Partner and partner's id of a cohort that they use.
    pub(crate) uses: Option<(&'a str, &'a str)>,
    pub(crate) include_archived: bool,
}

/// A page of segments by name, and where the next one begins.
pub(crate) async fn list(
    store: &Store,
    workspace: WorkspaceId,
    wanted: &Wanted<'_>,
    page: &Page<(String, Uuid)>,
) -> Result<(Vec<Segment>, Names, String)> {
    let mut conn = store.read_in("list_segments", workspace).await?;
    let after = page.after.as_ref().map(|(name, id)| (name.as_str(), *id));
    let cohort = match wanted.uses {
        None => None,
        Some((partner, partner_cohort_id)) => {
            let key = CohortKey {
                partner,
                partner_cohort_id,
            };
            let found = cohorts::find(&mut conn, workspace, key).await?;
            let found = found.ok_or_else(|| Error::not_found("cohort", partner_cohort_id))?;
            Some(found.id)
        }
    };
    let selection = Selection {
        name_contains: wanted.name_contains,
        cohort,
        include_archived: wanted.include_archived,
    };
    let mut segments = storage::list(&mut conn, workspace, selection, after, page.limit()).await?;
    let next = page.cut(&mut segments, |last| (last.name.clone(), last.id));
    let filters = segments.iter().map(|segment| &segment.filter);
    let names = Names::of(&mut conn, workspace, filters).await?;
    Ok((segments, names, next))
}

/// Changes a segment; `etag` is empty or what its etag must be.
pub(crate) async fn update(
    conn: &mut Connection,
    workspace: WorkspaceId,
    segment: &SegmentRef,
    change: &Change,
    etag: &str,
) -> Result<Described> {
    storage::lock(conn, workspace).await?;
    let current = find_segment(conn, workspace, segment).await?;
    check_not_archived(&current)?;
    check_etag(&current, etag)?;
    let name = change.name.as_deref().unwrap_or(&current.name);
    let filter = match &change.filter {
        Some(filter) => settle(conn, workspace, Some(current.id), filter)
            .await
            .field("filter")?,
        None => current.filter,
    };
    let changed = storage::update(conn, workspace, current.id, name, &filter).await?;
    describe(conn, workspace, changed).await
}

/// Archives a segment; `etag` is empty or what its etag must be.
pub(crate) async fn archive(
    conn: &mut Connection,
    workspace: WorkspaceId,
    segment: &SegmentRef,
    etag: &str,
) -> Result<Described> {
    storage::lock(conn, workspace).await?;
    let current = find_segment(conn, workspace, segment).await?;
    if current.archived_at.is_some() {
        return describe(conn, workspace, current).await;
    }
    check_etag(&current, etag)?;
    let users = storage::used_by(conn, workspace, current.id).await?;
    if !users.is_empty() {
        let listed: Vec<String> = users.iter().map(|name| format!("{name:?}")).collect();
        return Err(Error::new(
            Kind::FailedPrecondition,
            "SEGMENT_IN_USE",
            format!(
                "segment {:?} is used by {}",
                current.name,
                listed.join(", ")
            ),
        )
        .with("used_by", users.join("\n")));
    }
    let archived = storage::archive(conn, workspace, current.id).await?;
    describe(conn, workspace, archived).await
}

/// Refuses a segment that is archived.
pub(crate) fn check_not_archived(segment: &Segment) -> Result<()> {
    if segment.archived_at.is_none() {
        return Ok(());
    }
    Err(Error::new(
        Kind::FailedPrecondition,
        "SEGMENT_ARCHIVED",
        format!("segment {:?} is archived", segment.name),
    ))
}

/// The etag of a segment.
pub(crate) fn etag(segment: &Segment) -> String {
    segment.revision.to_string()
}

fn check_etag(segment: &Segment, wanted: &str) -> Result<()> {
    if wanted.is_empty() || wanted == etag(segment) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Aborted,
        "ETAG_MISMATCH",
        "the segment was changed since it was read; read it again",
    )
    .with("etag", etag(segment)))
}

async fn describe(
    conn: &mut Connection,
    workspace: WorkspaceId,
    segment: Segment,
) -> Result<Described> {
    let names = Names::of(conn, workspace, [&segment.filter]).await?;
    Ok(Described { segment, names })
}

/// The filter as it is saved, for a new segment or for the one with an id: everything in it exists
/// and stays, and every segment it ends up in can still be evaluated.
async fn settle(
    conn: &mut Connection,
    workspace: WorkspaceId,
    id: Option<Uuid>,
    filter: &WrittenFilter,
) -> Result<SavedFilter> {
    let (saved, _) = references::resolve(conn, workspace, filter).await?;
    let cohorts: Vec<Uuid> = saved.cohort_refs().map(|(_, cohort)| *cohort).collect();
    // They were not archived a moment ago; from here on they cannot be.
    if let Some(id) = names::hold_cohorts(conn, workspace, &cohorts)
        .await?
        .first()
    {
        return Err(Error::field("", format!("cohort {id:?} is archived")));
    }
    let dependants = match id {
        Some(id) => storage::dependants(conn, workspace, id).await?,
        None => Vec::new(),
    };
    let mut roots: Vec<Uuid> = saved.segment_refs().copied().collect();
    roots.extend(&dependants);
    let known = storage::with_used(conn, workspace, &roots).await?;
    let known: HashMap<Uuid, Segment> = known.into_iter().map(|it| (it.id, it)).collect();
    let lookup = |nested: &Uuid| {
        if id == Some(*nested) {
            Some(&saved)
        } else {
            known.get(nested).map(|segment| &segment.filter)
        }
    };
    saved.expand(lookup)?;
    for dependant in dependants.iter().filter_map(|id| known.get(id)) {
        dependant.filter.expand(lookup).map_err(|error| {
            let problem = error.fields.into_iter().map(|field| field.description);
            let problem = problem.collect::<Vec<_>>().join(", ");
            Error::field(
                "",
                format!("segment {:?}, which uses it: {problem}", dependant.name),
            )
        })?;
    }
    Ok(saved)
}
