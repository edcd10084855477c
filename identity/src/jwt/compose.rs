//! The text of a JWT-SVID that an authority signs, and the token made of text and signature. Keys and clocks stay with the authority.

use super::Algorithm;
use crate::SpiffeId;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

/// What is to be signed with ES256: header and claims as they stand in the token. The header holds exactly `alg`, `kid`
/// and `typ` (JWT-SVID 2), the claims `sub`, `aud` as an array, `iat` and `exp` in seconds since 1970 (JWT-SVID 3).
///
/// The caller answers for at least one audience, and for `exp` not beyond what its key is published for.
pub fn signing_input(kid: &str, sub: &SpiffeId, aud: &[String], iat: u64, exp: u64) -> String {
    let header = json!({ "alg": Algorithm::Es256.name(), "kid": kid, "typ": "JWT" });
    let claims = json!({ "sub": sub.as_str(), "aud": aud, "iat": iat, "exp": exp });
    let encoded = |part: serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}", encoded(header), encoded(claims))
}

/// The token. `signature` is the fixed-length form `r || s` (RFC 7518 3.4), not DER.
pub fn assemble(signing_input: &str, signature: &[u8]) -> String {
    format!("{signing_input}.{}", URL_SAFE_NO_PAD.encode(signature))
}
