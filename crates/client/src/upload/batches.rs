//! From a sequence of identifiers to batches that keep its order and the server's limits.

use std::io;

use muster_domain::{
    identifier::{Identifier, IdentifierKind},
    import::{Effect, ImportDigest, MAX_BATCH_BYTES, MAX_BATCH_IDENTIFIERS},
};
use muster_proto::{
    ingest::v1::{ChangeEffect, CohortChange, IdentifierBatch},
    users::v1::Alias,
};
use prost::encoding::encoded_len_varint;
use tokio::sync::mpsc;

/// Upper bound of what wraps a change: its tag, its length and its effect, in bytes.
const CHANGE_BYTES: usize = 8;

/// Upper bound of what wraps a batch: the request's tag and length, and the offset, in bytes.
const BATCH_BYTES: usize = 32;

/// How often the reading thread looks whether somebody still listens while it skips, in identifiers.
const LISTENER_CHECK: u64 = 4096;

/// The whole of an import, as the commit states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) identifiers: u64,
    pub(super) digest: [u8; 32],
}

/// What the reading thread hands over.
#[derive(Debug)]
pub(super) enum Piece {
    Batch(IdentifierBatch),
    End(Total),
}

/// An identifier that no batch can carry; it is far beyond the limit of a valid one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the identifier at position {position}, counted from 0, has {bytes} bytes: more than a batch can carry"
)]
pub(super) struct TooLarge {
    position: u64,
    bytes: usize,
}

/// Packs identifiers into batches.
#[derive(Debug)]
pub(super) struct Packer {
    batch: IdentifierBatch,
    identifiers: usize,
    /// Upper bound of the encoded size of the whole request, in bytes.
    bytes: usize,
    last: Option<(Effect, IdentifierKind)>,
}

impl Packer {
    /// Starts with a batch at `offset`.
    pub(super) fn new(offset: u64) -> Self {
        Self {
            batch: IdentifierBatch {
                offset,
                changes: Vec::new(),
            },
            identifiers: 0,
            bytes: BATCH_BYTES,
            last: None,
        }
    }

    /// Adds an identifier, and hands out the batch before it if that one is full.
    pub(super) fn push(
        &mut self,
        effect: Effect,
        identifier: Identifier,
    ) -> Result<Option<IdentifierBatch>, TooLarge> {
        let bytes = CHANGE_BYTES + encoded_len(&identifier);
        if BATCH_BYTES + bytes >= MAX_BATCH_BYTES {
            return Err(TooLarge {
                position: self.batch.offset + self.identifiers as u64,
                bytes: identifier.id.len() + identifier.label.len(),
            });
        }
        let full =
            self.identifiers == MAX_BATCH_IDENTIFIERS || self.bytes + bytes >= MAX_BATCH_BYTES;
        let done = if full { self.take() } else { None };
        self.bytes += bytes;
        self.identifiers += 1;
        self.append(effect, identifier);
        Ok(done)
    }

    /// The last batch, unless it is empty.
    pub(super) fn take(&mut self) -> Option<IdentifierBatch> {
        let next = Self::new(self.batch.offset + self.identifiers as u64);
        let done = std::mem::replace(self, next);
        (done.identifiers > 0).then_some(done.batch)
    }

    /// A change lists external ids, then aliases, then device ids, so whatever would come out in
    /// another order than it went in begins a change of its own.
    fn append(&mut self, effect: Effect, identifier: Identifier) {
        let kind = identifier.kind;
        let fits = matches!(self.last, Some((e, k)) if e == effect && k <= kind);
        if !fits {
            self.batch.changes.push(CohortChange {
                effect: match effect {
                    Effect::Add => ChangeEffect::Add,
                    Effect::Remove => ChangeEffect::Remove,
                }
                .into(),
                ..CohortChange::default()
            });
        }
        self.last = Some((effect, kind));
        let change = self
            .batch
            .changes
            .last_mut()
            .expect("pushed above if there was none");
        match kind {
            IdentifierKind::ExternalId => change.external_ids.push(identifier.id),
            IdentifierKind::Alias => change.aliases.push(Alias {
                label: identifier.label,
                name: identifier.id,
            }),
            IdentifierKind::DeviceId => change.device_ids.push(identifier.id),
        }
    }
}

/// Size of an identifier on the wire, in bytes; at most a few more than in truth.
fn encoded_len(identifier: &Identifier) -> usize {
    let text = |text: &str| 1 + encoded_len_varint(text.len() as u64) + text.len();
    match identifier.kind {
        IdentifierKind::Alias => {
            let inner = text(&identifier.label) + text(&identifier.id);
            1 + encoded_len_varint(inner as u64) + inner
        }
        IdentifierKind::ExternalId | IdentifierKind::DeviceId => text(&identifier.id),
    }
}

/// Reads a source from its start to its end, on a thread that may block: digests all of it and
/// hands over what comes after the first `skip` identifiers.
///
/// Returns early, without a word, once nobody listens.
pub(super) fn read_source<I>(
    source: impl Fn() -> io::Result<I>,
    skip: u64,
    pieces: &mpsc::Sender<io::Result<Piece>>,
) where
    I: Iterator<Item = io::Result<(Effect, Identifier)>>,
{
    if let Err(error) = read_pieces(source, skip, pieces) {
        // Nobody listens any more if this fails; there is nobody to tell.
        let _ = pieces.blocking_send(Err(error));
    }
}

fn read_pieces<I>(
    source: impl Fn() -> io::Result<I>,
    skip: u64,
    pieces: &mpsc::Sender<io::Result<Piece>>,
) -> io::Result<()>
where
    I: Iterator<Item = io::Result<(Effect, Identifier)>>,
{
    let mut digest = ImportDigest::default();
    let mut packer = Packer::new(skip);
    let mut identifiers = 0;
    for item in source()? {
        let (effect, identifier) = item?;
        digest.update(effect, identifier.as_ref());
        identifiers += 1;
        if identifiers <= skip {
            if identifiers % LISTENER_CHECK == 0 && pieces.is_closed() {
                return Ok(());
            }
            continue;
        }
        let full = packer
            .push(effect, identifier)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if let Some(batch) = full
            && pieces.blocking_send(Ok(Piece::Batch(batch))).is_err()
        {
            return Ok(());
        }
    }
    let rest = packer.take().map(Piece::Batch);
    let total = Piece::End(Total {
        identifiers,
        digest: digest.finish(),
    });
    for piece in rest.into_iter().chain([total]) {
        if pieces.blocking_send(Ok(piece)).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
