//! The audience stream: a header, batches by user_no, an end that proves completeness.

use std::sync::Arc;

use muster_domain::{
    error::{Error, Result},
    user_set::UserSet,
};
use muster_identity::Identities;
use muster_service::{
    compute,
    outlet::{self, Limits, Messages, Outlet},
    page,
};
use muster_storage::WorkspaceId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    records::{Batch, Records, View},
    resolutions::Described,
};

/// Most records in a batch. Batches are cut at its multiples, so that they are the same ones
/// whenever and from wherever a resolution is streamed, unless records are so large that a batch is
/// cut earlier.
pub(crate) const BATCH_RECORDS: usize = 4_096;

/// Most partitions.
const MAX_PARTITIONS: u32 = 1_024;

/// One part of an audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partition {
    index: u32,
    count: u32,
}

impl Partition {
    /// All of it.
    pub(crate) const WHOLE: Self = Self { index: 0, count: 1 };

    /// Part `index` of `count`; a count of 0 means 1.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with a path relative to the partition.
    pub(crate) fn new(index: u32, count: u32) -> Result<Self> {
        let count = count.max(1);
        if count > MAX_PARTITIONS {
            let description = format!("must be at most {MAX_PARTITIONS}");
            return Err(Error::field("count", description));
        }
        if index >= count {
            let description = format!("must be below the count, which is {count}");
            return Err(Error::field("index", description));
        }
        Ok(Self { index, count })
    }

    /// The users of the part.
    fn of(self, users: &UserSet) -> UserSet {
        let total = users.len();
        let rank = |index: u32| {
            // u128 for the sake of a proof, not of need: 2³² users times 2¹⁰ parts fit u64.
            let rank = u128::from(index) * u128::from(total) / u128::from(self.count);
            u64::try_from(rank).expect("at most the total")
        };
        let (first, end) = (rank(self.index), rank(self.index + 1));
        if first == end {
            return UserSet::new();
        }
        let mut part = users.clone();
        if let Some(last) = select(users, end - 1)
            && last < u32::MAX
        {
            part.remove_range(last + 1..);
        }
        if let Some(first) = select(users, first) {
            part.remove_range(..first);
        }
        part
    }
}

/// The user at a rank, from 0.
fn select(users: &UserSet, rank: u64) -> Option<u32> {
    users.select(u32::try_from(rank).ok()?)
}

/// Where a stream goes on: bound to resolution and partition.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ResumeToken {
    resolution: Uuid,
    index: u32,
    count: u32,
    /// Records of the partition already received.
    rank: u64,
}

/// Reads a resume token; 0 for an empty one.
fn resume_rank(token: &str, resolution: Uuid, partition: Partition, size: u64) -> Result<u64> {
    if token.is_empty() {
        return Ok(0);
    }
    let refused = |description| Err(Error::field("resume_token", description));
    let Some(read) = page::decode::<ResumeToken>(token) else {
        return refused("is not one that an audience stream gave out");
    };
    if read.resolution != resolution {
        return refused("is of another resolution");
    }
    if (read.index, read.count) != (partition.index, partition.count) {
        return refused("is of another partition");
    }
    if read.rank > size {
        return refused("is not one that an audience stream gave out");
    }
    Ok(read.rank)
}

/// The way in of a fuzz target (`tests/fuzz`); not an interface.
///
/// # Panics
/// If a token leads beyond the audience.
pub fn fuzz_resume_token(token: &str) {
    let id = Uuid::nil();
    if let Ok(rank) = resume_rank(token, id, Partition::WHOLE, 1_000) {
        assert!(rank <= 1_000);
    }
}

/// One message of an audience stream.
#[derive(Debug)]
pub(crate) enum AudienceMessage {
    Header {
        resolution: Described,
        partition_user_count: u64,
    },
    Batch {
        users: Batch,
        resume_token: String,
    },
    End {
        user_count: u64,
        digest: [u8; 32],
        withheld_count: u64,
    },
}

/// What is to be streamed of a resolution.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) workspace: WorkspaceId,
    pub(crate) resolution: Described,
    pub(crate) users: UserSet,
    pub(crate) view: View,
    pub(crate) partition: Partition,
    /// Empty for the beginning.
    pub(crate) resume_token: String,
}

