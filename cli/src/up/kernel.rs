//! What needs `unsafe`: taking over file descriptors and giving up capabilities. Nothing else in this crate does.
#![allow(unsafe_code)]
use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Capabilities by number (linux/capability.h).
pub mod capability {
    /// CAP_CHOWN
    pub const CHOWN: i32 = 0;
    /// CAP_DAC_OVERRIDE
    pub const DAC_OVERRIDE: i32 = 1;
    /// CAP_FOWNER
    pub const FOWNER: i32 = 3;
    /// CAP_FSETID
    pub const FSETID: i32 = 4;
    /// CAP_KILL
    pub const KILL: i32 = 5;
    /// CAP_NET_BIND_SERVICE
    pub const NET_BIND_SERVICE: i32 = 10;
    /// CAP_NET_ADMIN
    pub const NET_ADMIN: i32 = 12;
    /// CAP_NET_RAW
    pub const NET_RAW: i32 = 13;
}

/// Owns a descriptor that came over a unix socket (SCM_RIGHTS).
pub fn received_descriptor(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this number for this process alone, and the caller got it exactly once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Removes every capability but `keep` from what programs started from here can ever have.
///
/// # Errors
/// The process may not change its bounding set.
pub fn bound_capabilities(keep: &[i32]) -> nix::Result<()> {
    // The kernel says EINVAL for the first number that it does not know.
    for number in 0..64 {
        if keep.contains(&number) {
            continue;
        }
        // SAFETY: this prctl takes numbers only and touches no memory of ours.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) }) {
            Ok(_) => {}
            Err(Errno::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    // SAFETY: as above. Ambient capabilities would survive a change of user.
    Errno::result(unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0, 0, 0)
    })
    .map(|_| ())
}

/// The kernel's `struct __user_cap_header_struct` (linux/capability.h).
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// Half of what capset(2) takes; two of them make 64 bits.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityHalf {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives this process exactly these capabilities of those that it is permitted, and lets the program it becomes have them too.
///
/// # Errors
/// It is not permitted one of them.
pub fn hold_capabilities(numbers: &[i32]) -> nix::Result<()> {
    // _LINUX_CAPABILITY_VERSION_3; pid 0 is ourselves.
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    let mut halves = [CapabilityHalf::default(); 2];
    for number in numbers.iter().map(|number| u32::try_from(*number).unwrap_or_default()) {
        if let Some(half) = halves.get_mut(usize::from(number >= 32)) {
            let bit = 1 << (number % 32);
            half.effective |= bit;
            half.permitted |= bit;
            half.inheritable |= bit;
        }
    }
    // SAFETY: the kernel reads a header and two halves, which are laid out as it has them and live until it is done.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })?;
    for number in numbers {
        // SAFETY: this prctl takes numbers only and touches no memory of ours.
        let raised = unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
                *number as libc::c_ulong,
                0,
                0,
            )
        };
        Errno::result(raised)?;
    }
    Ok(())
}
