//! Batches: from identifiers to users, staged durably before they are acknowledged.

use muster_domain::{
    error::{Error, Kind, Result},
    identifier::{IdentifierKind, IdentifierRef},
    import::{Effect, ImportDigest, Mode, Run, Unmatched},
    user_set::UserSet,
};
use muster_identity::{Identities, Moment};
use muster_proto::Texts;
use muster_service::{Caller, caller::credential_invalid};
use muster_storage::{
    Connection, WorkspaceId, credentials,
    directory::{
        Match,
        feed::{self, Position},
    },
    imports::{self, Batch, State},
    rejected::{self, Reason, Rejection},
    share::Held,
};

use crate::{Ingest, open::finished, session::Writer};

/// A batch as it was sent.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) offset: u64,
    pub(crate) changes: Vec<Change>,
    /// Held for as long as it is there.
    pub(crate) memory: Option<Held>,
}

/// Identifiers with one effect. Their order is: external ids, aliases, device ids.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) effect: Effect,
    pub(crate) external_ids: Texts,
    /// Labels and names.
    pub(crate) aliases: Vec<(String, String)>,
    pub(crate) device_ids: Texts,
}

impl Changes {
    /// The offset after it.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len() as u64
    }

    /// What it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, Held::amount)
    }

    pub(crate) fn len(&self) -> usize {
        let sizes = self
            .changes
            .iter()
            .map(|c| c.external_ids.len() + c.aliases.len() + c.device_ids.len());
        sizes.sum()
    }

    /// The identifiers in the order they apply.
    fn identifiers(&self) -> impl Iterator<Item = (Effect, IdentifierRef<'_>)> {
        self.changes.iter().flat_map(|change| {
            let ids = change.external_ids.iter().map(IdentifierRef::external_id);
            let aliases = change
                .aliases
                .iter()
                .map(|(label, name)| IdentifierRef::alias(label, name));
            let devices = change.device_ids.iter().map(IdentifierRef::device_id);
            ids.chain(aliases)
                .chain(devices)
                .map(|identifier| (change.effect, identifier))
        })
    }

    /// The effects and kinds of the identifiers, in the same order.
    fn kinds(&self) -> impl Iterator<Item = (Effect, IdentifierKind)> {
        self.changes.iter().flat_map(|change| {
            let columns = [
                (IdentifierKind::ExternalId, change.external_ids.len()),
                (IdentifierKind::Alias, change.aliases.len()),
                (IdentifierKind::DeviceId, change.device_ids.len()),
            ];
            let kinds = columns.map(|(kind, count)| std::iter::repeat_n(kind, count));
            kinds
                .into_iter()
                .flatten()
                .map(|kind| (change.effect, kind))
        })
    }

    pub(crate) fn check(&self, mode: Mode) -> Result<()> {
        if self.len() == 0 {
            return Err(Error::field("batch.changes", "must hold an identifier"));
        }
        let removal = self
            .changes
            .iter()
            .position(|change| mode == Mode::Replace && change.effect == Effect::Remove);
        match removal {
            Some(index) => Err(Error::field(
                format!("batch.changes[{index}].effect"),
                "must be ADD in a REPLACE import, which holds the full list",
            )),
            None => Ok(()),
        }
    }

    /// The identifiers at some positions, which ascend, as rejections.
    pub(crate) fn rejections(&self, rejected: &[(u64, Reason)]) -> Vec<Rejection<'_>> {
        let mut rejected = rejected.iter().copied().peekable();
        let sent = (self.offset..).zip(self.identifiers());
        sent.filter_map(|(position, (effect, identifier))| {
            let (_, reason) = rejected.next_if(|(next, _)| *next == position)?;
            Some(Rejection {
                position,
                reason,
                effect,
                identifier,
            })
        })
        .collect()
    }

    /// Goes on with a digest over these identifiers.
    pub(crate) fn digest(&self, mut digest: ImportDigest) -> ImportDigest {
        for (effect, identifier) in self.identifiers() {
            digest.update(effect, identifier);
        }
        digest
    }
}

/// What a batch comes to.
#[derive(Debug)]
pub(crate) struct Resolution {
    pub(crate) batch: Batch,
    /// The positions of the identifiers that had no effect, which ascend, and why.
    pub(crate) rejected: Vec<(u64, Reason)>,
}

/// The identifiers of a batch, as they are looked up.
struct Sought<'a> {
    batch: &'a Changes,
    well_formed: Vec<IdentifierRef<'a>>,
    /// The positions of the others, which ascend.
    malformed: Vec<u64>,
}

