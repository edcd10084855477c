//! Certificate, key and bundles as they are written: one file, so that they always belong together.

use super::Folder;
use crate::{control::translate, state::Credentials};
use base64::{Engine, engine::general_purpose::STANDARD};
use postern_api::v1;
use postern_identity::{Bundle, KeyId, TrustDomain, tls};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use zeroize::{Zeroize, Zeroizing};

pub(super) const FILE: &str = "identity.json";

#[derive(Serialize, Deserialize)]
struct Identity {
    /// DER in base64, leaf first.
    chain: Vec<String>,
    /// PKCS#8 DER in base64.
    key: String,
    bundles: Vec<Written>,
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// A bundle: the SPIFFE document, and what that has no place for.
#[derive(Serialize, Deserialize)]
struct Written {
    trust_domain: String,
    document: String,
    revoked: Vec<String>,
}

/// Keeps what is in force; a failure is told and changes nothing.
pub(super) fn keep(folder: &Folder, current: &Credentials) {
    let written = |bundle: &Bundle| Written {
        trust_domain: bundle.trust_domain.to_string(),
        document: bundle.to_document(),
        revoked: bundle.revoked.iter().map(ToString::to_string).collect(),
    };
    let identity = Identity {
        chain: current.key.cert.iter().map(|der| STANDARD.encode(der)).collect(),
        key: STANDARD.encode(&current.private_key),
        bundles: current.trust.iter().map(written).collect(),
    };
    match serde_json::to_vec(&identity) {
        Ok(text) => folder.keep(FILE, &Zeroizing::new(text)),
        Err(error) => tracing::warn!(%error, "the certificate cannot be written down"),
    }
}

/// The certificate of before a restart, if it is good now.
pub(super) fn recall(folder: &Folder, own: &TrustDomain) -> Option<Credentials> {
    let text = folder.read(FILE)?;
    read(&text, own).map_err(|reason| folder.ignored(FILE, &reason)).ok()
}

fn read(text: &[u8], own: &TrustDomain) -> Result<Credentials, String> {
    let kept: Identity = serde_json::from_slice(text).map_err(|cause| cause.to_string())?;
    let decoded = |text: &str| STANDARD.decode(text).map_err(|cause| cause.to_string());
    let wire = |bundle: &Written| {
        let revoked = bundle.revoked.iter().map(|id| id.parse::<KeyId>().map(|id| id.as_bytes().to_vec()));
        Ok(v1::Bundle {
            trust_domain: bundle.trust_domain.clone(),
            document: bundle.document.clone().into_bytes(),
            revoked: revoked.collect::<Result<_, String>>()?,
        })
    };
    let bundles = kept.bundles.iter().map(wire).collect::<Result<_, String>>()?;
    let trust = translate::bundles(bundles, own)?;
    let chain = kept.chain.iter().map(|der| decoded(der).map(CertificateDer::from));
    let private_key = Zeroizing::new(decoded(&kept.key)?);
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(private_key.to_vec()));
    let key = tls::certified_key(chain.collect::<Result<_, String>>()?, der)?;
    let credentials = Credentials::prove(key, private_key.to_vec().into(), Arc::new(trust))?;
    if credentials.id.trust_domain() != own.as_str() {
        return Err(format!("{} is not of trust domain `{own}`", credentials.id));
    }
    Ok(credentials)
}
