//! What SPIFFE demands of one certificate, leaf or signing (X509-SVID sections 2 to 5).
//!
//! Path validation libraries check none of this: they accept leaves with several URIs, leaves that may sign, authorities
//! without keyCertSign, and anchors that expired. So every rule stands here, and [`crate::verify`] applies them all.

use crate::{
    KeyId, Refusal, SpiffeId,
    id::quoted,
    refusal::{Validity, seconds},
};
use rustls_pki_types::UnixTime;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension, SubjectAlternativeName},
    oid_registry::{
        OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_SUBJECT_ALT_NAME, Oid,
    },
    prelude::{FromDer, X509Extension, X509Version},
    public_key::PublicKey,
};

/// RSA keys below this are weak, whoever signed them.
const LEAST_RSA_BITS: usize = 2048;
/// URIs of a certificate that a refusal for their number shows.
const SHOWN_URIS: usize = 3;

/// What a leaf says about itself once it satisfies every rule of a leaf. It proves nothing about who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Who.
    pub id: SpiffeId,
    /// Serial number in lower-case hex, without leading zero bytes.
    pub serial: String,
    /// Start of validity, seconds since 1970.
    pub not_before: i64,
    /// End of validity, seconds since 1970, inclusive.
    pub not_after: i64,
}

/// Applies all rules of a leaf certificate to DER bytes (X509-SVID 2, 3.1, 4.1, 4.3, 4.4, 5.2).
///
/// # Errors
/// The first rule broken.
pub fn check_leaf(der: &[u8]) -> Result<Leaf, Refusal> {
    let certificate = read(der)?;
    let (id, names_critical) = leaf_id(&certificate)?;
    check_named_leaf(&certificate, &id, names_critical).map_err(|refusal| match refusal {
        Refusal::Malformed(_) => refusal.of(&id),
        other => other,
    })?;
    Ok(Leaf {
        id,
        serial: serial(&certificate),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// The rules of a leaf beyond its name.
fn check_named_leaf(
    certificate: &X509Certificate<'_>,
    id: &SpiffeId,
    names_critical: bool,
) -> Result<(), Refusal> {
    if id.path().is_empty() {
        return Err(Refusal::IdWithoutPath(id.clone()));
    }
    if certificate.subject().iter().next().is_none() && !names_critical {
        return Err(Refusal::SanNotCritical(id.clone()));
    }
    if is_authority(certificate)? {
        return Err(Refusal::LeafIsAuthority(id.clone()));
    }
    check_leaf_key_usage(certificate, id)?;
    check_leaf_purposes(certificate, id)?;
    check_key(certificate, || format!("the certificate of {id}"))
}

/// Applies the rules of a signing certificate (intermediate or anchor) that is to sign for `trust_domain`
/// (X509-SVID 3.2, 4.1, 4.3). Validity is not looked at.
///
/// # Errors
/// The first rule broken.
pub fn check_signing(der: &[u8], trust_domain: &str) -> Result<(), Refusal> {
    check_signing_certificate(&read(der)?, trust_domain)
}

/// [`check_signing`] and the validity at `now`: path validation does not look at the validity of anchors.
///
/// # Errors
/// The first rule broken.
pub fn check_anchor(der: &[u8], trust_domain: &str, now: UnixTime) -> Result<(), Refusal> {
    let certificate = read(der)?;
    check_signing_certificate(&certificate, trust_domain)?;
    in_time(&certificate, now)
}

/// Only the validity of a signing certificate at `now`.
pub(crate) fn check_validity(der: &[u8], now: UnixTime) -> Result<(), Refusal> {
    in_time(&read(der)?, now)
}

fn in_time(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Refusal> {
    let validity = certificate.validity();
    let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Validity { now: seconds(now), not_before, not_after }.check(|| named(certificate))
}

/// Whether a certificate carries a URI name constraint, which makes every SPIFFE ID below it unverifiable.
/// Returns how to name the certificate.
pub(crate) fn uri_name_constraint(der: &[u8]) -> Option<String> {
    let certificate = read(der).ok()?;
    constrains_uris(&certificate).ok()?.then(|| named(&certificate))
}

/// Reads one v3 certificate without anything behind it.
pub(crate) fn read(der: &[u8]) -> Result<X509Certificate<'_>, Refusal> {
    let (rest, certificate) = X509Certificate::from_der(der)
        .map_err(|cause| Refusal::Malformed(format!("not X.509 DER ({cause})")))?;
    if !rest.is_empty() {
        return Err(Refusal::Malformed(format!("{} bytes follow the certificate", rest.len())));
    }
    if certificate.version() != X509Version::V3 {
        return Err(Refusal::Malformed("X.509 version 3 is required".into()));
    }
    Ok(certificate)
}

impl KeyId {
    /// Of the key in a certificate (DER).
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub fn of_certificate(der: &[u8]) -> Result<Self, Refusal> {
        Ok(Self::of_spki(read(der)?.public_key().raw))
    }
}

/// The one URI and whether the extension is critical.
fn leaf_id(certificate: &X509Certificate<'_>) -> Result<(SpiffeId, bool), Refusal> {
    let Some((names, critical)) = names(certificate)? else { return Err(Refusal::NoUriSan) };
    let uris: Vec<&str> = printable_uris(names).map_err(|refusal| match readable_id(names) {
        Some(id) => refusal.of(&id),
        None => refusal,
    })?;
    match uris.as_slice() {
        [] => Err(Refusal::NoUriSan),
        [uri] => {
            let id = uri.parse().map_err(|cause| Refusal::InvalidId(format!("{cause}")))?;
            Ok((id, critical))
        }
        several => {
            let shown: Vec<String> = several.iter().take(SHOWN_URIS).map(|uri| quoted(uri)).collect();
            let more = if several.len() > SHOWN_URIS { ", …" } else { "" };
            Err(Refusal::SeveralUriSans { count: several.len(), shown: shown.join(", ") + more })
        }
    }
}

/// Who somebody claims to be beside a name that cannot be read.
fn readable_id(names: &SubjectAlternativeName<'_>) -> Option<SpiffeId> {
    names.general_names.iter().find_map(|name| match name {
        GeneralName::URI(text) => text.parse().ok(),
        _ => None,
    })
}

/// All URIs, after every textual name was found to be printable ASCII: a NUL or a foreign letter in any of them is an
/// attempt to be read differently by somebody else.
fn printable_uris<'a>(names: &'a SubjectAlternativeName<'a>) -> Result<Vec<&'a str>, Refusal> {
    let mut uris = Vec::new();
    for name in &names.general_names {
        match name {
            GeneralName::URI(text) | GeneralName::DNSName(text) | GeneralName::RFC822Name(text) => {
                if !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
                    return Err(Refusal::NameNotAscii((*text).to_owned()));
                }
                if matches!(name, GeneralName::URI(_)) {
                    uris.push(*text);
                }
            }
            GeneralName::Invalid(_, bytes) => {
                return Err(Refusal::NameNotAscii(String::from_utf8_lossy(bytes).into_owned()));
            }
            _ => {}
        }
    }
    Ok(uris)
}

fn check_leaf_key_usage(certificate: &X509Certificate<'_>, id: &SpiffeId) -> Result<(), Refusal> {
    let Some((usage, critical)) = key_usage(certificate)? else {
        return Err(Refusal::KeyUsageMissing(id.clone()));
    };
    let broken = match usage {
        _ if !critical => Refusal::KeyUsageNotCritical,
        usage if usage.key_cert_sign() => Refusal::LeafCanSignCertificates,
        usage if usage.crl_sign() => Refusal::LeafCanSignCrls,
        usage if !usage.digital_signature() => Refusal::NoDigitalSignature,
        _ => return Ok(()),
    };
    Err(broken(id.clone()))
}

fn check_leaf_purposes(certificate: &X509Certificate<'_>, id: &SpiffeId) -> Result<(), Refusal> {
    let Some(purposes) = purposes(certificate)? else { return Ok(()) };
    let missing = match (purposes.server_auth, purposes.client_auth) {
        (true, true) => return Ok(()),
        (false, true) => "serverAuth",
        (true, false) => "clientAuth",
        (false, false) => "serverAuth and clientAuth",
    };
    Err(Refusal::HalfExtendedKeyUsage { id: id.clone(), missing })
}

fn check_signing_certificate(certificate: &X509Certificate<'_>, trust_domain: &str) -> Result<(), Refusal> {
    if !is_authority(certificate)? {
        return Err(Refusal::SigningNotAuthority(named(certificate)));
    }
    match key_usage(certificate)? {
        Some((usage, true)) if usage.key_cert_sign() => {}
        _ => return Err(Refusal::SigningNoKeyCertSign(named(certificate))),
    }
    check_key(certificate, || named(certificate))?;
    if constrains_uris(certificate)? {
        return Err(Refusal::UriNameConstraint(named(certificate)));
    }
    let Some((names, _)) = names(certificate)? else { return Ok(()) };
    for uri in printable_uris(names)? {
        // Roots of other issuers may carry a web address; only what claims to be a SPIFFE ID is held to its rules.
        if !uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:")) {
            continue;
        }
        let id: SpiffeId = uri.parse().map_err(|cause| Refusal::InvalidId(format!("{cause}")))?;
        if !id.path().is_empty() {
            return Err(Refusal::SigningIdWithPath { what: named(certificate), id });
        }
        if id.trust_domain() != trust_domain {
            return Err(Refusal::SigningForeignTrustDomain {
                what: named(certificate),
                id,
                wanted: trust_domain.to_owned(),
            });
        }
    }
    Ok(())
}

/// Nobody can prove who he is with a key that others can compute.
fn check_key(certificate: &X509Certificate<'_>, what: impl FnOnce() -> String) -> Result<(), Refusal> {
    if let Ok(PublicKey::RSA(key)) = certificate.public_key().parsed() {
        let bits = key.key_size();
        if bits < LEAST_RSA_BITS {
            return Err(Refusal::WeakKey { what: what(), bits });
        }
    }
    Ok(())
}

fn is_authority(certificate: &X509Certificate<'_>) -> Result<bool, Refusal> {
    match extension(certificate, &OID_X509_EXT_BASIC_CONSTRAINTS, "basicConstraints")? {
        None => Ok(false),
        Some(extension) => match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => Ok(constraints.ca),
            _ => Err(unreadable("basicConstraints")),
        },
    }
}

