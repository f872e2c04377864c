//! Answers and the messages of streams.

use muster_domain::{error::Result, filter::SavedFilter};
use muster_proto::segments::v1::{
    self as pb, diff_resolutions_response::Message as Diff,
    resolve_segment_response::Message as Audience,
};
use muster_service::wire::to_wire;
use muster_storage::{resolutions::CohortRead, segments::Segment};

use super::filter;
use crate::{
    audience::AudienceMessage,
    check::{Answer, How, Membership, Part, State},
    diff::{DiffMessage, Side},
    references::Names,
    resolutions,
    segments::{self, etag},
};

/// A segment.
pub(crate) fn segment(workspace: &str, described: &segments::Described) -> Result<pb::Segment> {
    one_segment(workspace, &described.segment, &described.names)
}

/// Segments with the names that their filters are printed with.
pub(crate) fn segments(
    workspace: &str,
    segments: &[Segment],
    names: &Names,
) -> Result<Vec<pb::Segment>> {
    let segments = segments.iter();
    segments
        .map(|segment| one_segment(workspace, segment, names))
        .collect()
}

fn one_segment(workspace: &str, segment: &Segment, names: &Names) -> Result<pb::Segment> {
    Ok(pb::Segment {
        segment_id: segment.id.to_string(),
        workspace: workspace.to_owned(),
        name: segment.name.clone(),
        filter: Some(filter::to_wire(&segment.filter, names)?),
        filter_text: names.text(&segment.filter, |id| *id)?,
        archived: segment.archived_at.is_some(),
        create_time: Some(to_wire(segment.created_at)),
        update_time: Some(to_wire(segment.updated_at)),
        etag: etag(segment),
    })
}

/// Filters with the number of their users.
pub(crate) fn filter_counts(
    filters: &[(SavedFilter, u64)],
    names: &Names,
) -> Result<Vec<pb::FilterCount>> {
    let counts = filters.iter().map(|(filter, user_count)| {
        Ok(pb::FilterCount {
            user_count: *user_count,
            filter: Some(filter::to_wire(filter, names)?),
            filter_text: names.text(filter, |id| *id)?,
        })
    });
    counts.collect()
}

/// A resolution.
pub(crate) fn resolution(workspace: &str, described: resolutions::Described) -> pb::Resolution {
    let resolution = described.resolution;
    pb::Resolution {
        resolution_id: resolution.id.to_string(),
        workspace: workspace.to_owned(),
        segment_id: resolution
            .segment
            .map(|id| id.to_string())
            .unwrap_or_default(),
        filter_text: resolution.filter_text,
        user_count: resolution.user_count,
        cohort_versions: cohort_versions(described.cohorts),
        create_time: Some(to_wire(resolution.created_at)),
        expire_time: Some(to_wire(resolution.expires_at)),
        created_by: resolution.created_by,
    }
}

/// The cohorts that were read.
pub(crate) fn cohort_versions(cohorts: Vec<CohortRead>) -> Vec<pb::CohortVersion> {
    let cohorts = cohorts.into_iter().map(|cohort| pb::CohortVersion {
        partner: cohort.partner,
        cohort_id: cohort.partner_cohort_id,
        name: cohort.name,
        version: number(cohort.version),
        publish_time: cohort.published_at.map(to_wire),
    });
    cohorts.collect()
}

fn number(version: i64) -> u64 {
    u64::try_from(version).expect("versions count up from 0")
}

/// A message of an audience stream.
pub(crate) fn audience_message(
    workspace: &str,
    message: AudienceMessage,
) -> pb::ResolveSegmentResponse {
    let message = match message {
        AudienceMessage::Header {
            resolution: described,
            partition_user_count,
        } => Audience::Header(pb::AudienceHeader {
            resolution: Some(resolution(workspace, described)),
            partition_user_count,
        }),
        AudienceMessage::Batch {
            users,
            resume_token,
        } => Audience::Batch(pb::AudienceBatch {
            encoded: users.records,
            resume_token,
            ..Default::default()
        }),
        AudienceMessage::End {
            user_count,
            digest,
            withheld_count,
        } => Audience::End(pb::AudienceEnd {
            user_count,
            digest: digest.to_vec().into(),
            withheld_count,
        }),
    };
    pb::ResolveSegmentResponse {
        message: Some(message),
    }
}

/// A message of a difference.
pub(crate) fn diff_message(message: DiffMessage) -> pb::DiffResolutionsResponse {
    let message = match message {
        DiffMessage::Header {
            entered,
            left,
            stayed,
        } => Diff::Header(pb::DiffHeader {
            entered_count: entered,
            left_count: left,
            stayed_count: stayed,
        }),
        DiffMessage::Batch { side, users } => {
            let side = match side {
                Side::Entered => pb::DiffSide::Entered,
                Side::Left => pb::DiffSide::Left,
            };
            Diff::Batch(pb::DiffBatch {
                side: side.into(),
                users: users.records.into(),
            })
        }
        DiffMessage::End => Diff::End(pb::DiffEnd {}),
    };
    pb::DiffResolutionsResponse {
        message: Some(message),
    }
}

/// Whether a user is in an audience, and why.
pub(crate) fn checked(answer: Answer) -> pb::CheckMembershipResponse {
    let state = match answer.state {
        State::Live => pb::SubjectState::Live,
        State::Merged => pb::SubjectState::Merged,
        State::Deleted => pb::SubjectState::Deleted,
        State::Unknown => pb::SubjectState::Unknown,
        State::DeviceOfIdentifiedUser => pb::SubjectState::DeviceOfIdentifiedUser,
    };
    pb::CheckMembershipResponse {
        member: answer.member,
        subject_state: state.into(),
        user_no: answer.user_no,
        reason: answer.reason,
        deciding_path: answer.deciding_path,
        explanation: Some(explanation(answer.explanation)),
    }
}

fn explanation(part: Part) -> pb::Explanation {
    pb::Explanation {
        matched: part.matched,
        path: part.path,
        text: part.text,
        branches: part.branches.into_iter().map(explanation).collect(),
        cohorts: part.cohorts.into_iter().map(membership).collect(),
    }
}

fn membership(found: Membership) -> pb::CohortMembership {
    use pb::MembershipReason;

    let reason = match &found.how {
        How::Member => MembershipReason::Member,
        How::MemberByMerge(_) => MembershipReason::MemberByMerge,
        How::Removed => MembershipReason::Removed,
        How::Rejected(_) => MembershipReason::Rejected,
        How::NeverUploaded | How::NotLately => MembershipReason::NeverUploaded,
    };
    let (import_id, position) = match found.how {
        How::Rejected(rejected) => (rejected.import_id, Some(rejected.position)),
        _ => (String::new(), None),
    };
    pb::CohortMembership {
        partner: found.cohort.partner,
        cohort_id: found.cohort.partner_cohort_id,
        name: found.cohort.name,
        version: number(found.cohort.version),
        reason: reason.into(),
        since_version: found.since.map_or(0, |(version, _)| number(version)),
        since_time: found.since.map(|(_, at)| to_wire(at)),
        import_id,
        position,
    }
}
