//! Whether one user is in a segment, and why: in the same snapshot, and by the same rules, as an
//! evaluation.

mod membership;
mod sentence;

use std::collections::HashMap;

use muster_domain::{
    error::{Error, Result},
    filter::{ExpandedFilter, Explanation, Filter, Finding},
    identifier::Identifier,
    user_set::Standing,
};
use muster_storage::{
    Store, WorkspaceId,
    directory::{Match, match_identifiers},
    resolutions::CohortRead,
};
use uuid::Uuid;

pub(crate) use self::{
    membership::{How, Membership},
    sentence::date,
};
use crate::{
    evaluation::{self, Demands, Plan, Source},
    references::Names,
};

/// Who is asked about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Subject {
    Identifier(Identifier),
    UserNo(u32),
}

/// What the directory knows about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Live,
    /// Merged into the user looked at.
    Merged,
    Deleted,
    Unknown,
    DeviceOfIdentifiedUser,
}

/// Whether the user is in the audience, and why.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) member: bool,
    pub(crate) state: State,
    /// The user looked at.
    pub(crate) user_no: Option<u32>,
    pub(crate) reason: String,
    /// Empty if the directory decided.
    pub(crate) deciding_path: String,
    pub(crate) explanation: Part,
}

/// What a part of the filter says about the user.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) matched: bool,
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) branches: Vec<Part>,
    pub(crate) cohorts: Vec<Membership>,
}

/// Looks a subject up and explains what the filter says.
///
/// # Errors
/// As [`evaluation::plan`].
pub(crate) async fn check(
    store: &Store,
    workspace: WorkspaceId,
    subject: &Subject,
    source: &Source,
) -> Result<Answer> {
    let mut plan = evaluation::plan(store, workspace, source, &Demands::default()).await?;
    let (state, user_no) = look_up(&mut plan, subject).await?;
    let names = plan.names().await?;
    let memberships = membership::find(&mut plan, subject, user_no).await?;
    let (filter, cohorts) = (plan.filter, plan.cohorts);
    plan.tx.commit().await?;

    let explanation = filter.explain(&mut |id: &Uuid| {
        let membership = memberships.get(id);
        let found = membership.ok_or_else(|| missing(*id))?;
        Ok::<_, Error>(found.is_member())
    })?;
    let matched = explanation.matched;
    let decided_by_directory = !matches!(state, State::Live | State::Merged);
    let decision = sentence::decision(&explanation, &memberships);
    let reason = sentence::reason(subject, state, user_no, matched, &decision, || {
        // In the order of the cohorts, so that the same answer is given every time.
        cohorts.iter().filter_map(|it| memberships.get(&it.id))
    });
    let printer = Printer {
        names: &names,
        memberships: &memberships,
    };
    Ok(Answer {
        member: matched && !decided_by_directory,
        state,
        user_no,
        reason,
        deciding_path: if decided_by_directory {
            String::new()
        } else {
            decision.map(|it| it.path).unwrap_or_default()
        },
        explanation: printer.part(&filter, &explanation, String::new())?,
    })
}

fn missing(cohort: Uuid) -> Error {
    Error::internal(format!("cohort {cohort} of a filter does not exist"))
}

/// What the directory knows about the subject, and the user to look at.
async fn look_up(plan: &mut Plan, subject: &Subject) -> Result<(State, Option<u32>)> {
    match subject {
        Subject::Identifier(identifier) => {
            let identifiers = [identifier.as_ref()];
            let matches = match_identifiers(&mut plan.tx, plan.workspace, &identifiers).await?;
            Ok(match matches.first() {
                Some(Match::User(user)) => (State::Live, Some(*user)),
                Some(Match::DeviceOfIdentifiedUser(user)) => {
                    (State::DeviceOfIdentifiedUser, Some(*user))
                }
                Some(Match::Unknown) | None => (State::Unknown, None),
            })
        }
        Subject::UserNo(user) if u64::from(*user) >= plan.directory.next_user_no => {
            Ok((State::Unknown, None))
        }
        Subject::UserNo(user) => Ok(match plan.directory.tombstones.standing(*user) {
            Standing::Live => (State::Live, Some(*user)),
            Standing::Merged(survivor) => (State::Merged, Some(survivor)),
            Standing::Deleted => (State::Deleted, Some(*user)),
        }),
    }
}

/// Prints an explanation beside the filter it explains.
struct Printer<'a> {
    names: &'a Names,
    memberships: &'a HashMap<Uuid, Membership>,
}

impl Printer<'_> {
    fn part(&self, filter: &ExpandedFilter, found: &Explanation, path: String) -> Result<Part> {
        let below = |step: &str| match path.as_str() {
            "" => step.to_owned(),
            path => format!("{path}.{step}"),
        };
        let text = self.names.text(filter, |nested| nested.id)?;
        let (mut branches, mut cohorts) = (Vec::new(), Vec::new());
        // Cohorts are named as `Explanation::reasons` names them, so that the deciding path leads
        // to a part.
        let mut own_path = path.clone();
        match (filter, &found.finding) {
            (Filter::Cohort { cohorts: ids, .. }, Finding::Cohort(_)) => {
                own_path = below("cohort");
                for id in ids {
                    let found = self.memberships.get(id).ok_or_else(|| missing(*id))?;
                    cohorts.push(found.clone());
                }
            }
            (Filter::AllOf(filters), Finding::AllOf(found)) => {
                branches = self.parts(filters, found, &below("all_of"))?;
            }
            (Filter::AnyOf(filters), Finding::AnyOf(found)) => {
                branches = self.parts(filters, found, &below("any_of"))?;
            }
            (Filter::Not(inner), Finding::Not(found)) => {
                branches = vec![self.part(inner, found, below("not"))?];
            }
            (Filter::Segment(nested), Finding::Segment { filter: found, .. }) => {
                branches = vec![self.part(&nested.filter, found, below("segment"))?];
            }
            _ => return Err(Error::internal("an explanation of another filter")),
        }
        Ok(Part {
            matched: found.matched,
            path: own_path,
            text,
            branches,
            cohorts,
        })
    }

    fn parts(
        &self,
        filters: &[ExpandedFilter],
        found: &[Explanation],
        path: &str,
    ) -> Result<Vec<Part>> {
        let pairs = filters.iter().zip(found).enumerate();
        pairs
            .map(|(index, (filter, found))| self.part(filter, found, format!("{path}[{index}]")))
            .collect()
    }
}

/// A cohort as sentences name it, such as `"spring sale" (tinyclues)`.
fn title(cohort: &CohortRead) -> String {
    format!("{:?} ({})", cohort.name, cohort.partner)
}
