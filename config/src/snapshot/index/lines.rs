//! Lines: rules as plain conjunctions. A rule with two sources and three operations is six lines, one of which has to
//! hold completely.

use super::atoms::{Atom, Key, keys};
use crate::snapshot::rules::{Clause, Rule};
use std::{collections::HashMap, sync::Arc};

/// A rule with more combinations than this is multiplied out in part only, when that would be much larger than itself.
const MAX_PRODUCT: usize = 64;
/// How much larger, counted in alternatives.
const MAX_GROWTH: usize = 8;
/// Where a clause stands in its rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    From(u32, u32),
    To(u32, u32),
    When(u32),
}

impl Place {
    /// The clause of `rule` there.
    #[inline]
    pub fn of(self, rule: &Rule) -> Option<&Clause> {
        match self {
            Self::From(alternative, clause) => rule.from.get(alternative as usize)?.get(clause as usize),
            Self::To(alternative, clause) => rule.to.get(alternative as usize)?.get(clause as usize),
            Self::When(clause) => rule.when.get(clause as usize),
        }
    }
}

/// A clause of a rule as the index sees it.
#[derive(Debug)]
pub(super) struct Condition {
    pub place: Place,
    pub negated: bool,
    /// Ascending; of those that a lookup finds.
    pub atoms: Arc<[Atom]>,
    /// All of its values are among `atoms`, so that these can be compared instead.
    pub complete: bool,
}

/// A conjunction, by the numbers of its conditions.
#[derive(Debug)]
pub(super) struct Line {
    pub rule: u32,
    pub conditions: Vec<u32>,
    /// The conditions are necessary and not sufficient.
    pub partial: bool,
}

/// All lines of all rules, in their order.
#[derive(Debug, Default)]
pub(super) struct Lines<'r> {
    pub keys: Vec<Key<'r>>,
    pub conditions: Vec<Condition>,
    pub lines: Vec<Line>,
}

impl<'r> Lines<'r> {
    pub fn of(rules: &'r [Arc<Rule>]) -> Self {
        let mut lines = Self::default();
        let mut numbers = HashMap::new();
        for (index, rule) in rules.iter().enumerate() {
            lines.add(index as u32, rule, &mut numbers);
        }
        lines
    }

    fn add(&mut self, index: u32, rule: &'r Rule, numbers: &mut HashMap<Key<'r>, Atom>) {
        let mut part = |alternatives: &'r [Vec<Clause>], place: fn(u32, u32) -> Place| -> Vec<Vec<u32>> {
            let number = |(a, clauses): (usize, &'r Vec<Clause>)| {
                let conditions = clauses.iter().enumerate();
                conditions
                    .map(|(c, clause)| self.condition(place(a as u32, c as u32), clause, numbers))
                    .collect()
            };
            alternatives.iter().enumerate().map(number).collect()
        };
        let from = part(&rule.from, Place::From);
        let to = part(&rule.to, Place::To);
        let when: Vec<u32> = rule
            .when
            .iter()
            .enumerate()
            .map(|(c, clause)| self.condition(Place::When(c as u32), clause, numbers))
            .collect();
        let nothing = [Vec::new()];
        let or_nothing = |part: &'_ [Vec<u32>]| -> usize { part.len().max(1) };
        let product = or_nothing(&from).saturating_mul(or_nothing(&to));
        let partial = product > MAX_PRODUCT && product > MAX_GROWTH * (from.len() + to.len());
        let from = if from.is_empty() { &nothing[..] } else { &from };
        let to = if to.is_empty() || partial { &nothing[..] } else { &to };
        for source in from {
            for operation in to {
                let conditions = source.iter().chain(operation).chain(&when).copied().collect();
                self.lines.push(Line { rule: index, conditions, partial });
            }
        }
    }

    fn condition(&mut self, place: Place, clause: &'r Clause, numbers: &mut HashMap<Key<'r>, Atom>) -> u32 {
        let keys = keys(&clause.test);
        let mut complete = true;
        let mut atoms = Vec::with_capacity(keys.len());
        for key in keys {
            if !key.is_found_by_lookup() {
                complete = false;
                continue;
            }
            let fresh = self.keys.len() as Atom;
            let atom = *numbers.entry(key.clone()).or_insert(fresh);
            if atom == fresh {
                self.keys.push(key);
            }
            atoms.push(atom);
        }
        atoms.sort_unstable();
        atoms.dedup();
        self.conditions.push(Condition { place, negated: clause.negated, atoms: atoms.into(), complete });
        self.conditions.len() as u32 - 1
    }
}
