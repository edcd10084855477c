//! Lines that many facts could lead to: bit sets of lines by value, intersected, a block of lines at a time.

use super::{
    atoms::{Atom, Found, Key},
    filing::Filed,
    lines::Lines,
};
use std::{
    collections::{BTreeMap, HashMap},
    mem::discriminant,
};

/// 64-bit words of a block.
const WORDS: usize = 64;
/// Lines of a block.
const LINES: u32 = 64 * WORDS as u32;
/// Attributes whose positive conditions are looked at here; lines that ask for others are compared when they pass.
const MAX_SLOTS: usize = 16;

/// The unfiled lines, in the order of their rules.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// Number of each line.
    lines: Box<[u32]>,
    blocks: Box<[Block]>,
    /// By atom: its attribute, if any, or [`NO_SLOT`].
    slots: Box<[u8]>,
    /// Attributes in use.
    slot_count: usize,
}

const NO_SLOT: u8 = u8::MAX;

#[derive(Debug)]
struct Block {
    /// In use, at most [`WORDS`].
    words: usize,
    /// By attribute: the lines that do not ask for it.
    free: Box<[Bits]>,
    /// Lines that an atom satisfies in its attribute.
    wanted: Sets,
    /// Lines that an atom rules out.
    unwanted: Sets,
}

type Bits = Box<[u64]>;

/// Sets of lines by atom; small ones are lists.
#[derive(Debug, Default)]
struct Sets {
    /// By atom: from 1, or 0 when there is no set.
    numbers: Box<[u32]>,
    sets: Box<[Set]>,
}

#[derive(Debug)]
enum Set {
    List(Box<[u16]>),
    Bits(Bits),
}

impl Filter {
    pub fn build(lines: &Lines<'_>, chosen: &[Filed]) -> Self {
        let numbers: Box<[u32]> = (0_u32..)
            .zip(chosen)
            .filter(|(_, filed)| **filed == Filed::Nowhere)
            .map(|(line, _)| line)
            .collect();
        if numbers.is_empty() {
            return Self::default();
        }
        let slots = Slots::of(lines, &numbers);
        let by_atom = lines.keys.iter().map(|key| slots.of_key(key)).collect();
        let blocks =
            numbers.chunks(LINES as usize).map(|numbers| Block::build(lines, numbers, &slots)).collect();
        Self { lines: numbers, blocks, slots: by_atom, slot_count: slots.count }
    }

    /// The atoms that are looked at here.
    pub fn atoms<'f>(&'f self, lines: &'f Lines<'_>) -> impl Iterator<Item = Atom> + 'f {
        let conditions = self.lines.iter().filter_map(|line| lines.lines.get(*line as usize));
        conditions
            .flat_map(|line| &line.conditions)
            .filter_map(|number| lines.conditions.get(*number as usize))
            .flat_map(|condition| condition.atoms.iter().copied())
    }

    /// Offers lines that may hold, in order; `each` says from which line on it wants more.
    #[inline]
    pub fn visit(&self, found: &Found, mut each: impl FnMut(u32) -> Step) {
        let mut skip_to = 0_u32;
        for (block, base) in self.blocks.iter().zip((0_u32..).step_by(LINES as usize)) {
            if skip_to >= base + LINES {
                continue;
            }
            let mut left = [0_u64; WORDS];
            let Some(left) = left.get_mut(..block.words) else { continue };
            if !block.intersect(found, &self.slots, self.slot_count, left) {
                continue;
            }
            for (word, base) in left.iter().zip((base..).step_by(64)) {
                let mut word = *word;
                while word != 0 {
                    let at = base + word.trailing_zeros();
                    word &= word - 1;
                    if at < skip_to {
                        continue;
                    }
                    let Some(line) = self.lines.get(at as usize) else { return };
                    if let Step::To(line) = each(*line) {
                        skip_to = self.lines.partition_point(|number| *number < line) as u32;
                    }
                }
            }
        }
    }
}

/// How to go on.
pub(super) enum Step {
    Next,
    /// To this line or what comes behind it.
    To(u32),
}

impl Block {
    fn build<'k>(lines: &Lines<'k>, numbers: &[u32], slots: &Slots<'k>) -> Self {
        let words = numbers.len().div_ceil(64);
        let mut all = vec![0_u64; words];
        (0..numbers.len()).for_each(|at| set(&mut all, at as u16));
        let mut free = vec![Bits::from(all); slots.count.max(1)];
        let mut wanted: BTreeMap<Atom, Vec<u16>> = BTreeMap::new();
        let mut unwanted: BTreeMap<Atom, Vec<u16>> = BTreeMap::new();
        for (at, number) in (0_u16..).zip(numbers) {
            let Some(line) = lines.lines.get(*number as usize) else { continue };
            let mut taken = 0_u32;
            for condition in &line.conditions {
                let Some(condition) = lines.conditions.get(*condition as usize) else { continue };
                if condition.negated {
                    for atom in condition.atoms.iter() {
                        unwanted.entry(*atom).or_default().push(at);
                    }
                    continue;
                }
                let slot = slots.of_condition(lines, condition);
                // Two conditions on one attribute: the first one filters, both are compared.
                if slot == NO_SLOT || taken & (1 << slot) != 0 {
                    continue;
                }
                taken |= 1 << slot;
                if let Some(bits) = free.get_mut(slot as usize) {
                    clear(bits, at);
                }
                for atom in condition.atoms.iter() {
                    wanted.entry(*atom).or_default().push(at);
                }
            }
        }
        let atoms = lines.keys.len();
        let (wanted, unwanted) = (Sets::build(wanted, words, atoms), Sets::build(unwanted, words, atoms));
        Self { words, free: free.into(), wanted, unwanted }
    }

    /// Whether anything is left.
    #[inline]
    fn intersect(&self, found: &Found, slots: &[u8], slot_count: usize, left: &mut [u64]) -> bool {
        let slot_of = |atom: &Atom| slots.get(*atom as usize).copied().unwrap_or(NO_SLOT);
        let mut scratch = [0_u64; WORDS];
        let Some(scratch) = scratch.get_mut(..left.len()) else { return false };
        for (slot, free) in self.free.iter().enumerate() {
            if slot == 0 {
                left.copy_from_slice(free);
                if slot_count > 0 {
                    self.wanted.join(found.all().iter().filter(|atom| slot_of(atom) == 0), left);
                }
                continue;
            }
            scratch.copy_from_slice(free);
            self.wanted.join(found.all().iter().filter(|atom| usize::from(slot_of(atom)) == slot), scratch);
            let mut any = 0;
            for (left, scratch) in left.iter_mut().zip(&*scratch) {
                *left &= scratch;
                any |= *left;
            }
            if any == 0 {
                return false;
            }
        }
        for atom in found.all() {
            match self.unwanted.of(*atom) {
                None => {}
                Some(Set::List(list)) => list.iter().for_each(|at| clear(left, *at)),
                Some(Set::Bits(bits)) => left.iter_mut().zip(bits).for_each(|(left, bits)| *left &= !bits),
            }
        }
        left.iter().any(|word| *word != 0)
    }
}

