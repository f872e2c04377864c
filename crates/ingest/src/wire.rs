//! Conversions between protobuf and what this server works with.

use muster_domain::{
    error::{Error, FieldContext as _, Result},
    identifier::{Identifier, IdentifierKind},
    import::{Effect, MAX_BATCH_IDENTIFIERS, Mode, Outcomes, Summary},
};
use muster_proto::{
    ingest::v1::{self as pb, ingest_cohort_request, ingest_cohort_response},
    users::v1::{self as users, identifier},
};
use muster_service::wire::{from_wire, to_wire};
use muster_storage::{
    cohorts::Order,
    imports::{Import, State},
    rejected::{Reason, Rejected},
    versions::Version,
};

use crate::{
    batch::{Change, Changes},
    cohorts::Described,
    session::{Commit, Message, Open, Published, Reply},
};

impl TryFrom<pb::IngestCohortRequest> for Message {
    type Error = Error;

    fn try_from(request: pb::IngestCohortRequest) -> Result<Self> {
        use ingest_cohort_request::Message as Wire;
        match request.message {
            Some(Wire::Open(open)) => Ok(Self::Open(Box::new(open.try_into().field("open")?))),
            Some(Wire::Batch(batch)) => Ok(Self::Batch(batch.try_into().field("batch")?)),
            Some(Wire::Commit(commit)) => Ok(Self::Commit(Commit {
                total: commit.total,
                digest: commit.digest.to_vec(),
            })),
            None => Err(Error::field("message", "must be set")),
        }
    }
}

impl TryFrom<pb::OpenImport> for Open {
    type Error = Error;

    fn try_from(open: pb::OpenImport) -> Result<Self> {
        let mode = match open.mode() {
            pb::ImportMode::Delta => Mode::Delta,
            pb::ImportMode::Replace => Mode::Replace,
            pb::ImportMode::Unspecified => {
                return Err(Error::field("mode", "must be DELTA or REPLACE"));
            }
        };
        let source_time = open.source_time.as_ref().map(from_wire).transpose();
        Ok(Self {
            mode,
            source_time: source_time.field("source_time")?,
            workspace: open.workspace,
            partner: open.partner,
            cohort_id: open.cohort_id,
            name: open.name,
            import_id: open.import_id,
            refuse_if_older: open.refuse_if_older,
            max_removed_fraction: open.max_removed_fraction,
            pipelined: open.pipelined,
        })
    }
}

impl TryFrom<pb::IdentifierBatch> for Changes {
    type Error = Error;

    fn try_from(batch: pb::IdentifierBatch) -> Result<Self> {
        // Looked at first: many things of no length take a few bytes to send and much to hold.
        let sizes = batch.changes.iter().map(|change| {
            let ids = change.external_ids.len() + change.aliases.len() + change.device_ids.len();
            ids.max(1)
        });
        let many: usize = sizes.sum();
        if many > MAX_BATCH_IDENTIFIERS {
            return Err(Error::field(
                "changes",
                format!("must hold at most {MAX_BATCH_IDENTIFIERS} identifiers, not {many}"),
            ));
        }
        let changes = batch
            .changes
            .into_iter()
            .enumerate()
            .map(|(index, change)| {
                let effect = match change.effect() {
                    pb::ChangeEffect::Add => Effect::Add,
                    pb::ChangeEffect::Remove => Effect::Remove,
                    pb::ChangeEffect::Unspecified => {
                        let path = format!("changes[{index}].effect");
                        return Err(Error::field(path, "must be ADD or REMOVE"));
                    }
                };
                let aliases = change.aliases.into_iter();
                Ok(Change {
                    effect,
                    external_ids: change.external_ids,
                    aliases: aliases.map(|alias| (alias.label, alias.name)).collect(),
                    device_ids: change.device_ids,
                })
            });
        Ok(Self {
            offset: batch.offset,
            changes: changes.collect::<Result<_>>()?,
            memory: None,
        })
    }
}

impl From<Reply> for pb::IngestCohortResponse {
    fn from(reply: Reply) -> Self {
        use ingest_cohort_response::Message as Wire;
        let message = match reply {
            Reply::Opened {
                next_offset,
                complete,
            } => Wire::Opened(pb::Opened {
                next_offset,
                complete,
            }),
            Reply::Acked { next_offset } => Wire::Acked(pb::Acked { next_offset }),
            Reply::Committed(published) => Wire::Committed(published.into()),
            Reply::AwaitingConfirmation(preview) => {
                Wire::AwaitingConfirmation(pb::AwaitingConfirmation {
                    preview: Some(summary(&preview)),
                })
            }
        };
        Self {
            message: Some(message),
        }
    }
}

impl From<Published> for pb::Committed {
    fn from(published: Published) -> Self {
        Self {
            summary: Some(summary(&published.summary)),
            version: count(published.version),
            consistency_token: published.consistency_token,
        }
    }
}

fn summary(summary: &Summary) -> pb::ImportSummary {
    pb::ImportSummary {
        received: summary.received,
        outcomes: Some(outcomes(&summary.outcomes)),
        members_before: summary.members_before,
        members_after: summary.members_after,
        members_added: summary.members_added,
        members_removed: summary.members_removed,
    }
}

