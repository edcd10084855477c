//! The rules of a workload, so arranged that a decision costs about the same for ten of them and for ten thousand.
//!
//! Rules are multiplied out into [`lines`], plain conjunctions. For given facts, [`atoms`] finds the values that hold,
//! attribute by attribute. Lines are found by one or two selective values ([`filing`]); those without any, by bit sets
//! ([`filter`]). What is found is compared condition by condition, so the arrangement cannot change an answer.
//! See `docs/decisions/0004-policy-index.md`.

mod addresses;
mod atoms;
mod filing;
mod filter;
mod lines;
mod table;
mod templates;
mod texts;

use super::rules::Rule;
use crate::authorize::{Facts, Matched, RuleRef};
use atoms::{Atom, Found, Lookup};
use filing::{Filed, Files};
use filter::{Filter, Step};
use lines::{Condition, Lines, Place};
use std::{collections::HashMap, sync::Arc};

/// Immutable. Rules are numbered through, kind by kind in the order of [`Index::kinds`].
#[derive(Debug, Default)]
pub(crate) struct Index {
    rules: Box<[Arc<Rule>]>,
    lines: Box<[Line]>,
    checks: Box<[Check]>,
    /// Atoms of conditions with several values.
    sets: Box<[Atom]>,
    lookup: Lookup,
    files: Files,
    filter: Filter,
    /// Per kind: its first line in the next kind.
    line_ends: [u32; KINDS],
}

const KINDS: usize = 5;
/// No rule.
const NONE: u32 = u32::MAX;

/// A conjunction of a rule.
#[derive(Debug)]
struct Line {
    rule: u32,
    kind: u8,
    /// What was not multiplied out has to be compared as a whole.
    partial: bool,
    /// Its part of `checks`.
    first_check: u32,
    check_count: u32,
}

/// What is to be compared before a line holds.
#[derive(Debug)]
enum Check {
    /// Value by value, in the rule itself.
    Clause(Place),
    /// By an atom; `true` when it must not hold.
    Atom(Atom, bool),
    /// By atoms, a range of `sets`; `true` when none of them may hold.
    Set(u32, u32, bool),
}

impl Index {
    /// `kinds`: DENY, dry-run DENY, ALLOW, dry-run ALLOW, AUDIT, each in policy order.
    pub fn build(kinds: [&[Arc<Rule>]; KINDS]) -> Self {
        let rules: Box<[Arc<Rule>]> = kinds.iter().flat_map(|rules| rules.iter().cloned()).collect();
        let kind_of: Vec<u8> =
            (0_u8..).zip(kinds).flat_map(|(kind, rules)| vec![kind; rules.len()]).collect();
        let lines = Lines::of(&rules);
        let chosen = filing::choose(&lines);
        let files = Files::build(&lines, &chosen);
        let filter = Filter::build(&lines, &chosen);
        let mut used = vec![false; lines.keys.len()];
        let mut index = Self::default();
        index.compare(&lines, &chosen, &kind_of, &mut used);
        for atom in filter.atoms(&lines) {
            used.get_mut(atom as usize).into_iter().for_each(|used| *used = true);
        }
        let is_used = |atom: &Atom| used.get(*atom as usize).is_some_and(|used| *used);
        let atoms = lines.keys.iter().cloned().zip(0..).filter(|(_, atom)| is_used(atom));
        index.lookup = Lookup::build(atoms);
        (index.files, index.filter) = (files, filter);
        drop(lines);
        index.rules = rules;
        index
    }

