//! Between the messages of `muster.segments.v1` and what they stand for.

mod answer;
mod filter;

pub(crate) use self::answer::{
    audience_message, checked, cohort_versions, diff_message, filter_counts, resolution, segment,
    segments,
};

use std::time::Duration;

use muster_domain::{
    error::{Error, FieldContext as _, Result},
    filter::{SegmentRef, WrittenFilter},
    identifier::{Identifier, IdentifierRef},
    name,
};
use muster_proto::{
    segments::v1::{
        self as pb, check_membership_request as check, count_segment_request as count,
        resolve_segment_request as resolve,
    },
    users::v1 as users,
};
use muster_service::{ConsistencyToken, wire::from_wire};
use muster_storage::Timestamp;
use uuid::Uuid;

use crate::{
    audience::Partition,
    check::Subject,
    evaluation::{Demands, Source},
    records::View,
    resolutions::parse_id,
    segments::{Change, Wanted},
};

fn missing() -> Error {
    Error::field("", "must be set")
}

/// Name and filter of a new segment.
pub(crate) fn new_segment(body: &pb::CreateSegmentRequest) -> Result<WrittenFilter> {
    name::check_name(&body.name).field("name")?;
    filter::expression(body.filter.as_ref()).field("filter")
}

/// The segment a request names.
pub(crate) fn segment_ref(segment: Option<&pb::SegmentReference>) -> Result<SegmentRef> {
    filter::segment_ref(segment.ok_or_else(missing).field("segment")?).field("segment")
}

/// The segment a request may name.
pub(crate) fn optional_segment_ref(
    segment: Option<&pb::SegmentReference>,
) -> Result<Option<SegmentRef>> {
    segment
        .map(|segment| segment_ref(Some(segment)))
        .transpose()
}

/// What to change of a segment.
pub(crate) fn change(body: &pb::UpdateSegmentRequest) -> Result<Change> {
    let (name, filter) = match &body.update_mask {
        None => (!body.name.is_empty(), body.filter.is_some()),
        Some(mask) => {
            for path in &mask.paths {
                if !["name", "filter"].contains(&path.as_str()) {
                    let description = format!("{path:?} is not one of name, filter");
                    return Err(Error::field("update_mask", description));
                }
            }
            let has = |field: &str| mask.paths.iter().any(|path| path == field);
            (has("name"), has("filter"))
        }
    };
    if !name && !filter {
        let description = "names nothing to change; it may have name and filter";
        return Err(Error::field("update_mask", description));
    }
    if name {
        name::check_name(&body.name).field("name")?;
    }
    let filter = if filter {
        Some(filter::expression(body.filter.as_ref()).field("filter")?)
    } else {
        None
    };
    Ok(Change {
        name: name.then(|| body.name.clone()),
        filter,
    })
}

fn source_of_segment(segment: &pb::SegmentReference) -> Result<Source> {
    Ok(Source::Segment(segment_ref(Some(segment))?))
}

fn source_of_filter(filter: &pb::FilterExpression) -> Result<Source> {
    let filter = filter::expression(Some(filter)).field("filter")?;
    Ok(Source::Filter(filter))
}

fn audience_missing() -> Error {
    Error::field("audience", "must be set: a segment or a filter")
}

/// What to count.
pub(crate) fn count(
    body: &pb::CountSegmentRequest,
    patience: Duration,
) -> Result<(Source, Demands)> {
    let source = match body.audience.as_ref().ok_or_else(audience_missing)? {
        count::Audience::Segment(segment) => source_of_segment(segment)?,
        count::Audience::Filter(filter) => source_of_filter(filter)?,
    };
    let demands = Demands {
        token: token(&body.consistency_token)?,
        max_cohort_age: None,
        patience,
    };
    Ok((source, demands))
}

/// Filters that may be counted at once.
const MAX_FILTERS: usize = 100;

/// What to count at one snapshot.
pub(crate) fn filters(
    body: &pb::CountFiltersRequest,
    patience: Duration,
) -> Result<(Vec<WrittenFilter>, Demands)> {
    if !(1..=MAX_FILTERS).contains(&body.filters.len()) {
        let description = format!("must hold 1 to {MAX_FILTERS} filters");
        return Err(Error::field("filters", description));
    }
    let filters = body.filters.iter().enumerate().map(|(index, expression)| {
        filter::expression(Some(expression)).field(&format!("filters[{index}]"))
    });
    let demands = Demands {
        token: token(&body.consistency_token)?,
        max_cohort_age: None,
        patience,
    };
    Ok((filters.collect::<Result<_>>()?, demands))
}

/// Which segments to list.
pub(crate) fn wanted_segments(body: &pb::ListSegmentsRequest) -> Result<Wanted<'_>> {
    name::check_label(&body.name_contains).field("name_contains")?;
    let uses = body.uses.as_ref().map(|uses| {
        name::check_slug(&uses.partner).field("uses.partner")?;
        Ok::<_, Error>((uses.partner.as_str(), uses.cohort_id.as_str()))
    });
    Ok(Wanted {
        name_contains: &body.name_contains,
        uses: uses.transpose()?,
        include_archived: body.include_archived,
    })
}

