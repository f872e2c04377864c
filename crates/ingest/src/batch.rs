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
    Connection, WorkspaceId, credentials,
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
    fn len(&self) -> usize {
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

    /// Goes on with a digest over these identifiers.
    pub(crate) fn digest(&self, mut digest: ImportDigest) -> ImportDigest {
        for (effect, identifier) in self.identifiers() {
            digest.update(effect, identifier);
        }
        digest
    }
}

/// Matches a batch against the directory of this moment. `digest` is that of the import up to the
/// end of the batch. Returns, apart, the identifiers that had no effect.
pub(crate) async fn resolve<'a>(
    identities: &Identities,
    conn: &mut Connection,
    workspace: WorkspaceId,
    batch: &'a Changes,
    digest: &ImportDigest,
) -> Result<(Batch, Vec<Rejection<'a>>)> {
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
            builder.reject(position, effect, identifier, Reason::Invalid);
            continue;
        };
        match matched {
            Match::User(user) => builder.push(effect, identifier.kind, user),
            Match::Unknown => builder.reject(position, effect, identifier, Reason::Unknown),
            Match::DeviceOfIdentifiedUser(_) => {
                builder.reject(position, effect, identifier, Reason::DeviceOfIdentifiedUser);
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
struct Builder<'a> {
    runs: Vec<Run>,
    open: Option<(Effect, bool)>,
    users: Vec<u32>,
    unmatched: Unmatched,
    rejected: Vec<Rejection<'a>>,
}

impl<'a> Builder<'a> {
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

    fn reject(
        &mut self,
        position: u64,
        effect: Effect,
        identifier: IdentifierRef<'a>,
        reason: Reason,
    ) {
        match reason {
            Reason::Unknown => self.unmatched.unknown += 1,
            Reason::DeviceOfIdentifiedUser => self.unmatched.device_of_identified_user += 1,
            Reason::Invalid => self.unmatched.invalid += 1,
        }
        self.rejected.push(Rejection {
            position,
            reason,
            effect,
            identifier,
        });
    }
}

impl Ingest {
    /// Makes a batch durable; returns the offset of the next one.
    pub(crate) async fn stage(
        &self,
        caller: &Caller,
        writer: &mut Writer,
        batch: &Changes,
    ) -> Result<u64> {
        batch.check(writer.mode)?;
        if writer.complete {
            return Err(complete());
        }
        if batch.offset > writer.next_offset {
            return Err(gap(writer.next_offset));
        }
        if batch.offset < writer.next_offset {
            self.check_repeated(writer, batch).await?;
            return Ok(writer.next_offset);
        }
        let digest = batch.digest(writer.digest.clone());
        let mut tx = self.store.begin("stage_batch").await?;
        let (staged, rejected) =
            resolve(&self.identities, &mut tx, writer.workspace, batch, &digest).await?;
        let (workspace, import_id) = (writer.workspace, writer.import_id.as_str());
        let expiry = self.settings.import_expiry;
        if !imports::stage(&mut tx, workspace, import_id, writer.fence, &staged, expiry).await? {
            let import = imports::lock(&mut tx, workspace, import_id).await?;
            return Err(match import.state {
                State::Open => fenced(),
                _ => finished(&import),
            });
        }
        rejected::insert(&mut tx, workspace, import_id, batch.offset, &rejected).await?;
        // A revoked credential gets no acknowledgement, however long the batch took.
        if !credentials::is_active(&mut tx, caller.credential).await? {
            return Err(credential_invalid());
        }
        tx.commit().await?;
        writer.digest = digest;
        writer.next_offset += staged.identifier_count;
        Ok(writer.next_offset)
    }

    /// Accepts a batch that was staged before only if it is the same one.
    async fn check_repeated(&self, writer: &Writer, batch: &Changes) -> Result<()> {
        let mut connection = self.store.connection().await?;
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
