//! Where identifiers are: a hash table from identifiers to addresses of the arena.
//!
//! The hash is SipHash under a key that every process draws for itself, so nobody can choose
//! identifiers that collide. The table knows no identifiers, only 8 bits of their hash; whoever asks
//! compares with what stands in the arena. It consists of many small shards, which grow one by one:
//! no insertion ever moves more than some hundred entries.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use bytemuck::{Pod, Zeroable};
use muster_domain::identifier::IdentifierKind;

use crate::{
    arena::{Address, Full},
    memory::{Memory, Pages},
};

/// Places in a bucket, which fills one cache line.
const PLACES: usize = 12;

/// Buckets that a shard is planned with, and the share of them that is planned to be taken.
const SHARD_BUCKETS: usize = 64;
const SHARD_BYTES: usize = SHARD_BUCKETS * size_of::<Bucket>();
const PLANNED_LOAD: f64 = 0.82;

#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C, align(64))]
struct Bucket {
    addresses: [Address; PLACES],
    /// 8 bits of the hash; 0 where the place is free.
    tags: [u8; PLACES],
    /// Not 0 once an entry of this bucket went to a later one.
    overflowed: u8,
    padding: [u8; 3],
}

impl Bucket {
    /// The first place with a tag, found without a branch for each; beyond all places if none has.
    #[inline]
    fn first_tagged(&self, tag: u8) -> usize {
        const ONES: u128 = u128::from_ne_bytes([0x01; 16]);
        const HIGH_BITS: u128 = ONES << 7;
        let mut tags = [0; 16];
        tags[..PLACES].copy_from_slice(&self.tags);
        // Bytes of zeros are where the tag is, and after the places. Subtracting 1 from each byte
        // sets its high bit if it was 0, and in bytes after such a one perhaps, but in none before.
        let differing = u128::from_le_bytes(tags) ^ (ONES * u128::from(tag));
        let differing = differing & (u128::MAX >> (8 * (16 - PLACES)));
        let zeros = differing.wrapping_sub(ONES) & !differing & HIGH_BITS;
        zeros.trailing_zeros() as usize / 8
    }

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
    /// Its buckets, once those planned for it are too few.
    grown: Vec<Bucket>,
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
    /// The buckets that are planned for them; none for a small table, which grows from nothing.
    planned_buckets: Option<Memory>,
    /// Buckets of shards that have grown.
    grown_buckets: usize,
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
    ///
    /// # Errors
    /// If the system has no memory for it.
    pub(crate) fn with_capacity(entries: usize) -> Result<Self, Full> {
        /// Shards that are worth large pages.
        const MANY: usize = 1_024;
        let planned = (SHARD_BUCKETS * PLACES) as f64 * PLANNED_LOAD;
        let shards = (entries as f64 / planned).ceil().max(1.0) as usize;
        let pages = if shards < MANY {
            Pages::Small
        } else {
            Pages::Large
        };
        let planned_buckets = match shards {
            1 => None,
            shards => Some(Memory::zeroed(shards * SHARD_BYTES, pages)?),
        };
        Ok(Self {
            shards: std::iter::repeat_with(Shard::default)
                .take(shards)
                .collect(),
            planned_buckets,
            grown_buckets: 0,
            entries: 0,
            planned: entries.max(SHARD_BUCKETS * PLACES),
        })
    }

    /// The number of the shard of a hash.
    #[inline]
    fn shard(&self, hash: u64) -> usize {
        reduce((hash >> 32) as u32, self.shards.len())
    }

    #[inline]
    fn buckets(&self, shard: usize) -> &[Bucket] {
        match (&self.planned_buckets, self.shards[shard].grown.as_slice()) {
            (Some(planned), []) => {
                bytemuck::cast_slice(&planned[shard * SHARD_BYTES..][..SHARD_BYTES])
            }
            (_, grown) => grown,
        }
    }

    fn buckets_mut(&mut self, shard: usize) -> &mut [Bucket] {
        match (&mut self.planned_buckets, &mut self.shards[shard].grown) {
            (Some(planned), grown) if grown.is_empty() => {
                bytemuck::cast_slice_mut(&mut planned[shard * SHARD_BYTES..][..SHARD_BYTES])
            }
            (_, grown) => grown,
        }
    }

