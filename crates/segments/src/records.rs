//! What is printed of the users of an audience, as the directory is when they are printed.
//!
//! An audience is pinned: the same numbers come out for ever, in the same order. What is known of
//! them changes: users are erased, and merged into others. Here every pinned number gets its
//! record, and nobody comes out twice.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use muster_domain::{
    error::{Error, Result},
    identifier::IdentifierKind,
    user_set::{Standing, Tombstones, UserSet},
};
use muster_identity::{Entry, Identities, Moment, Snapshot};
use muster_storage::{
    WorkspaceId, audience,
    directory::{Directory, feed::Position},
};
use tokio::time::{Duration, Instant};

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

/// Some users of an audience.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Record>,
    /// Their external ids, one after the other.
    external_ids: String,
}

impl Batch {
    /// The external id of a user of the batch; empty for an anonymous one.
    pub(crate) fn external_id(&self, record: &Record) -> &str {
        &self.external_ids[record.external_id.clone()]
    }
}

/// One user of an audience.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// The pinned number.
    pub(crate) user_no: u32,
    /// Where the external id stands among those of the batch.
    external_id: Range<usize>,
    /// Label and name.
    pub(crate) aliases: Vec<(String, String)>,
    pub(crate) device_ids: Vec<String>,
    /// Why it has no identifiers, if it must not have any.
    pub(crate) withheld: Option<Withheld>,
}

/// Why a record has no identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Withheld {
    /// The user was erased since.
    Erased,
    /// The user is the same person as one who comes out through another record, after a merge.
    Merged,
}

/// What has become of a pinned user who is no longer live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Withheld(Withheld),
    /// Merged into this user, who comes out in its place.
    Replaced(u32),
}

/// What has become of the pinned users who are no longer live, and of those live ones whose person
/// has come out already.
///
/// Of several who live on as one and the same, one speaks for them: whoever came out before the
/// merge, for that cannot be taken back; else the survivor, if it is pinned; else the first that is
/// not silent, for a stream that has withheld a user, or may have, cannot take that back either.
fn fates(pinned: &UserSet, tombstones: &Tombstones, past: &Past) -> HashMap<u32, Fate> {
    let gone = pinned & tombstones.gone();
    let survivor = |user| match tombstones.standing(user) {
        Standing::Merged(survivor) => Some(survivor),
        Standing::Live | Standing::Deleted => None,
    };
    let mut spoken_for: HashSet<u32> = gone
        .iter()
        .filter(|&user| past.printed(user))
        .filter_map(survivor)
        .collect();
    let repeated = spoken_for
        .iter()
        .filter(|&&survivor| pinned.contains(survivor) && !past.printed(survivor));
    let repeated: Vec<u32> = repeated.copied().collect();
    let fate = |user| match tombstones.standing(user) {
        Standing::Deleted => Fate::Withheld(Withheld::Erased),
        Standing::Merged(survivor)
            if !pinned.contains(survivor)
                && !past.is_silent(user)
                && spoken_for.insert(survivor) =>
        {
            Fate::Replaced(survivor)
        }
        Standing::Merged(_) => Fate::Withheld(Withheld::Merged),
        Standing::Live => unreachable!("the tombstones hold it"),
    };
    let gone: Vec<(u32, Fate)> = gone.iter().zip(gone.iter().map(fate)).collect();
    let repeated = repeated.into_iter();
    let repeated = repeated.map(|user| (user, Fate::Withheld(Withheld::Merged)));
    gone.into_iter().chain(repeated).collect()
}

/// What a stream has done with the pinned users so far. They come out in order, so that little has to
/// be remembered.
#[derive(Debug, Default)]
struct Past {
    /// Users who came out before the stream was resumed. What was withheld then is not known, so
    /// none of them speaks for anybody: whoever was merged into the same person comes out once more
    /// rather than never.
    passed: Range<u32>,
    /// The last user whose record was made since.
    last: Option<u32>,
    /// Those whose records were withheld since.
    withheld: UserSet,
}

impl Past {
    /// Whether the record of this pinned user was made since, with identifiers.
    fn printed(&self, user: u32) -> bool {
        let made = self
            .last
            .is_some_and(|last| (self.passed.end..=last).contains(&user));
        made && !self.withheld.contains(user)
    }

    /// Whether the user can no longer speak for others.
    fn is_silent(&self, user: u32) -> bool {
        self.passed.contains(&user) || self.withheld.contains(user)
    }

