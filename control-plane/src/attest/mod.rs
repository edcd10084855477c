//! Who is asking for a certificate: a one-use join token, or the current certificate. The Kubernetes token comes later through the same seam.
/// The attested caller.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Attested { pub namespace: String, pub service_account: String, pub pod: String }
/// One-use tokens, hashed.
#[derive(Default)]
pub struct JoinTokens {}