    /// Some byte of the bucket that a hash belongs to.
    #[inline]
    pub(crate) fn fetch(&self, hash: u64) -> u8 {
        let buckets = self.buckets(self.shard(hash));
        let home = buckets.get(reduce(hash as u32, buckets.len()));
        home.map_or(0, |bucket| bucket.tags[0])
    }

    /// The first address that a hash may stand for, if the entry is in its own bucket, as most are:
    /// cheap, and independent of what the arena holds.
    #[inline]
    pub(crate) fn likely(&self, hash: u64) -> Option<Address> {
        let buckets = self.buckets(self.shard(hash));
        let home = buckets.get(reduce(hash as u32, buckets.len()))?;
        let place = home.first_tagged(tag(hash));
        home.addresses.get(place).copied()
    }

    /// The address under a hash that `is` the one sought.
    pub(crate) fn find(&self, hash: u64, is: impl Fn(Address) -> bool) -> Option<Address> {
        let buckets = self.buckets(self.shard(hash));
        let mut at = reduce(hash as u32, buckets.len());
        for _ in 0..buckets.len() {
            let bucket = &buckets[at];
            if let Some(found) = bucket.tagged(tag(hash)).find(|address| is(*address)) {
                return Some(found);
            }
            if bucket.overflowed == 0 {
                return None;
            }
            at = (at + 1) % buckets.len();
        }
        None
    }

    /// Adds an address; `hash_of` gives the hash of one that is there already.
    pub(crate) fn insert(&mut self, hash: u64, address: Address, hash_of: impl Fn(Address) -> u64) {
        let number = self.shard(hash);
        let buckets = self.buckets(number);
        let places = buckets.len() * PLACES;
        if self.shards[number].entries + 1 > places - places / 12 {
            let larger = (buckets.len() + buckets.len() / 4).max(buckets.len() + 1);
            let mut grown = vec![Bucket::default(); larger];
            for bucket in buckets {
                let taken = bucket.tags.iter().zip(bucket.addresses);
                for (_, address) in taken.filter(|(tag, _)| **tag != 0) {
                    place(&mut grown, hash_of(address), address);
                }
            }
            let old = std::mem::replace(&mut self.shards[number].grown, grown);
            self.grown_buckets += larger - old.len();
        }
        place(self.buckets_mut(number), hash, address);
        self.shards[number].entries += 1;
        self.entries += 1;
    }

    /// Removes an address.
    pub(crate) fn remove(&mut self, hash: u64, address: Address) {
        let number = self.shard(hash);
        let buckets = self.buckets_mut(number);
        let length = buckets.len();
        let mut at = reduce(hash as u32, length);
        for _ in 0..length {
            let bucket = &mut buckets[at];
            let found =
                (0..PLACES).find(|&nth| bucket.tags[nth] != 0 && bucket.addresses[nth] == address);
            if let Some(nth) = found {
                bucket.tags[nth] = 0;
                self.shards[number].entries -= 1;
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
        self.planned_buckets.as_deref().map_or(0, <[u8]>::len)
            + self.grown_buckets * size_of::<Bucket>()
            + self.shards.capacity() * size_of::<Shard>()
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
        bucket.overflowed = 1;
        at = (at + 1) % buckets.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_with_a_tag_is_found_among_any_others() {
        for tag in 1..=u8::MAX {
            // Of neighbours in value: a borrow goes from one byte to the next.
            for other in [0, 1, tag - 1, tag.wrapping_add(1), tag ^ 0x80, u8::MAX] {
                for places in 0..1_u32 << PLACES {
                    let mut bucket = Bucket::default();
                    for (nth, held) in bucket.tags.iter_mut().enumerate() {
                        *held = if places >> nth & 1 == 1 { tag } else { other };
                    }
                    let expected = bucket.tags.iter().position(|held| *held == tag);
                    let found = bucket.first_tagged(tag);
                    assert_eq!(found, expected.unwrap_or(PLACES), "{tag} in {bucket:?}");
                }
            }
        }
    }
}
