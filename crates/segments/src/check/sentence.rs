//! The reason in one sentence.

use std::collections::HashMap;

use muster_domain::filter::Explanation;
use muster_storage::Timestamp;
use time::macros::format_description;
use uuid::Uuid;

use super::{How, Membership, State, Subject, title};

/// The part of the filter that decided, and the cohort in it that says most.
pub(super) struct Decision<'a> {
    pub(super) path: String,
    membership: &'a Membership,
}

/// Picks, among the conditions that settle the answer, the cohort that tells most: one that has or
/// had the user before one that never heard of them.
pub(super) fn decision<'a>(
    explanation: &Explanation,
    memberships: &'a HashMap<Uuid, Membership>,
) -> Option<Decision<'a>> {
    let mut best: Option<Decision<'a>> = None;
    for reason in explanation.reasons() {
        for membership in reason
            .cohort
            .cohorts
            .iter()
            .filter_map(|id| memberships.get(id))
        {
            let better = |best: &Decision<'_>| telling(membership) > telling(best.membership);
            if best.as_ref().is_none_or(better) {
                best = Some(Decision {
                    path: reason.path.clone(),
                    membership,
                });
            }
        }
    }
    best
}

fn telling(membership: &Membership) -> u8 {
    match membership.how {
        How::Member | How::MemberByMerge(_) => 3,
        How::Removed => 2,
        How::Rejected(_) => 1,
        How::NeverUploaded | How::NotLately => 0,
    }
}

/// Why the subject is in the audience, or is not.
pub(super) fn reason<'a, I: Iterator<Item = &'a Membership>>(
    subject: &Subject,
    state: State,
    user_no: Option<u32>,
    matched: bool,
    decision: &Option<Decision<'_>>,
    memberships: impl FnOnce() -> I,
) -> String {
    let verdict = || match decision {
        Some(decision) => verdict(matched, decision.membership),
        None => if matched { "in it" } else { "not in it" }.to_owned(),
    };
    match (state, subject) {
        (State::Live, _) => verdict(),
        (State::Merged, Subject::UserNo(user)) => {
            let survivor = user_no.map_or_else(|| "another".to_owned(), |no| no.to_string());
            format!(
                "user {user} was merged into user {survivor}, who is {}",
                verdict()
            )
        }
        (State::Deleted, Subject::UserNo(user)) => {
            format!("user {user} was deleted, and an audience holds live users only")
        }
        (State::Unknown, Subject::UserNo(user)) => format!("there is no user {user}"),
        (State::DeviceOfIdentifiedUser, Subject::Identifier(identifier)) => format!(
            "{:?} is a device of an identified user, and devices match anonymous users only",
            identifier.id
        ),
        (_, Subject::Identifier(identifier)) => {
            let rejected = memberships().find_map(|membership| match &membership.how {
                How::Rejected(_) => Some(clause(membership)),
                _ => None,
            });
            match rejected {
                Some(rejected) => format!("nobody has {identifier}; {rejected}"),
                None => format!("nobody has {identifier}"),
            }
        }
        // The directory never says so of a number.
        (State::DeviceOfIdentifiedUser, Subject::UserNo(user)) => format!("user {user}"),
    }
}

fn verdict(matched: bool, membership: &Membership) -> String {
    let verdict = if matched { "in it" } else { "not in it" };
    let clause = clause(membership);
    // Presence lets in and absence keeps out, unless the filter turns it round.
    match (matched, membership.is_member()) {
        (true, true) | (false, false) => format!("{verdict}: {clause}"),
        (false, true) => format!("{verdict}: {clause}, and the filter leaves its members out"),
        (true, false) => format!("{verdict}: {clause}, whose members the filter leaves out"),
    }
}

fn clause(membership: &Membership) -> String {
    let cohort = title(&membership.cohort);
    let since = membership
        .since
        .map(|(version, at)| format!("version {version} on {}", date(at)));
    match (&membership.how, since) {
        (How::Member, Some(since)) => format!("{cohort} added the user in {since}"),
        (How::Member, None) => format!("{cohort} has the user"),
        (How::MemberByMerge(other), Some(since)) => {
            format!("{cohort} added user {other}, who was merged into this one, in {since}")
        }
        (How::MemberByMerge(other), None) => {
            format!("{cohort} has user {other}, who was merged into this one")
        }
        (How::Removed, Some(since)) => format!("removed from {cohort} by {since}"),
        (How::Removed, None) => format!("removed from {cohort}"),
        (How::Rejected(rejected), _) => format!(
            "it was uploaded to {cohort} (import {:?}, position {}) but matched nobody then",
            rejected.import_id, rejected.position
        ),
        (How::NotLately, _) => format!("{cohort} does not have the user, and has not had lately"),
        (How::NeverUploaded, _) => format!("never uploaded to {cohort}"),
    }
}

/// A moment as sentences say it, to the minute.
pub(crate) fn date(moment: Timestamp) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    moment
        .to_offset(time::UtcOffset::UTC)
        .format(&format)
        .unwrap_or_else(|_| moment.to_string())
}