impl Sets {
    fn build(lists: BTreeMap<Atom, Vec<u16>>, words: usize, atoms: usize) -> Self {
        if lists.is_empty() {
            return Self::default();
        }
        let mut numbers = vec![0_u32; atoms];
        let mut sets = Vec::with_capacity(lists.len());
        for (atom, list) in lists {
            sets.push(if list.len() > words * 2 {
                let mut bits = vec![0_u64; words];
                list.iter().for_each(|at| set(&mut bits, *at));
                Set::Bits(bits.into())
            } else {
                Set::List(list.into())
            });
            if let Some(number) = numbers.get_mut(atom as usize) {
                *number = sets.len() as u32;
            }
        }
        Self { numbers: numbers.into(), sets: sets.into() }
    }

    #[inline]
    fn of(&self, atom: Atom) -> Option<&Set> {
        let number = *self.numbers.get(atom as usize)? as usize;
        self.sets.get(number.checked_sub(1)?)
    }

    #[inline]
    fn join<'a>(&self, atoms: impl Iterator<Item = &'a Atom>, into: &mut [u64]) {
        for atom in atoms {
            match self.of(*atom) {
                None => {}
                Some(Set::List(list)) => list.iter().for_each(|at| set(into, *at)),
                Some(Set::Bits(bits)) => into.iter_mut().zip(bits).for_each(|(into, bits)| *into |= bits),
            }
        }
    }
}

#[inline]
fn set(bits: &mut [u64], at: u16) {
    if let Some(word) = bits.get_mut(usize::from(at / 64)) {
        *word |= 1 << (at % 64);
    }
}

#[inline]
fn clear(bits: &mut [u64], at: u16) {
    if let Some(word) = bits.get_mut(usize::from(at / 64)) {
        *word &= !(1 << (at % 64));
    }
}

/// The attributes that most unfiled lines ask for.
struct Slots<'k> {
    numbers: HashMap<Attribute<'k>, u8>,
    count: usize,
}

/// Conditions on one attribute exclude one another more or less; header by header, claim by claim.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Attribute<'k> {
    Kind(std::mem::Discriminant<Key<'k>>),
    Header(&'k str),
    Claim(&'k crate::matchers::ClaimPath),
}

impl<'k> Attribute<'k> {
    fn of(key: &Key<'k>) -> Self {
        match key {
            Key::Header(name, _) => Self::Header(name.as_str()),
            Key::Claim(path, _) => Self::Claim(path),
            _ => Self::Kind(discriminant(key)),
        }
    }
}

impl<'k> Slots<'k> {
    fn of(lines: &Lines<'k>, numbers: &[u32]) -> Self {
        let mut counts: HashMap<Attribute<'k>, usize> = HashMap::new();
        for line in numbers.iter().filter_map(|number| lines.lines.get(*number as usize)) {
            for condition in &line.conditions {
                let Some(condition) = lines.conditions.get(*condition as usize) else { continue };
                if condition.negated || !condition.complete {
                    continue;
                }
                if let Some(key) = condition.atoms.first().and_then(|atom| lines.keys.get(*atom as usize)) {
                    *counts.entry(Attribute::of(key)).or_default() += 1;
                }
            }
        }
        let mut most: Vec<(usize, Attribute<'k>)> =
            counts.into_iter().map(|(key, count)| (count, key)).collect();
        most.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        most.truncate(MAX_SLOTS);
        let numbers: HashMap<_, _> = most.into_iter().map(|(_, key)| key).zip(0_u8..).collect();
        Self { count: numbers.len(), numbers }
    }

    fn of_key(&self, key: &Key<'k>) -> u8 {
        self.numbers.get(&Attribute::of(key)).copied().unwrap_or(NO_SLOT)
    }

    fn of_condition(&self, lines: &Lines<'k>, condition: &super::lines::Condition) -> u8 {
        if !condition.complete {
            return NO_SLOT;
        }
        let key = condition.atoms.first().and_then(|atom| lines.keys.get(*atom as usize));
        key.map_or(NO_SLOT, |key| self.of_key(key))
    }
}
