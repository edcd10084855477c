//! Where lines go: a file that may be renamed away, a pipe, standard output.

use crate::bootstrap::Failure;
use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// A file or what stands in for one. Its calls block.
#[derive(Debug)]
pub struct Sink {
    /// Where to find it again; `None` for standard output.
    path: Option<PathBuf>,
    /// `None` while it cannot be opened.
    file: Option<File>,
    /// So much of the next line is in it already: there was no room for the rest.
    begun: usize,
}

impl Sink {
    /// Opens a file for appending, and makes it where there is none.
    ///
    /// # Errors
    /// A [`Failure`] when it cannot be opened.
    pub fn file(path: PathBuf) -> anyhow::Result<Self> {
        let file = open(&path).map_err(|cause| {
            Failure::error(
                format!("the access log {} cannot be opened for appending: {cause}.", path.display()),
                "Make its folder writable or choose `--access-log stdout`.",
            )
        })?;
        Ok(Self { path: Some(path), file: Some(file), begun: 0 })
    }

    /// Standard output.
    ///
    /// # Errors
    /// When it is closed.
    pub fn stdout() -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self { path: None, file: Some(file), begun: 0 })
    }

    /// Appends lines, each with its newline, and takes out of `lines` those that are written whole. A line that was begun is gone on with
    /// at the next call, or, where the file has changed since, written anew.
    ///
    /// # Errors
    /// What is left in `lines` could not be written.
    pub fn append(&mut self, lines: &mut Vec<u8>) -> io::Result<()> {
        self.follow_path()?;
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let mut at = self.begun;
        let written = loop {
            let Some(rest) = lines.get(at..).filter(|rest| !rest.is_empty()) else { break Ok(()) };
            match file.write(rest) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let at = at.min(lines.len());
        let whole =
            lines.get(..at).and_then(|written| memchr::memrchr(b'\n', written)).map_or(0, |end| end + 1);
        self.begun = at - whole;
        lines.drain(..whole);
        written
    }

    /// Keeps of `lines` only the one that is begun, for the next call.
    ///
    /// Returns how many were dropped.
    pub fn drop_lines(&self, lines: &mut Vec<u8>) -> u64 {
        let kept = match self.begun {
            0 => 0,
            _ => memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1),
        };
        let dropped = memchr::memchr_iter(b'\n', lines.get(kept..).unwrap_or_default()).count();
        lines.truncate(kept);
        dropped as u64
    }

    /// Opens the file again when its path leads elsewhere by now: logrotate has renamed it, somebody has removed it.
    fn follow_path(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if let (Some(file), Ok(there)) = (&self.file, std::fs::metadata(path))
            && is_same(&file.metadata()?, &there)
        {
            return Ok(());
        }
        // An unlinked file is let go of also when there is no new one, so that its room on the disk is free.
        (self.file, self.begun) = (None, 0);
        self.file = Some(open(path)?);
        Ok(())
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
