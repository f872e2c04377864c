//! `muster segment`: saved filters over cohorts, and the audiences they stand for.

mod check;
mod diff;
mod resolve;
mod writer;

use muster_proto::segments::v1 as pb;
use prost_types::{FieldMask, Timestamp};
use uuid::Uuid;

use super::cohort::{self, CohortName};
use crate::{
    error::{Result, required},
    page::Limit,
    session::{Session, request_id},
    when,
};

/// The verbs of `muster segment`; those without a description have it, at length, at their
/// arguments.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Segment {
    /// Save a filter under a name
    Create {
        /// The name
        #[arg(value_name = "NAME")]
        name: String,
        /// The filter, such as: tinyclues:"spring sale" and not tinyclues:id("c_9")
        #[arg(value_name = "FILTER")]
        filter: String,
    },
    /// List the segments, by name
    List {
        /// Only those whose name contains this
        #[arg(value_name = "TEXT", default_value = "", hide_default_value = true)]
        text: String,
        /// Only those that use this cohort: the partner's id, or its current name
        #[arg(long)]
        cohort: Option<String>,
        /// Slug of the partner of the cohort
        #[arg(long, requires = "cohort")]
        partner: Option<String>,
        /// List archived segments, too
        #[arg(long)]
        archived: bool,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show one segment
    Show(SegmentName),
    /// Change name or filter
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Update {
        #[command(flatten)]
        segment: SegmentName,
        /// The new name
        #[arg(long, group = "change")]
        name: Option<String>,
        /// The new filter
        #[arg(long, group = "change")]
        filter: Option<String>,
    },
    /// Archive a segment
    Archive(SegmentName),
    /// Count the users of a segment or filter, exactly
    Count {
        #[command(flatten)]
        audience: Audience,
        /// Count what this token stands for, too
        #[arg(
            long,
            value_name = "TOKEN",
            default_value = "",
            hide_default_value = true
        )]
        consistency_token: String,
    },
    Resolve(resolve::ResolveArgs),
    /// List kept resolutions, newest first
    Resolutions {
        /// Only of this segment: its name or id
        #[arg(value_name = "SEGMENT")]
        segment: Option<String>,
        /// Only those made since then: a time, a date, or ago such as 7d
        #[arg(long, value_name = "WHEN", value_parser = when::ago)]
        since: Option<Timestamp>,
        /// Only those made before then: a time, a date, or ago such as 1h
        #[arg(long, value_name = "WHEN", value_parser = when::ago)]
        until: Option<Timestamp>,
        #[command(flatten)]
        limit: Limit,
    },
    Diff(diff::DiffArgs),
    Check(check::CheckArgs),
}

/// Names a segment.
#[derive(Debug, clap::Args)]
pub(crate) struct SegmentName {
    /// Name of the segment, or its id
    #[arg(value_name = "SEGMENT")]
    segment: String,
}

/// A segment or a filter.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Audience {
    /// Name of the segment, or its id
    #[arg(value_name = "SEGMENT")]
    segment: Option<String>,
    /// A filter instead, in the same text form as `segment create` takes
    #[arg(long, value_name = "FILTER")]
    filter: Option<String>,
}

impl Segment {
    pub(crate) async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Create { name, filter } => create(session, name, &filter).await,
            Self::List {
                text,
                cohort,
                partner,
                archived,
                limit,
            } => {
                let cohort = cohort.map(|cohort| CohortName { cohort, partner });
                list(session, text, cohort, archived, limit).await
            }
            Self::Show(name) => {
                let segment = get(session, &name.segment).await?;
                session.output.show(&segment)
            }
            Self::Update {
                segment,
                name,
                filter,
            } => update(session, &segment.segment, name, filter.as_deref()).await,
            Self::Archive(name) => archive(session, &name.segment).await,
            Self::Count {
                audience,
                consistency_token,
            } => count(session, &audience, consistency_token).await,
            Self::Resolve(args) => resolve::run(session, args).await,
            Self::Resolutions {
                segment,
                since,
                until,
                limit,
            } => {
                let wanted = pb::ListResolutionsRequest {
                    workspace: session.workspace()?,
                    segment: segment.as_deref().map(reference),
                    since,
                    until,
                    ..Default::default()
                };
                resolutions(session, &wanted, limit).await
            }
            Self::Diff(args) => diff::run(session, args).await,
            Self::Check(args) => check::run(session, args).await,
        }
    }
}

/// What a name on the command line means: text in the form of a UUID is an id.
fn reference(text: &str) -> pb::SegmentReference {
    use pb::segment_reference::Segment;
    let segment = if text.len() == 36 && Uuid::try_parse(text).is_ok() {
        Segment::SegmentId(text.to_ascii_lowercase())
    } else {
        Segment::Name(text.to_owned())
    };
    pb::SegmentReference {
        segment: Some(segment),
    }
}

