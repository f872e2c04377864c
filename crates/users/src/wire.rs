//! Between protobuf and the domain.

use muster_domain::{
    error::{Error, FieldContext as _, Kind, Result},
    identifier::IdentifierRef,
    import::{MAX_BATCH_BYTES, MAX_BATCH_IDENTIFIERS},
    user_set::Standing,
};
use muster_proto::users::v1::{self as pb, find_user_request, identifier};
use muster_service::{ConsistencyToken, wire};
use muster_storage::{
    WorkspaceId,
    directory::{Identification, Merge, User, UserRecord},
};
use prost::Message;

use crate::{
    find::{Found, Name},
    outcome::{Answer, Done, Entries, Outcome, Refused},
};

/// The request of a unary call that changes the directory.
pub(crate) trait Change: Message {
    /// The name of the rpc.
    const METHOD: &'static str;
    type Answer: Message + Default;

    fn workspace(&self) -> &str;
    fn request_id(&self) -> &str;
    /// How many identifiers it names, for the limit on them.
    fn identifiers(&self) -> usize;
    fn answer(results: Vec<pb::UserResult>, consistency_token: String) -> Self::Answer;
}

macro_rules! change {
    ($method:literal, $request:ident, $answer:ident, $identifiers:expr) => {
        impl Change for pb::$request {
            const METHOD: &'static str = $method;
            type Answer = pb::$answer;

            fn workspace(&self) -> &str {
                &self.workspace
            }

            fn request_id(&self) -> &str {
                &self.request_id
            }

            fn identifiers(&self) -> usize {
                let count: fn(&Self) -> usize = $identifiers;
                count(self)
            }

            fn answer(results: Vec<pb::UserResult>, consistency_token: String) -> Self::Answer {
                pb::$answer {
                    results,
                    consistency_token,
                }
            }
        }
    };
}

change!(
    "UpsertUsers",
    UpsertUsersRequest,
    UpsertUsersResponse,
    |sent| identifiers_of(&sent.users)
);
change!(
    "IdentifyUsers",
    IdentifyUsersRequest,
    IdentifyUsersResponse,
    |sent| 2 * sent.entries.len()
);
change!(
    "MergeUsers",
    MergeUsersRequest,
    MergeUsersResponse,
    |sent| 2 * sent.entries.len()
);
change!(
    "DeleteUsers",
    DeleteUsersRequest,
    DeleteUsersResponse,
    |sent| sent.users.len()
);

/// Most entries of a unary call.
const MAX_ENTRIES: usize = 1_000;

/// Most identifiers of a user: a record of an audience with all of them must fit into a message that
/// stock gRPC clients accept.
const MAX_USER_IDENTIFIERS: usize = 1_000;

/// The entries of a unary call, in the field `name`.
fn entries<'a, P, T: 'a>(
    name: &str,
    sent: &'a [P],
    parse: impl Fn(&'a P) -> Result<T>,
) -> Result<Entries<T>> {
    if (1..=MAX_ENTRIES).contains(&sent.len()) {
        Ok(sent.iter().map(parse).collect())
    } else {
        let problem = format!("must hold 1 to {MAX_ENTRIES} entries, not {}", sent.len());
        Err(Error::field(name, problem))
    }
}

/// The users of a call.
pub(crate) fn users(sent: &[pb::UserRecord]) -> Result<Entries<UserRecord<'_>>> {
    let users = entries("users", sent, record)?;
    check_size(sent)?;
    Ok(users)
}

/// The users of one batch of a stream; it may be empty.
pub(crate) fn batch(sent: &[pb::UserRecord]) -> Result<Entries<UserRecord<'_>>> {
    check_size(sent)?;
    Ok(sent.iter().map(record).collect())
}

/// How many identifiers records have. One without counts as one, so that no batch has more records
/// than identifiers.
pub(crate) fn identifiers_of(sent: &[pb::UserRecord]) -> usize {
    let identifiers = sent.iter().map(|user| {
        let count = usize::from(!user.external_id.is_empty());
        (count + user.aliases.len() + user.device_ids.len()).max(1)
    });
    identifiers.sum()
}