/// Streams a part of a kept resolution.
///
/// # Errors
/// `INVALID_ARGUMENT` on `resume_token` if it is of another resolution or partition.
pub(crate) async fn stream(
    identities: Identities,
    limits: Limits,
    wanted: Wanted,
) -> Result<Messages<AudienceMessage>> {
    let pinned = Arc::new(wanted.users);
    let (users, partition) = (Arc::clone(&pinned), wanted.partition);
    let cut = compute(move || {
        // All of it needs no copy.
        let part = match partition {
            Partition::WHOLE => users,
            partition => Arc::new(partition.of(&users)),
        };
        let digest = digest(&part);
        (part, digest)
    });
    let (part, digest) = cut.await?;
    let id = wanted.resolution.resolution.id;
    let rank = resume_rank(&wanted.resume_token, id, partition, part.len())?;
    let passed = part.min().unwrap_or(0)..select(&part, rank).unwrap_or(u32::MAX);
    let records = Records::new(identities, wanted.workspace, wanted.view, pinned, passed);
    let production = Production {
        resolution: id,
        partition,
        part,
        digest,
        rank,
        records,
    };
    Ok(outlet::stream(limits, |outlet| {
        production.run(wanted.resolution, outlet)
    }))
}

fn digest(users: &UserSet) -> [u8; 32] {
    let mut digest = Sha256::new();
    // Many at a time: a call for each takes longer than the hash itself.
    let mut bytes = Vec::with_capacity(4 * BATCH_RECORDS);
    for (nth, user) in (1..).zip(users) {
        bytes.extend(user.to_be_bytes());
        if nth % BATCH_RECORDS == 0 {
            digest.update(&bytes);
            bytes.clear();
        }
    }
    digest.update(&bytes);
    digest.finalize().into()
}

struct Production {
    resolution: Uuid,
    partition: Partition,
    part: Arc<UserSet>,
    digest: [u8; 32],
    rank: u64,
    records: Records,
}

impl Production {
    async fn run(mut self, resolution: Described, outlet: Outlet<AudienceMessage>) -> Result<()> {
        let total = self.part.len();
        let header = AudienceMessage::Header {
            resolution,
            partition_user_count: total,
        };
        outlet.send(header).await?;
        let mut withheld_count = 0;
        // A token of the very end selects nobody.
        let rest = select(&self.part, self.rank).map(|first| self.part.range(first..));
        let mut rest = rest.into_iter().flatten();
        let mut users: Vec<u32> = Vec::new();
        loop {
            if users.is_empty() {
                let cut = BATCH_RECORDS as u64;
                let size = cut - self.rank % cut;
                let size = usize::try_from(size).expect("at most a batch");
                users.extend(rest.by_ref().take(size));
            }
            if users.is_empty() {
                break;
            }
            let room = outlet.room().await?;
            let batch = self.records.read(&users).await?;
            users.drain(..batch.len);
            self.rank += batch.len as u64;
            withheld_count += batch.withheld.len() as u64;
            let token = ResumeToken {
                resolution: self.resolution,
                index: self.partition.index,
                count: self.partition.count,
                rank: self.rank,
            };
            let batch = AudienceMessage::Batch {
                users: batch,
                resume_token: page::encode(&token),
            };
            room.send(batch).await?;
        }
        let end = AudienceMessage::End {
            user_count: total,
            digest: self.digest,
            withheld_count,
        };
        outlet.send(end).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_disjoint_complete_and_even() {
        let users: UserSet = (0..1_000_u32).map(|n| n * 7).chain([u32::MAX]).collect();
        for count in [1, 2, 3, 7, 1_001, 1_024] {
            let parts = (0..count).map(|i| Partition::new(i, count).unwrap().of(&users));
            let parts: Vec<UserSet> = parts.collect();
            let joined: Vec<u32> = parts.iter().flatten().collect();
            assert_eq!(joined, users.iter().collect::<Vec<_>>());
            let sizes = parts.iter().map(UserSet::len);
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
        }
        assert!(Partition::WHOLE.of(&UserSet::new()).is_empty());
        assert!(Partition::new(2, 2).is_err());
        assert!(Partition::new(0, 1_025).is_err());
        assert_eq!(Partition::new(0, 0).unwrap(), Partition::WHOLE);
    }

    #[test]
    fn a_resume_token_is_bound_to_resolution_and_partition() {
        let (id, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let half = Partition::new(1, 2).unwrap();
        let token = page::encode(&ResumeToken {
            resolution: id,
            index: 1,
            count: 2,
            rank: 10,
        });
        assert_eq!(resume_rank(&token, id, half, 10).unwrap(), 10);
        assert_eq!(resume_rank("", id, half, 10).unwrap(), 0);
        for refused in [
            resume_rank(&token, other, half, 10),
            resume_rank(&token, id, Partition::WHOLE, 10),
            resume_rank(&token, id, half, 9),
            resume_rank("e30", id, half, 10),
        ] {
            assert_eq!(refused.unwrap_err().fields[0].field, "resume_token");
        }
    }
}
