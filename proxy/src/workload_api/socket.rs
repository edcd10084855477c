//! The socket file: made whole or not at all, replaced when its owner is dead, removed at the end.

use crate::bootstrap::Failure;
use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;

/// Everybody who reaches the file is in the pod, and the pod is the workload: no mode could tell its processes apart.
const MODE: u32 = 0o666;
const SUFFIX: &str = "~";

/// A bound socket. Dropping it removes the file, if the file is still this one.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Socket {
    /// The longest path in bytes: `sun_path` without its closing NUL (unix(7)), less what the temporary name adds.
    pub const LONGEST_PATH: usize = 107 - SUFFIX.len();

    /// Binds `path`. The file appears with its mode, listening, in one step; a dead one is replaced in that step.
    ///
    /// # Errors
    /// A [`Failure`] when somebody listens there already, when something else than a socket is there, when the path is longer
    /// than a socket's may be, or when the folder does not let us.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        if !path.is_absolute() || path.as_os_str().len() > Self::LONGEST_PATH {
            return Err(Failure::error(
                format!("`{shown}` cannot be the path of the Workload API socket."),
                format!(
                    "Give an absolute path of at most {} bytes, e.g. `unix:///run/postern/workload.sock`.",
                    Self::LONGEST_PATH
                ),
            ));
        }
        check_free(path)?;
        let cannot = |cause: io::Error| {
            Failure::error(
                format!("the Workload API socket `{shown}` cannot be made: {cause}."),
                "Choose a path in a folder that exists and that the sidecar may write to.",
            )
        };
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(SUFFIX);
        let temporary = PathBuf::from(temporary);
        let _ = fs::remove_file(&temporary);
        let listener = StdListener::bind(&temporary).map_err(cannot)?;
        let made = || {
            fs::set_permissions(&temporary, fs::Permissions::from_mode(MODE))?;
            listener.set_nonblocking(true)?;
            let metadata = fs::symlink_metadata(&temporary)?;
            fs::rename(&temporary, path)?;
            Ok((metadata.dev(), metadata.ino()))
        };
        let file = made().inspect_err(|_| drop(fs::remove_file(&temporary))).map_err(cannot)?;
        let listener = UnixListener::from_std(listener).map_err(cannot)?;
        Ok(Self { listener, path: path.to_owned(), file })
    }

    /// The listener.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A sidecar that replaced us has put its own file there.
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Nothing is there, or a socket whose owner is dead.
fn check_free(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(Failure::error(
            format!("`{shown}` exists and is no socket; it stays as it is."),
            "Choose another path for the Workload API, or remove the file.",
        ));
    }
    match StdStream::connect(path) {
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(Failure::error(
            format!("another process serves `{shown}`."),
            "Stop it, perhaps another sidecar, or choose another path.",
        )),
        Err(cause) => Err(Failure::error(
            format!("it cannot be told whether somebody serves `{shown}`: {cause}."),
            "Remove the file when nobody does, or choose another path.",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn cause(bound: anyhow::Result<Socket>) -> String {
        bound.err().unwrap().downcast::<Failure>().unwrap().cause
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_or_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("workload.sock");
        drop(StdListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert!(cause(Socket::bind(&path)).contains("another process serves"));
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "mine").unwrap();
        assert!(cause(Socket::bind(&path)).contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn the_end_of_one_that_was_replaced_leaves_the_new_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("workload.sock");
        let old = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let new = Socket::bind(&path).unwrap();
        drop(old);
        assert!(StdStream::connect(&path).is_ok());
        drop(new);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_refused_with_the_reason() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        for (path, part) in [
            (long, "cannot be the path"),
            ("relative.sock".into(), "cannot be the path"),
            ("/no/such/folder/s".into(), "cannot be made"),
        ] {
            assert!(cause(Socket::bind(&path)).contains(part));
        }
    }
}
