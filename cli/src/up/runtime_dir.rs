//! The one folder on the host that a running mesh has: its lock, its control socket, and the mount point of its files.
use crate::failure::Failure;
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// The folder of one mesh, locked by this process. Dropping it removes the folder.
pub struct RuntimeDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl RuntimeDir {
    /// Takes the folder for the mesh of `directory` (a real path) under `base`, and removes what a killed run left in it.
    ///
    /// # Errors
    /// Another process runs this mesh, or the folder cannot be made or is not ours alone.
    pub fn take(base: &Path, directory: &Path) -> Result<Self, Failure> {
        make_private(base)?;
        sweep(base);
        let path = base.join(folder_name(directory));
        // The one who gives the lock up removes the folder, so the file that we lock may be gone by then: look again.
        for _ in 0..16 {
            make_private(&path)?;
            if let Some(lock) = lock(&path, directory)? {
                let taken = Self { path, _lock: lock };
                taken.clear()?;
                return Ok(taken);
            }
        }
        Err(Failure::new(
            format!("`{}` is being taken and given up all the time.", path.display()),
            "Wait until other starts of this folder are over, then try again.",
        ))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn clear(&self) -> Result<(), Failure> {
        let entries = fs::read_dir(&self.path).map_err(|e| unusable(&self.path, &e))?;
        for entry in entries.flatten().filter(|e| e.file_name() != LOCK) {
            let path = entry.path();
            let removed = if entry.file_type().is_ok_and(|t| t.is_dir()) {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(|e| unusable(&path, &e))?;
        }
        Ok(())
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        // Succeeds only for the last mesh of this user.
        if let Some(base) = self.path.parent() {
            let _ = fs::remove_dir(base);
        }
    }
}

const LOCK: &str = "lock";
/// The socket for `postern exec`.
pub const SOCKET: &str = "control.sock";
/// The admin socket of the control plane, for `postern ca` and `postern certs`.
pub const ADMIN_SOCKET: &str = "control-plane.sock";

/// Where this user's meshes are: `/run/postern` for root, else `$XDG_RUNTIME_DIR/postern`, else `/tmp/postern-<uid>`.
pub fn base() -> PathBuf {
    let uid = nix::unistd::geteuid().as_raw();
    // In somebody's user namespace one is called root without owning /run.
    if uid == 0 && fs::metadata("/run").is_ok_and(|m| m.uid() == 0) {
        return PathBuf::from("/run/postern");
    }
    std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute() && fs::metadata(p).is_ok_and(|m| m.is_dir() && m.uid() == uid))
        .map_or_else(|| PathBuf::from(format!("/tmp/postern-{uid}")), |p| p.join("postern"))
}

/// A mesh that runs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its runtime folder.
    pub path: PathBuf,
    /// The folder of YAML it runs.
    pub directory: PathBuf,
    /// Its outer process.
    pub pid: u32,
}

impl Running {
    /// Where its control plane is asked.
    pub fn admin_socket(&self) -> PathBuf {
        self.path.join(ADMIN_SOCKET)
    }
}

/// The meshes that run under `base`.
pub fn running(base: &Path) -> Vec<Running> {
    let Ok(entries) = fs::read_dir(base) else { return Vec::new() };
    let mut all: Vec<Running> = entries.flatten().filter_map(|e| owner(&e.path())).collect();
    all.sort_by(|a, b| a.directory.cmp(&b.directory));
    all
}

fn owner(path: &Path) -> Option<Running> {
    let mut file = OpenOptions::new().read(true).write(true).open(path.join(LOCK)).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    let (pid, directory) = text.trim_end().split_once('\n')?;
    let running = Running { path: path.to_owned(), directory: directory.into(), pid: pid.parse().ok()? };
    // Whoever can lock it, finds it abandoned.
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_) => None,
        Err(_) => Some(running),
    }
}

fn lock(path: &Path, directory: &Path) -> Result<Option<Flock<File>>, Failure> {
    let at = path.join(LOCK);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&at);
    let file = match file {
        Ok(file) => file,
        // Its last owner has removed the folder between our two steps.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unusable(&at, &e)),
    };
    let mut lock = match take_patiently(file) {
        Ok(lock) => lock,
        Err(mut file) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            let pid = text.lines().next().unwrap_or("unknown").to_owned();
            return Err(Failure::new(
                format!("the mesh of `{}` is already up (process {pid}).", directory.display()),
                format!("Stop it first (kill {pid}), or look at it with `postern exec POD -- COMMAND`."),
            ));
        }
    };
    let ours = lock.metadata().map(|m| (m.dev(), m.ino()));
    let there = fs::metadata(&at).map(|m| (m.dev(), m.ino()));
    if !matches!((ours, there), (Ok(a), Ok(b)) if a == b) {
        return Ok(None);
    }
    let text = format!("{}\n{}\n", std::process::id(), directory.display());
    let written = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(text.as_bytes()));
    written.map_err(|e| unusable(&at, &e))?;
    Ok(Some(lock))
}

