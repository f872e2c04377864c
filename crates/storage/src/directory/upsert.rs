//! Writing users: creating them, or adding identifiers to them.

use muster_domain::{
    error::{Error, Kind},
    identifier::IdentifierRef,
    user_set::UserSet,
};
use sqlx::PgConnection;

use super::change::{Changed, Known, insert_identifiers, lock, look_up, numbers};
use crate::{Result, WorkspaceId};

/// Numbers that a workspace can give to users.
const MAX_USERS: u64 = 1 << 32;

/// The identifiers of one user to write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserRecord<'a> {
    /// External id; `None` for an anonymous user.
    pub external_id: Option<&'a str>,
    /// Aliases to have, as label and name.
    pub aliases: Vec<(&'a str, &'a str)>,
    /// Devices to have.
    pub device_ids: Vec<&'a str>,
}

impl<'a> UserRecord<'a> {
    /// All of them: the external id first, then the aliases, then the devices.
    pub fn identifiers(&self) -> impl Iterator<Item = IdentifierRef<'a>> {
        let external_id = self.external_id.map(IdentifierRef::external_id);
        let aliases = self.aliases.iter();
        let devices = self.device_ids.iter();
        external_id
            .into_iter()
            .chain(aliases.map(|(label, name)| IdentifierRef::alias(label, name)))
            .chain(devices.map(|id| IdentifierRef::device_id(id)))
    }
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upserted {
    /// The user was created.
    Created(u32),
    /// The user got further identifiers.
    Updated(u32),
    /// The user had them all.
    Unchanged(u32),
    /// Nothing of it was applied.
    Conflict(Conflict),
}

/// Why a record was not applied. Numbers are positions in [`UserRecord::identifiers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Two of the identifiers belong to different users: the first, and the first that differs.
    SeveralUsers(usize, usize),
    /// The external id is new, but this identifier belongs to an anonymous user.
    AnonymousUser(usize),
    /// The external id is new, but this identifier belongs to a user with another one.
    OtherExternalId(usize),
}

/// Writes users. Every record has at least one identifier, and all are well-formed.
///
/// A later record sees what an earlier one did.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` if the workspace has no numbers left for so many users.
pub async fn upsert(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    records: &[UserRecord<'_>],
) -> Result<Changed<Upserted>> {
    let mut directory = lock(conn, workspace).await?;
    let identifiers = records.iter().flat_map(UserRecord::identifiers);
    let mut plan = Plan {
        known: look_up(conn, workspace, identifiers).await?,
        first_user_no: directory.next_user_no,
        created: Vec::new(),
        added: Vec::new(),
        updated: UserSet::new(),
    };
    let outcomes = records
        .iter()
        .map(|record| plan.decide(record))
        .collect::<Result<_>>()?;
    if !plan.added.is_empty() {
        let epoch = directory.advance(conn, plan.created.len()).await?;
        plan.write(conn, workspace, epoch).await?;
    }
    Ok(directory.changed(outcomes))
}

/// What a batch of records comes to.
struct Plan<'a> {
    /// The identifiers of the batch, as they are after the records decided so far.
    known: Known<'a>,
    /// Number of the first user created.
    first_user_no: u64,
    /// The users created, by number: their external ids.
    created: Vec<Option<&'a str>>,
    /// The identifiers added.
    added: Vec<(IdentifierRef<'a>, u32)>,
    /// The users from before the batch that get identifiers.
    updated: UserSet,
}

impl<'a> Plan<'a> {
    fn decide(&mut self, record: &UserRecord<'a>) -> Result<Upserted> {
        let mut owned = None;
        for (position, identifier) in record.identifiers().enumerate() {
            match (owned, self.known.owners.get(&identifier)) {
                (_, None) => {}
                (None, Some(&user)) => owned = Some((position, user)),
                (Some((first, user)), Some(&other)) => {
                    if user != other {
                        let conflict = Conflict::SeveralUsers(first, position);
                        return Ok(Upserted::Conflict(conflict));
                    }
                }
            }
        }
        let Some((position, user)) = owned else {
            let user = self.create(record.external_id)?;
            self.add(record, user);
            return Ok(Upserted::Created(user));
        };
        // An external id that is known comes first, so with another position it is new.
        if record.external_id.is_some() && position > 0 {
            let conflict = if self.known.identified.contains(user) {
                Conflict::OtherExternalId(position)
            } else {
                Conflict::AnonymousUser(position)
            };
            return Ok(Upserted::Conflict(conflict));
        }
        if !self.add(record, user) {
            return Ok(Upserted::Unchanged(user));
        }
        if u64::from(user) < self.first_user_no {
            self.updated.insert(user);
        }
        Ok(Upserted::Updated(user))
    }

    fn create(&mut self, external_id: Option<&'a str>) -> Result<u32> {
        let number = self.first_user_no + self.created.len() as u64;
        let user = u32::try_from(number).map_err(|_| {
            let message = format!("the workspace has had {MAX_USERS} users, which is the most");
            Error::new(Kind::ResourceExhausted, "USER_NUMBERS_EXHAUSTED", message)
                .with("limit", MAX_USERS)
        })?;
        self.created.push(external_id);
        if external_id.is_some() {
            self.known.identified.insert(user);
        }
        Ok(user)
    }

    /// Adds what the user does not have yet; returns whether that was anything.
    fn add(&mut self, record: &UserRecord<'a>, user: u32) -> bool {
        let before = self.added.len();
        for identifier in record.identifiers() {
            self.known.owners.entry(identifier).or_insert_with(|| {
                self.added.push((identifier, user));
                user
            });
        }
        self.added.len() > before
    }

    async fn write(
        mut self,
        conn: &mut PgConnection,
        workspace: WorkspaceId,
        epoch: i64,
    ) -> Result<()> {
        if !self.created.is_empty() {
            let first = i64::try_from(self.first_user_no).expect("at most 2³²");
            sqlx::query!(
                "INSERT INTO directory_user (workspace_id, user_no, external_id, epoch, identified_epoch)
                 SELECT $1, $2 + position - 1, external_id, $4::bigint,
                        CASE WHEN external_id IS NOT NULL THEN $4::bigint END
                 FROM unnest($3::text[]) WITH ORDINALITY AS created (external_id, position)",
                workspace.0,
                first,
                &self.created as &[Option<&str>],
                epoch,
            )
            .execute(&mut *conn)
            .await?;
        }
        if !self.updated.is_empty() {
            sqlx::query!(
                "UPDATE directory_user SET epoch = $3
                 WHERE workspace_id = $1 AND user_no = ANY ($2)",
                workspace.0,
                &numbers(&self.updated),
                epoch,
            )
            .execute(&mut *conn)
            .await?;
        }
        // In the order of the index, neighbours share its pages.
        self.added.sort_unstable();
        insert_identifiers(conn, workspace, epoch, &self.added).await
    }
}
