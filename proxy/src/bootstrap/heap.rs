//! Freed memory that the allocator keeps is still resident, and resident memory is what a control group counts.
#![allow(unsafe_code)]

/// Gives what is free back to the machine, as far as the allocator can (glibc's; others do it by themselves). Takes milliseconds, in
/// which threads that allocate may wait, so it is for a process that is short of memory.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim(3) takes a number, may be called by any thread at any time, and moves nothing that is in use.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
