//! What filters refer to: names and partners' ids become internal ids when a filter comes in, and
//! become names again when it goes out.

use std::collections::HashMap;

use muster_domain::{
    error::{Error, FieldContext as _, Result},
    filter::{CohortRef, Filter, SavedFilter, SegmentRef, WrittenFilter},
    name,
};
use muster_storage::{
    Connection, WorkspaceId,
    references::{self as storage, Candidate, CohortName, SegmentName},
    resolutions::CohortRead,
    segments,
};
use uuid::Uuid;

/// The cohorts that some filters name, as they are, by internal id.
pub(crate) type Named = HashMap<Uuid, CohortRead>;

/// The filter with internal ids in place of names, and the cohorts that it names.
///
/// # Errors
/// `INVALID_ARGUMENT`, with a path relative to the filter, for a name or id that leads to nothing,
/// to something archived or, listing the candidates, to several cohorts.
pub(crate) async fn resolve(
    conn: &mut Connection,
    workspace: WorkspaceId,
    filter: &WrittenFilter,
) -> Result<(SavedFilter, Named)> {
    check(filter)?;
    let referents = Referents::find(conn, workspace, std::slice::from_ref(filter)).await?;
    Ok((referents.resolve(filter)?, referents.cohorts.named()))
}

/// As [`resolve`], for several filters at once; the path of an error begins with `filters[i]`.
pub(crate) async fn resolve_all(
    conn: &mut Connection,
    workspace: WorkspaceId,
    filters: &[WrittenFilter],
) -> Result<(Vec<SavedFilter>, Named)> {
    let path = |index| format!("filters[{index}]");
    for (index, filter) in filters.iter().enumerate() {
        check(filter).field(&path(index))?;
    }
    let referents = Referents::find(conn, workspace, filters).await?;
    let saved = filters.iter().enumerate();
    let saved = saved.map(|(index, filter)| referents.resolve(filter).field(&path(index)));
    Ok((saved.collect::<Result<_>>()?, referents.cohorts.named()))
}

fn check(filter: &WrittenFilter) -> Result<()> {
    let checked = filter.try_map(
        |_, cohort| check_cohort_ref(cohort),
        |segment| match segment {
            SegmentRef::Name(text) => name::check_name(text).field("name"),
            SegmentRef::Id(_) => Ok(()),
        },
    );
    checked.map(drop)
}

fn check_cohort_ref(cohort: &CohortRef) -> Result<()> {
    match cohort {
        CohortRef::Name(text) => name::check_name(text).field("name"),
        CohortRef::Id(text) => name::check_name(text).field("cohort_id"),
    }
}

/// All that some filters may mean.
struct Referents {
    cohorts: Cohorts,
    segments: Segments,
}

impl Referents {
    async fn find(
        conn: &mut Connection,
        workspace: WorkspaceId,
        filters: &[WrittenFilter],
    ) -> Result<Self> {
        Ok(Self {
            cohorts: Cohorts::find(conn, workspace, filters).await?,
            segments: Segments::find(conn, workspace, filters).await?,
        })
    }

    fn resolve(&self, filter: &WrittenFilter) -> Result<SavedFilter> {
        filter.try_map(
            |partner, cohort| self.cohorts.get(partner, cohort),
            |segment| self.segments.get(segment),
        )
    }
}

/// The cohorts that some filters may mean.
struct Cohorts {
    by_id: HashMap<(String, String), Candidate>,
    by_name: HashMap<(String, String), Vec<Candidate>>,
}

impl Cohorts {
    async fn find(
        conn: &mut Connection,
        workspace: WorkspaceId,
        filters: &[WrittenFilter],
    ) -> Result<Self> {
        let (mut ids, mut names) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for (partner, cohort) in filters.iter().flat_map(Filter::cohort_refs) {
            let (columns, text) = match cohort {
                CohortRef::Id(text) => (&mut ids, text),
                CohortRef::Name(text) => (&mut names, text),
            };
            columns.0.push(partner);
            columns.1.push(text.as_str());
        }
        let found = storage::cohorts_by_id(conn, workspace, &ids.0, &ids.1).await?;
        let by_id = found.into_iter().map(|cohort| {
            let key = (cohort.partner.clone(), cohort.partner_cohort_id.clone());
            (key, cohort)
        });
        let mut by_name: HashMap<_, Vec<_>> = HashMap::new();
        for cohort in storage::cohorts_by_name(conn, workspace, &names.0, &names.1).await? {
            let key = (cohort.partner.clone(), cohort.name.clone());
            by_name.entry(key).or_default().push(cohort);
        }
        Ok(Self {
            by_id: by_id.collect(),
            by_name,
        })
    }

    fn named(self) -> Named {
        let by_name = self.by_name.into_values().flatten();
        let all = self.by_id.into_values().chain(by_name);
        all.map(|cohort| (cohort.id, cohort.into())).collect()
    }

    fn get(&self, partner: &str, cohort: &CohortRef) -> Result<Uuid> {
        match cohort {
            CohortRef::Id(id) => match self.by_id.get(&(partner.to_owned(), id.clone())) {
                Some(cohort) if cohort.archived => Err(Error::field(
                    "cohort_id",
                    format!("cohort {id:?} of {partner} is archived"),
                )),
                Some(cohort) => Ok(cohort.id),
                None => Err(Error::field(
                    "cohort_id",
                    format!("{partner} has no cohort {id:?}"),
                )),
            },
            CohortRef::Name(text) => {
                let found = self.by_name.get(&(partner.to_owned(), text.clone()));
                match found.map(Vec::as_slice) {
                    Some([only]) => Ok(only.id),
                    Some(several) => Err(ambiguous(partner, text, several)),
                    None => Err(Error::field(
                        "name",
                        format!("{partner} has no cohort named {text:?}"),
                    )),
                }
            }
        }
    }
}

