//! A decision allocates nothing, whatever the rules and the call: an allocator that counts says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, dead_code, missing_docs)]

#[path = "policy/given.rs"]
mod given;
#[path = "policy/random.rs"]
mod random;

use given::{allow, call, snapshot};
use postern_config::{Snapshot, Verdict, authorize::judge, snapshot::linear};
use random::{Random, any_call, any_spec};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    /// Of this thread, so that tests beside this one do not count.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: both methods pass their arguments unchanged to the system's allocator and return what that returns; the counter
// is a thread-local number without a destructor, so touching it allocates nothing.
#[allow(unsafe_code)] // an allocator can be written in no other way
unsafe impl GlobalAlloc for Counting {
    // SAFETY: see above.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: see above.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

#[test]
fn the_allocator_counts() {
    let before = allocations();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(allocations(), before + 1);
}

#[test]
fn no_decision_on_random_policies_and_calls_allocates() {
    for seed in 0..400 {
        let mut random = Random(seed * 7919);
        let snapshot = Snapshot::compile(any_spec(&mut random)).expect("random policies are valid");
        for _ in 0..20 {
            let call = any_call(&mut random);
            let facts = call.facts();
            let before = allocations();
            let judgement = judge(&snapshot, &facts);
            // A repeated header is read in two ways, one of which has to be made.
            let repeats = facts.http.is_some_and(|http| http.headers.len() > http.headers.keys_len());
            assert!(repeats || allocations() == before, "seed {seed}: {call:?}");
            assert_eq!(judgement, linear::judge(&snapshot, &facts));
        }
    }
}

#[test]
fn a_decision_that_falls_back_to_the_scan_allocates_nothing_either() {
    let long = format!("/{}", "a/".repeat(100));
    let rules: Vec<String> = (1..long.len())
        .map(|end| format!("{{to: [{{operation: {{paths: ['{}*']}}}}]}}", &long[..end]))
        .collect();
    let snapshot = snapshot(vec![allow(&format!("[{}]", rules.join(",")))]);
    for (call, verdict) in [(call().path(&long), Verdict::Allow), (call().path("x"), Verdict::Deny)] {
        let facts = call.facts();
        let before = allocations();
        let judgement = judge(&snapshot, &facts);
        assert_eq!(allocations(), before);
        assert_eq!(judgement.decision.verdict, verdict);
    }
}