impl<'a> Sought<'a> {
    fn of(batch: &'a Changes) -> Self {
        let mut well_formed = Vec::with_capacity(batch.len());
        let mut malformed = Vec::new();
        for (position, (_, identifier)) in (batch.offset..).zip(batch.identifiers()) {
            if identifier.is_valid() {
                well_formed.push(identifier);
            } else {
                malformed.push(position);
            }
        }
        Self {
            batch,
            well_formed,
            malformed,
        }
    }

    /// What comes of it, given what each well-formed identifier leads to at an epoch.
    fn resolution(self, digest: &[u8], epoch: i64, matches: Vec<Match>) -> Resolution {
        let batch = self.batch;
        let mut malformed = self.malformed.into_iter().peekable();
        let mut matches = matches.into_iter();
        let mut builder = Builder::default();
        for (position, (effect, kind)) in (batch.offset..).zip(batch.kinds()) {
            if malformed.next_if_eq(&position).is_some() {
                builder.reject(position, Reason::Invalid);
                continue;
            }
            let matched = matches.next();
            match matched.expect("one match for each well-formed identifier") {
                Match::User(user) => builder.push(effect, kind, user),
                Match::Unknown => builder.reject(position, Reason::Unknown),
                Match::DeviceOfIdentifiedUser(_) => {
                    builder.reject(position, Reason::DeviceOfIdentifiedUser);
                }
            }
        }
        builder.close();
        Resolution {
            batch: Batch {
                first_offset: batch.offset,
                identifier_count: batch.len() as u64,
                runs: builder.runs,
                unmatched: builder.unmatched,
                digest_state: digest.to_vec(),
                directory_epoch: epoch,
            },
            rejected: builder.rejected,
        }
    }
}

/// Gathers the users of consecutive identifiers of one effect and class into runs.
#[derive(Default)]
struct Builder {
    runs: Vec<Run>,
    open: Option<(Effect, bool)>,
    users: Vec<u32>,
    unmatched: Unmatched,
    rejected: Vec<(u64, Reason)>,
}

impl Builder {
    fn push(&mut self, effect: Effect, kind: IdentifierKind, user: u32) {
        let class = (effect, kind == IdentifierKind::DeviceId);
        if self.open != Some(class) {
            self.close();
            self.open = Some(class);
        }
        self.users.push(user);
    }

    fn close(&mut self) {
        let Some((effect, by_device)) = self.open.take() else {
            return;
        };
        let matched = self.users.len() as u64;
        // Building a bitmap from a sorted run is several times faster than inserting one by one.
        self.users.sort_unstable();
        self.users.dedup();
        let users = UserSet::from_sorted_iter(self.users.drain(..)).expect("sorted, no repetition");
        self.runs.push(Run {
            effect,
            by_device,
            matched,
            users,
        });
    }

    fn reject(&mut self, position: u64, reason: Reason) {
        match reason {
            Reason::Unknown => self.unmatched.unknown += 1,
            Reason::DeviceOfIdentifiedUser => self.unmatched.device_of_identified_user += 1,
            Reason::Invalid => self.unmatched.invalid += 1,
        }
        self.rejected.push((position, reason));
    }
}

/// Batches that follow each other, to be staged in one transaction.
#[derive(Debug)]
pub(crate) struct Group {
    batches: Vec<Resolved>,
    /// That of the import up to their end.
    digest: ImportDigest,
}

/// A batch that was matched before the transaction that takes it has begun, so that the one is done
/// while the transaction before that one is still written to disk.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) changes: Changes,
    /// State of the digest of the import at its end.
    digest: Vec<u8>,
    /// What it comes to at some moment; `None` if the directory is not in memory.
    seen: Option<(Moment, Resolution)>,
}

impl Resolved {
    /// Matches a batch against the directory in memory.
    pub(crate) fn glance(
        identities: &Identities,
        workspace: WorkspaceId,
        changes: Changes,
        digest: Vec<u8>,
    ) -> Self {
        let sought = Sought::of(&changes);
        let seen = identities.glance(workspace, |snapshot| {
            (snapshot.moment(), snapshot.matches(&sought.well_formed))
        });
        let seen = seen
            .map(|(moment, matches)| (moment, sought.resolution(&digest, moment.epoch(), matches)));
        Self {
            changes,
            digest,
            seen,
        }
    }

    /// Whether it was matched against the directory at `position` or later.
    pub(crate) fn has_seen(&self, position: Position) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|(moment, _)| moment.includes(position))
    }

    /// What it comes to with the directory at `position` or later: what was seen, or else what is
    /// seen at this moment.
    pub(crate) async fn settle(
        &mut self,
        identities: &Identities,
        conn: &mut Connection,
        workspace: WorkspaceId,
        position: Position,
    ) -> Result<Resolution> {
        if self.has_seen(position)
            && let Some((_, resolution)) = self.seen.take()
        {
            return Ok(resolution);
        }
        let sought = Sought::of(&self.changes);
        // Whatever has changed since this epoch is checked again when the import is published.
        let (epoch, matches) = identities
            .match_identifiers(conn, workspace, &sought.well_formed)
            .await?;
        Ok(sought.resolution(&self.digest, epoch, matches))
    }
}

