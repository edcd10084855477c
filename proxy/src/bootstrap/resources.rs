//! What this process may have of its machine: descriptors, and memory by the control group it runs in.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// The limits that were found at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Open descriptors (`RLIMIT_NOFILE`).
    pub descriptors: Option<u64>,
    /// Bytes of memory: the smallest limit of the control groups above us, version 1 or 2, or else what the machine has.
    pub memory: Option<u64>,
}

impl Resources {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        use nix::sys::resource::{Resource, getrlimit};
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
            memory: [memory_limit(&groups, Path::new("/sys/fs/cgroup")), memory_of_machine(&machine)]
                .into_iter()
                .flatten()
                .min(),
        }
    }
}

/// The smallest limit on the way from our groups, as `/proc/self/cgroup` names them, up to where they are mounted. In a
/// container the names may lead nowhere, since they are those of the host; what is there counts.
fn memory_limit(groups: &str, mounted: &Path) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next(), fields.next(), fields.next().unwrap_or_default());
        let controllers = controllers.unwrap_or_default();
        let (roots, file) = if controllers.is_empty() {
            (vec![mounted.to_owned(), mounted.join("unified")], "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (vec![mounted.join("memory"), mounted.join(controllers)], "memory.limit_in_bytes")
        } else {
            (vec![], "")
        };
        let path = path.trim_start_matches('/').to_owned();
        roots.into_iter().flat_map(move |root| along(&root, &path, file))
    });
    limits.min()
}

fn along(root: &Path, path: &str, file: &str) -> Vec<u64> {
    let mut folders: Vec<PathBuf> = vec![root.to_owned()];
    for part in Path::new(path).components() {
        let deeper = folders.last().map(|folder| folder.join(part));
        folders.extend(deeper);
    }
    let read = |folder: &PathBuf| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok();
    // Version 1 writes a huge number where version 2 writes `max`.
    folders.iter().filter_map(read).filter(|limit| *limit > 0 && *limit < 1 << 60).collect()
}

fn memory_of_machine(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory in use, asked often. The file stays open, so that the answer needs no descriptor when there is none left.
#[derive(Debug)]
pub struct Resident(File);

impl Resident {
    /// Of this process.
    ///
    /// # Errors
    /// Where there is no `/proc`.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::open("/proc/self/statm")?))
    }

    /// Resident bytes, as the kernel counts them for the control group's limit.
    pub fn bytes(&self) -> Option<u64> {
        let mut text = [0; 128];
        let length = self.0.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
        pages.checked_mul(u64::try_from(page).ok()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(files: &[(&str, &str)], groups: &str, expected: Option<u64>) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(memory_limit(groups, folder.path()), expected, "{groups:?} {files:?}");
    }

    #[test]
    fn the_smallest_limit_above_us_counts_in_both_versions() {
        let v2 = "0::/pods/pod1/sidecar\n";
        check(&[("pods/pod1/sidecar/memory.max", "max\n")], v2, None);
        check(&[("pods/pod1/sidecar/memory.max", "67108864\n")], v2, Some(64 << 20));
        check(
            &[("pods/pod1/sidecar/memory.max", "67108864\n"), ("pods/memory.max", "1048576\n")],
            v2,
            Some(1 << 20),
        );
        // In a container of its own group namespace, and with the host's name in a container.
        check(&[("memory.max", "67108864\n")], "0::/\n", Some(64 << 20));
        check(&[("memory.max", "67108864\n")], "0::/../kubepods/x\n", Some(64 << 20));
        let v1 = "5:devices:/x\n4:memory:/x/y\n0::/\n";
        check(&[("memory/x/y/memory.limit_in_bytes", "67108864\n")], v1, Some(64 << 20));
        check(&[("memory/x/y/memory.limit_in_bytes", "9223372036854771712\n")], v1, None);
        check(&[("memory/memory.limit_in_bytes", "1048576\n")], v1, Some(1 << 20));
        check(&[], v1, None);
        check(&[("memory.max", "no number\n")], "nonsense\n\n0::/\n", None);
    }

    #[test]
    fn a_machine_says_what_it_has() {
        assert_eq!(memory_of_machine("MemTotal:       1024 kB\nMemFree: 5 kB\n"), Some(1 << 20));
        assert_eq!(memory_of_machine("what else"), None);
    }

    #[test]
    fn this_process_has_limits_and_uses_memory() {
        let resources = Resources::of_this_process();
        let resident = Resident::open().unwrap().bytes().unwrap();
        assert!(resources.descriptors.unwrap() > 0 && resident > 1 << 20);
        assert!(resident < resources.memory.unwrap(), "{resources:?}");
    }
}
