//! The one provider of cryptography, named here and nowhere else.

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use std::sync::{Arc, LazyLock};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The one provider: aws-lc-rs, X25519MLKEM768 preferred, X25519 and P-256 accepted. Always passed explicitly.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

pub(crate) fn provider_ref() -> &'static CryptoProvider {
    &PROVIDER
}