/// Removes what killed runs of other folders have left.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        let Ok(file) = OpenOptions::new().read(true).write(true).open(path.join(LOCK)) else { continue };
        // Removed while we hold its lock, so nobody starts there meanwhile.
        if let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Who only looks whether a mesh is alive (`running`) holds its lock for a moment; that is no mesh.
fn take_patiently(mut file: File) -> Result<Flock<File>, File> {
    for _ in 0..20 {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, _)) => file,
        };
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(file)
}

/// A folder that nobody else may write to. Root's may be passed through (not listed), for sidecars have a user of their own.
fn make_private(path: &Path) -> Result<(), Failure> {
    let root = nix::unistd::geteuid().is_root();
    let mode = if root { 0o711 } else { 0o700 };
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(unusable(path, &e)),
        _ => {}
    }
    let found = fs::symlink_metadata(path).map_err(|e| unusable(path, &e))?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Failure::new(
            format!("`{}` belongs to somebody else, so nothing is kept there.", path.display()),
            "Remove it, or set XDG_RUNTIME_DIR to a folder of your own.",
        ));
    }
    if found.mode() & 0o777 != mode {
        // The umask, or an older run, made it otherwise.
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| unusable(path, &e))?;
    }
    Ok(())
}

/// A name that a person recognises and that no two folders share.
pub fn folder_name(directory: &Path) -> String {
    let name: String = directory
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(24)
        .collect();
    format!("{name}-{:016x}", fingerprint(directory))
}

/// FNV-1a of the path: the same in every version of the program, since a later one must find an earlier one's folder.
pub fn fingerprint(directory: &Path) -> u64 {
    use std::os::unix::ffi::OsStrExt;
    directory
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn unusable(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(
        format!("`{}` cannot be used: {e}.", path.display()),
        "Free it, or set XDG_RUNTIME_DIR to a folder of your own.",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_second_mesh_of_one_folder_is_refused_and_names_the_first() {
        let base = tempfile::tempdir().unwrap();
        let (a, b) = (Path::new("/some/payments"), Path::new("/other/payments"));
        let first = RuntimeDir::take(base.path(), a).unwrap();
        let refused = RuntimeDir::take(base.path(), a).map(|_| ()).unwrap_err();
        assert!(refused.cause.contains(&format!("process {}", std::process::id())), "{refused}");
        let other = RuntimeDir::take(base.path(), b).unwrap();
        assert_ne!(first.path(), other.path());
        let directories: Vec<_> = running(base.path()).into_iter().map(|r| r.directory).collect();
        assert_eq!(directories, [b, a]);
        drop(first);
        RuntimeDir::take(base.path(), a).unwrap();
    }

    #[test]
    fn a_killed_run_leaves_nothing_for_the_next() {
        let base = tempfile::tempdir().unwrap();
        let directory = Path::new("/some/payments");
        let path = base.path().join(folder_name(directory));
        fs::create_dir_all(path.join("mesh/pods")).unwrap();
        fs::write(path.join(SOCKET), "").unwrap();
        fs::write(path.join(LOCK), "1\n/some/payments\n").unwrap();
        assert_eq!(running(base.path()), []);
        let taken = RuntimeDir::take(base.path(), directory).unwrap();
        let names: Vec<_> = fs::read_dir(taken.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [LOCK]);
        // So does one of another folder.
        fs::create_dir_all(base.path().join("other/mesh")).unwrap();
        fs::write(base.path().join("other").join(LOCK), "1\n/other\n").unwrap();
        RuntimeDir::take(base.path(), Path::new("/a/third")).unwrap();
        assert!(!base.path().join("other").exists() && path.exists());
        drop(taken);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_is_a_link_is_not_trusted() {
        let base = tempfile::tempdir().unwrap();
        let directory = Path::new("/some/payments");
        std::os::unix::fs::symlink("/tmp", base.path().join(folder_name(directory))).unwrap();
        assert!(
            RuntimeDir::take(base.path(), directory).map(|_| ()).unwrap_err().cause.contains("somebody else")
        );
    }

    #[test]
    fn names_are_stable_and_readable() {
        assert_eq!(
            folder_name(Path::new("/a/pay ments")),
            format!("payments-{:016x}", fingerprint(Path::new("/a/pay ments")))
        );
        assert_eq!(fingerprint(Path::new("a")), 0xaf63_dc4c_8601_ec8c);
    }
}
