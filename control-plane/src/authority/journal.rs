//! The state folder: a journal, the private keys it names, and the active root once more in the form that others read.
//!
//! | file | what it is |
//! |---|---|
//! | `journal.json` | the [`State`] and its SHA-256: the only truth |
//! | `key-ID.pem` | a private key of the journal, mode 0600 |
//! | `root.pem` | the published anchors, the active one first: for the bootstrap of sidecars. Written by us, never read after the journal exists |
//! | `root-key.pem` | the active root's key, mode 0600: with `root.pem` enough to begin again when the journal is lost |
//! | `lock` | taken for each change, so that several processes may share the folder |
//!
//! Each file is replaced whole: draft, fsync, rename, fsync of the folder. Keys come before the journal that names them, and
//! everything else after it, so that a crash at any instant leaves the state before or after the step. What a crash leaves over
//! is removed at the next start.

use super::{
    AuthorityError, AuthorityKind, Slot,
    sign::Key,
    state::{Entry, State},
};
use aws_lc_rs::digest;
use postern_identity::{Bundle, KeyId, TrustDomain, bundle::pem_block};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

const JOURNAL: &str = "journal.json";
const CERTIFICATE: &str = "root.pem";
const KEY: &str = "root-key.pem";
const LOCK: &str = "lock";
const DRAFT: &str = ".draft";
/// No file of ours is larger; a wrong path is not read to its end.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// The private keys of a state, by their ids.
pub(super) type Keys = BTreeMap<KeyId, Key>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    format: u32,
    state: State,
    /// Of the state as we write it: damage is found whatever it hits.
    sha256: String,
}

/// What lies in the folder.
pub(super) enum Found {
    /// Nothing yet.
    Nothing,
    /// A root in two files, as it was kept before there was a journal, and as it is restored after one was lost.
    Root(Bundle, Key),
    /// A key whose certificate was lost, or not written any more.
    Key(Key),
    /// A journal with its keys.
    State(State, Keys),
}

/// The state folder of one authority.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    #[cfg(test)]
    pub fuse: tests::Fuse,
}

