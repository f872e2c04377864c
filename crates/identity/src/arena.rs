//! The identifiers of users, packed into chunks of memory.
//!
//! An identifier is an *entry*: the number of its user (4 bytes), a head (2 bytes: length, kind,
//! flags), for an alias the length of the label (2 bytes) and the label, then the id. Entries begin
//! at multiples of 4 bytes, so that 32 bits address 16 GiB. The entries of one user, its *record*,
//! follow each other. What is removed is overwritten at once; its room is not used again.

use muster_domain::identifier::{Identifier, IdentifierKind, IdentifierRef, MAX_IDENTIFIER_BYTES};

use crate::memory::{Memory, Pages};

/// Addresses count these, in bytes.
const UNIT: usize = 4;

/// A chunk holds 2 to the power of this many units: 32 MiB.
const CHUNK_BITS: u32 = 23;
const CHUNK_BYTES: usize = UNIT << CHUNK_BITS;
const MAX_CHUNKS: usize = 1 << (u32::BITS - CHUNK_BITS);

/// What is taken of a chunk takes memory in pieces of at least this many bytes.
const PAGE_BYTES: usize = 4096;

/// Bytes before the text of an entry.
const HEAD_BYTES: usize = 6;

const LENGTH_MASK: u16 = (1 << 10) - 1;
const KIND_SHIFT: u32 = 10;
/// No more entries of this user follow.
const LAST: u16 = 1 << 12;
/// The external id that audiences print.
const PRINTED: u16 = 1 << 13;

const _: () = assert!(MAX_IDENTIFIER_BYTES <= LENGTH_MASK as usize);

/// Where an entry begins.
pub(crate) type Address = u32;

/// An identifier as it is held, with the user it belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub(crate) user: u32,
    head: u16,
    /// The label, preceded by its length, if it is an alias; then the id.
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Whether it is the external id that audiences print.
    pub fn is_printed(self) -> bool {
        self.head & PRINTED != 0
    }

    fn kind_code(self) -> u8 {
        (self.head >> KIND_SHIFT) as u8 & 3
    }

    /// Its kind.
    pub fn kind(self) -> IdentifierKind {
        IdentifierKind::from_code(self.kind_code()).expect("written by `Arena::push`")
    }

    /// The label, empty unless it is an alias, and the id: both UTF-8.
    pub fn parts(self) -> (&'a [u8], &'a [u8]) {
        if self.kind_code() == IdentifierKind::Alias.code()
            && let Some((length, text)) = self.text.split_first_chunk()
        {
            text.split_at(u16::from_le_bytes(*length).into())
        } else {
            (&[], self.text)
        }
    }

    /// A copy.
    pub fn to_owned(self) -> Identifier {
        let (label, id) = self.parts();
        Identifier {
            kind: self.kind(),
            label: String::from_utf8_lossy(label).into_owned(),
            id: String::from_utf8_lossy(id).into_owned(),
        }
    }

    /// Whether it is this identifier, byte by byte.
    #[inline]
    pub(crate) fn is(self, identifier: IdentifierRef<'_>) -> bool {
        let (label, id) = self.parts();
        self.kind_code() == identifier.kind.code()
            && same(label, identifier.label.as_bytes())
            && same(id, identifier.id.as_bytes())
    }
}

/// There is no room for more: the addresses are used up, or an identifier is longer than any can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug, Default)]
pub(crate) struct Arena {
    chunks: Vec<Chunk>,
    dead_bytes: usize,
}

#[derive(Debug)]
struct Chunk {
    memory: Memory,
    /// How much of it is taken, in bytes.
    taken: usize,
}

impl Chunk {
    fn append(&mut self, bytes: &[u8]) {
        let end = self.taken + bytes.len();
        self.memory[self.taken..end].copy_from_slice(bytes);
        self.taken = end;
    }
}

