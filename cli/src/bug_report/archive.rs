//! A `.tar.gz` of a few small files: POSIX ustar, written here, since that is one header of 512 bytes a file.

use flate2::{Compression, write::GzEncoder};
use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

const BLOCK: usize = 512;
/// Longest name in a header, in bytes.
const NAME: usize = 100;

/// Writes a new file that only its owner can read; one that is there already stays as it is.
///
/// # Errors
/// The file exists, or cannot be written; or a name is too long for a header.
pub fn write(path: &Path, files: &[(String, Vec<u8>)], seconds: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut out = GzEncoder::new(file, Compression::default());
    for (name, content) in files {
        out.write_all(&header(name, content.len(), seconds)?)?;
        out.write_all(content)?;
        out.write_all(&vec![0; content.len().next_multiple_of(BLOCK) - content.len()])?;
    }
    // Two empty blocks are the end.
    out.write_all(&[0; 2 * BLOCK])?;
    out.finish()?.sync_all()
}

/// POSIX.1-1988 ustar: octal numbers, and the sum of all bytes with the sum itself as spaces.
fn header(name: &str, size: usize, seconds: u64) -> io::Result<Vec<u8>> {
    if name.len() > NAME {
        return Err(io::Error::other(format!("the name {name} is too long for the archive")));
    }
    let mut block = Vec::with_capacity(BLOCK);
    let mut field = |text: &str, width: usize| {
        block.extend_from_slice(text.as_bytes());
        block.extend(std::iter::repeat_n(0, width.saturating_sub(text.len())));
    };
    field(name, NAME);
    field("0000600", 8);
    field("0000000", 8);
    field("0000000", 8);
    field(&format!("{size:011o}"), 12);
    field(&format!("{seconds:011o}"), 12);
    field("        ", 8);
    field("0", 1);
    field("", 100);
    field("ustar", 6);
    field("00", 2);
    field("", BLOCK - 265);
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block.splice(148..156, format!("{sum:06o}\0 ").bytes());
    Ok(block)
}