impl Store {
    /// The folder, made when it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, AuthorityError> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io("creating", folder))?;
        Ok(Self {
            folder: folder.to_owned(),
            #[cfg(test)]
            fuse: tests::Fuse::default(),
        })
    }

    /// Nobody else changes the folder until the file is dropped.
    pub(super) fn lock(&self) -> Result<File, AuthorityError> {
        let path = self.folder.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("creating", &path))?;
        file.lock().map_err(io("locking", &path))?;
        Ok(file)
    }

    /// What is there. Writes nothing.
    pub(super) fn find(&self, trust_domain: &TrustDomain) -> Result<Found, AuthorityError> {
        let (certificate, key) = (self.folder.join(CERTIFICATE), self.folder.join(KEY));
        if let Some(state) = self.read(trust_domain)? {
            let keys = self.keys(&state, &Keys::new())?;
            if exists(&key)? {
                let found = read_key(&key)?;
                // A root that was just revoked may still be there: the crash came between the journal and this file.
                let known = KeyId::of_spki(&rcgen::PublicKeyData::subject_public_key_info(&found));
                if !keys.contains_key(&known) && !state.is_revoked(known) {
                    return Err(AuthorityError::KeyUnknown { key });
                }
            }
            return Ok(Found::State(state, keys));
        }
        match (exists(&certificate)?, exists(&key)?) {
            (false, false) => Ok(Found::Nothing),
            (true, false) => Err(AuthorityError::KeyMissing { certificate, key }),
            (false, true) => read_key(&key).map(Found::Key),
            (true, true) => {
                let held = read_key(&key)?;
                let bundle =
                    Bundle::from_pem(trust_domain.clone(), &read(&certificate)?).map_err(|cause| {
                        AuthorityError::Root { path: certificate, trust_domain: trust_domain.clone(), cause }
                    })?;
                Ok(Found::Root(bundle, held))
            }
        }
    }

    /// Where the root lies, for errors about it: certificate and key.
    pub(super) fn root_paths(&self) -> (PathBuf, PathBuf) {
        (self.folder.join(CERTIFICATE), self.folder.join(KEY))
    }

    /// The journal; `None` when there is none.
    pub(super) fn read(&self, trust_domain: &TrustDomain) -> Result<Option<State>, AuthorityError> {
        let path = self.folder.join(JOURNAL);
        if !exists(&path)? {
            return Ok(None);
        }
        let damaged = |cause: String| AuthorityError::Journal { path: path.clone(), cause };
        let journal: Journal =
            serde_json::from_slice(&read(&path)?).map_err(|cause| damaged(cause.to_string()))?;
        if journal.format != 1 {
            return Err(damaged(format!("it has format {}, of another release", journal.format)));
        }
        if checksum(&journal.state).map_err(|cause| damaged(cause.to_string()))? != journal.sha256 {
            return Err(damaged("its checksum does not fit: it was damaged, or changed by hand".into()));
        }
        journal.state.check(trust_domain.as_str()).map_err(damaged)?;
        Ok(Some(journal.state))
    }

    /// The keys that `state` names: from `known`, or from their files.
    pub(super) fn keys(&self, state: &State, known: &Keys) -> Result<Keys, AuthorityError> {
        let mut keys = Keys::new();
        for entry in entries(state).filter(|entry| entry.key) {
            let key = match known.get(&entry.id) {
                Some(key) => key.clone(),
                None => self.read_entry_key(entry)?,
            };
            keys.insert(entry.id, key);
        }
        Ok(keys)
    }

    fn read_entry_key(&self, entry: &Entry) -> Result<Key, AuthorityError> {
        let path = self.folder.join(key_file(entry.id));
        if !exists(&path)? {
            return Err(AuthorityError::KeyMissing { certificate: self.folder.join(JOURNAL), key: path });
        }
        let key = read_key(&path)?;
        if KeyId::of_spki(&rcgen::PublicKeyData::subject_public_key_info(&key)) != entry.id {
            return Err(AuthorityError::KeyMismatch { certificate: self.folder.join(JOURNAL), key: path });
        }
        Ok(key)
    }

    /// Makes `state` the one that is found from now on, with the keys that it names. The caller holds the lock.
    pub(super) fn write(&self, state: &State, keys: &Keys) -> Result<(), AuthorityError> {
        for entry in entries(state).filter(|entry| entry.key) {
            let name = key_file(entry.id);
            if !exists(&self.folder.join(&name))?
                && let Some(key) = keys.get(&entry.id)
            {
                self.replace(&name, pem(key).as_bytes(), 0o600)?;
            }
        }
        let failed = |cause: serde_json::Error| AuthorityError::Make(format!("writing the journal: {cause}"));
        let sha256 = checksum(state).map_err(failed)?;
        let journal = Journal { format: 1, state: state.clone(), sha256 };
        let text = serde_json::to_vec_pretty(&journal).map_err(failed)?;
        self.replace(JOURNAL, &text, 0o600)?;
        self.derive(state, keys)
    }

    /// Brings everything but the journal in line with it, and removes what a crash left over.
    pub(super) fn derive(&self, state: &State, keys: &Keys) -> Result<(), AuthorityError> {
        let active = state.slot(AuthorityKind::Root, Slot::Active);
        let others = state.roots.iter().filter(|root| root.slot != Slot::Active);
        let anchors: String =
            active.into_iter().chain(others).map(|root| pem_block("CERTIFICATE", &root.public)).collect();
        self.replace_when_other(CERTIFICATE, anchors.as_bytes(), 0o644)?;
        match active.and_then(|root| keys.get(&root.id)) {
            Some(key) => self.replace_when_other(KEY, pem(key).as_bytes(), 0o600)?,
            None => self.remove(KEY)?,
        }
        let kept: Vec<String> =
            entries(state).filter(|entry| entry.key).map(|entry| key_file(entry.id)).collect();
        for entry in fs::read_dir(&self.folder).map_err(io("reading", &self.folder))? {
            let name = entry.map_err(io("reading", &self.folder))?.file_name();
            let Some(name) = name.to_str() else { continue };
            let draft = name.starts_with('.') && name.ends_with(DRAFT);
            // Drafts as they were named before there was a journal.
            let draft = draft || name.starts_with(".root.pem.") || name.starts_with(".root-key.pem.");
            let key = name.starts_with("key-") && name.ends_with(".pem");
            if draft || key && !kept.iter().any(|kept| kept == name) {
                self.remove(name)?;
            }
        }
        Ok(())
    }

    fn replace_when_other(&self, name: &str, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
        let path = self.folder.join(name);
        if exists(&path)? && Zeroizing::new(read(&path)?).as_slice() == content {
            return Ok(());
        }
        self.replace(name, content, mode)
    }

    /// Puts `content` at `name` as a whole or not at all.
    fn replace(&self, name: &str, content: &[u8], mode: u32) -> Result<(), AuthorityError> {
        let (path, draft) = (self.folder.join(name), self.folder.join(format!(".{name}{DRAFT}")));
        self.remove(&format!(".{name}{DRAFT}"))?;
        self.step("creating", &draft)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&draft)
            .map_err(io("creating", &draft))?;
        // Two writes, so that the tests can end us between them.
        let (first, second) = content.split_at(content.len() / 2);
        for part in [first, second] {
            self.step("writing", &draft)?;
            file.write_all(part).map_err(io("writing", &draft))?;
        }
        self.step("writing", &draft)?;
        file.sync_all().map_err(io("writing", &draft))?;
        self.step("renaming", &draft)?;
        fs::rename(&draft, &path).map_err(io("renaming", &draft))?;
        self.sync()
    }

    fn remove(&self, name: &str) -> Result<(), AuthorityError> {
        let path = self.folder.join(name);
        self.step("removing", &path)?;
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => Err(io("removing", &path)(cause)),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), AuthorityError> {
        self.step("writing", &self.folder)?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(io("writing", &self.folder))
    }

    /// Called before each operation that changes the disk: where the tests cut.
    #[cfg_attr(not(test), allow(clippy::unused_self, clippy::unnecessary_wraps))]
    fn step(&self, action: &'static str, path: &Path) -> Result<(), AuthorityError> {
        #[cfg(test)]
        self.fuse.burn().map_err(io(action, path))?;
        let _ = (action, path);
        Ok(())
    }
}