fn key_usage<'a>(certificate: &'a X509Certificate<'a>) -> Result<Option<(&'a KeyUsage, bool)>, Refusal> {
    match extension(certificate, &OID_X509_EXT_KEY_USAGE, "keyUsage")? {
        None => Ok(None),
        Some(extension) => match extension.parsed_extension() {
            ParsedExtension::KeyUsage(usage) => Ok(Some((usage, extension.critical))),
            _ => Err(unreadable("keyUsage")),
        },
    }
}

fn purposes<'a>(certificate: &'a X509Certificate<'a>) -> Result<Option<&'a ExtendedKeyUsage<'a>>, Refusal> {
    match extension(certificate, &OID_X509_EXT_EXTENDED_KEY_USAGE, "extendedKeyUsage")? {
        None => Ok(None),
        Some(extension) => match extension.parsed_extension() {
            ParsedExtension::ExtendedKeyUsage(usage) => Ok(Some(usage)),
            _ => Err(unreadable("extendedKeyUsage")),
        },
    }
}

fn names<'a>(
    certificate: &'a X509Certificate<'a>,
) -> Result<Option<(&'a SubjectAlternativeName<'a>, bool)>, Refusal> {
    match extension(certificate, &OID_X509_EXT_SUBJECT_ALT_NAME, "subjectAltName")? {
        None => Ok(None),
        Some(extension) => match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Ok(Some((names, extension.critical))),
            _ => Err(unreadable("subjectAltName")),
        },
    }
}

