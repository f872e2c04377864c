//! Where identifiers are: a hash table from identifiers to addresses of the arena.
//!
//! The hash is SipHash under a key that every process draws for itself, so nobody can choose
//! identifiers that collide. The table knows no identifiers, only 8 bits of their hash; whoever asks
//! compares with what stands in the arena. It consists of many small shards, which grow one by one:
//! no insertion ever moves more than some hundred entries.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use muster_domain::identifier::IdentifierKind;

use crate::arena::Address;

/// Places in a bucket, which fills one cache line.
const PLACES: usize = 12;

/// Buckets that a shard is planned with, and the share of them that is planned to be taken.
const SHARD_BUCKETS: usize = 64;
const PLANNED_LOAD: f64 = 0.82;

#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Bucket {
    addresses: [Address; PLACES],
    /// 8 bits of the hash; 0 where the place is free.
    tags: [u8; PLACES],
    /// Whether an entry of this bucket went to a later one.
    overflowed: bool,
}

impl Bucket {
    #[inline]
    fn tagged(&self, tag: u8) -> impl Iterator<Item = Address> + '_ {
        let places = self.tags.iter().zip(&self.addresses);
        places
            .filter(move |(found, _)| **found == tag)
            .map(|(_, address)| *address)
    }
}

#[derive(Debug, Default)]
struct Shard {
    buckets: Vec<Bucket>,
    entries: usize,
}

/// The secret that hashes depend on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Key(RandomState);

impl Key {
    #[inline]
    pub(crate) fn hash(&self, kind: IdentifierKind, label: &[u8], id: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        if kind == IdentifierKind::Alias {
            hasher.write(label);
            // No label contains it.
            hasher.write_u8(0xff);
        }
        hasher.write(id);
        hasher.write_u8(kind.code());
        hasher.finish()
    }
}

#[derive(Debug)]
pub(crate) struct Table {
    shards: Vec<Shard>,
    buckets: usize,
    entries: usize,
    planned: usize,
}

/// Maps 32 bits evenly to `0..length`.
#[inline]
fn reduce(bits: u32, length: usize) -> usize {
    // Lengths are far below 2³², and so is the result.
    ((u64::from(bits) * length as u64) >> 32) as usize
}

#[inline]
fn tag(hash: u64) -> u8 {
    (hash as u8).max(1)
}

impl Table {
    /// A table for about so many entries.
    pub(crate) fn with_capacity(entries: usize) -> Self {
        let planned = (SHARD_BUCKETS * PLACES) as f64 * PLANNED_LOAD;
        let shards = (entries as f64 / planned).ceil().max(1.0) as usize;
        let mut shards: Vec<Shard> = std::iter::repeat_with(Shard::default)
            .take(shards)
            .collect();
        if shards.len() > 1 {
            for shard in &mut shards {
                shard.buckets = vec![Bucket::default(); SHARD_BUCKETS];
            }
        }
        Self {
            buckets: shards.iter().map(|shard| shard.buckets.len()).sum(),
            shards,
            entries: 0,
            planned: entries.max(SHARD_BUCKETS * PLACES),
        }
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[reduce((hash >> 32) as u32, self.shards.len())]
    }

    /// The first address that a hash may stand for, if the entry is in its own bucket, as most are:
    /// cheap, and independent of what the arena holds.
    #[inline]
    pub(crate) fn likely(&self, hash: u64) -> Option<Address> {
        let buckets = &self.shard(hash).buckets;
        let home = buckets.get(reduce(hash as u32, buckets.len()))?;
        home.tagged(tag(hash)).next()
    }

    /// The address under a hash that `is` the one sought.
    pub(crate) fn find(&self, hash: u64, is: impl Fn(Address) -> bool) -> Option<Address> {
        let buckets = &self.shard(hash).buckets;
        let mut at = reduce(hash as u32, buckets.len());
        for _ in 0..buckets.len() {
            let bucket = &buckets[at];
            if let Some(found) = bucket.tagged(tag(hash)).find(|address| is(*address)) {
                return Some(found);
            }
            if !bucket.overflowed {
                return None;
            }
            at = (at + 1) % buckets.len();
        }
        None
    }

    /// Adds an address; `hash_of` gives the hash of one that is there already.
    pub(crate) fn insert(&mut self, hash: u64, address: Address, hash_of: impl Fn(Address) -> u64) {
        let number = reduce((hash >> 32) as u32, self.shards.len());
        let shard = &mut self.shards[number];
        let places = shard.buckets.len() * PLACES;
        if shard.entries + 1 > places - places / 12 {
            let larger =
                (shard.buckets.len() + shard.buckets.len() / 4).max(shard.buckets.len() + 1);
            self.buckets += larger - shard.buckets.len();
            let old = std::mem::replace(&mut shard.buckets, vec![Bucket::default(); larger]);
            for bucket in old {
                let taken = bucket.tags.iter().zip(bucket.addresses);
                for (_, address) in taken.filter(|(tag, _)| **tag != 0) {
                    place(&mut shard.buckets, hash_of(address), address);
                }
            }
        }
        place(&mut shard.buckets, hash, address);
        shard.entries += 1;
        self.entries += 1;
    }

    /// Removes an address.
    pub(crate) fn remove(&mut self, hash: u64, address: Address) {
        let number = reduce((hash >> 32) as u32, self.shards.len());
        let shard = &mut self.shards[number];
        let mut at = reduce(hash as u32, shard.buckets.len());
        for _ in 0..shard.buckets.len() {
            let length = shard.buckets.len();
            let bucket = &mut shard.buckets[at];
            let found =
                (0..PLACES).find(|&nth| bucket.tags[nth] != 0 && bucket.addresses[nth] == address);
            if let Some(nth) = found {
                bucket.tags[nth] = 0;
                shard.entries -= 1;
                self.entries -= 1;
                return;
            }
            at = (at + 1) % length;
        }
    }

    /// Whether it has outgrown its plan so far that growing shards is no longer cheap.
    pub(crate) fn is_outgrown(&self) -> bool {
        self.entries > 4 * self.planned
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.buckets * size_of::<Bucket>() + self.shards.capacity() * size_of::<Shard>()
    }
}

/// Puts an address into the first bucket with a free place.
fn place(buckets: &mut [Bucket], hash: u64, address: Address) {
    let mut at = reduce(hash as u32, buckets.len());
    loop {
        let bucket = &mut buckets[at];
        if let Some(free) = bucket.tags.iter().position(|tag| *tag == 0) {
            bucket.tags[free] = tag(hash);
            bucket.addresses[free] = address;
            return;
        }
        bucket.overflowed = true;
        at = (at + 1) % buckets.len();
    }
}