fn entries(state: &State) -> impl Iterator<Item = &Entry> {
    state.roots.iter().chain(&state.jwt_keys)
}

fn key_file(id: KeyId) -> String {
    format!("key-{id}.pem")
}

fn pem(key: &Key) -> Zeroizing<String> {
    Zeroizing::new(key.pair().serialize_pem())
}

fn checksum(state: &State) -> Result<String, serde_json::Error> {
    let bytes = serde_json::to_vec(state)?;
    let sum = digest::digest(&digest::SHA256, &bytes);
    Ok(sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A private key that only we may read.
pub(super) fn read_key(path: &Path) -> Result<Key, AuthorityError> {
    let mode = fs::metadata(path).map_err(io("reading", path))?.permissions().mode() & 0o7777;
    if mode & 0o177 != 0 {
        return Err(AuthorityError::KeyExposed { path: path.to_owned(), mode });
    }
    parse_key(path)
}

/// A private key in PEM, whoever else may read it.
pub(super) fn parse_key(path: &Path) -> Result<Key, AuthorityError> {
    let unusable = |cause: String| AuthorityError::Key { path: path.to_owned(), cause };
    let pem = Zeroizing::new(read(path)?);
    let text = std::str::from_utf8(&pem).map_err(|_| unusable("it is not text".into()))?;
    KeyPair::from_pem(text).map(Key::new).map_err(|cause| unusable(cause.to_string()))
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, AuthorityError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io("reading", path))?;
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(io("reading", path))?;
    Ok(bytes)
}

pub(super) fn exists(path: &Path) -> Result<bool, AuthorityError> {
    path.try_exists().map_err(io("reading", path))
}

fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |cause| AuthorityError::Io { action, path: path.clone(), cause }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