fn filter_text(text: &str) -> pb::FilterExpression {
    pb::FilterExpression {
        form: Some(pb::filter_expression::Form::Text(text.to_owned())),
    }
}

async fn create(session: &Session, name: String, filter: &str) -> Result<()> {
    let request = pb::CreateSegmentRequest {
        workspace: session.workspace()?,
        name,
        filter: Some(filter_text(filter)),
        request_id: request_id(),
    };
    let mut client = session.connection.segments();
    let created = session
        .call(async || client.create_segment(request.clone()).await)
        .await?;
    session.output.show(&required(created.segment)?)
}

async fn list(
    session: &Session,
    name_contains: String,
    cohort: Option<CohortName>,
    include_archived: bool,
    limit: Limit,
) -> Result<()> {
    let workspace = session.workspace()?;
    let uses = match cohort {
        Some(name) => {
            let found = cohort::find(session, &name).await?;
            let (partner, cohort_id) = (found.partner, found.cohort_id);
            Some(pb::CohortUse { partner, cohort_id })
        }
        None => None,
    };
    let mut client = session.connection.segments();
    let segments = limit
        .collect(async |page_size, page_token| {
            let request = pb::ListSegmentsRequest {
                workspace: workspace.clone(),
                include_archived,
                name_contains: name_contains.clone(),
                uses: uses.clone(),
                page_size,
                page_token,
            };
            let page = session
                .call(async || client.list_segments(request.clone()).await)
                .await?;
            Ok((page.segments, page.next_page_token))
        })
        .await?;
    session.output.list(&segments)
}

async fn get(session: &Session, segment: &str) -> Result<pb::Segment> {
    let request = pb::GetSegmentRequest {
        workspace: session.workspace()?,
        segment: Some(reference(segment)),
    };
    let mut client = session.connection.segments();
    let found = session
        .call(async || client.get_segment(request.clone()).await)
        .await?;
    required(found.segment)
}

async fn update(
    session: &Session,
    segment: &str,
    name: Option<String>,
    filter: Option<&str>,
) -> Result<()> {
    let named = name.is_some().then_some("name");
    let filtered = filter.is_some().then_some("filter");
    let paths = named.into_iter().chain(filtered).map(str::to_owned);
    let request = pb::UpdateSegmentRequest {
        workspace: session.workspace()?,
        segment: Some(reference(segment)),
        update_mask: Some(FieldMask {
            paths: paths.collect(),
        }),
        name: name.unwrap_or_default(),
        filter: filter.map(filter_text),
        // The command says what the fields shall be, whatever they were.
        etag: String::new(),
        request_id: request_id(),
    };
    let mut client = session.connection.segments();
    let updated = session
        .call(async || client.update_segment(request.clone()).await)
        .await?;
    session.output.show(&required(updated.segment)?)
}

async fn archive(session: &Session, segment: &str) -> Result<()> {
    let request = pb::ArchiveSegmentRequest {
        workspace: session.workspace()?,
        segment: Some(reference(segment)),
        etag: String::new(),
        request_id: request_id(),
    };
    let mut client = session.connection.segments();
    let archived = session
        .call(async || client.archive_segment(request.clone()).await)
        .await?;
    session.output.show(&required(archived.segment)?)
}

async fn count(session: &Session, audience: &Audience, consistency_token: String) -> Result<()> {
    use pb::count_segment_request::Audience as Counted;
    let segment = audience.segment.as_deref();
    let filter = audience.filter.as_deref();
    let request = pb::CountSegmentRequest {
        workspace: session.workspace()?,
        audience: segment
            .map(|name| Counted::Segment(reference(name)))
            .or_else(|| filter.map(|text| Counted::Filter(filter_text(text)))),
        consistency_token,
    };
    let mut client = session.connection.segments();
    let counted = session
        .call(async || client.count_segment(request.clone()).await)
        .await?;
    session.output.show(&counted)
}

async fn resolutions(
    session: &Session,
    wanted: &pb::ListResolutionsRequest,
    limit: Limit,
) -> Result<()> {
    let mut client = session.connection.segments();
    let resolutions = limit
        .collect(async |page_size, page_token| {
            let request = pb::ListResolutionsRequest {
                page_size,
                page_token,
                ..wanted.clone()
            };
            let page = session
                .call(async || client.list_resolutions(request.clone()).await)
                .await?;
            Ok((page.resolutions, page.next_page_token))
        })
        .await?;
    session.output.list(&resolutions)
}

#[cfg(test)]
mod tests {
    use pb::segment_reference::Segment as Reference;

    use super::*;

    #[test]
    fn a_uuid_is_an_id_and_everything_else_a_name() {
        let id = "01950000-0000-7000-8000-00000000000a";
        assert_eq!(
            reference(id).segment,
            Some(Reference::SegmentId(id.to_owned()))
        );
        for name in ["spring", "0195000000007000800000000000000a"] {
            assert_eq!(
                reference(name).segment,
                Some(Reference::Name(name.to_owned()))
            );
        }
    }
}
