//! A global allocator that counts, for benches that ask what something costs in bytes.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The system's allocator, counting. A binary installs it with `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Bytes in use now.
pub fn live() -> usize {
    LIVE.load(Relaxed)
}

/// Most bytes in use since [`forget_peak`].
pub fn peak() -> usize {
    PEAK.load(Relaxed)
}

/// Starts a new peak.
pub fn forget_peak() {
    PEAK.store(live(), Relaxed);
}

/// Allocations so far.
pub fn calls() -> usize {
    CALLS.load(Relaxed)
}

fn grown(by: usize) {
    CALLS.fetch_add(1, Relaxed);
    let now = LIVE.fetch_add(by, Relaxed) + by;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every method passes its arguments unchanged to the system's allocator and returns what that returns; the
// counters are atomic and allocate nothing.
#[allow(unsafe_code)] // an allocator can be written in no other way
unsafe impl GlobalAlloc for Counting {
    // SAFETY: see above.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: see above.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(block, layout) }
    }
}
