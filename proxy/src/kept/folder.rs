//! A folder in memory that survives a restart of the sidecar: each file whole, readable by us alone.
//!
//! Who reads from it trusts nothing for where it lay: a certificate is verified again, a policy compiled again. Files that
//! others could have read or written are ignored, with the reason in the log.

use crate::bootstrap::Failure;
use nix::{
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::geteuid,
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// The policy of a large mesh is large.
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// A folder that only we may read.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Uses `folder`, which is made when it is not there (mode 0700).
    ///
    /// # Errors
    /// It cannot be made or is not ours alone; or it lies on a disk and `on_disk` is not set, since a key on a disk
    /// outlives everything that was promised of it.
    pub fn open(folder: &Path, on_disk: bool) -> anyhow::Result<Self> {
        let unusable = |cause: String, remedy: &str| {
            Failure::error(format!("the state folder {} {cause}.", folder.display()), remedy)
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.and_then(|()| fs::metadata(folder))
            .map_err(|cause| format!("cannot be used: {cause}"))
            .and_then(|metadata| {
                if metadata.uid() != geteuid().as_raw() {
                    return Err(format!("belongs to uid {}", metadata.uid()));
                }
                // Made by somebody else's mkdir, perhaps; ours to close.
                fs::set_permissions(folder, Permissions::from_mode(0o700))
                    .map_err(|cause| format!("cannot be closed to others: {cause}"))
            })
            .map_err(|cause| unusable(cause, "Give `--state` a folder of the sidecar's own user."))?;
        let kind = statfs(folder).map(|system| system.filesystem_type());
        if !on_disk && !matches!(kind, Ok(TMPFS_MAGIC)) {
            return Err(unusable(
                "lies on a disk, where a key would outlive its certificate and be part of backups".into(),
                "Give `--state` a folder in memory (tmpfs; in Kubernetes an emptyDir with medium Memory), or accept the disk with `--state-on-disk`.",
            ));
        }
        Ok(Self { path: folder.to_owned() })
    }

    /// Writes a file whole; a failure is told and changes nothing.
    pub fn keep(&self, name: &str, text: &[u8]) {
        let draft = self.path.join(format!(".{name}"));
        let written = || -> std::io::Result<()> {
            match fs::remove_file(&draft) {
                Err(cause) if cause.kind() != ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(text)?;
            fs::rename(&draft, self.path.join(name))
        };
        if let Err(error) = written() {
            tracing::warn!(%error, file = %self.path.join(name).display(), "what a restart would need cannot be written down");
        }
    }

    /// Removes a file.
    pub fn forget(&self, name: &str) {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(%error, file = %self.path.join(name).display(), "what must not be used again cannot be removed");
            }
            _ => {}
        }
    }

    /// The file, if it is there and ours alone.
    pub fn read(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        let path = self.path.join(name);
        let read = || -> Result<Option<Zeroizing<Vec<u8>>>, String> {
            let file = match File::open(&path) {
                Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
                file => file.map_err(|cause| cause.to_string())?,
            };
            let metadata = file.metadata().map_err(|cause| cause.to_string())?;
            if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
                return Err(format!(
                    "it has owner {} and mode {:04o}, so others may have read or written it",
                    metadata.uid(),
                    metadata.mode() & 0o7777
                ));
            }
            let mut text = Zeroizing::new(Vec::new());
            file.take(MOST_BYTES).read_to_end(&mut text).map_err(|cause| cause.to_string())?;
            Ok(Some(text))
        };
        read().unwrap_or_else(|reason| {
            self.ignored(name, &reason);
            None
        })
    }

    /// Tells why what was kept is not used.
    pub fn ignored(&self, name: &str, reason: &str) {
        tracing::warn!(file = %self.path.join(name).display(), reason, "what was kept of before the restart is not used");
    }
}