fn outcomes(outcomes: &Outcomes) -> pb::OutcomeCounts {
    pb::OutcomeCounts {
        added: outcomes.added,
        already_member: outcomes.already_member,
        removed: outcomes.removed,
        not_member: outcomes.not_member,
        unknown: outcomes.unknown,
        device_of_identified_user: outcomes.device_of_identified_user,
        duplicate: outcomes.duplicate,
        superseded: outcomes.superseded,
        invalid: outcomes.invalid,
    }
}

/// A cohort of the workspace `slug`; lists leave the number of members out.
pub(crate) fn cohort(slug: &str, described: Described, member_count: Option<u64>) -> pb::Cohort {
    let Described { cohort, mut recent } = described;
    let sizes = recent.iter().map(|version| count(version.member_count));
    pb::Cohort {
        recent_member_counts: sizes.collect(),
        latest_version: recent.pop().map(version),
        workspace: slug.to_owned(),
        partner: cohort.partner,
        cohort_id: cohort.partner_cohort_id,
        name: cohort.name,
        former_names: cohort.former_names,
        version: count(cohort.version),
        member_count,
        archived: cohort.archived_at.is_some(),
        create_time: Some(to_wire(cohort.created_at)),
        last_import_time: cohort.imported_at.map(to_wire),
        etag: cohort.revision.to_string(),
    }
}

/// The result of one committed import.
pub(crate) fn version(version: Version) -> pb::CohortVersion {
    pb::CohortVersion {
        version: count(version.version),
        publish_time: Some(to_wire(version.published_at)),
        import_id: version.import_id,
        member_count: count(version.member_count),
        added_count: count(version.added_count),
        removed_count: count(version.removed_count),
        received_count: version.received_count.map(count),
        matched_count: version.matched_count.map(count),
    }
}

/// The order to list cohorts in.
pub(crate) fn order(order: pb::CohortOrder) -> Order {
    match order {
        pb::CohortOrder::Unspecified | pb::CohortOrder::Newest => Order::Newest,
        pb::CohortOrder::Name => Order::Name,
        pb::CohortOrder::Largest => Order::Largest,
        pb::CohortOrder::LastImport => Order::LastImport,
        pb::CohortOrder::Stalest => Order::Stalest,
    }
}

/// An import of the workspace `slug`.
pub(crate) fn import(slug: &str, import: Import) -> pb::Import {
    pb::Import {
        workspace: slug.to_owned(),
        import_id: import.partner_import_id,
        partner: import.partner,
        cohort_id: import.partner_cohort_id,
        mode: match import.mode {
            Mode::Delta => pb::ImportMode::Delta,
            Mode::Replace => pb::ImportMode::Replace,
        }
        .into(),
        state: match import.state {
            State::Open => pb::ImportState::Open,
            State::AwaitingConfirmation => pb::ImportState::AwaitingConfirmation,
            State::Committed => pb::ImportState::Committed,
            State::Aborted => pb::ImportState::Aborted,
            State::Expired => pb::ImportState::Expired,
        }
        .into(),
        received: import.next_offset,
        summary: import.summary.as_ref().map(summary),
        cohort_version: import.version.map_or(0, count),
        create_time: Some(to_wire(import.created_at)),
        update_time: Some(to_wire(import.updated_at)),
        expire_time: import.expires_at.map(to_wire),
        source_time: import.source_time.map(to_wire),
        created_by: import.created_by,
        cohort_name: import.cohort_name,
    }
}

/// The state to select imports by; unspecified selects all.
pub(crate) fn state(state: pb::ImportState) -> Option<State> {
    match state {
        pb::ImportState::Unspecified => None,
        pb::ImportState::Open => Some(State::Open),
        pb::ImportState::AwaitingConfirmation => Some(State::AwaitingConfirmation),
        pb::ImportState::Committed => Some(State::Committed),
        pb::ImportState::Aborted => Some(State::Aborted),
        pb::ImportState::Expired => Some(State::Expired),
    }
}

/// A rejected identifier.
pub(crate) fn rejected(rejected: Rejected) -> pb::RejectedIdentifier {
    pb::RejectedIdentifier {
        position: rejected.position,
        identifier: rejected.identifier.map(identifier),
        reason: match rejected.reason {
            Reason::Unknown => pb::RejectionReason::Unknown,
            Reason::DeviceOfIdentifiedUser => pb::RejectionReason::DeviceOfIdentifiedUser,
            Reason::Invalid => pb::RejectionReason::Invalid,
        }
        .into(),
        removal: rejected.effect == Effect::Remove,
    }
}

fn identifier(identifier: Identifier) -> users::Identifier {
    users::Identifier {
        kind: Some(match identifier.kind {
            IdentifierKind::ExternalId => identifier::Kind::ExternalId(identifier.id),
            IdentifierKind::DeviceId => identifier::Kind::DeviceId(identifier.id),
            IdentifierKind::Alias => identifier::Kind::Alias(users::Alias {
                label: identifier.label,
                name: identifier.id,
            }),
        }),
    }
}

fn count(value: i64) -> u64 {
    u64::try_from(value).expect("versions and counts are never negative")
}
