//! The program's own pages in memory.
#![allow(unsafe_code)]

use nix::libc;
use std::ffi::c_void;

/// Lets go of those pages of the program and its constants that only the start has used: they stay resident, beside every pod, until
/// somebody says so. What is used again comes back from the file's cache within microseconds. Best effort.
pub fn forget_start() {
    let (Ok(program), Ok(mappings)) =
        (std::fs::read_link("/proc/self/exe"), std::fs::read_to_string("/proc/self/maps"))
    else {
        return;
    };
    for (from, to) in unwritten(&mappings, &program.to_string_lossy()) {
        // SAFETY: the range is one that the kernel has just listed, of our own program, which is mapped for as long as it runs. Nobody has
        // written to it (see `unwritten`), so each page is read from the file again as it was.
        unsafe {
            libc::madvise(std::ptr::without_provenance_mut::<c_void>(from), to - from, libc::MADV_DONTNEED);
        }
    }
}

/// The ranges of `program` in `mappings` (proc(5), `/proc/pid/maps`) that nobody can have written to: its code, and what stands before
/// it in the file. Other ranges that are only read now were written to by the loader before (RELRO).
fn unwritten<'a>(mappings: &'a str, program: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    mappings.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let (range, rights, offset) = (words.next()?, words.next()?, words.next()?);
        let is_ours = words.nth(2) == Some(program);
        let is_unwritten =
            rights == "r-xp" || (rights == "r--p" && offset.bytes().all(|digit| digit == b'0'));
        let (from, to) = range.split_once('-')?;
        let address = |digits| usize::from_str_radix(digits, 16).ok();
        (is_ours && is_unwritten).then_some((address(from)?, address(to)?))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn only_what_nobody_has_written_to_is_let_go_of() {
        let mappings = "\
            1000-3000 r--p 00000000 fe:00 7 /bin/sidecar\n\
            3000-9000 r-xp 00002000 fe:00 7 /bin/sidecar\n\
            9000-a000 r--p 00008000 fe:00 7 /bin/sidecar\n\
            a000-b000 rw-p 00009000 fe:00 7 /bin/sidecar\n\
            b000-c000 rw-p 00000000 00:00 0 \n\
            c000-d000 r-xp 00000000 fe:00 8 /lib/libc.so.6\n\
            d000-e000 r-xp 00000000 fe:00 9 /other/bin/sidecar\n\
            f000-ff00 rwxp 00002000 fe:00 7 /bin/sidecar\n";
        let found: Vec<_> = unwritten(mappings, "/bin/sidecar").collect();
        assert_eq!(found, [(0x1000, 0x3000), (0x3000, 0x9000)]);
    }

    #[test]
    fn the_program_goes_on_and_its_constants_are_as_they_were() {
        static TEXT: &str = "what stands in the file";
        forget_start();
        assert_eq!(TEXT.len(), 23);
        assert!(std::thread::spawn(|| "threads begin".to_owned()).join().unwrap().contains("begin"));
    }
}
