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
    limits(groups, mounted).into_iter().map(|limit| limit.bytes).min()
}

/// A limit of a control group.
struct Limit {
    bytes: u64,
    folder: PathBuf,
    /// It is our own group, and not one above it that we share.
    is_own: bool,
}

fn limits(groups: &str, mounted: &Path) -> Vec<Limit> {
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
    limits.collect()
}

fn along(root: &Path, path: &str, file: &str) -> Vec<Limit> {
    let mut folders: Vec<PathBuf> = vec![root.to_owned()];
    for part in Path::new(path).components() {
        let deeper = folders.last().map(|folder| folder.join(part));
        folders.extend(deeper);
    }
    folders.retain(|folder| folder.join(file).is_file());
    let own = folders.last().cloned();
    let read = |folder: PathBuf| {
        let bytes: u64 = fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()?;
        // Version 1 writes a huge number where version 2 writes `max`.
        let is_limit = bytes > 0 && bytes < 1 << 60;
        is_limit.then(|| Limit { bytes, is_own: own.as_ref() == Some(&folder), folder })
    };
    folders.iter().cloned().filter_map(read).collect()
}

fn memory_of_machine(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory in use, asked often. The files stay open, so that the answer needs no descriptor when there is none left.
#[derive(Debug)]
pub struct Resident {
    process: File,
    group: Option<Group>,
}

/// What a control group counts against its limit.
#[derive(Debug)]
struct Group {
    usage: File,
    stat: File,
}

impl Resident {
    /// Of this process.
    ///
    /// # Errors
    /// Where there is no `/proc`.
    pub fn open() -> io::Result<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limits = limits(&groups, Path::new("/sys/fs/cgroup"));
        let smallest = limits.into_iter().min_by_key(|limit| limit.bytes);
        let group = smallest.filter(|limit| limit.is_own).and_then(|limit| Group::open(&limit.folder).ok());
        Ok(Self { process: File::open("/proc/self/statm")?, group })
    }

    /// Bytes that count: where the limit is one of our own group, what that counts, which is more than our pages (buffers of sockets
    /// among others) and less (the program itself is shared); else the resident bytes of this process.
    pub fn bytes(&self) -> Option<u64> {
        if let Some(bytes) = self.group.as_ref().and_then(Group::bytes) {
            return Some(bytes);
        }
        let text = read(&self.process)?;
        let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
        pages.checked_mul(u64::try_from(page).ok()?)
    }
}

impl Group {
    fn open(folder: &Path) -> io::Result<Self> {
        let usage = File::open(folder.join("memory.current"))
            .or_else(|_| File::open(folder.join("memory.usage_in_bytes")))?;
        Ok(Self { usage, stat: File::open(folder.join("memory.stat"))? })
    }

    /// Without the cache of files, which goes before anybody is killed; files in memory do not.
    fn bytes(&self) -> Option<u64> {
        let usage: u64 = read(&self.usage)?.trim().parse().ok()?;
        let stat = read(&self.stat)?;
        let value = |names: [&str; 2]| {
            let of =
                |name: &str| stat.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
            names.into_iter().find_map(of).unwrap_or(0_u64)
        };
        let cache = value(["total_cache", "file"]).saturating_sub(value(["total_shmem", "shmem"]));
        Some(usage.saturating_sub(cache))
    }
}

/// From its beginning, whatever was read before.
fn read(file: &File) -> Option<String> {
    let mut text = vec![0; 8192];
    let length = file.read_at(&mut text, 0).ok()?;
    text.truncate(length);
    String::from_utf8(text).ok()
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
    fn a_group_counts_all_but_the_cache_of_files_in_both_versions() {
        for (usage, stat, expected) in [
            ("memory.current", "anon 1\nfile 300\nshmem 100\nfile_mapped 9\n", 800),
            ("memory.usage_in_bytes", "cache 7\nshmem 7\ntotal_cache 300\ntotal_shmem 100\n", 800),
            ("memory.usage_in_bytes", "", 1000),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(usage), "1000\n").unwrap();
            fs::write(folder.path().join("memory.stat"), stat).unwrap();
            let group = Group::open(folder.path()).unwrap();
            assert_eq!((group.bytes(), group.bytes()), (Some(expected), Some(expected)), "{usage} {stat:?}");
        }
    }

    #[test]
    fn only_a_limit_of_the_own_group_is_compared_with_what_the_group_counts() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("pod/sidecar");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("memory.max"), "max\n").unwrap();
        fs::write(folder.path().join("pod/memory.max"), "1000\n").unwrap();
        let smallest =
            || limits("0::/pod/sidecar\n", folder.path()).into_iter().min_by_key(|l| l.bytes).unwrap();
        assert!(!smallest().is_own);
        fs::write(own.join("memory.max"), "900\n").unwrap();
        assert!(smallest().is_own && smallest().folder == own);
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
