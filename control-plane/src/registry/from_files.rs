//! A folder of YAML as a source: read whole, and watched.

use postern_config::documents::SourceFile;
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// Upper bound of one file, in bytes.
const MAX_FILE: u64 = 8 * 1024 * 1024;
/// A folder that is being replaced while we read is read again this often.
const ATTEMPTS: usize = 10;
/// The folder counts as written when nothing has happened for so long ...
const QUIET: Duration = Duration::from_millis(50);
/// ... and in any case after so long.
const LONGEST_WAIT: Duration = Duration::from_millis(200);
/// Looked at this often when no notification comes: the folder itself may be replaced, its files may be links to places
/// that nobody watches, and some file systems do not notify.
const POLL: Duration = Duration::from_millis(700);

/// Reads all `*.yaml` and `*.yml` files that stand directly in `dir`, sorted by name; hidden files are left out. A file's
/// name is its path as the user would write it. When the folder changes while it is read (a ConfigMap's symlink swap), it
/// is read again, so that no mixture of two states comes out.
///
/// # Errors
/// The folder or a file cannot be read, is no UTF-8, or is larger than 8 MiB; the text names the path.
pub fn read_folder(dir: &Path) -> io::Result<Vec<SourceFile>> {
    let mut last = Err(io::Error::other(format!(
        "{} changes all the time: wait until it is written, then try again",
        dir.display()
    )));
    for _ in 0..ATTEMPTS {
        let before = fingerprint(dir);
        let files = read_once(dir);
        if fingerprint(dir) == before {
            return files;
        }
        if files.is_err() {
            last = files;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    last
}

/// Tells of changes in a folder; dropping it ends the watching.
pub struct Changes {
    changed: watch::Receiver<u64>,
    _watcher: Option<notify::RecommendedWatcher>,
    _task: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Changes {
    /// Waits until the folder's files differ from what they were at the last call (or at [`watch()`]), and are at rest:
    /// at most 200 ms after a change. Cancel safe. Many changes are one.
    pub async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            // The watching task never ends before we do; were it to, then nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Watches a folder; must be called on a tokio runtime. Call it *before* the first [`read_folder`], so that no change falls
/// between the two.
///
/// # Errors
/// `dir` is no folder that can be read.
pub fn watch(dir: &Path) -> io::Result<Changes> {
    fs::read_dir(dir).map_err(|error| describe(dir, &error))?;
    let (tell, events) = mpsc::channel(1);
    let watcher = notifier(dir, tell);
    let (changed, receiver) = watch::channel(0);
    let task = tokio::spawn(follow(dir.to_owned(), fingerprint(dir), events, changed));
    Ok(Changes { changed: receiver, _watcher: watcher, _task: AbortOnDrop(task) })
}

fn notifier(dir: &Path, tell: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    use notify::Watcher as _;
    let watching = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is an event, too; it must not lead to the next reading.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // One waiting note is enough.
            let _ = tell.try_send(());
        }
    })
    .and_then(|mut watcher| watcher.watch(dir, notify::RecursiveMode::NonRecursive).map(|()| watcher));
    match watching {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(folder = %dir.display(), %error, "the system cannot notify of changes; the folder is looked at from time to time instead");
            None
        }
    }
}

async fn follow(
    dir: PathBuf,
    mut seen: Fingerprint,
    mut events: mpsc::Receiver<()>,
    changed: watch::Sender<u64>,
) {
    loop {
        // Without a notifier the channel is closed and only the poll is left.
        match tokio::time::timeout(POLL, events.recv()).await {
            Ok(Some(())) => settle(&mut events).await,
            Ok(None) => tokio::time::sleep(POLL).await,
            Err(_) => {}
        }
        let now = fingerprint(&dir);
        if now != seen {
            seen = now;
            changed.send_modify(|generation| *generation += 1);
        }
    }
}

/// Waits until the writer has finished.
async fn settle(events: &mut mpsc::Receiver<()>) {
    let quiet = async { while let Ok(Some(())) = tokio::time::timeout(QUIET, events.recv()).await {} };
    let _ = tokio::time::timeout(LONGEST_WAIT - QUIET, quiet).await;
}

/// What is compared to see a change: the folder behind all links, and the state of each file.
type Fingerprint = (Option<PathBuf>, Vec<(PathBuf, Option<FileState>)>);