fn ambiguous(partner: &str, name: &str, candidates: &[Candidate]) -> Error {
    let ids = |separator, quote: fn(&String) -> String| {
        let ids = candidates.iter().map(|it| quote(&it.partner_cohort_id));
        ids.collect::<Vec<_>>().join(separator)
    };
    let listed = ids(", ", |id| format!("{id:?}"));
    let mut error = Error::field(
        "name",
        format!("{partner} has several cohorts named {name:?}; use the id of one: {listed}"),
    )
    .with("candidates", ids(",", String::clone));
    error.reason = "COHORT_NAME_AMBIGUOUS";
    error
}

/// The segments that some filters may mean.
struct Segments {
    by_id: HashMap<Uuid, SegmentName>,
    by_name: HashMap<String, Uuid>,
}

impl Segments {
    async fn find(
        conn: &mut Connection,
        workspace: WorkspaceId,
        filters: &[WrittenFilter],
    ) -> Result<Self> {
        let (mut ids, mut names) = (Vec::new(), Vec::new());
        for segment in filters.iter().flat_map(Filter::segment_refs) {
            match segment {
                SegmentRef::Id(id) => ids.push(*id),
                SegmentRef::Name(name) => names.push(name.as_str()),
            }
        }
        let by_id = storage::segment_names(conn, workspace, &ids).await?;
        let by_name = storage::segments_by_name(conn, workspace, &names).await?;
        Ok(Self {
            by_id: by_id.into_iter().map(|it| (it.id, it)).collect(),
            by_name: by_name.into_iter().map(|it| (it.name, it.id)).collect(),
        })
    }

    fn get(&self, segment: &SegmentRef) -> Result<Uuid> {
        match segment {
            SegmentRef::Id(id) => match self.by_id.get(id) {
                Some(found) if found.archived => Err(Error::field(
                    "segment_id",
                    format!("segment {id} is archived"),
                )),
                Some(found) => Ok(found.id),
                None => Err(Error::field(
                    "segment_id",
                    format!("there is no segment {id}"),
                )),
            },
            SegmentRef::Name(name) => {
                self.by_name.get(name).copied().ok_or_else(|| {
                    Error::field("name", format!("there is no segment named {name:?}"))
                })
            }
        }
    }
}

/// What people call the cohorts and segments of some filters.
#[derive(Debug, Default)]
pub(crate) struct Names {
    cohorts: HashMap<Uuid, CohortName>,
    segments: HashMap<Uuid, SegmentName>,
}

impl Names {
    /// Looks up all that the filters refer to.
    pub(crate) async fn of<'a>(
        conn: &mut Connection,
        workspace: WorkspaceId,
        filters: impl IntoIterator<Item = &'a SavedFilter>,
    ) -> Result<Self> {
        let (mut cohorts, mut segments) = (Vec::new(), Vec::new());
        for filter in filters {
            cohorts.extend(filter.cohort_refs().map(|(_, id)| *id));
            segments.extend(filter.segment_refs().copied());
        }
        let cohorts = storage::cohort_names(conn, workspace, &cohorts).await?;
        let segments = storage::segment_names(conn, workspace, &segments).await?;
        Ok(Self {
            cohorts: cohorts.into_iter().map(|it| (it.id, it)).collect(),
            segments: segments.into_iter().map(|it| (it.id, it)).collect(),
        })
    }

    /// What people call a cohort.
    ///
    /// # Errors
    /// `INTERNAL` if it was not looked up: cohorts are never deleted.
    pub(crate) fn cohort(&self, id: &Uuid) -> Result<&CohortName> {
        let found = self.cohorts.get(id);
        found.ok_or_else(|| Error::internal(format!("cohort {id} of a filter does not exist")))
    }

    /// A filter as people write it: with current names where they are unambiguous, with ids
    /// elsewhere. `segment` gives the id of a nested segment.
    pub(crate) fn text<S>(
        &self,
        filter: &Filter<Uuid, S>,
        segment: impl Fn(&S) -> Uuid,
    ) -> Result<String> {
        let written: WrittenFilter = filter.try_map(
            |_, id| {
                let cohort = self.cohort(id)?;
                Ok(if cohort.unambiguous {
                    CohortRef::Name(cohort.name.clone())
                } else {
                    CohortRef::Id(cohort.partner_cohort_id.clone())
                })
            },
            |nested| {
                let id = segment(nested);
                Ok(match self.segments.get(&id) {
                    Some(found) if !found.archived => SegmentRef::Name(found.name.clone()),
                    _ => SegmentRef::Id(id),
                })
            },
        )?;
        Ok(written.to_string())
    }
}

/// Finds the segment that a request names.
///
/// # Errors
/// `NOT_FOUND`.
pub(crate) async fn find_segment(
    conn: &mut Connection,
    workspace: WorkspaceId,
    segment: &SegmentRef,
) -> Result<segments::Segment> {
    match segment {
        SegmentRef::Id(id) => segments::find(conn, workspace, *id)
            .await?
            .ok_or_else(|| Error::not_found("segment", id)),
        SegmentRef::Name(name) => segments::find_named(conn, workspace, name)
            .await?
            .ok_or_else(|| Error::not_found("segment", name)),
    }
}
