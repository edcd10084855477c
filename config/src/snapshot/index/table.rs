//! A hash table that is built once and read often, by keys that need not be owned to be asked for.
//!
//! Callers of the mesh choose what is looked up, never what is stored, so they cannot make it slow.

use super::atoms::Atom;

/// Open addressing, at most half full. A slot holds the upper half of the hash and the index of the entry, from 1.
#[derive(Debug)]
pub(super) struct Table<K> {
    slots: Box<[u64]>,
    entries: Box<[(K, Atom)]>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self { slots: Box::default(), entries: Box::default() }
    }
}

impl<K> Table<K> {
    /// Keys have to be distinct.
    pub fn build(entries: Vec<(K, Atom)>, hash: impl Fn(&K) -> u64) -> Self {
        if entries.is_empty() {
            return Self::default();
        }
        let size = (entries.len() * 2).next_power_of_two();
        let mut slots = vec![0_u64; size].into_boxed_slice();
        for (index, (key, _)) in entries.iter().enumerate() {
            let hash = finish(hash(key));
            let mut at = hash as usize & (size - 1);
            while slots.get(at).is_some_and(|slot| *slot != 0) {
                at = (at + 1) & (size - 1);
            }
            if let Some(slot) = slots.get_mut(at) {
                *slot = (hash & TAG) | (index as u64 + 1);
            }
        }
        Self { slots, entries: entries.into() }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry with this hash for which `same` holds.
    #[inline]
    pub fn find(&self, hash: u64, same: impl Fn(&K) -> bool) -> Option<Atom> {
        let mask = self.slots.len().checked_sub(1)?;
        let hash = finish(hash);
        let mut at = hash as usize & mask;
        loop {
            let slot = *self.slots.get(at)?;
            if slot == 0 {
                return None;
            }
            if slot & TAG == hash & TAG {
                let (key, atom) = self.entries.get((slot & !TAG) as usize - 1)?;
                if same(key) {
                    return Some(*atom);
                }
            }
            at = (at + 1) & mask;
        }
    }
}

const TAG: u64 = 0xffff_ffff_0000_0000;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

fn finish(hash: u64) -> u64 {
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(MULTIPLIER);
    mixed ^ (mixed >> 29)
}

/// Of numbers.
#[inline]
pub(super) fn hash_pair(a: u64, b: u64) -> u64 {
    (a.wrapping_mul(MULTIPLIER) ^ b).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(31)
}

/// Of bytes, eight at a time; with `fold`, letters count in lower case.
#[inline]
pub(super) fn hash_bytes(bytes: &[u8], fold: bool) -> u64 {
    let mut hash = bytes.len() as u64;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        hash = absorb(hash, *chunk, fold);
    }
    if !rest.is_empty() {
        let mut last = [0_u8; 8];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        hash = absorb(hash, last, fold);
    }
    hash
}

#[inline]
fn absorb(hash: u64, mut chunk: [u8; 8], fold: bool) -> u64 {
    if fold {
        chunk.make_ascii_lowercase();
    }
    (hash ^ u64::from_le_bytes(chunk)).wrapping_mul(MULTIPLIER).rotate_left(29)
}

/// One more byte, for hashes of all beginnings of a text at once.
#[inline]
pub(super) fn hash_step(hash: u64, byte: u8, fold: bool) -> u64 {
    let byte = if fold { byte.to_ascii_lowercase() } else { byte };
    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3_0147)
}
