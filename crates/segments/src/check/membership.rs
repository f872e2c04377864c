//! What one cohort says about one user, and since when.

use std::collections::HashMap;

use muster_domain::{
    error::Result,
    user_set::{Standing, Tombstones, UserSet},
};
use muster_service::compute;
use muster_storage::{
    Timestamp,
    rejected::{self, RejectedAdd},
    resolutions::CohortRead,
    versions::{self, History, LastChange},
};
use uuid::Uuid;

use super::Subject;
use crate::evaluation::Plan;

/// What one cohort says about a user.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    pub(crate) cohort: CohortRead,
    pub(crate) how: How,
    /// The version that added or removed the user, and when it was published.
    pub(crate) since: Option<(i64, Timestamp)>,
}

/// Why a user is in a cohort or is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum How {
    Member,
    /// Through this user, who was merged into the one looked at.
    MemberByMerge(u32),
    Removed,
    /// The identifier came but matched nobody.
    Rejected(RejectedAdd),
    NeverUploaded,
    /// Not a member, nor in the many versions that were looked through.
    NotLately,
}

impl Membership {
    pub(crate) fn is_member(&self) -> bool {
        matches!(self.how, How::Member | How::MemberByMerge(_))
    }
}

/// What the cohorts of a plan say about a user, by cohort.
pub(super) async fn find(
    plan: &mut Plan,
    subject: &Subject,
    user: Option<u32>,
) -> Result<HashMap<Uuid, Membership>> {
    let mut merged_into_it = UserSet::new();
    if let Some(user) = user {
        let directory = std::sync::Arc::clone(&plan.directory);
        // There may be millions of tombstones to go through.
        let found = compute(move || predecessors(&directory.tombstones, user));
        merged_into_it = found.await?;
    }
    let mut memberships = HashMap::new();
    for cohort in plan.cohorts.clone() {
        let who = Who {
            subject,
            user,
            merged_into_it: &merged_into_it,
        };
        let id = cohort.id;
        memberships.insert(id, who.membership(plan, cohort).await?);
    }
    Ok(memberships)
}

/// The users that were merged into one, directly or not.
fn predecessors(tombstones: &Tombstones, user: u32) -> UserSet {
    let gone = tombstones.gone().iter();
    gone.filter(|&gone| tombstones.standing(gone) == Standing::Merged(user))
        .collect()
}

struct Who<'a> {
    subject: &'a Subject,
    user: Option<u32>,
    merged_into_it: &'a UserSet,
}

impl Who<'_> {
    async fn membership(&self, plan: &mut Plan, cohort: CohortRead) -> Result<Membership> {
        let (how, change) = self.how(plan, &cohort).await?;
        Ok(Membership {
            cohort,
            how,
            since: change.map(|change| (change.version, change.published_at)),
        })
    }

    async fn how(&self, plan: &mut Plan, cohort: &CohortRead) -> Result<(How, Option<LastChange>)> {
        if cohort.version == 0 {
            return Ok((How::NeverUploaded, None));
        }
        let mut removed: Option<LastChange> = None;
        let mut absent = How::NeverUploaded;
        if let Some(user) = self.user {
            let workspace = plan.workspace;
            let stored =
                versions::stored(&mut plan.tx, workspace, cohort.id, cohort.version).await?;
            if stored.contains(user) {
                return Ok((How::Member, added(plan, cohort, user).await?));
            }
            if let Some(other) = (&stored & self.merged_into_it).min() {
                let since = added(plan, cohort, other).await?;
                return Ok((How::MemberByMerge(other), since));
            }
            let mut users = self.merged_into_it.clone();
            users.insert(user);
            match history(plan, cohort, &users).await? {
                History::Changed(change) => removed = Some(change),
                History::Untouched => {}
                History::TooLong => absent = How::NotLately,
            }
        }
        if let Subject::Identifier(identifier) = self.subject {
            let workspace = plan.workspace;
            let rejected = rejected::newest_add(
                &mut plan.tx,
                workspace,
                cohort.id,
                cohort.version,
                identifier.as_ref(),
            )
            .await?;
            // Whatever happened last is why.
            if let Some(rejected) = rejected
                && removed.is_none_or(|removed| removed.version <= rejected.version)
            {
                return Ok((How::Rejected(rejected), None));
            }
        }
        Ok(match removed {
            Some(removed) => (How::Removed, Some(removed)),
            None => (absent, None),
        })
    }
}

/// The change that brought a member in, if it is known.
async fn added(plan: &mut Plan, cohort: &CohortRead, member: u32) -> Result<Option<LastChange>> {
    let history = history(plan, cohort, &UserSet::from_iter([member])).await?;
    Ok(match history {
        History::Changed(change) if change.added => Some(change),
        _ => None,
    })
}

async fn history(plan: &mut Plan, cohort: &CohortRead, users: &UserSet) -> Result<History> {
    let (workspace, tx) = (plan.workspace, &mut plan.tx);
    Ok(versions::last_change(tx, workspace, cohort.id, cohort.version, users).await?)
}