impl Group {
    /// Matches batches against the directory in memory. `digest` is that of the import up to the
    /// first of them.
    pub(crate) fn resolve(
        identities: &Identities,
        workspace: WorkspaceId,
        batches: Vec<Changes>,
        mut digest: ImportDigest,
    ) -> Self {
        let resolved = batches.into_iter().map(|changes| {
            digest = changes.digest(std::mem::take(&mut digest));
            Resolved::glance(identities, workspace, changes, digest.state())
        });
        Self {
            batches: resolved.collect(),
            digest,
        }
    }

    /// The offset after it, and the digest of the import up to there.
    pub(crate) fn end(&self) -> (u64, &ImportDigest) {
        let last = self.batches.last().expect("nobody stages nothing");
        (last.changes.end(), &self.digest)
    }
}

impl Ingest {
    /// Whether the next batch is new. If it was acknowledged before, the answer is that it still is.
    pub(crate) async fn is_new(&self, writer: &Writer, batch: &Changes) -> Result<bool> {
        batch.check(writer.mode)?;
        if writer.complete {
            return Err(complete());
        }
        if batch.offset > writer.next_offset {
            return Err(gap(writer.next_offset));
        }
        if batch.offset < writer.next_offset {
            self.check_repeated(writer, batch).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Makes a group durable; returns the offset after each of its batches.
    pub(crate) async fn stage(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        import_id: &str,
        fence: i64,
        group: Group,
    ) -> Result<Vec<u64>> {
        let mut tx = self.store.begin_in("stage_batches", workspace).await?;
        // Read now that the batches have arrived: every user there was before must have been seen.
        let position = feed::position(&mut tx, workspace).await?;
        let (mut batches, mut rejections) = (Vec::new(), Vec::new());
        let mut ends = Vec::new();
        for mut batch in group.batches {
            let settled = batch.settle(&self.identities, &mut tx, workspace, position);
            let resolution = settled.await?;
            let changes = batch.changes;
            ends.push(changes.end());
            batches.push(resolution.batch);
            if !resolution.rejected.is_empty() {
                rejections.push((changes, resolution.rejected));
            }
        }
        let expiry = self.settings.import_expiry;
        if !imports::stage(&mut tx, workspace, import_id, fence, &batches, expiry).await? {
            let import = imports::lock(&mut tx, workspace, import_id).await?;
            return Err(match import.state {
                State::Open => fenced(),
                _ => finished(&import),
            });
        }
        for (changes, rejected) in &rejections {
            let rejections = changes.rejections(rejected);
            rejected::insert(&mut tx, workspace, import_id, changes.offset, &rejections).await?;
        }
        // A revoked credential gets no acknowledgement, however long the batches took.
        if !credentials::is_active(&mut tx, caller.credential, caller.peer).await? {
            return Err(credential_invalid());
        }
        tx.commit().await?;
        Ok(ends)
    }

    /// Accepts a batch that was staged before only if it is the same one.
    async fn check_repeated(&self, writer: &Writer, batch: &Changes) -> Result<()> {
        let read = self.store.read_in("check_repeated", writer.workspace);
        let mut connection = read.await?;
        let digests = imports::digests_around(
            &mut connection,
            writer.workspace,
            &writer.import_id,
            batch.offset,
            batch.len() as u64,
        )
        .await?;
        if let Some((before, after)) = digests
            && batch.digest(ImportDigest::from_state(&before)?).state() == after
        {
            return Ok(());
        }
        Err(Error::new(
            Kind::FailedPrecondition,
            "BATCH_MISMATCH",
            format!(
                "another batch was acknowledged at offset {}; go on at offset {}",
                batch.offset, writer.next_offset
            ),
        )
        .with("expected_offset", writer.next_offset))
    }
}

fn complete() -> Error {
    Error::new(
        Kind::FailedPrecondition,
        "IMPORT_COMPLETE",
        "the import is complete; only a commit makes sense",
    )
}

fn gap(expected: u64) -> Error {
    Error::new(
        Kind::OutOfRange,
        "OFFSET_GAP",
        format!("the next offset is {expected}"),
    )
    .with("expected_offset", expected)
}

/// Another stream has opened the import since.
pub(crate) fn fenced() -> Error {
    Error::new(
        Kind::Aborted,
        "WRITER_FENCED",
        "another writer has opened the import",
    )
}