impl Arena {
    /// Adds the record of a user, its first identifier being the one that audiences print if
    /// `printed`, and tells where each entry went. Nobody's record is empty.
    pub(crate) fn push<'a>(
        &mut self,
        user: u32,
        printed: bool,
        identifiers: &[IdentifierRef<'a>],
        mut placed: impl FnMut(IdentifierRef<'a>, Address),
    ) -> Result<(), Full> {
        let too_long = |text: &str| text.len() > MAX_IDENTIFIER_BYTES;
        if identifiers
            .iter()
            .any(|i| too_long(i.id) || too_long(i.label))
        {
            return Err(Full);
        }
        let bytes: usize = identifiers.iter().map(|i| entry_bytes(*i)).sum();
        if self.room() < bytes {
            // A record that is larger than a chunk goes on in the chunks after it.
            self.begin_chunk()?;
        }
        for (nth, identifier) in identifiers.iter().enumerate() {
            let bytes = entry_bytes(*identifier);
            if self.room() < bytes {
                self.begin_chunk()?;
            }
            let number = self.chunks.len() - 1;
            let chunk = &mut self.chunks[number];
            let begin = chunk.taken;
            let mut head = u16::try_from(identifier.id.len()).expect("checked above");
            head |= u16::from(identifier.kind.code()) << KIND_SHIFT;
            if nth + 1 == identifiers.len() {
                head |= LAST;
            }
            if printed && nth == 0 {
                head |= PRINTED;
            }
            chunk.append(&user.to_le_bytes());
            chunk.append(&head.to_le_bytes());
            if identifier.kind == IdentifierKind::Alias {
                let label = u16::try_from(identifier.label.len()).expect("checked above");
                chunk.append(&label.to_le_bytes());
                chunk.append(identifier.label.as_bytes());
            }
            chunk.append(identifier.id.as_bytes());
            // What is left of the last unit is zero already.
            chunk.taken = begin + bytes;
            let address = (number << CHUNK_BITS) + begin / UNIT;
            placed(
                *identifier,
                u32::try_from(address).expect("few enough chunks"),
            );
        }
        Ok(())
    }

    /// What is left of the last chunk, in bytes.
    fn room(&self) -> usize {
        self.chunks
            .last()
            .map_or(0, |last| CHUNK_BYTES - last.taken)
    }

    fn begin_chunk(&mut self) -> Result<(), Full> {
        if self.chunks.len() == MAX_CHUNKS {
            return Err(Full);
        }
        // A small directory takes no more than it needs.
        let pages = match self.chunks.as_slice() {
            [] => Pages::Small,
            [..] => Pages::Large,
        };
        let memory = Memory::zeroed(CHUNK_BYTES, pages)?;
        self.chunks.push(Chunk { memory, taken: 0 });
        Ok(())
    }

    /// Some bytes of the entry at an address, if there is one: of its beginning, and of where its
    /// text ends if that has so many bytes. Nearly half of the entries lie in two cache lines.
    #[inline]
    pub(crate) fn fetch(&self, address: Address, text: usize) -> u8 {
        let (chunk, begin) = place(address);
        let Some(chunk) = self.chunks.get(chunk) else {
            return 0;
        };
        let byte = |at: usize| chunk.memory.get(at).copied().unwrap_or(0);
        byte(begin) ^ byte(begin + HEAD_BYTES + text.saturating_sub(1))
    }

    #[inline]
    pub(crate) fn entry(&self, address: Address) -> Entry<'_> {
        let (chunk, begin) = place(address);
        read(&self.chunks[chunk].memory[begin..])
    }

    /// The entries of the record that begins at an address, with their addresses.
    pub(crate) fn record(&self, first: Address) -> impl Iterator<Item = (Address, Entry<'_>)> {
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let address = next?;
            let entry = self.entry(address);
            next = (entry.head & LAST == 0).then(|| self.after(address, entry));
            Some((address, entry))
        })
    }

    /// Where the entry after one of the same record is.
    fn after(&self, address: Address, entry: Entry<'_>) -> Address {
        let (chunk, begin) = place(address);
        let end = begin + padded(HEAD_BYTES + entry.text.len());
        if end < self.chunks[chunk].taken {
            address + u32::try_from((end - begin) / UNIT).expect("an entry is small")
        } else {
            u32::try_from((chunk + 1) << CHUNK_BITS).expect("few enough chunks")
        }
    }

    /// Overwrites the record that begins at an address.
    pub(crate) fn erase(&mut self, first: Address) {
        let record: Vec<(Address, usize)> = self
            .record(first)
            .map(|(address, entry)| (address, padded(HEAD_BYTES + entry.text.len())))
            .collect();
        for (address, bytes) in record {
            let (chunk, begin) = place(address);
            self.chunks[chunk].memory[begin..begin + bytes].fill(0);
            self.dead_bytes += bytes;
        }
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let pages = |chunk: &Chunk| chunk.taken.next_multiple_of(PAGE_BYTES);
        self.chunks.iter().map(pages).sum()
    }

    /// Whether these bytes stand anywhere.
    #[cfg(test)]
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        let mut chunks = self.chunks.iter();
        chunks.any(|chunk| {
            let mut windows = chunk.memory[..chunk.taken].windows(bytes.len());
            windows.any(|window| window == bytes)
        })
    }

    /// What was removed and still takes room, in bytes.
    pub(crate) fn dead_bytes(&self) -> usize {
        self.dead_bytes
    }
}

/// Whether two texts are equal, word by word. The `memcmp` of the C library took four times as long
/// for the 25 bytes of an id, where the processor has AVX-512.
#[inline]
fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let (words, rest) = one.as_chunks::<8>();
    let (other_words, other_rest) = other.as_chunks::<8>();
    let words = words.iter().zip(other_words);
    let differing = words.fold(0, |differing, (one, other)| {
        differing | (u64::from_ne_bytes(*one) ^ u64::from_ne_bytes(*other))
    });
    let rest = rest.iter().zip(other_rest);
    rest.fold(differing, |differing, (one, other)| {
        differing | u64::from(one ^ other)
    }) == 0
}

fn place(address: Address) -> (usize, usize) {
    let unit = address & ((1 << CHUNK_BITS) - 1);
    ((address >> CHUNK_BITS) as usize, unit as usize * UNIT)
}

#[inline]
fn read(bytes: &[u8]) -> Entry<'_> {
    let (head, text) = bytes
        .split_first_chunk::<HEAD_BYTES>()
        .expect("an address is that of an entry");
    let user = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let head = u16::from_le_bytes([head[4], head[5]]);
    let mut length = usize::from(head & LENGTH_MASK);
    if (head >> KIND_SHIFT) & 3 == u16::from(IdentifierKind::Alias.code()) {
        length += 2 + usize::from(u16::from_le_bytes([text[0], text[1]]));
    }
    Entry {
        user,
        head,
        text: &text[..length],
    }
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(UNIT)
}

fn entry_bytes(identifier: IdentifierRef<'_>) -> usize {
    let label = match identifier.kind {
        IdentifierKind::Alias => 2 + identifier.label.len(),
        IdentifierKind::ExternalId | IdentifierKind::DeviceId => 0,
    };
    padded(HEAD_BYTES + label + identifier.id.len())
}