/// The inode changes by a rename, the time of change (ctime) by a new mode, too; neither can be set back.
#[derive(PartialEq, Eq)]
struct FileState {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

fn fingerprint(dir: &Path) -> Fingerprint {
    let files = list(dir).unwrap_or_default();
    let described = files.into_iter().map(|path| {
        let state = fs::metadata(&path).map(|file| FileState {
            inode: (file.dev(), file.ino()),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        });
        (path, state.ok())
    });
    (fs::canonicalize(dir).ok(), described.collect())
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| describe(dir, &error))? {
        let path = entry.map_err(|error| describe(dir, &error))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_once(dir: &Path) -> io::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for path in list(dir)? {
        let metadata = fs::metadata(&path).map_err(|error| describe(&path, &error))?;
        if metadata.is_dir() {
            continue;
        }
        if !metadata.is_file() {
            return Err(io::Error::other(format!("{} is not a plain file: remove it", path.display())));
        }
        if metadata.len() > MAX_FILE {
            let size = metadata.len();
            return Err(io::Error::other(format!(
                "{} has {size} bytes, more than the {MAX_FILE} that are read: split it",
                path.display()
            )));
        }
        let bytes = fs::read(&path).map_err(|error| describe(&path, &error))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let place = error.utf8_error().valid_up_to();
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is not UTF-8 (byte {place}): save it as UTF-8", path.display()),
            )
        })?;
        files.push(SourceFile { name: path.display().to_string(), text });
    }
    Ok(files)
}

fn describe(path: &Path, error: &io::Error) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::NotFound => format!("{} does not exist: check the path", path.display()),
        io::ErrorKind::NotADirectory => {
            format!("{} is not a folder: name the folder of the YAML files", path.display())
        }
        io::ErrorKind::PermissionDenied => {
            format!("{} cannot be read: give this user the right to read it", path.display())
        }
        _ => format!("{} cannot be read: {error}", path.display()),
    };
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn names(dir: &Path) -> Vec<String> {
        let short =
            |file: SourceFile| Path::new(&file.name).file_name().unwrap().to_string_lossy().into_owned();
        read_folder(dir).unwrap().into_iter().map(short).collect()
    }

    #[test]
    fn only_yaml_files_of_the_folder_itself_are_read_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yml", "a.yaml", ".hidden.yaml", "notes.txt"] {
            fs::write(dir.path().join(name), "kind: X\n").unwrap();
        }
        fs::create_dir(dir.path().join("sub.yaml")).unwrap();
        assert_eq!(names(dir.path()), ["a.yaml", "b.yml"]);
    }

    #[test]
    fn a_missing_folder_a_file_and_wrong_bytes_are_said_with_their_path() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(read_folder(&missing).unwrap_err().to_string().contains("missing does not exist"));
        let file = dir.path().join("a.yaml");
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(read_folder(&file).unwrap_err().to_string().contains("is not a folder"));
        let reason = read_folder(dir.path()).unwrap_err().to_string();
        assert!(reason.contains("a.yaml is not UTF-8"), "{reason}");
    }

    #[tokio::test]
    async fn a_written_file_wakes_the_watcher_once_it_is_at_rest() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = watch(dir.path()).unwrap();
        fs::write(dir.path().join("a.yaml"), "one").unwrap();
        tokio::time::timeout(SOON, changes.changed()).await.expect("a new file is seen");
        fs::write(dir.path().join("a.yaml"), "second").unwrap();
        tokio::time::timeout(SOON, changes.changed()).await.expect("a changed file is seen");
        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        tokio::time::timeout(SOON, changes.changed()).await.expect("a removed file is seen");
    }

    #[tokio::test]
    async fn a_symlink_swap_as_of_a_config_map_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (generation, text) in [("..1", "old"), ("..2", "new")] {
            fs::create_dir(at(generation)).unwrap();
            fs::write(at(generation).join("a.yaml"), text).unwrap();
        }
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", at("a.yaml")).unwrap();
        let mut changes = watch(dir.path()).unwrap();
        assert_eq!(read_folder(dir.path()).unwrap()[0].text, "old");
        std::os::unix::fs::symlink("..2", at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
        tokio::time::timeout(SOON, changes.changed()).await.expect("the swap is seen");
        assert_eq!(read_folder(dir.path()).unwrap()[0].text, "new");
    }
}
