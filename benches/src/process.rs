//! What the kernel's accounting says of a process: time on cores, and memory; and which core it is on.

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::{fs, time::Duration};

/// Time that this thread has had on a core: on a shared machine it is not charged for what others do.
pub fn thread_cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("a Linux machine");
    let nanoseconds = text.split(' ').next().and_then(|text| text.parse().ok()).expect("a number");
    Duration::from_nanos(nanoseconds)
}

/// Time that all threads of a process have had on cores so far. Threads that have ended are not counted: those of ours stay.
pub fn cpu(process: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
    let spent = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("schedstat")).ok());
    Duration::from_nanos(spent.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).sum())
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The first and the last core that we may use.
pub fn cores() -> (usize, usize) {
    let ours = sched_getaffinity(Pid::from_raw(0)).expect("the kernel tells");
    let mut all = (0..CpuSet::count()).filter(|core| ours.is_set(*core).is_ok_and(|is_ours| is_ours));
    let first = all.next().expect("we run on a core");
    (first, all.next_back().unwrap_or(first))
}

/// This thread, and what it starts from here on, stay on that core.
pub fn pin(core: usize) {
    let mut one = CpuSet::new();
    one.set(core).expect("a core");
    sched_setaffinity(Pid::from_raw(0), &one).expect("a core of ours");
}
