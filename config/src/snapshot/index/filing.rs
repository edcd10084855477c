//! Selective lines: each is filed under the one or two of its values that fewest other lines share, so that facts lead
//! to the few lines worth looking at.

use super::{
    atoms::{Atom, Found},
    lines::{Condition, Lines},
    table::{Table, hash_pair},
};
use std::collections::HashMap;

/// A line with a value that so few lines ask for needs no second one.
const FEW: u32 = 4;
/// Longer lists are left to the bit sets.
const MAX_LIST: u32 = 8;
/// A line with more combinations of values is filed under one value of each.
const MAX_PAIRS: usize = 64;

/// Under what a line is filed: numbers of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filed {
    Under(u32),
    UnderBoth(u32, u32),
    /// Too many lines would be in the same place.
    Nowhere,
}

impl Filed {
    /// The condition has been seen to hold when the line is found.
    pub fn proves(self, condition: u32) -> bool {
        match self {
            Self::Under(one) => one == condition,
            Self::UnderBoth(one, other) => one == condition || other == condition,
            Self::Nowhere => false,
        }
    }
}

/// Chooses for every line.
pub(super) fn choose(lines: &Lines<'_>) -> Vec<Filed> {
    let condition = |number: &u32| lines.conditions.get(*number as usize);
    let mut popularity = vec![0_u32; lines.keys.len()];
    let is_key = |condition: &Condition| !condition.negated && condition.complete;
    for line in &lines.lines {
        for condition in line.conditions.iter().filter_map(condition).filter(|one| is_key(one)) {
            for atom in condition.atoms.iter() {
                if let Some(count) = popularity.get_mut(*atom as usize) {
                    *count += 1;
                }
            }
        }
    }
    let count = |atom: &Atom| popularity.get(*atom as usize).copied().unwrap_or_default();
    let mut chosen = Vec::with_capacity(lines.lines.len());
    let mut singles = vec![0_u32; lines.keys.len()];
    let mut pairs: HashMap<(Atom, Atom), u32> = HashMap::new();
    for line in &lines.lines {
        let mut best: [Option<(u64, u32, &Condition)>; 2] = [None, None];
        for number in &line.conditions {
            let Some(one) = condition(number).filter(|one| is_key(one)) else { continue };
            let weight = one.atoms.iter().map(|atom| u64::from(count(atom))).sum();
            let entry = Some((weight, *number, one));
            match best {
                [Some((first, ..)), _] if weight < first => best = [entry, best[0]],
                [None, _] => best = [entry, None],
                [_, Some((second, ..))] if weight < second => best[1] = entry,
                [_, None] => best[1] = entry,
                _ => {}
            }
        }
        let filed = match best {
            [None, _] => Filed::Nowhere,
            [Some((_, one, first)), None] => under(one, first, &mut singles),
            [Some((_, one, first)), Some((_, other, second))] => {
                let few = first.atoms.iter().all(|atom| count(atom) <= FEW);
                if few || first.atoms.len().saturating_mul(second.atoms.len()) > MAX_PAIRS {
                    under(one, first, &mut singles)
                } else {
                    // The smaller number first, so that the same two values meet in one place.
                    let (one, other) = (one.min(other), one.max(other));
                    for_pairs(lines, one, other, |pair| *pairs.entry(pair).or_default() += 1);
                    Filed::UnderBoth(one, other)
                }
            }
        };
        chosen.push(filed);
    }
    for filed in &mut chosen {
        let crowded = match *filed {
            Filed::Under(one) => condition(&one).is_some_and(|one| {
                one.atoms
                    .iter()
                    .any(|atom| singles.get(*atom as usize).is_some_and(|count| *count > MAX_LIST))
            }),
            Filed::UnderBoth(one, other) => {
                let mut crowded = false;
                for_pairs(lines, one, other, |pair| {
                    crowded |= pairs.get(&pair).is_some_and(|count| *count > MAX_LIST);
                });
                crowded
            }
            Filed::Nowhere => false,
        };
        if crowded {
            *filed = Filed::Nowhere;
        }
    }
    chosen
}

fn under(number: u32, condition: &Condition, singles: &mut [u32]) -> Filed {
    for atom in condition.atoms.iter() {
        if let Some(count) = singles.get_mut(*atom as usize) {
            *count += 1;
        }
    }
    Filed::Under(number)
}

