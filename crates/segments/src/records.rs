//! What is printed of the users of an audience, as the directory is when they are printed.
//!
//! An audience is pinned: the same numbers come out for ever, in the same order. What is known of
//! them changes: users are erased, and merged into others. Here every pinned number gets its
//! record, and nobody comes out twice.

mod fates;

use std::{collections::HashMap, ops::Range, sync::Arc};

use muster_domain::{
    error::{Error, Result},
    identifier::{Identifier, IdentifierKind},
    user_set::UserSet,
};
use muster_identity::{Entry, Identities, Moment, Snapshot};
use muster_proto::{
    EncodedMembers,
    segments::v1::{self as pb, AudienceMember},
    users::v1::Alias,
};
use muster_storage::{
    WorkspaceId, audience,
    directory::{Directory, feed::Position},
};
use tokio::time::{Duration, Instant};

use fates::{Fate, Past, Withheld, fates};

/// Records read at once take no more than about this many bytes, and neither does a message: stock
/// gRPC clients accept 4 MiB.
const READ_BYTES: usize = 3 * 1024 * 1024;

/// What to print of each user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    UserNo,
    ExternalId,
    Full,
}

/// Some users of an audience, written in one go from the directory in memory to what is sent.
#[derive(Debug)]
pub(crate) struct Batch {
    /// How many.
    pub(crate) len: usize,
    /// Those of them who come out without identifiers.
    pub(crate) withheld: Vec<u32>,
    /// Their records.
    pub(crate) records: EncodedMembers,
}

impl Batch {
    fn with_capacity(users: usize) -> Self {
        /// What most users take: a number, an external id, and what is around them.
        const MEMBER_BYTES: usize = 48;
        Self {
            len: 0,
            withheld: Vec::new(),
            records: EncodedMembers::with_capacity(users * MEMBER_BYTES),
        }
    }

    fn push(&mut self, record: &AudienceMember) {
        self.records.push(record);
        self.len += 1;
    }

    fn push_plain(&mut self, user_no: u32, external_id: &str) {
        self.records.push_plain(user_no, external_id);
        self.len += 1;
    }

    fn push_withheld(&mut self, user_no: u32, why: Withheld) {
        let why = match why {
            Withheld::Erased => pb::Withheld::Erased,
            Withheld::Merged => pb::Withheld::Merged,
        };
        self.push(&AudienceMember {
            user_no,
            withheld: why.into(),
            ..AudienceMember::default()
        });
        self.withheld.push(user_no);
    }
}

/// Makes the records of a pinned set of users, for one stream.
#[derive(Debug)]
pub(crate) struct Records {
    identities: Identities,
    workspace: WorkspaceId,
    view: View,
    /// All users that come out, in this stream or beside it.
    pinned: Arc<UserSet>,
    /// When the directory was asked last how far it is, and the answer, which `fates` is right for.
    asked: Option<(Instant, Moment)>,
    fates: HashMap<u32, Fate>,
    past: Past,
}

impl Records {
    /// `passed` are the users that came out before the stream was resumed.
    pub(crate) fn new(
        identities: Identities,
        workspace: WorkspaceId,
        view: View,
        pinned: Arc<UserSet>,
        passed: Range<u32>,
    ) -> Self {
        Self {
            identities,
            workspace,
            view,
            pinned,
            asked: None,
            fates: HashMap::new(),
            past: Past::of(passed),
        }
    }

