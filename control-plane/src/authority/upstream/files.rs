//! An authority as Istio keeps it: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, `cert-chain.pem` (its secret `cacerts`).

use super::{
    super::{
        journal,
        root::fits,
        sign::{Key, Signer, has_room},
        state,
    },
    Supplied,
};
use postern_identity::{Bundle, KeyId, TrustDomain, svid};
use rcgen::Issuer;
use rustls_pki_types::CertificateDer;
use std::{path::Path, sync::Arc, time::SystemTime};
use x509_parser::parse_x509_certificate;

const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";

/// Reads the folder and tries what it holds on the verifier.
///
/// # Errors
/// What is wrong, with which file, and what to do.
pub(super) fn read(folder: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Supplied, String> {
    let own = certificates(folder, CERTIFICATE, trust_domain)?;
    let anchors = certificates(folder, ROOTS, trust_domain)?;
    let mut above: Vec<CertificateDer<'static>> = own.iter().skip(1).cloned().collect();
    let has_chain = folder.join(CHAIN).try_exists().map_err(|cause| format!("{CHAIN}: {cause}"))?;
    if has_chain {
        above.extend(certificates(folder, CHAIN, trust_domain)?);
    }
    let certificate = own.first().ok_or_else(|| format!("{CERTIFICATE} holds no certificate"))?;
    let key = journal::parse_key(&folder.join(KEY)).map_err(|cause| cause.to_string())?;
    if !fits(certificate, &key) {
        return Err(format!(
            "the key in {KEY} is not the key of the certificate in {CERTIFICATE}: give the pair that belongs together"
        ));
    }
    let chain = ordered(certificate, above, &anchors);
    let mut reasons = Vec::new();
    for anchor in &anchors {
        // The authority may be a root itself, and then it is not in the chain.
        let path = || chain.iter().chain([anchor]);
        if !has_room(path(), 0) {
            reasons.push("a pathLen above it leaves no room for it".to_owned());
            continue;
        }
        let signer = signer(certificate, &key, &chain, anchor)?;
        match signer.prove(trust_domain, std::slice::from_ref(anchor), now) {
            Err(reason) => reasons.push(reason),
            Ok(()) => {
                // Istio's are made with pathLen 0: they cannot have an intermediate below them, and sign leaves themselves.
                let direct = !has_room(path(), 1);
                return Ok(Supplied { signer: Arc::new(signer), direct, anchors: distinct(anchors.clone()) });
            }
        }
    }
    Err(format!(
        "no certificate of {ROOTS} verifies what {CERTIFICATE} signs ({}): give the root above it, and the certificates between in {CHAIN}",
        reasons.join("; ")
    ))
}

/// From the authority upwards, each certificate below the one that issued it; without roots, which are in everybody's bundle.
/// What leads nowhere is left out: it would be sent in every handshake.
fn ordered(
    certificate: &CertificateDer<'static>,
    mut above: Vec<CertificateDer<'static>>,
    anchors: &[CertificateDer<'static>],
) -> Vec<CertificateDer<'static>> {
    if anchors.contains(certificate) {
        return Vec::new();
    }
    above.retain(|one| one != certificate && !anchors.contains(one));
    let mut chain = vec![certificate.clone()];
    while let Some(issuer) = chain.last().and_then(|last| {
        let position = above.iter().position(|one| is_issuer(one, last))?;
        Some(above.remove(position))
    }) {
        chain.push(issuer);
    }
    chain
}

fn is_issuer(above: &[u8], below: &[u8]) -> bool {
    match (parse_x509_certificate(above), parse_x509_certificate(below)) {
        (Ok((_, above)), Ok((_, below))) => above.subject() == below.issuer(),
        _ => false,
    }
}

/// Certificates that may sign for us, each by itself.
fn certificates(
    folder: &Path,
    name: &str,
    trust_domain: &TrustDomain,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = journal::read(&folder.join(name)).map_err(|cause| cause.to_string())?;
    let bundle = Bundle::from_pem(trust_domain.clone(), &pem).map_err(|cause| format!("{name}: {cause}"))?;
    for certificate in &bundle.anchors {
        svid::check_signing(certificate, trust_domain.as_str())
            .map_err(|refusal| format!("{name}: {refusal}"))?;
    }
    Ok(bundle.anchors)
}

/// The authority below `anchor`: valid as long as all certificates up to there are.
fn signer(
    certificate: &CertificateDer<'static>,
    key: &Key,
    chain: &[CertificateDer<'static>],
    anchor: &CertificateDer<'static>,
) -> Result<Signer, String> {
    let id = |certificate| KeyId::of_certificate(certificate).map_err(|refusal| refusal.to_string());
    let (mut not_before, mut not_after) = state::validity(certificate)?;
    let made = not_before;
    for one in chain.iter().chain([anchor]) {
        let (from, to) = state::validity(one)?;
        (not_before, not_after) = (not_before.max(from), not_after.min(to));
    }
    let issuer = Issuer::from_ca_cert_der(certificate, key.clone()).map_err(|cause| cause.to_string())?;
    let chain = chain.to_vec();
    Ok(Signer { issuer, chain, id: id(certificate)?, root: id(anchor)?, made, not_before, not_after })
}

/// One certificate for each key: the one that ends last.
fn distinct(anchors: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
    let end = |anchor: &CertificateDer<'static>| state::validity(anchor).map_or(i64::MIN, |(_, to)| to);
    let mut kept: Vec<CertificateDer<'static>> = Vec::new();
    for anchor in anchors {
        let same = |known: &CertificateDer<'static>| matches!((KeyId::of_certificate(known), KeyId::of_certificate(&anchor)), (Ok(a), Ok(b)) if a == b);
        match kept.iter_mut().find(|known| same(known)) {
            Some(known) if end(known) < end(&anchor) => *known = anchor,
            Some(_) => {}
            None => kept.push(anchor),
        }
    }
    kept
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