fn for_pairs(lines: &Lines<'_>, one: u32, other: u32, mut each: impl FnMut((Atom, Atom))) {
    let atoms =
        |number: u32| lines.conditions.get(number as usize).map(|one| &*one.atoms).unwrap_or_default();
    for first in atoms(one) {
        for second in atoms(other) {
            each((*first, *second));
        }
    }
}

/// Lines by value and by two values.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// By atom: where its list begins in `lists`; one more at the end.
    starts: Box<[u32]>,
    /// By atom: whether it is the first or the second of two.
    roles: Box<[u8]>,
    pairs: Table<(Atom, Atom)>,
    /// By what `pairs` says, as `starts`.
    pair_starts: Box<[u32]>,
    lists: Box<[u32]>,
    pair_lists: Box<[u32]>,
}

const FIRST: u8 = 1;
const SECOND: u8 = 2;

impl Files {
    pub fn build(lines: &Lines<'_>, chosen: &[Filed]) -> Self {
        let mut singles: Vec<Vec<u32>> = vec![Vec::new(); lines.keys.len()];
        let mut roles = vec![0_u8; lines.keys.len()];
        let mut numbers: HashMap<(Atom, Atom), usize> = HashMap::new();
        let mut pairs: Vec<Vec<u32>> = Vec::new();
        for (line, filed) in chosen.iter().enumerate() {
            match *filed {
                Filed::Under(one) => {
                    for atom in lines.conditions.get(one as usize).iter().flat_map(|one| one.atoms.iter()) {
                        if let Some(list) = singles.get_mut(*atom as usize) {
                            list.push(line as u32);
                        }
                    }
                }
                Filed::UnderBoth(one, other) => for_pairs(lines, one, other, |pair| {
                    for (atom, role) in [(pair.0, FIRST), (pair.1, SECOND)] {
                        if let Some(roles) = roles.get_mut(atom as usize) {
                            *roles |= role;
                        }
                    }
                    let number = *numbers.entry(pair).or_insert(pairs.len());
                    match pairs.get_mut(number) {
                        Some(list) => list.push(line as u32),
                        None => pairs.push(vec![line as u32]),
                    }
                }),
                Filed::Nowhere => {}
            }
        }
        let (starts, lists) = concatenate(&singles);
        let (pair_starts, pair_lists) = concatenate(&pairs);
        let numbers = numbers.into_iter().map(|(pair, number)| (pair, number as Atom)).collect();
        Self {
            starts,
            roles: roles.into(),
            pairs: Table::build(numbers, hash),
            pair_starts,
            lists,
            pair_lists,
        }
    }

    /// All lines filed under what was found; a line may come more than once.
    #[inline]
    pub fn visit(&self, found: &Found, mut each: impl FnMut(u32)) {
        for atom in found.all() {
            list(&self.starts, &self.lists, *atom).iter().for_each(|line| each(*line));
        }
        if self.pairs.is_empty() {
            return;
        }
        let role = |atom: &Atom| self.roles.get(*atom as usize).copied().unwrap_or_default();
        for first in found.all().iter().filter(|atom| role(atom) & FIRST != 0) {
            for second in found.all().iter().filter(|atom| role(atom) & SECOND != 0) {
                let pair = (*first, *second);
                if let Some(number) = self.pairs.find(hash(&pair), |key| *key == pair) {
                    list(&self.pair_starts, &self.pair_lists, number).iter().for_each(|line| each(*line));
                }
            }
        }
    }
}

fn hash(pair: &(Atom, Atom)) -> u64 {
    hash_pair(u64::from(pair.0), u64::from(pair.1))
}

fn concatenate(lists: &[Vec<u32>]) -> (Box<[u32]>, Box<[u32]>) {
    let mut starts = Vec::with_capacity(lists.len() + 1);
    let mut all = Vec::new();
    for list in lists {
        starts.push(all.len() as u32);
        all.extend(list);
    }
    starts.push(all.len() as u32);
    (starts.into(), all.into())
}

#[inline]
fn list<'l>(starts: &[u32], lists: &'l [u32], number: u32) -> &'l [u32] {
    let number = number as usize;
    match starts.get(number..number + 2) {
        Some([from, to]) => lists.get(*from as usize..*to as usize).unwrap_or_default(),
        _ => &[],
    }
}