    /// The records of some pinned users, in order, as the directory is now; of the first ones, at
    /// least one, if those of all would be too large.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn read(&mut self, users: &[u32]) -> Result<Batch> {
        let batch = match self.read_held(users).await? {
            Some(batch) => batch,
            None => self.read_stored(users).await?,
        };
        self.past.made(users, &batch);
        Ok(batch)
    }

    /// From the directory in memory, if it is there.
    async fn read_held(&mut self, users: &[u32]) -> Result<Option<Batch>> {
        /// Tries, since others may bring the directory in memory further meanwhile.
        const TRIES: usize = 3;
        /// Batches made within this time are of one moment, as if they had been made together: less
        /// than what is on its way to a client anyway.
        const TOGETHER: Duration = Duration::from_millis(20);
        if let Some((at, moment)) = self.asked
            && at.elapsed() < TOGETHER
        {
            let look = |held: &Snapshot<'_>| {
                let same = held.moment() == moment;
                same.then(|| self.print(held, users))
            };
            if let Some(Some(batch)) = self.identities.glance(self.workspace, look) {
                return batch;
            }
        }
        let identities = self.identities.clone();
        let store = identities.store();
        let mut conn = store.read_in("read_held", self.workspace).await?;
        for _ in 0..TRIES {
            let directory = store.directory(&mut conn, self.workspace).await?;
            let Some(position) = directory.position() else {
                break;
            };
            let moment = self.decide_fates(&directory, position);
            // What became of the users and what is known of them must be of one moment.
            let look =
                |held: &Snapshot<'_>| (held.moment() == moment).then(|| self.print(held, users));
            let looked = identities.look(&mut conn, self.workspace, position, look);
            match looked.await? {
                None => break,
                Some(None) => {}
                Some(Some(batch)) => return batch,
            }
        }
        Ok(None)
    }

    /// The records of the first ones of some users, as many as fit a message, at least one. `None`
    /// if one of them has no identifiers: Postgres then tells whether that can be.
    fn print(&self, held: &Snapshot<'_>, users: &[u32]) -> Result<Option<Batch>> {
        /// Users whose memory is waited for together.
        const FETCHED: usize = 64;
        let mut batch = Batch::with_capacity(users.len());
        let mut bytes = 0;
        for (place, &user) in users.iter().enumerate() {
            if place % FETCHED == 0 && self.view != View::UserNo {
                held.fetch(&users[place..users.len().min(place + FETCHED)]);
            }
            if let Some(why) = self.withheld(user) {
                batch.push_withheld(user, why);
                continue;
            }
            if self.view == View::UserNo {
                batch.push_plain(user, "");
                continue;
            }
            let Some(mut identifiers) = held.identifiers(self.printed(user)) else {
                return Ok(None);
            };
            if self.view == View::ExternalId {
                // It is the first one, if there is one.
                let id = match identifiers.next() {
                    Some(first) if first.is_printed() => text(first.parts().1)?,
                    _ => "",
                };
                bytes += id.len();
                if bytes > READ_BYTES && batch.len > 0 {
                    break;
                }
                batch.push_plain(user, id);
            } else {
                let (record, size) = full(user, identifiers)?;
                bytes += size;
                if bytes > READ_BYTES && batch.len > 0 {
                    break;
                }
                batch.push(&record);
            }
        }
        Ok(Some(batch))
    }

    /// From Postgres.
    async fn read_stored(&mut self, users: &[u32]) -> Result<Batch> {
        // What became of the users and what is known of them must be of one moment: a user who is
        // merged in between would come out with nothing and without a reason.
        let name = "audience_batch";
        let store = self.identities.store();
        let (mut tx, directory) = store.directory_snapshot(name, self.workspace).await?;
        if let Some(position) = directory.position() {
            self.decide_fates(&directory, position);
        }
        let printed: Vec<u32> = users
            .iter()
            .filter(|&&user| self.withheld(user).is_none())
            .map(|&user| self.printed(user))
            .collect();
        let mut external_ids = HashMap::new();
        let mut others = Vec::new();
        // How many of those printed there is room for.
        let mut whole = printed.len();
        if self.view != View::UserNo && !printed.is_empty() {
            external_ids = audience::external_ids(&mut tx, self.workspace, &printed).await?;
        }
        if self.view == View::Full && !printed.is_empty() {
            let ids = external_ids.values().flatten();
            let left = READ_BYTES - ids.map(String::len).sum::<usize>();
            (others, whole) =
                audience::aliases_and_devices(&mut tx, self.workspace, &printed, left).await?;
        }
        tx.commit().await?;
        let mut others = others.into_iter().peekable();
        let mut batch = Batch::with_capacity(users.len());
        let mut nth = 0;
        for &user in users {
            if let Some(why) = self.withheld(user) {
                batch.push_withheld(user, why);
                continue;
            }
            if nth == whole {
                break;
            }
            let mut record = AudienceMember {
                user_no: user,
                ..AudienceMember::default()
            };
            if self.view != View::UserNo {
                let found = external_ids.remove(&printed[nth]).ok_or_else(|| {
                    let message = format!("user {user} is live but not in the directory");
                    Error::internal(message)
                })?;
                record.external_id = found.unwrap_or_default();
            }
            while let Some((_, other)) = others.next_if(|(place, _)| *place == nth) {
                add(&mut record, other);
            }
            batch.push(&record);
            nth += 1;
        }
        Ok(batch)
    }

    fn decide_fates(&mut self, directory: &Directory, position: Position) -> Moment {
        let moment = Moment::at(position);
        if self.asked.is_none_or(|(_, before)| before != moment) {
            self.fates = fates(&self.pinned, &directory.tombstones, &self.past);
        }
        self.asked = Some((Instant::now(), moment));
        moment
    }

    /// Why the record of a pinned user has no identifiers, if it must not have any.
    fn withheld(&self, user: u32) -> Option<Withheld> {
        match self.fates.get(&user) {
            Some(Fate::Withheld(why)) => Some(*why),
            Some(Fate::Replaced(_)) | None => None,
        }
    }

    /// The user whose identifiers stand in the record of a pinned one.
    fn printed(&self, user: u32) -> u32 {
        match self.fates.get(&user) {
            Some(Fate::Replaced(survivor)) => *survivor,
            _ => user,
        }
    }
}

/// All that is known of a user, and its size in bytes.
fn full<'a>(
    user_no: u32,
    identifiers: impl Iterator<Item = Entry<'a>>,
) -> Result<(AudienceMember, usize)> {
    let mut record = AudienceMember {
        user_no,
        ..AudienceMember::default()
    };
    let mut bytes = 0;
    for entry in identifiers {
        let (label, id) = entry.parts();
        bytes += label.len() + id.len();
        if entry.is_printed() {
            text(id)?.clone_into(&mut record.external_id);
        } else {
            add(&mut record, entry.to_owned());
        }
    }
    Ok((record, bytes))
}

/// Adds what a user has besides the external id that is printed.
fn add(record: &mut AudienceMember, identifier: Identifier) {
    match identifier.kind {
        // Another external id, of somebody merged into this user.
        IdentifierKind::ExternalId => {}
        IdentifierKind::Alias => record.aliases.push(Alias {
            label: identifier.label,
            name: identifier.id,
        }),
        IdentifierKind::DeviceId => record.device_ids.push(identifier.id),
    }
}

fn text(bytes: &[u8]) -> Result<&str> {
    str::from_utf8(bytes).map_err(Error::internal)
}
