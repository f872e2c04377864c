//! Batches: from identifiers to users, staged durably before they are acknowledged.

use muster_domain::{
    error::{Error, Kind, Result},
    identifier::{IdentifierKind, IdentifierRef},
    import::{Effect, ImportDigest, MAX_BATCH_IDENTIFIERS, Mode, Run, Unmatched},
    user_set::UserSet,
};
use muster_identity::Identities;
use muster_service::{Caller, caller::credential_invalid};
use muster_storage::{
    Connection, Tx, WorkspaceId, credentials,
    directory::Match,
    imports::{self, Batch, State},
    rejected::{self, Reason, Rejection},
};

use crate::{Ingest, open::finished, session::Writer};

/// A batch as it was sent.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) offset: u64,
    pub(crate) changes: Vec<Change>,
}

/// Identifiers with one effect. Their order is: external ids, aliases, device ids.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) effect: Effect,
    pub(crate) external_ids: Vec<String>,
    /// Labels and names.
    pub(crate) aliases: Vec<(String, String)>,
    pub(crate) device_ids: Vec<String>,
}

impl Changes {
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
            let ids = change
                .external_ids
                .iter()
                .map(|id| IdentifierRef::external_id(id));
            let aliases = change
                .aliases
                .iter()
                .map(|(label, name)| IdentifierRef::alias(label, name));
            let devices = change
                .device_ids
                .iter()
                .map(|id| IdentifierRef::device_id(id));
            ids.chain(aliases)
                .chain(devices)
                .map(|identifier| (change.effect, identifier))
        })
    }

    pub(crate) fn check(&self, mode: Mode) -> Result<()> {
        match self.len() {
            0 => return Err(Error::field("batch.changes", "must hold an identifier")),
            1..=MAX_BATCH_IDENTIFIERS => {}
            many => {
                return Err(Error::field(
                    "batch.changes",
                    format!("must hold at most {MAX_BATCH_IDENTIFIERS} identifiers, not {many}"),
                ));
            }
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

/// Matches a batch against the directory of this moment. `digest` is that of the import up to the
/// end of the batch. Returns, apart, the positions of the identifiers that had no effect, and why.
pub(crate) async fn resolve(
    identities: &Identities,
    conn: &mut Connection,
    workspace: WorkspaceId,
    batch: &Changes,
    digest: &ImportDigest,
) -> Result<(Batch, Vec<(u64, Reason)>)> {
    let sent: Vec<(Effect, IdentifierRef<'_>)> = batch.identifiers().collect();
    let well_formed: Vec<IdentifierRef<'_>> = sent
        .iter()
        .map(|(_, identifier)| *identifier)
        .filter(IdentifierRef::is_valid)
        .collect();
    // Whatever has changed since this epoch is checked again when the import is published.
    let (directory_epoch, matches) = identities
        .match_identifiers(conn, workspace, &well_formed)
        .await?;
    let mut matches = matches.into_iter();
    let mut builder = Builder::default();
    for (position, (effect, identifier)) in (batch.offset..).zip(sent) {
        let matched = if identifier.is_valid() {
            matches
                .next()
                .expect("one match for each well-formed identifier")
        } else {
            builder.reject(position, Reason::Invalid);
            continue;
        };
        match matched {
            Match::User(user) => builder.push(effect, identifier.kind, user),
            Match::Unknown => builder.reject(position, Reason::Unknown),
            Match::DeviceOfIdentifiedUser(_) => {
                builder.reject(position, Reason::DeviceOfIdentifiedUser);
            }
        }
    }
    builder.close();
    let resolved = Batch {
        first_offset: batch.offset,
        identifier_count: batch.len() as u64,
        runs: builder.runs,
        unmatched: builder.unmatched,
        digest_state: digest.state(),
        directory_epoch,
    };
    Ok((resolved, builder.rejected))
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

/// Most batches that are staged in one transaction.
const MAX_GROUP: usize = 8;

/// Batches that are being staged together, in a transaction that has begun.
#[derive(Debug)]
pub(crate) struct Group {
    tx: Tx,
    batches: Vec<Batch>,
    /// The batches that hold identifiers to be rejected, with these.
    rejected: Vec<(Changes, Vec<(u64, Reason)>)>,
    digest: ImportDigest,
    next_offset: u64,
}

impl Group {
    /// Whether it is to be staged without waiting for more.
    pub(crate) fn is_full(&self) -> bool {
        self.batches.len() >= MAX_GROUP
    }

    /// Whether this batch comes next; otherwise the group has to be staged first, to tell what is
    /// wrong with it.
    pub(crate) fn is_continued_by(&self, batch: &Changes) -> bool {
        batch.offset == self.next_offset
    }
}

impl Ingest {
    /// Begins a group of batches.
    pub(crate) async fn group(&self, writer: &Writer) -> Result<Group> {
        Ok(Group {
            tx: self
                .store
                .begin_in("stage_batches", writer.workspace)
                .await?,
            batches: Vec::new(),
            rejected: Vec::new(),
            digest: writer.digest.clone(),
            next_offset: writer.next_offset,
        })
    }

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

    /// Adds the batch that comes next, and has been checked, to a group.
    pub(crate) async fn add(
        &self,
        writer: &Writer,
        group: &mut Group,
        batch: Changes,
    ) -> Result<()> {
        let digest = batch.digest(group.digest.clone());
        let (identities, tx) = (&self.identities, &mut group.tx);
        let (resolved, rejected) =
            resolve(identities, tx, writer.workspace, &batch, &digest).await?;
        group.digest = digest;
        group.next_offset += resolved.identifier_count;
        group.batches.push(resolved);
        if !rejected.is_empty() {
            group.rejected.push((batch, rejected));
        }
        Ok(())
    }

    /// Makes a group durable; returns the offset after each of its batches.
    pub(crate) async fn stage(
        &self,
        caller: &Caller,
        writer: &mut Writer,
        group: Group,
    ) -> Result<Vec<u64>> {
        let (mut tx, batches) = (group.tx, group.batches);
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let (workspace, import_id) = (writer.workspace, writer.import_id.as_str());
        let expiry = self.settings.import_expiry;
        if !imports::stage(
            &mut tx,
            workspace,
            import_id,
            writer.fence,
            &batches,
            expiry,
        )
        .await?
        {
            let import = imports::lock(&mut tx, workspace, import_id).await?;
            return Err(match import.state {
                State::Open => fenced(),
                _ => finished(&import),
            });
        }
        for (batch, rejected) in &group.rejected {
            let rejections = batch.rejections(rejected);
            rejected::insert(&mut tx, workspace, import_id, batch.offset, &rejections).await?;
        }
        // A revoked credential gets no acknowledgement, however long the batches took.
        if !credentials::is_active(&mut tx, caller.credential, caller.peer).await? {
            return Err(credential_invalid());
        }
        tx.commit().await?;
        writer.digest = group.digest;
        writer.next_offset = group.next_offset;
        let ends = batches.iter();
        Ok(ends
            .map(|batch| batch.first_offset + batch.identifier_count)
            .collect())
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
