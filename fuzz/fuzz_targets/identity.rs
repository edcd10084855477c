//! Whatever a certificate claims: an ID that is read is canonical, and reading it again gives the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_identity::{SpiffeId, TrustDomain};

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.as_str().parse::<SpiffeId>().as_ref(), Ok(&id));
        assert!(id.as_str().starts_with("spiffe://"));
        assert!(id.trust_domain().parse::<TrustDomain>().is_ok());
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert!(!domain.as_str().contains(['/', ':', '@']));
    }
});