    fn made(&mut self, record: &Record) {
        self.last = Some(record.user_no);
        if record.withheld.is_some() {
            self.withheld.insert(record.user_no);
        }
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
            past: Past {
                passed,
                ..Past::default()
            },
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
        batch
            .records
            .iter()
            .for_each(|record| self.past.made(record));
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
        /// The ids of most are shorter.
        const ROOM_FOR_AN_ID: usize = 32;
        /// Users whose memory is waited for together.
        const FETCHED: usize = 64;
        let mut batch = Batch {
            records: Vec::with_capacity(users.len()),
            external_ids: String::with_capacity(users.len() * ROOM_FOR_AN_ID),
        };
        let mut bytes = 0;
        for (place, &user) in users.iter().enumerate() {
            if place % FETCHED == 0 && self.view != View::UserNo {
                held.fetch(&users[place..users.len().min(place + FETCHED)]);
            }
            let mut record = self.begin(user);
            if record.withheld.is_none() && self.view != View::UserNo {
                let printed = self.printed(user);
                let Some(identifiers) = held.identifiers(printed) else {
                    return Ok(None);
                };
                bytes += self.fill(&mut record, &mut batch.external_ids, identifiers)?;
                if bytes > READ_BYTES && !batch.records.is_empty() {
                    break;
                }
            }
            batch.records.push(record);
        }
        Ok(Some(batch))
    }

