//! Trust bundles: the anchors of one trust domain, and the set of all we know, never merged.

use crate::{JwtKey, KeyId, TrustDomain, svid};
use rustls_pki_types::{
    CertificateDer, UnixTime,
    pem::{PemObject, SectionKind},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// The authorities of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Whose authorities.
    pub trust_domain: TrustDomain,
    /// DER certificates, without duplicates. None at all means that every certificate is revoked.
    pub anchors: Vec<CertificateDer<'static>>,
    /// Keys of JWT-SVIDs, each `kid` once.
    pub jwt_keys: Vec<JwtKey>,
    /// `spiffe_sequence`: grows with each change of content.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`: how soon to look again, in whole seconds.
    pub refresh_hint: Option<Duration>,
    /// Keys of signing certificates, anchors or intermediates, below which nothing is accepted any more. Known inside our own
    /// mesh only: SPIFFE's formats have no place for it, so others see a revoked root as one that is gone.
    pub revoked: BTreeSet<KeyId>,
}

impl Bundle {
    /// Authorities and nothing else.
    pub fn new(trust_domain: TrustDomain, anchors: Vec<CertificateDer<'static>>) -> Self {
        Self {
            trust_domain,
            anchors,
            jwt_keys: Vec::new(),
            sequence: None,
            refresh_hint: None,
            revoked: BTreeSet::new(),
        }
    }

    /// Reads one or more PEM certificates; the same certificate twice counts once.
    ///
    /// # Errors
    /// When there is none, when one cannot be read, or when a block is no certificate: a private key in a trust
    /// bundle is always a mistake, and it is better found here than on every machine of the mesh.
    pub fn from_pem(trust_domain: TrustDomain, pem: &[u8]) -> Result<Self, String> {
        let mut ders = Vec::new();
        for (position, block) in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem).enumerate() {
            let number = position + 1;
            match block {
                Ok((SectionKind::Certificate, der)) => ders.push(der),
                Ok((kind, _)) => {
                    return Err(format!(
                        "trust bundle of `{trust_domain}`: PEM block {number} is {}; a bundle holds certificates only",
                        described(kind)
                    ));
                }
                Err(cause) => {
                    return Err(format!(
                        "trust bundle of `{trust_domain}`: PEM block {number} is malformed: {cause}"
                    ));
                }
            }
        }
        Self::from_der(trust_domain, ders)
    }

    /// Takes DER certificates; the same certificate twice counts once.
    ///
    /// # Errors
    /// When there is none, or when one cannot be read.
    pub fn from_der(
        trust_domain: TrustDomain,
        anchors: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Self, String> {
        let anchors = Self::readable(&trust_domain, anchors)?;
        if anchors.is_empty() {
            return Err(format!(
                "trust bundle of `{trust_domain}` holds no certificate; expected at least one PEM block `BEGIN CERTIFICATE`"
            ));
        }
        Ok(Self::new(trust_domain, anchors))
    }

    /// Each certificate once, all of them readable.
    pub(crate) fn readable(
        trust_domain: &TrustDomain,
        anchors: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let mut all = Vec::new();
        for (position, der) in anchors.into_iter().enumerate() {
            svid::read(&der).map_err(|cause| {
                format!("trust bundle of `{trust_domain}`: certificate {}: {cause}", position + 1)
            })?;
            let anchor = CertificateDer::from(der);
            if !all.contains(&anchor) {
                all.push(anchor);
            }
        }
        Ok(all)
    }

    /// PEM form, one block per anchor.
    pub fn to_pem(&self) -> String {
        self.anchors.iter().map(|anchor| pem_block("CERTIFICATE", anchor)).collect()
    }

    /// What is wrong with each anchor that cannot be used at `now`; empty when all is well. For warnings when a
    /// bundle is loaded: the verifier skips such anchors.
    pub fn problems(&self, now: UnixTime) -> Vec<String> {
        self.anchors
            .iter()
            .enumerate()
            .filter_map(|(position, anchor)| {
                svid::check_anchor(anchor, self.trust_domain.as_str(), now).err().map(|refusal| {
                    format!("authority {} of `{}`: {refusal}", position + 1, self.trust_domain)
                })
            })
            .collect()
    }
}

/// Bundles by trust domain. A bundle vouches for its own trust domain only (SPIFFE Federation 4.2, 7.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundles(BTreeMap<TrustDomain, Bundle>);