fn check_size(sent: &[pb::UserRecord]) -> Result<()> {
    let identifiers = identifiers_of(sent);
    let bytes: usize = sent.iter().map(pb::UserRecord::encoded_len).sum();
    for (size, limit, unit) in [
        (identifiers, MAX_BATCH_IDENTIFIERS, "identifiers"),
        (bytes, MAX_BATCH_BYTES, "bytes"),
    ] {
        if size > limit {
            let message = format!("users: at most {limit} {unit} in a batch, not {size}");
            let error = Error::new(Kind::ResourceExhausted, "BATCH_TOO_LARGE", message);
            return Err(error.with("limit", limit).with("unit", unit));
        }
    }
    Ok(())
}

fn record(sent: &pb::UserRecord) -> Result<UserRecord<'_>> {
    let record = UserRecord {
        external_id: (!sent.external_id.is_empty()).then_some(sent.external_id.as_str()),
        aliases: sent
            .aliases
            .iter()
            .map(|alias| (alias.label.as_str(), alias.name.as_str()))
            .collect(),
        device_ids: sent.device_ids.iter().map(String::as_str).collect(),
    };
    if record.identifiers().next().is_none() {
        let problem = "must not be empty without aliases and device_ids";
        return Err(Error::field("external_id", problem));
    }
    let count = record.identifiers().count();
    if count > MAX_USER_IDENTIFIERS {
        let longer = match record.aliases.len() > record.device_ids.len() {
            true => "aliases",
            false => "device_ids",
        };
        let problem = format!("a user has at most {MAX_USER_IDENTIFIERS} identifiers, not {count}");
        return Err(Error::field(longer, problem));
    }
    if let Some(id) = record.external_id {
        IdentifierRef::external_id(id).check()?;
    }
    for (index, (label, name)) in record.aliases.iter().enumerate() {
        let checked = IdentifierRef::alias(label, name).check();
        checked.map_err(|error| in_list(error, "alias", "aliases", index))?;
    }
    for (index, id) in record.device_ids.iter().enumerate() {
        let checked = IdentifierRef::device_id(id).check();
        checked.map_err(|error| in_list(error, "device_id", "device_ids", index))?;
    }
    Ok(record)
}

/// Says that the wrong field, `one` by itself, stands at a position of the field `list`.
fn in_list(error: Error, one: &str, list: &str, index: usize) -> Error {
    let [wrong] = error.fields.as_slice() else {
        return error;
    };
    let path = wrong.field.strip_prefix(one).unwrap_or_default();
    Error::field(format!("{list}[{index}]{path}"), wrong.description.clone())
}

fn identifier(sent: Option<&pb::Identifier>) -> Result<IdentifierRef<'_>> {
    let kind = sent.and_then(|identifier| identifier.kind.as_ref());
    let identifier = match kind {
        Some(identifier::Kind::ExternalId(id)) => IdentifierRef::external_id(id),
        Some(identifier::Kind::Alias(alias)) => IdentifierRef::alias(&alias.label, &alias.name),
        Some(identifier::Kind::DeviceId(id)) => IdentifierRef::device_id(id),
        None => {
            let problem = "needs one of external_id, alias and device_id";
            return Err(Error::field("", problem));
        }
    };
    identifier.check()?;
    Ok(identifier)
}

pub(crate) fn identifications(
    sent: &[pb::identify_users_request::Entry],
) -> Result<Entries<Identification<'_>>> {
    entries("entries", sent, |entry| {
        let user = identifier(entry.user.as_ref()).field("user")?;
        let external_id = entry.external_id.as_str();
        IdentifierRef::external_id(external_id).check()?;
        Ok(Identification { user, external_id })
    })
}

pub(crate) fn merges(sent: &[pb::merge_users_request::Entry]) -> Result<Entries<Merge<'_>>> {
    entries("entries", sent, |entry| {
        Ok(Merge {
            from: identifier(entry.from.as_ref()).field("from")?,
            into: identifier(entry.into.as_ref()).field("into")?,
        })
    })
}

pub(crate) fn identifiers(sent: &[pb::Identifier]) -> Result<Entries<IdentifierRef<'_>>> {
    entries("users", sent, |user| {
        let nothing = |error: Error| match error.fields.as_slice() {
            [wrong] if wrong.field.is_empty() => {
                Error::field("identifier", wrong.description.clone())
            }
            _ => error,
        };
        identifier(Some(user)).map_err(nothing)
    })
}

