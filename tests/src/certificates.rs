//! Certificates as an attacker or a careless operator would make them, for real clients to show.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// Signs what it is told to.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

/// A certificate and its key as files, for command lines.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What a leaf says.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub uris: Vec<String>,
    /// Begin and end of validity, from now.
    pub validity: (Duration, Duration),
    pub is_ca: bool,
}

impl Leaf {
    /// What the mesh's own authority would issue for this identity.
    pub fn good(uri: &str) -> Self {
        Self {
            uris: vec![uri.into()],
            validity: (-Duration::minutes(1), Duration::minutes(10)),
            is_ca: false,
        }
    }
    /// Ended a minute ago.
    pub fn expired(mut self) -> Self {
        self.validity = (-Duration::minutes(20), -Duration::minutes(1));
        self
    }
    /// Begins in ten minutes.
    pub fn not_yet_valid(mut self) -> Self {
        self.validity = (Duration::minutes(10), Duration::minutes(20));
        self
    }
}

impl Signer {
    /// The mesh's own authority, from its state folder.
    pub fn of_mesh(state: &Path, folder: &Path) -> Self {
        let key = KeyPair::from_pem(&std::fs::read_to_string(state.join("root-key.pem")).unwrap()).unwrap();
        let root = std::fs::read_to_string(state.join("root.pem")).unwrap();
        Self { issuer: Issuer::from_ca_cert_pem(&root, key).unwrap(), folder: folder.into() }
    }

    /// An authority that nobody trusts, for any trust domain.
    pub fn stranger(trust_domain: &str, folder: &Path) -> Self {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        root.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().unwrap())];
        Self { issuer: Issuer::new(root, KeyPair::generate().unwrap()), folder: folder.into() }
    }

    /// Signs a leaf with a new key.
    pub fn sign(&self, name: &str, leaf: &Leaf) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params(leaf).signed_by(&key, &self.issuer).unwrap();
        write(&self.folder, name, &certificate.pem(), &key.serialize_pem())
    }
}

/// A leaf that signed itself.
pub fn self_signed(folder: &Path, name: &str, leaf: &Leaf) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = params(leaf).self_signed(&key).unwrap();
    write(folder, name, &certificate.pem(), &key.serialize_pem())
}

fn params(leaf: &Leaf) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names =
        leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.is_ca = if leaf.is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    params.not_before = OffsetDateTime::now_utc() + leaf.validity.0;
    params.not_after = OffsetDateTime::now_utc() + leaf.validity.1;
    params.use_authority_key_identifier_extension = true;
    params
}

fn write(folder: &Path, name: &str, certificate: &str, key: &str) -> Pair {
    let pair =
        Pair { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}-key.pem")) };
    std::fs::write(&pair.certificate, certificate).unwrap();
    std::fs::write(&pair.key, key).unwrap();
    pair
}