fn constrains_uris(certificate: &X509Certificate<'_>) -> Result<bool, Refusal> {
    match extension(certificate, &OID_X509_EXT_NAME_CONSTRAINTS, "nameConstraints")? {
        None => Ok(false),
        Some(extension) => match extension.parsed_extension() {
            ParsedExtension::NameConstraints(constraints) => {
                let subtrees = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
                Ok(subtrees
                    .into_iter()
                    .flatten()
                    .flatten()
                    .any(|tree| matches!(tree.base, GeneralName::URI(_))))
            }
            _ => Err(unreadable("nameConstraints")),
        },
    }
}

/// The one extension of a kind; two of a kind are malformed (RFC 5280 4.2).
fn extension<'a>(
    certificate: &'a X509Certificate<'a>,
    oid: &Oid<'_>,
    name: &str,
) -> Result<Option<&'a X509Extension<'a>>, Refusal> {
    certificate
        .get_extension_unique(oid)
        .map_err(|_| Refusal::Malformed(format!("extension {name} occurs more than once")))
}

fn unreadable(name: &str) -> Refusal {
    Refusal::Malformed(format!("extension {name} cannot be read"))
}

fn serial(certificate: &X509Certificate<'_>) -> String {
    let bytes = certificate.raw_serial();
    let significant = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len().saturating_sub(1));
    bytes.iter().skip(significant).map(|byte| format!("{byte:02x}")).collect()
}

/// A signing certificate in a sentence. The subject was chosen by whoever made it, so it is escaped and cut.
fn named(certificate: &X509Certificate<'_>) -> String {
    format!(
        "signing certificate {} (serial {})",
        quoted(&certificate.subject().to_string()),
        serial(certificate)
    )
}
