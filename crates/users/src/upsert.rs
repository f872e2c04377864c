//! Writing users.

use muster_domain::error::Result;
use muster_storage::{
    Tx, WorkspaceId,
    directory::{self, Conflict, Likely, Upserted, UserRecord},
};

use crate::outcome::{Answer, Done, Entries, Outcome};

/// Writes users; a record that conflicts or is malformed is left out.
pub(crate) async fn upsert(
    tx: &mut Tx,
    workspace: WorkspaceId,
    records: Entries<UserRecord<'_>>,
    likely: Likely,
) -> Result<Answer> {
    let changed = directory::upsert(tx, workspace, &records.well_formed, likely).await?;
    Ok(records.answer(changed, describe))
}

fn describe(record: &UserRecord<'_>, upserted: Upserted) -> Outcome {
    match upserted {
        Upserted::Created(user) => Outcome::Done(Done::Created, user),
        Upserted::Updated(user) => Outcome::Done(Done::Updated, user),
        Upserted::Unchanged(user) => Outcome::Done(Done::Unchanged, user),
        Upserted::Conflict(Conflict::SeveralUsers(first, other)) => Outcome::conflict(
            &field(record, other),
            &format!(
                "belongs to another user than {}; use MergeUsers if they are one person",
                field(record, first)
            ),
        ),
        Upserted::Conflict(Conflict::AnonymousUser(position)) => Outcome::conflict(
            &field(record, position),
            "belongs to an anonymous user; use IdentifyUsers to give it the external_id",
        ),
        Upserted::Conflict(Conflict::OtherExternalId(position)) => Outcome::conflict(
            &field(record, position),
            "belongs to a user with another external_id; if they are one person, write the \
             external_id by itself, then use MergeUsers",
        ),
    }
}

/// The field of a record that holds the identifier at a position.
fn field(record: &UserRecord<'_>, position: usize) -> String {
    let external_ids = usize::from(record.external_id.is_some());
    let Some(position) = position.checked_sub(external_ids) else {
        return "external_id".to_owned();
    };
    match position.checked_sub(record.aliases.len()) {
        None => format!("aliases[{position}]"),
        Some(position) => format!("device_ids[{position}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_its_field() {
        let record = UserRecord {
            external_id: Some("e"),
            aliases: vec![("l", "a"), ("l", "b")],
            device_ids: vec!["d"],
        };
        let fields = |record: &UserRecord<'_>| -> Vec<String> {
            let count = record.identifiers().count();
            (0..count).map(|position| field(record, position)).collect()
        };
        assert_eq!(
            fields(&record),
            ["external_id", "aliases[0]", "aliases[1]", "device_ids[0]"]
        );
        let anonymous = UserRecord {
            external_id: None,
            ..record
        };
        assert_eq!(
            fields(&anonymous),
            ["aliases[0]", "aliases[1]", "device_ids[0]"]
        );
    }
}