    /// Writes down what remains to be compared, and which atoms have to be found for all of this.
    fn compare(&mut self, lines: &Lines<'_>, chosen: &[Filed], kind_of: &[u8], used: &mut [bool]) {
        let mut compared = Vec::with_capacity(lines.lines.len());
        let mut checks = Vec::new();
        let mut sets = Vec::new();
        let mut set_numbers: HashMap<u32, (u32, u32)> = HashMap::new();
        let mut mark = |condition: &Condition| {
            for atom in condition.atoms.iter() {
                used.get_mut(*atom as usize).into_iter().for_each(|used| *used = true);
            }
        };
        for (line, filed) in lines.lines.iter().zip(chosen) {
            let first_check = checks.len() as u32;
            for number in &line.conditions {
                let Some(condition) = lines.conditions.get(*number as usize) else { continue };
                if filed.proves(*number) {
                    mark(condition);
                } else if line.partial {
                    // Compared as a whole.
                } else if condition.complete {
                    mark(condition);
                    if let [atom] = *condition.atoms {
                        checks.push(Check::Atom(atom, condition.negated));
                        continue;
                    }
                    let (from, to) = *set_numbers.entry(*number).or_insert_with(|| {
                        let from = sets.len() as u32;
                        sets.extend_from_slice(&condition.atoms);
                        (from, sets.len() as u32)
                    });
                    checks.push(Check::Set(from, to, condition.negated));
                } else {
                    checks.push(Check::Clause(condition.place));
                }
            }
            compared.push(Line {
                rule: line.rule,
                kind: kind_of.get(line.rule as usize).copied().unwrap_or_default(),
                partial: line.partial,
                first_check,
                check_count: checks.len() as u32 - first_check,
            });
        }
        for (kind, end) in (0_u8..).zip(&mut self.line_ends) {
            *end = compared.partition_point(|line| line.kind <= kind) as u32;
        }
        (self.lines, self.checks, self.sets) = (compared.into(), checks.into(), sets.into());
    }

    /// The first matching rule of each kind; `None` when the facts fit more values than are kept track of, and the
    /// rules have to be gone through one by one.
    pub fn first_matches(&self, facts: &Facts<'_>) -> Option<Matched<'_>> {
        let mut found = Found::default();
        self.lookup.find(facts, &mut found);
        if found.overflowed() {
            return None;
        }
        let mut best = [NONE; KINDS];
        self.files.visit(&found, |line| {
            if let Some(line) = self.lines.get(line as usize) {
                self.consider(line, facts, &found, &mut best);
            }
        });
        self.filter.visit(&found, |number| {
            let Some(line) = self.lines.get(number as usize) else { return Step::Next };
            if self.consider(line, facts, &found, &mut best) {
                return Step::Next;
            }
            self.line_ends.get(usize::from(line.kind)).map_or(Step::Next, |end| Step::To(*end))
        });
        let [deny, dry_run_deny, allow, dry_run_allow, audit] = best.map(|rule| self.reference(rule));
        Some(Matched { deny, dry_run_deny, allow, dry_run_allow, audit })
    }

    /// Keeps the line's rule when it holds and is earlier than the best one so far. `false` when later lines of the
    /// same kind are of no interest.
    #[inline]
    fn consider(&self, line: &Line, facts: &Facts<'_>, found: &Found, best: &mut [u32; KINDS]) -> bool {
        let Some(best) = best.get_mut(usize::from(line.kind)) else { return true };
        if line.rule >= *best {
            return false;
        }
        let holds =
            self.rules.get(line.rule as usize).is_some_and(|rule| self.holds(line, rule, facts, found));
        if holds {
            *best = line.rule;
        }
        !holds
    }

    #[inline]
    fn holds(&self, line: &Line, rule: &Rule, facts: &Facts<'_>, found: &Found) -> bool {
        if line.partial {
            return rule.matches(facts);
        }
        let first = line.first_check as usize;
        let checks = self.checks.get(first..first + line.check_count as usize).unwrap_or_default();
        checks.iter().all(|check| match check {
            Check::Clause(place) => place.of(rule).is_some_and(|clause| clause.holds(facts)),
            Check::Atom(atom, negated) => found.all().contains(atom) != *negated,
            Check::Set(from, to, negated) => {
                let set = self.sets.get(*from as usize..*to as usize).unwrap_or_default();
                found.all().iter().any(|atom| set.binary_search(atom).is_ok()) != *negated
            }
        })
    }

    fn reference(&self, rule: u32) -> Option<&Arc<RuleRef>> {
        self.rules.get(rule as usize).map(|rule| &rule.reference)
    }
}
