//! An authority as Istio keeps it, in four files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_identity::KeyId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};
use time::{Duration, OffsetDateTime};

const ROOTS: &str = "root-cert.pem";
/// Names differ, by which path building finds the one above.
static NAMES: AtomicU32 = AtomicU32::new(0);

/// A root and, below it, what signs leaves and nothing else, as Istio's Makefile makes them.
pub struct Cacerts {
    pub root: Vec<u8>,
    pub signs: Vec<u8>,
    /// When what signs ends.
    pub ends: OffsetDateTime,
    files: [(&'static str, String); 4],
}

impl Cacerts {
    /// The root lives ten years; what is below it ends after `lifetime`.
    pub fn new(lifetime: Duration) -> Self {
        let (root_key, key) = (pair(), pair());
        let params = params("root", BasicConstraints::Unconstrained, Duration::days(3650));
        let root = params.self_signed(&root_key).unwrap();
        let above = Issuer::new(params, root_key);
        let params = self::params("istio ca", BasicConstraints::Constrained(0), lifetime);
        let (ends, ca) = (params.not_after, params.signed_by(&key, &above).unwrap());
        let files = [
            (ROOTS, root.pem()),
            ("ca-cert.pem", ca.pem()),
            ("cert-chain.pem", ca.pem() + &root.pem()),
            ("ca-key.pem", key.serialize_pem()),
        ];
        Self { root: root.der().to_vec(), signs: ca.der().to_vec(), ends, files }
    }

    /// Writes all four files, each whole.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in &self.files {
            replace(&folder.join(name), text);
        }
    }

    /// Names one more root in `root-cert.pem`, behind those that are there.
    pub fn add_root(&self, folder: &Path) {
        let file = folder.join(ROOTS);
        let roots = fs::read_to_string(&file).unwrap() + &self.files[0].1;
        replace(&file, &roots);
    }

    /// The key id of the root.
    pub fn root_id(&self) -> KeyId {
        KeyId::of_certificate(&self.root).unwrap()
    }
}

fn replace(file: &Path, text: &str) {
    let draft = file.with_extension("draft");
    fs::write(&draft, text).unwrap();
    fs::rename(draft, file).unwrap();
}

fn pair() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

fn params(name: &str, path_length: BasicConstraints, lifetime: Duration) -> CertificateParams {
    let now = OffsetDateTime::from(SystemTime::now());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{name} {}", NAMES.fetch_add(1, Ordering::Relaxed)));
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (now - Duration::minutes(5), now + lifetime);
    params
}