impl TrustBundles {
    /// Collects bundles from a document, where two bundles of one trust domain are an error
    /// (SPIFFE Trust Domain and Bundle, section 4: duplicate keys must be rejected).
    ///
    /// # Errors
    /// When a trust domain occurs twice.
    pub fn distinct(bundles: impl IntoIterator<Item = Bundle>) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for bundle in bundles {
            let trust_domain = bundle.trust_domain.clone();
            if all.insert(trust_domain.clone(), bundle).is_some() {
                return Err(format!(
                    "two bundles for trust domain `{trust_domain}`; remove one, they are never merged"
                ));
            }
        }
        Ok(Self(all))
    }

    /// The bundle of one trust domain.
    pub fn get(&self, trust_domain: &str) -> Option<&Bundle> {
        self.0.get(trust_domain)
    }

    /// All bundles, ordered by trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &Bundle> {
        self.0.values()
    }

    /// True when nobody can be trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Later bundles replace earlier ones of the same trust domain whole; see [`TrustBundles::distinct`] for documents.
impl FromIterator<Bundle> for TrustBundles {
    fn from_iter<T: IntoIterator<Item = Bundle>>(iter: T) -> Self {
        Self(iter.into_iter().map(|bundle| (bundle.trust_domain.clone(), bundle)).collect())
    }
}

/// The trust domains, comma separated.
impl fmt::Display for TrustBundles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, trust_domain) in self.0.keys().enumerate() {
            if position > 0 {
                f.write_str(", ")?;
            }
            fmt::Display::fmt(trust_domain, f)?;
        }
        if self.0.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

fn described(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => "a private key",
        SectionKind::PublicKey => "a public key",
        SectionKind::Crl => "a revocation list",
        SectionKind::Csr => "a certificate request",
        _ => "something else",
    }
}

/// One PEM block (RFC 7468): base64 in lines of 64.
pub fn pem_block(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    // 48 bytes make one line of 64 characters.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits =
                group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for position in 0..4 {
                if position > group.len() {
                    text.push('=');
                } else {
                    let index = (bits >> (18 - 6 * position) & 63) as usize;
                    text.push(ALPHABET.get(index).map_or('=', |letter| char::from(*letter)));
                }
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn domain() -> TrustDomain {
        "cluster.local".parse().unwrap()
    }

    fn certificate() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap()
    }

    /// `Ok(anchors)` or a part of the error.
    fn check(pem: &str, expected: Result<usize, &str>) {
        match (Bundle::from_pem(domain(), pem.as_bytes()), expected) {
            (Ok(bundle), Ok(anchors)) => assert_eq!(bundle.anchors.len(), anchors, "{pem}"),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error} should contain {part}"),
            (result, expected) => panic!("{pem}: {result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn bundle_pem_accepts_certificates_and_refuses_everything_else() {
        let (a, b) = (certificate(), certificate());
        let key = a.signing_key.serialize_pem();
        check(&a.cert.pem(), Ok(1));
        check(&format!("{}{}", a.cert.pem(), b.cert.pem()), Ok(2));
        check(&format!("{0}{1}{0}", a.cert.pem(), b.cert.pem()), Ok(2));
        check("", Err("holds no certificate"));
        check("not PEM at all", Err("holds no certificate"));
        check(&format!("{}{key}", a.cert.pem()), Err("PEM block 2 is a private key"));
        check("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", Err("certificate 1"));
        check("-----BEGIN CERTIFICATE-----\nAAAA\n", Err("malformed"));
    }

    #[test]
    fn bundle_pem_survives_the_round_trip_byte_for_byte() {
        let pems: String = (0..3).map(|_| certificate().cert.pem()).collect();
        let bundle = Bundle::from_pem(domain(), pems.as_bytes()).unwrap();
        assert_eq!(Bundle::from_pem(domain(), bundle.to_pem().as_bytes()).unwrap(), bundle);
        assert_eq!(bundle.to_pem(), pems.replace('\r', ""));
    }

    #[test]
    fn pem_block_pads_every_remainder() {
        for (der, body) in [(&b""[..], ""), (b"f", "Zg==\n"), (b"fo", "Zm8=\n"), (b"foo", "Zm9v\n")] {
            assert_eq!(pem_block("X", der), format!("-----BEGIN X-----\n{body}-----END X-----\n"));
        }
    }

    #[test]
    fn bundles_of_one_trust_domain_are_refused_in_documents_and_replaced_otherwise() {
        let bundle = |cert: &rcgen::Certificate| Bundle::from_der(domain(), [cert.der().to_vec()]).unwrap();
        let (a, b) = (bundle(&certificate().cert), bundle(&certificate().cert));
        assert!(TrustBundles::distinct([a.clone(), b.clone()]).unwrap_err().contains("never merged"));
        let replaced: TrustBundles = [a, b.clone()].into_iter().collect();
        assert_eq!(replaced.get("cluster.local"), Some(&b));
        assert_eq!(replaced.get("other"), None);
    }
}
