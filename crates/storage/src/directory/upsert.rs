//! Writing users: creating them, or adding identifiers to them.

use std::collections::BTreeMap;

use muster_domain::{
    error::{Error as DomainError, Kind},
    identifier::{IdentifierKind, IdentifierRef},
};
use sqlx::{Connection as _, PgConnection};

use super::{
    change::{Changed, Known, Locked, insert_keys, lock, look_up, numbers},
    record::append,
};
use crate::{Error, Result, WorkspaceId, error::violates};

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

/// Whom some records are likely to be of. It makes no difference to what becomes of them, only to how
/// long it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likely {
    /// Of users known and unknown: they are looked up, then written.
    Anyone,
    /// Of new users: they are written at once, and looked up if one turns out to be known.
    New,
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
    likely: Likely,
) -> Result<Changed<Upserted>> {
    let mut directory = lock(conn, workspace).await?;
    if likely == Likely::New
        && let Some(created) = create(conn, workspace, directory.clone(), records).await?
    {
        return Ok(created);
    }
    let identifiers = records.iter().flat_map(UserRecord::identifiers);
    let known = look_up(conn, workspace, identifiers).await?;
    let mut plan = Plan::new(known, &directory);
    let outcomes = plan.decide_all(records)?;
    if !plan.added.is_empty() {
        let epoch = directory.advance(conn, plan.created.len()).await?;
        plan.write(conn, workspace, epoch).await?;
    }
    Ok(directory.changed(outcomes))
}

/// Writes users none of whom has an identifier that is known; `None`, and nothing changed, if one has.
async fn create(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    mut directory: Locked,
    records: &[UserRecord<'_>],
) -> Result<Option<Changed<Upserted>>> {
    let mut plan = Plan::new(Known::default(), &directory);
    // That there are no numbers left may be wrong, too.
    let Ok(outcomes) = plan.decide_all(records) else {
        return Ok(None);
    };
    if plan.added.is_empty() {
        return Ok(None);
    }
    let mut attempt = conn.begin().await?;
    let epoch = directory.advance(&mut attempt, plan.created.len()).await?;
    match plan.write(&mut attempt, workspace, epoch).await {
        Ok(()) => {
            attempt.commit().await?;
            Ok(Some(directory.changed(outcomes)))
        }
        Err(Error::Database(error)) if violates(&error, "user_identifier_pkey") => {
            attempt.rollback().await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
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
}

impl<'a> Plan<'a> {
    fn new(known: Known<'a>, directory: &Locked) -> Self {
        Self {
            known,
            first_user_no: directory.next_user_no,
            created: Vec::new(),
            added: Vec::new(),
        }
    }

    fn decide_all(&mut self, records: &[UserRecord<'a>]) -> Result<Vec<Upserted>> {
        records.iter().map(|record| self.decide(record)).collect()
    }

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
        Ok(Upserted::Updated(user))
    }

    fn create(&mut self, external_id: Option<&'a str>) -> Result<u32> {
        let number = self.first_user_no + self.created.len() as u64;
        let user = u32::try_from(number).map_err(|_| {
            let message = format!("the workspace has had {MAX_USERS} users, which is the most");
            DomainError::new(Kind::ResourceExhausted, "USER_NUMBERS_EXHAUSTED", message)
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
        self,
        conn: &mut PgConnection,
        workspace: WorkspaceId,
        epoch: i64,
    ) -> Result<()> {
        // External ids are added to users created alone, in a column of their own.
        let mut lines: BTreeMap<u32, String> = BTreeMap::new();
        for (identifier, user) in &self.added {
            if identifier.kind != IdentifierKind::ExternalId {
                append(lines.entry(*user).or_default(), *identifier);
            }
        }
        let of_created = match u32::try_from(self.first_user_no) {
            Ok(first) => lines.split_off(&first),
            Err(_) => BTreeMap::new(),
        };
        if !self.created.is_empty() {
            let first = i64::try_from(self.first_user_no).expect("at most 2³²");
            let identifiers: Vec<Option<&str>> = (self.first_user_no..)
                .zip(&self.created)
                .map(|(user, _)| of_created.get(&u32::try_from(user).ok()?))
                .map(|lines| lines.map(String::as_str))
                .collect();
            sqlx::query!(
                "INSERT INTO directory_user
                     (workspace_id, user_no, external_id, identifiers, epoch, identified_epoch)
                 SELECT $1, $2 + position - 1, external_id, identifiers, $5::bigint,
                        CASE WHEN external_id IS NOT NULL THEN $5::bigint END
                 FROM unnest($3::text[], $4::text[])
                      WITH ORDINALITY AS created (external_id, identifiers, position)",
                workspace.0,
                first,
                &self.created as &[Option<&str>],
                &identifiers as &[Option<&str>],
                epoch,
            )
            .execute(&mut *conn)
            .await?;
        }
        if !lines.is_empty() {
            let (users, lines): (Vec<u32>, Vec<String>) = lines.into_iter().unzip();
            sqlx::query!(
                r"UPDATE directory_user u
                  SET identifiers = concat_ws(E'\n', u.identifiers, added.identifiers), epoch = $4
                  FROM unnest($2::bigint[], $3::text[]) AS added (user_no, identifiers)
                  WHERE u.workspace_id = $1 AND u.user_no = added.user_no",
                workspace.0,
                &numbers(users),
                &lines,
                epoch,
            )
            .execute(&mut *conn)
            .await?;
        }
        insert_keys(conn, workspace, self.added.into_iter()).await
    }
}