    /// Writes the identifiers that the view asks for into a record and what it stands in; returns
    /// their size in bytes.
    fn fill<'a>(
        &self,
        record: &mut Record,
        external_ids: &mut String,
        identifiers: impl Iterator<Item = Entry<'a>>,
    ) -> Result<usize> {
        let text = |bytes: &'a [u8]| str::from_utf8(bytes).map_err(Error::internal);
        let mut bytes = 0;
        for entry in identifiers {
            let (label, id) = entry.parts();
            match entry.kind() {
                IdentifierKind::ExternalId if entry.is_printed() => {
                    record.external_id = append(external_ids, text(id)?);
                }
                // The first one, if there is one, is what this view asks for.
                _ if self.view == View::ExternalId => break,
                // Another external id, of somebody merged into this user.
                IdentifierKind::ExternalId => continue,
                IdentifierKind::Alias => {
                    let alias = (text(label)?.to_owned(), text(id)?.to_owned());
                    record.aliases.push(alias);
                }
                IdentifierKind::DeviceId => record.device_ids.push(text(id)?.to_owned()),
            }
            bytes += label.len() + id.len();
        }
        Ok(bytes)
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
        let mut records: Vec<Record> = users.iter().map(|&user| self.begin(user)).collect();
        let printed: Vec<u32> = records
            .iter()
            .filter(|record| record.withheld.is_none())
            .map(|record| self.printed(record.user_no))
            .collect();
        let mut external_ids = HashMap::new();
        let mut others = Vec::new();
        if self.view != View::UserNo && !printed.is_empty() {
            external_ids = audience::external_ids(&mut tx, self.workspace, &printed).await?;
        }
        // Where the records of those printed are.
        let places = records.iter().enumerate();
        let places = places.filter(|(_, record)| record.withheld.is_none());
        let places: Vec<usize> = places.map(|(place, _)| place).collect();
        if self.view == View::Full && !printed.is_empty() {
            let ids = external_ids.values().flatten();
            let left = READ_BYTES - ids.map(String::len).sum::<usize>();
            let (found, whole) =
                audience::aliases_and_devices(&mut tx, self.workspace, &printed, left).await?;
            others = found;
            if let Some(&first_left_out) = places.get(whole) {
                records.truncate(first_left_out);
            }
        }
        tx.commit().await?;
        let mut texts = String::new();
        if self.view != View::UserNo {
            for (user, &place) in printed.iter().zip(&places) {
                let found = external_ids.remove(user).ok_or_else(|| {
                    Error::internal(format!("user {user} is live but not in the directory"))
                })?;
                if let Some(record) = records.get_mut(place) {
                    record.external_id = append(&mut texts, &found.unwrap_or_default());
                }
            }
        }
        for (nth, identifier) in others {
            let record = &mut records[places[nth]];
            match identifier.kind {
                IdentifierKind::Alias => record.aliases.push((identifier.label, identifier.id)),
                IdentifierKind::DeviceId => record.device_ids.push(identifier.id),
                IdentifierKind::ExternalId => {}
            }
        }
        Ok(Batch {
            records,
            external_ids: texts,
        })
    }

    fn decide_fates(&mut self, directory: &Directory, position: Position) -> Moment {
        let moment = Moment::at(position);
        if self.asked.is_none_or(|(_, before)| before != moment) {
            self.fates = fates(&self.pinned, &directory.tombstones, &self.past);
        }
        self.asked = Some((Instant::now(), moment));
        moment
    }

    fn begin(&self, user_no: u32) -> Record {
        let withheld = match self.fates.get(&user_no) {
            Some(Fate::Withheld(why)) => Some(*why),
            Some(Fate::Replaced(_)) | None => None,
        };
        Record {
            user_no,
            withheld,
            ..Record::default()
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

/// Adds a text; returns where it stands.
fn append(texts: &mut String, text: &str) -> Range<usize> {
    let begin = texts.len();
    texts.push_str(text);
    begin..texts.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERASED: Fate = Fate::Withheld(Withheld::Erased);
    const MERGED: Fate = Fate::Withheld(Withheld::Merged);

    fn of(pinned: &[u32], tombstones: &Tombstones, withheld: &[u32]) -> Vec<(u32, Fate)> {
        after(withheld.last().copied(), pinned, tombstones, withheld)
    }

    fn after(
        last: Option<u32>,
        pinned: &[u32],
        tombstones: &Tombstones,
        withheld: &[u32],
    ) -> Vec<(u32, Fate)> {
        let past = Past {
            last,
            withheld: withheld.iter().copied().collect(),
            passed: 0..0,
        };
        let fates = fates(&pinned.iter().copied().collect(), tombstones, &past);
        let mut fates: Vec<_> = fates.into_iter().collect();
        fates.sort_unstable_by_key(|(user, _)| *user);
        fates
    }

    #[test]
    fn who_came_out_before_a_merge_does_not_come_out_as_the_survivor_again() {
        let mut tombstones = Tombstones::default();
        tombstones.merge(1, 3);
        tombstones.merge(2, 3);
        assert_eq!(
            after(Some(1), &[1, 2, 3], &tombstones, &[]),
            [(1, MERGED), (2, MERGED), (3, MERGED)]
        );
        // The survivor came out: nothing is taken back.
        assert_eq!(
            after(Some(3), &[1, 2, 3, 4], &tombstones, &[]),
            [(1, MERGED), (2, MERGED)]
        );
        tombstones.merge(3, 90);
        assert_eq!(
            after(Some(1), &[1, 2, 3], &tombstones, &[]),
            [(1, MERGED), (2, MERGED), (3, MERGED)]
        );
        tombstones.delete(90);
        assert_eq!(
            after(Some(1), &[1, 2, 3], &tombstones, &[]),
            [(1, ERASED), (2, ERASED), (3, ERASED)]
        );
    }

    #[test]
    fn nobody_comes_out_twice_and_nobody_live_is_lost() {
        let mut tombstones = Tombstones::default();
        tombstones.delete(1);
        tombstones.merge(2, 3);
        tombstones.merge(4, 90);
        tombstones.merge(5, 90);
        assert_eq!(
            of(&[1, 2, 3, 4, 5, 6], &tombstones, &[]),
            [
                (1, ERASED),
                (2, MERGED),
                (4, Fate::Replaced(90)),
                (5, MERGED)
            ]
        );
    }

    #[test]
    fn a_chain_of_merges_leads_to_its_end() {
        let mut tombstones = Tombstones::default();
        tombstones.merge(1, 2);
        tombstones.merge(2, 90);
        assert_eq!(
            of(&[1, 2], &tombstones, &[]),
            [(1, Fate::Replaced(90)), (2, MERGED)]
        );
        tombstones.delete(90);
        assert_eq!(of(&[1, 2], &tombstones, &[]), [(1, ERASED), (2, ERASED)]);
    }

    #[test]
    fn who_was_to_be_spoken_for_by_another_does_not_silence_that_one() {
        // 1 was withheld for 2; then 2 was merged as well, before its record was sent.
        let mut tombstones = Tombstones::default();
        tombstones.merge(1, 2);
        tombstones.merge(2, 90);
        assert_eq!(
            of(&[1, 2], &tombstones, &[1]),
            [(1, MERGED), (2, Fate::Replaced(90))]
        );
    }
}