pub(crate) fn name(sent: &pb::FindUserRequest) -> Result<Name<'_>> {
    match &sent.user {
        Some(find_user_request::User::UserNo(number)) => Ok(Name::Number(*number)),
        Some(find_user_request::User::Identifier(sent)) => {
            let identifier = identifier(Some(sent)).field("identifier")?;
            Ok(Name::Identifier(identifier))
        }
        None => Err(Error::field("user", "needs an identifier or a user_no")),
    }
}

pub(crate) fn found(found: Found) -> pb::FindUserResponse {
    pb::FindUserResponse {
        user: Some(user(found.user)),
        matched_by_imports: found.matched_by_imports,
    }
}

fn user(user: User) -> pb::User {
    let (state, merged_into_user_no) = match user.standing {
        Standing::Live => (pb::UserState::Live, None),
        Standing::Merged(survivor) => (pb::UserState::Merged, Some(survivor)),
        Standing::Deleted => (pb::UserState::Deleted, None),
    };
    let alias = |(label, name)| pb::Alias { label, name };
    pb::User {
        user_no: user.user_no,
        external_id: user.external_id.unwrap_or_default(),
        merged_external_ids: user.merged_external_ids,
        aliases: user.aliases.into_iter().map(alias).collect(),
        device_ids: user.device_ids,
        state: state.into(),
        merged_into_user_no,
        create_time: Some(wire::to_wire(user.created_at)),
    }
}

/// What became of every entry, and the token of the state that led to.
pub(crate) fn changed<C: Change>(workspace: WorkspaceId, answer: Answer) -> C::Answer {
    let token = token(workspace, answer.epoch);
    let outcomes = (0..).zip(answer.outcomes);
    let results = outcomes.map(|(index, outcome)| result(index, outcome));
    C::answer(results.collect(), token)
}

/// How many records ended how, and the refused ones.
pub(crate) fn imported(workspace: WorkspaceId, answer: Answer) -> pb::ImportUsersResponse {
    let mut response = pb::ImportUsersResponse {
        consistency_token: token(workspace, answer.epoch),
        ..Default::default()
    };
    let mut counts = pb::UserOutcomeCounts::default();
    for (index, outcome) in (0..).zip(answer.outcomes) {
        match &outcome {
            Outcome::Done(Done::Created, _) => counts.created += 1,
            Outcome::Done(Done::Unchanged, _) => counts.unchanged += 1,
            Outcome::Done(_, _) => counts.updated += 1,
            Outcome::Refused(Refused::Invalid, _) => counts.invalid += 1,
            Outcome::Refused(_, _) => counts.conflict += 1,
        }
        if let Outcome::Refused(..) = outcome {
            response.refused.push(result(index, outcome));
        }
    }
    response.counts = Some(counts);
    response
}

fn result(index: u32, outcome: Outcome) -> pb::UserResult {
    use pb::UserOutcome;

    let (outcome, user_no, detail) = match outcome {
        Outcome::Done(done, user) => {
            let outcome = match done {
                Done::Created => UserOutcome::Created,
                Done::Updated => UserOutcome::Updated,
                Done::Unchanged => UserOutcome::Unchanged,
                Done::Identified => UserOutcome::Identified,
                Done::Merged => UserOutcome::Merged,
                Done::Deleted => UserOutcome::Deleted,
            };
            (outcome, Some(user), String::new())
        }
        Outcome::Refused(refused, detail) => {
            let outcome = match refused {
                Refused::Conflict => UserOutcome::Conflict,
                Refused::Invalid => UserOutcome::Invalid,
                Refused::NotFound => UserOutcome::NotFound,
            };
            (outcome, None, detail)
        }
    };
    pb::UserResult {
        index,
        outcome: outcome.into(),
        user_no,
        detail,
    }
}

fn token(workspace: WorkspaceId, epoch: i64) -> String {
    let token = ConsistencyToken {
        workspace: workspace.0,
        directory_epoch: epoch,
        cohort: None,
    };
    token.encode()
}
