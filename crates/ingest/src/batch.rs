//! Batches: staged durably before they are acknowledged.

use muster_domain::{
    error::{Error, Kind, Result},
    identifier::{IdentifierKind, IdentifierRef},
    import::{Effect, ImportDigest, Mode},
};
use muster_proto::Texts;
use muster_service::{Caller, caller::credential_invalid};
use muster_storage::{
    WorkspaceId, credentials,
    directory::feed,
    imports::{self, State},
    rejected::{self, Reason, Rejection},
    share::Held,
};

use crate::{Ingest, matching::Group, open::finished, session::Writer};

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
    pub(crate) fn identifiers(&self) -> impl Iterator<Item = (Effect, IdentifierRef<'_>)> {
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
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (Effect, IdentifierKind)> {
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
