//! Which text patterns a value fits, in time that depends on the value's length and not on how many patterns there are.

use super::{
    atoms::{Atom, Found},
    table::{Table, hash_bytes, hash_step},
};
use crate::matchers::Text;

/// Distinct patterns on one attribute.
#[derive(Debug, Default)]
pub(super) struct Texts {
    present: Option<Atom>,
    exact: Table<Box<[u8]>>,
    prefixes: Affixes,
    suffixes: Affixes,
    /// The case of letters does not count; the patterns are in lower case.
    fold: bool,
}

impl Texts {
    pub fn build(patterns: Vec<(Text, Atom)>, fold: bool) -> Self {
        let (mut exact, mut prefixes, mut suffixes) = (Vec::new(), Vec::new(), Vec::new());
        let mut texts = Self { fold, ..Self::default() };
        for (pattern, atom) in patterns {
            match pattern {
                Text::Present => texts.present = Some(atom),
                Text::Exact(text) => exact.push((text.into_boxed_bytes(), atom)),
                Text::Prefix(text) => prefixes.push((text.into_boxed_bytes(), atom)),
                Text::Suffix(text) => suffixes.push((text.bytes().rev().collect(), atom)),
            }
        }
        texts.exact = Table::build(exact, |text| hash_bytes(text, fold));
        texts.prefixes = Affixes::build(prefixes, fold);
        texts.suffixes = Affixes::build(suffixes, fold);
        texts
    }

    /// The pattern `*`, for those who read it in their own way.
    pub fn present(&self) -> Option<Atom> {
        self.present
    }

    /// All patterns that `value` fits; `*` fits what is not empty.
    #[inline]
    pub fn find(&self, value: &[u8], found: &mut Found) {
        if let Some(atom) = self.present
            && !value.is_empty()
        {
            found.add(atom);
        }
        self.find_literal(value, found);
    }

    /// All patterns but `*`.
    #[inline]
    pub fn find_literal(&self, value: &[u8], found: &mut Found) {
        if !self.exact.is_empty() {
            #[allow(clippy::borrowed_box)] // what the table stores
            let same = |key: &Box<[u8]>| {
                if self.fold { key.eq_ignore_ascii_case(value) } else { **key == *value }
            };
            if let Some(atom) = self.exact.find(hash_bytes(value, self.fold), same) {
                found.add(atom);
            }
        }
        self.prefixes.find(value.iter().copied(), self.fold, found);
        self.suffixes.find(value.iter().rev().copied(), self.fold, found);
    }
}

/// Beginnings; of reversed texts, endings.
#[derive(Debug, Default)]
struct Affixes {
    /// Distinct lengths, ascending.
    lengths: Box<[usize]>,
    table: Table<Box<[u8]>>,
}

impl Affixes {
    fn build(affixes: Vec<(Box<[u8]>, Atom)>, fold: bool) -> Self {
        let mut lengths: Vec<usize> = affixes.iter().map(|(text, _)| text.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        #[allow(clippy::borrowed_box)] // what the table stores
        let hash = |text: &Box<[u8]>| text.iter().fold(0, |hash, byte| hash_step(hash, *byte, fold));
        Self { lengths: lengths.into(), table: Table::build(affixes, hash) }
    }

    #[inline]
    fn find(&self, value: impl ExactSizeIterator<Item = u8> + Clone, fold: bool, found: &mut Found) {
        let mut hash = 0;
        let mut taken = 0;
        let mut bytes = value.clone();
        for length in &self.lengths {
            while taken < *length {
                let Some(byte) = bytes.next() else { return };
                hash = hash_step(hash, byte, fold);
                taken += 1;
            }
            #[allow(clippy::borrowed_box)] // what the table stores
            let same = |key: &Box<[u8]>| {
                key.len() == *length
                    && key
                        .iter()
                        .zip(value.clone())
                        .all(|(a, b)| if fold { a.eq_ignore_ascii_case(&b) } else { *a == b })
            };
            if let Some(atom) = self.table.find(hash, same) {
                found.add(atom);
            }
        }
    }
}
