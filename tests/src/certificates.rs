//! Certificates as an attacker or a careless operator would make them, for real clients to show.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use time::{Duration, OffsetDateTime};

/// Signs what it is told to.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    /// What a leaf carries along, the certificate of this signer first; nothing when it is a root.
    chain: Vec<CertificateDer<'static>>,
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
        Self { issuer: Issuer::from_ca_cert_pem(&root, key).unwrap(), folder: folder.into(), chain: vec![] }
    }

    /// An authority that nobody trusts, for any trust domain.
    pub fn stranger(trust_domain: &str, folder: &Path) -> Self {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        root.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().unwrap())];
        Self { issuer: Issuer::new(root, KeyPair::generate().unwrap()), folder: folder.into(), chain: vec![] }
    }

    /// An intermediate below this signer, sound but for what `change` does to it.
    pub fn intermediate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::now_utc() - Duration::minutes(1);
        params.not_after = OffsetDateTime::now_utc() + Duration::minutes(10);
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let chain = std::iter::once(der).chain(self.chain.clone()).collect();
        Self { issuer: Issuer::new(params, key), folder: self.folder.clone(), chain }
    }

    /// Signs a leaf with a new key, good but for what `change` does to it; for a TLS stack in this process. Nothing is
    /// checked.
    pub fn issue(&self, leaf: &Leaf, change: impl FnOnce(&mut CertificateParams)) -> Arc<CertifiedKey> {
        let (mut params, key) = (params(leaf), KeyPair::generate().unwrap());
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        certified(std::iter::once(der).chain(self.chain.clone()).collect(), &key)
    }

    /// The certificate of an intermediate, shown as if it were a leaf.
    pub fn itself(&self) -> Arc<CertifiedKey> {
        certified(self.chain.clone(), self.issuer.key())
    }

    /// Signs a leaf with a new key.
    pub fn sign(&self, name: &str, leaf: &Leaf) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params(leaf).signed_by(&key, &self.issuer).unwrap();
        write(&self.folder, name, &certificate.pem(), &key.serialize_pem())
    }
}

/// A leaf that signed itself, for a TLS stack in this process.
pub fn self_issued(leaf: &Leaf) -> Arc<CertifiedKey> {
    let key = KeyPair::generate().unwrap();
    certified(vec![params(leaf).self_signed(&key).unwrap().der().clone()], &key)
}

/// Names exactly as given, NUL and all: `(context tag, bytes)`, in a critical extension.
pub fn raw_names(params: &mut CertificateParams, names: &[(u8, &[u8])]) {
    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).expect("short names");
        let head = if length < 128 { vec![tag, length] } else { vec![tag, 0x81, length] };
        [head.as_slice(), content].concat()
    }
    let names: Vec<u8> = names.iter().flat_map(|(tag, bytes)| element(0x80 | tag, bytes)).collect();
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], element(0x30, &names));
    extension.set_criticality(true);
    params.subject_alt_names.clear();
    params.custom_extensions.push(extension);
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = postern_identity::tls::provider().key_provider.load_private_key(key).unwrap();
    Arc::new(CertifiedKey::new(chain, key))
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
