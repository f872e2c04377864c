//! From the identifiers of batches to users: at a glance before the transaction that takes them has
//! begun, and once more inside it if the directory has moved on by then.

use std::sync::Arc;

use futures::future::{try_join, try_join_all};
use muster_domain::{
    error::Result,
    identifier::{IdentifierKind, IdentifierRef},
    import::{Effect, ImportDigest, Run, Unmatched},
    user_set::UserSet,
};
use muster_identity::{Identities, Moment};
use muster_service::compute;
use muster_storage::{
    Connection, WorkspaceId,
    directory::{Match, feed::Position},
    imports::Batch,
    rejected::Reason,
};
use tokio::runtime::Handle;

use crate::batch::Changes;

/// Batches that follow each other, to be staged in one transaction.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) batches: Vec<Resolved>,
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
    seen: Option<(Moment, Seen)>,
}

impl Resolved {
    /// Matches a batch against the directory in memory.
    pub(crate) fn glance(
        identities: &Identities,
        workspace: WorkspaceId,
        changes: Changes,
        digest: Vec<u8>,
    ) -> Self {
        Self {
            seen: Seen::glance(identities, workspace, &changes),
            changes,
            digest,
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
            && let Some((_, seen)) = self.seen.take()
        {
            return Ok(self.resolution(seen));
        }
        let sought = Sought::of(&self.changes);
        // Whatever has changed since this epoch is checked again when the import is published.
        let (epoch, matches) = identities
            .match_identifiers(conn, workspace, &sought.well_formed)
            .await?;
        Ok(self.resolution(sought.seen(epoch, matches)))
    }

    fn resolution(&self, seen: Seen) -> Resolution {
        Resolution {
            batch: Batch {
                first_offset: self.changes.offset,
                identifier_count: self.changes.len() as u64,
                runs: seen.runs,
                unmatched: seen.unmatched,
                digest_state: self.digest.clone(),
                directory_epoch: seen.epoch,
            },
            rejected: seen.rejected,
        }
    }
}

impl Group {
    /// Matches batches against the directory in memory, on as many cores as there are, and digests them
    /// meanwhile.
    /// `digest` is that of the import up to the first of them.
    ///
    /// # Errors
    /// As [`compute`].
    pub(crate) async fn resolve(
        identities: &Identities,
        workspace: WorkspaceId,
        batches: Vec<Changes>,
        mut digest: ImportDigest,
    ) -> Result<Self> {
        let batches = Arc::new(batches);
        let cores = Handle::current().metrics().num_workers();
        let share = batches.len().div_ceil(cores);
        let matching = (0..batches.len()).step_by(share).map(|first| {
            let (batches, identities) = (Arc::clone(&batches), identities.clone());
            compute(move || {
                let batches = batches.iter().skip(first).take(share);
                let seen = batches.map(|batch| Seen::glance(&identities, workspace, batch));
                seen.collect::<Vec<_>>()
            })
        });
        let matching = try_join_all(matching.collect::<Vec<_>>());
        let digested = Arc::clone(&batches);
        let digesting = compute(move || {
            let states = digested.iter().map(|batch| {
                digest = batch.digest(std::mem::take(&mut digest));
                digest.state()
            });
            (states.collect::<Vec<_>>(), digest)
        });
        let (seen, (states, digest)) = try_join(matching, digesting).await?;
        let batches = Arc::into_inner(batches).expect("no thread has them any more");
        let seen = seen.into_iter().flatten();
        let batches = batches.into_iter().zip(states).zip(seen);
        let batches = batches.map(|((changes, digest), seen)| Resolved {
            changes,
            digest,
            seen,
        });
        Ok(Self {
            batches: batches.collect(),
            digest,
        })
    }

    /// The offset after it, and the digest of the import up to there.
    pub(crate) fn end(&self) -> (u64, &ImportDigest) {
        let last = self.batches.last().expect("nobody stages nothing");
        (last.changes.end(), &self.digest)
    }
}

/// What the identifiers of a batch come to at one epoch of the directory.
#[derive(Debug)]
struct Seen {
    epoch: i64,
    runs: Vec<Run>,
    unmatched: Unmatched,
    rejected: Vec<(u64, Reason)>,
}

impl Seen {
    /// With the directory in memory, and when; `None` if that is not there.
    fn glance(
        identities: &Identities,
        workspace: WorkspaceId,
        batch: &Changes,
    ) -> Option<(Moment, Self)> {
        let sought = Sought::of(batch);
        let (moment, matches) = identities.glance(workspace, |snapshot| {
            (snapshot.moment(), snapshot.matches(&sought.well_formed))
        })?;
        Some((moment, sought.seen(moment.epoch(), matches)))
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
    fn seen(self, epoch: i64, matches: Vec<Match>) -> Seen {
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
        Seen {
            epoch,
            runs: builder.runs,
            unmatched: builder.unmatched,
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