/// When the resolutions to list were made: from, until.
pub(crate) fn period(
    body: &pb::ListResolutionsRequest,
) -> Result<(Option<Timestamp>, Option<Timestamp>)> {
    let since = body.since.as_ref().map(from_wire).transpose();
    let until = body.until.as_ref().map(from_wire).transpose();
    Ok((since.field("since")?, until.field("until")?))
}

/// What to stream: something evaluated now, or a kept resolution.
#[derive(Debug)]
pub(crate) enum Audience {
    Now(Source, Demands),
    Kept(Uuid),
}

/// What to stream, and how.
#[derive(Debug)]
pub(crate) struct Resolve {
    pub(crate) audience: Audience,
    pub(crate) view: View,
    pub(crate) partition: Partition,
    pub(crate) resume_token: String,
    pub(crate) request_id: String,
    /// The parts of the request that define the resolution.
    pub(crate) defining: pb::ResolveSegmentRequest,
}

/// Reads a request for an audience.
pub(crate) fn resolve(body: pb::ResolveSegmentRequest, patience: Duration) -> Result<Resolve> {
    let max_cohort_age = body.max_cohort_age.as_ref().map(|age| {
        Duration::try_from(*age).map_err(|_| Error::field("max_cohort_age", "must not be negative"))
    });
    let demands = Demands {
        token: token(&body.consistency_token)?,
        max_cohort_age: max_cohort_age.transpose()?,
        patience,
    };
    let audience = match &body.audience {
        Some(resolve::Audience::Segment(segment)) => {
            Audience::Now(source_of_segment(segment)?, demands)
        }
        Some(resolve::Audience::Filter(filter)) => {
            Audience::Now(source_of_filter(filter)?, demands)
        }
        Some(resolve::Audience::ResolutionId(id)) => Audience::Kept(parse_id(id, "resolution_id")?),
        None => {
            let description = "must be set: a segment, a filter or a resolution_id";
            return Err(Error::field("audience", description));
        }
    };
    if !body.resume_token.is_empty() && !matches!(audience, Audience::Kept(_)) {
        let description = "goes with the resolution_id of the stream that gave it out";
        return Err(Error::field("resume_token", description));
    }
    let partition = match &body.partition {
        Some(part) => Partition::new(part.index, part.count).field("partition")?,
        None => Partition::WHOLE,
    };
    Ok(Resolve {
        audience,
        view: view(body.view)?,
        partition,
        resume_token: body.resume_token,
        request_id: body.request_id,
        defining: pb::ResolveSegmentRequest {
            audience: body.audience,
            consistency_token: body.consistency_token,
            max_cohort_age: body.max_cohort_age,
            ..Default::default()
        },
    })
}

/// What to print of each user.
pub(crate) fn view(view: i32) -> Result<View> {
    match pb::AudienceView::try_from(view) {
        Ok(pb::AudienceView::UserNo) => Ok(View::UserNo),
        Ok(pb::AudienceView::Unspecified | pb::AudienceView::ExternalId) => Ok(View::ExternalId),
        Ok(pb::AudienceView::Full) => Ok(View::Full),
        Err(_) => Err(Error::field("view", "is not one this server knows")),
    }
}

fn token(token: &str) -> Result<Option<ConsistencyToken>> {
    if token.is_empty() {
        return Ok(None);
    }
    let token = ConsistencyToken::decode(token).field("consistency_token")?;
    Ok(Some(token))
}

/// Whom to check, and for what.
pub(crate) fn check(body: &pb::CheckMembershipRequest) -> Result<(Subject, Source)> {
    let subject = match &body.user {
        Some(check::User::Identifier(sent)) => {
            Subject::Identifier(identifier(sent).field("identifier")?)
        }
        Some(check::User::UserNo(user)) => Subject::UserNo(*user),
        None => {
            let description = "must be set: an identifier or a user_no";
            return Err(Error::field("user", description));
        }
    };
    let source = match body.audience.as_ref().ok_or_else(audience_missing)? {
        check::Audience::Segment(segment) => source_of_segment(segment)?,
        check::Audience::Filter(filter) => source_of_filter(filter)?,
    };
    Ok((subject, source))
}

fn identifier(sent: &users::Identifier) -> Result<Identifier> {
    use users::identifier::Kind;

    let identifier = match sent.kind.as_ref().ok_or_else(missing)? {
        Kind::ExternalId(id) => IdentifierRef::external_id(id),
        Kind::Alias(alias) => IdentifierRef::alias(&alias.label, &alias.name),
        Kind::DeviceId(id) => IdentifierRef::device_id(id),
    };
    identifier.check()?;
    Ok(identifier.to_owned())
}
