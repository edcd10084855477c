//! Fetched bundles in the state folder, one file for each trust domain, so that a restart while the other side is away, or
//! after the authorities of `trustDomainBundle` have gone, goes on with the last good one.

use postern_identity::{Bundle, TrustDomain};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// No file of ours is larger, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Longer trust domains than this are named by their hash: names of files end at 255 bytes.
const MAX_NAME: usize = 200;

/// The folder `federation` of the state folder.
pub(super) struct Store {
    folder: PathBuf,
}

/// What is kept of one fetched bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// How the endpoint was recognised when it was fetched.
    pub(super) basis: String,
    pub(super) fetched_at: SystemTime,
    pub(super) bundle: Bundle,
}

/// The file. The sequence and the refresh hint are in the document.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    trust_domain: String,
    basis: String,
    fetched_at_unix_seconds: u64,
    document: String,
}

impl Store {
    pub(super) fn new(state: &Path) -> Self {
        Self { folder: state.join("federation") }
    }

    /// What was fetched on the same basis.
    ///
    /// # Errors
    /// The file is there and cannot be used.
    pub(super) fn load(&self, trust_domain: &TrustDomain, basis: &str) -> Result<Option<Record>, String> {
        let path = self.path(trust_domain);
        let unusable = |cause: String| format!("{} cannot be used: {cause}", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(unusable(cause.to_string())),
        };
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text).map_err(|cause| unusable(cause.to_string()))?;
        let written: Written = serde_json::from_slice(&text).map_err(|cause| unusable(cause.to_string()))?;
        if written.trust_domain != trust_domain.as_str() {
            return Err(unusable(format!("it is of trust domain `{}`", written.trust_domain)));
        }
        if written.basis != basis {
            return Ok(None);
        }
        let bundle =
            Bundle::from_document(trust_domain.clone(), written.document.as_bytes()).map_err(unusable)?;
        let fetched_at = UNIX_EPOCH.checked_add(Duration::from_secs(written.fetched_at_unix_seconds));
        let fetched_at = fetched_at.ok_or_else(|| unusable("its time is out of range".into()))?;
        Ok(Some(Record { basis: written.basis, fetched_at, bundle }))
    }

    /// Replaces the file whole; a crash at any instant leaves the old one or the new one.
    ///
    /// # Errors
    /// It cannot be written; what was there stays.
    pub(super) fn save(&self, record: &Record) -> Result<(), String> {
        let path = self.path(&record.bundle.trust_domain);
        let written = Written {
            trust_domain: record.bundle.trust_domain.as_str().to_owned(),
            basis: record.basis.clone(),
            fetched_at_unix_seconds: record
                .fetched_at
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            document: record.bundle.to_document(),
        };
        serde_json::to_vec(&written)
            .map_err(std::io::Error::from)
            .and_then(|text| self.replace(&path, &text))
            .map_err(|cause| format!("{} cannot be written: {cause}", path.display()))
    }

    fn replace(&self, path: &Path, text: &[u8]) -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let draft = self.folder.join(format!(".draft.{:016x}", rand::random::<u64>()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| file.write_all(text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&draft, path));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written?;
        File::open(&self.folder)?.sync_all()
    }

    /// A trust domain has no slash; `.` and `..` are legal ones and no folders with the ending behind them.
    fn path(&self, trust_domain: &TrustDomain) -> PathBuf {
        let name = trust_domain.as_str();
        if name.len() <= MAX_NAME {
            return self.folder.join(format!("{name}.json"));
        }
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
        let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("sha256-{hash}.json"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn record(trust_domain: &str) -> Record {
        let document = br#"{"keys":[],"spiffe_sequence":7,"spiffe_refresh_hint":60}"#;
        Record {
            basis: "a".into(),
            fetched_at: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            bundle: Bundle::from_document(trust_domain.parse().unwrap(), document).unwrap(),
        }
    }

    #[test]
    fn what_was_saved_is_loaded_for_every_legal_name_and_only_on_the_same_basis() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        for name in ["other.example", ".", "..", "-", &"a".repeat(255)] {
            let record = record(name);
            let trust_domain = &record.bundle.trust_domain;
            assert_eq!(store.load(trust_domain, "a"), Ok(None), "{name}");
            store.save(&record).unwrap();
            assert_eq!(store.load(trust_domain, "a"), Ok(Some(record.clone())), "{name}");
            assert_eq!(store.load(trust_domain, "b"), Ok(None), "{name}");
        }
        let files = fs::read_dir(folder.path().join("federation")).unwrap().count();
        assert_eq!(files, 5, "no draft is left, and nothing lies elsewhere");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_ignored_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let record = record("other.example");
        store.save(&record).unwrap();
        let path = folder.path().join("federation/other.example.json");
        let good = fs::read_to_string(&path).unwrap();
        for (damaged, part) in [
            ("", "EOF"),
            (&good[..good.len() / 2], "EOF"),
            (&good.replace("other.example", "evil.example"), "evil.example"),
            (&good.replace("basis", "base"), "unknown field"),
            (&good.replace("1800000000", "18446744073709551615"), "out of range"),
            (&good.replace("keys", "kezs"), "no `keys` array"),
        ] {
            fs::write(&path, damaged).unwrap();
            let reason = store.load(&record.bundle.trust_domain, "a").unwrap_err();
            assert!(reason.contains(part) && reason.contains("other.example.json"), "{reason}");
        }
        fs::write(&path, good).unwrap();
        assert_eq!(store.load(&record.bundle.trust_domain, "a"), Ok(Some(record)));
    }
}
