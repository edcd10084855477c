//! The root in two files. Written once, whole, and never over an existing file.
//!
//! The key is written before the certificate: a start that was cut off between the two leaves a key that has signed
//! nothing, and the next start makes the certificate for it.

use super::{AuthorityError, Signer, check_anchor, root};
use postern_identity::{Bundle, TrustDomain, bundle::pem_block};
use rcgen::KeyPair;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};
use zeroize::Zeroizing;

const CERTIFICATE: &str = "root.pem";
const KEY: &str = "root-key.pem";
/// No root file is larger; a wrong path is not read to its end.
const MAX_BYTES: u64 = 1024 * 1024;

/// Reads the root in `folder`, after making what is not there yet.
pub(super) fn open(
    folder: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(Bundle, Signer), AuthorityError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io("creating", folder))?;
    let (certificate_path, key_path) = (folder.join(CERTIFICATE), folder.join(KEY));
    if !exists(&key_path)? {
        if exists(&certificate_path)? {
            return Err(AuthorityError::KeyMissing { certificate: certificate_path, key: key_path });
        }
        let pem = Zeroizing::new(root::make_key()?.serialize_pem());
        write_new(&key_path, pem.as_bytes(), 0o600)?;
    }
    let key = read_key(&key_path)?;
    if !exists(&certificate_path)? {
        let certificate = root::make_certificate(trust_domain, &key, now)?;
        write_new(&certificate_path, pem_block("CERTIFICATE", &certificate).as_bytes(), 0o644)?;
    }
    // What is used is always what lies in the files, also when another process was faster in making them.
    let unusable = |cause| AuthorityError::Root {
        path: certificate_path.clone(),
        trust_domain: trust_domain.clone(),
        cause,
    };
    let bundle = Bundle::from_pem(trust_domain.clone(), &read(&certificate_path)?).map_err(unusable)?;
    let Some(certificate) = bundle.anchors.iter().find(|certificate| root::fits(certificate, &key)) else {
        return Err(AuthorityError::KeyMismatch { certificate: certificate_path, key: key_path });
    };
    check_anchor(certificate, trust_domain, now).map_err(unusable)?;
    let signer = root::signer(certificate, key).map_err(unusable)?;
    Ok((bundle, signer))
}

fn read_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    let mode = fs::metadata(path).map_err(io("reading", path))?.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(AuthorityError::KeyExposed { path: path.to_owned(), mode });
    }
    let unusable = |cause: String| AuthorityError::Key { path: path.to_owned(), cause };
    let pem = Zeroizing::new(read(path)?);
    let text = std::str::from_utf8(&pem).map_err(|_| unusable("it is not text".into()))?;
    KeyPair::from_pem(text).map_err(|cause| unusable(cause.to_string()))
}

fn read(path: &Path) -> Result<Vec<u8>, AuthorityError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io("reading", path))?;
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(io("reading", path))?;
    Ok(bytes)
}

/// Puts `content` at `path` as a whole or not at all. When the file is there already (another process made it at the
/// same moment), it stays as it is.
fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let unfinished = unfinished_path(path);
    let written = write_unfinished(&unfinished, content, mode);
    // A link, unlike a rename, never replaces a file.
    let linked = written.and_then(|()| match fs::hard_link(&unfinished, path) {
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result.map_err(io("creating", path)),
    });
    let removed = fs::remove_file(&unfinished);
    linked?;
    removed.map_err(io("removing", &unfinished))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("writing", folder))
}

fn write_unfinished(path: &Path, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(io("creating", path))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io("writing", path))
}

fn unfinished_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{:016x}", rand::random::<u64>()))
}

fn exists(path: &Path) -> Result<bool, AuthorityError> {
    path.try_exists().map_err(io("reading", path))
}

fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |cause| AuthorityError::Io { action, path: path.clone(), cause }
}
