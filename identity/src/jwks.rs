//! The SPIFFE bundle document: a JWK Set with the authorities of one trust domain
//! (SPIFFE Trust Domain and Bundle section 4, X509-SVID section 6, JWT-SVID section 6).

use crate::{Bundle, JwtKey, TrustDomain, id::quoted, json};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// How soon to look again when a bundle does not say (SPIFFE Trust Domain and Bundle 4.1.2).
pub const DEFAULT_REFRESH_HINT: Duration = Duration::from_secs(300);

impl Bundle {
    /// Reads a SPIFFE bundle document. The trust domain is not inside and has to be known.
    ///
    /// Elements of an unknown `kty` or `use` are skipped, as the specification demands; an element that is ours to read
    /// and cannot be read refuses the whole document. No element at all means that everything is revoked.
    ///
    /// # Errors
    /// What is wrong, and with which element.
    pub fn from_document(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, String> {
        match json::read(document) {
            Ok(Value::Object(members)) => Self::from_members(trust_domain, &members),
            Ok(_) => Err(format!("trust bundle of `{trust_domain}`: not a JSON object")),
            Err(cause) => Err(format!("trust bundle of `{trust_domain}`: not JSON: {cause}")),
        }
    }

    /// [`Bundle::from_document`] of what was read already.
    pub(crate) fn from_members(
        trust_domain: TrustDomain,
        members: &Map<String, Value>,
    ) -> Result<Self, String> {
        let wrong = |cause: String| format!("trust bundle of `{trust_domain}`: {cause}");
        let Some(Value::Array(keys)) = members.get("keys") else {
            return Err(wrong("no `keys` array".into()));
        };
        let (mut anchors, mut jwt_keys) = (Vec::new(), Vec::<JwtKey>::new());
        for (position, element) in keys.iter().enumerate() {
            let wrong = |cause: String| wrong(format!("key {}: {cause}", position + 1));
            let Value::Object(jwk) = element else { return Err(wrong("not an object".into())) };
            match jwk.get("use").and_then(Value::as_str) {
                Some("x509-svid") => anchors.extend(authority(jwk).map_err(wrong)?),
                Some("jwt-svid") => {
                    let Some(key) = JwtKey::from_jwk(jwk).map_err(wrong)? else { continue };
                    if jwt_keys.iter().any(|known| known.kid == key.kid) {
                        return Err(wrong(format!("`kid` {} occurs twice", quoted(&key.kid))));
                    }
                    jwt_keys.push(key);
                }
                _ => {}
            }
        }
        let sequence = whole_number(members, "spiffe_sequence").map_err(wrong)?;
        let refresh_hint =
            whole_number(members, "spiffe_refresh_hint").map_err(wrong)?.map(Duration::from_secs);
        let anchors = Self::readable(&trust_domain, anchors)?;
        Ok(Self { jwt_keys, sequence, refresh_hint, ..Self::new(trust_domain, anchors) })
    }

    /// The document form. What only our own mesh knows ([`Bundle::revoked`]) is not in it.
    pub fn to_document(&self) -> String {
        Value::Object(self.to_members()).to_string()
    }

    pub(crate) fn to_members(&self) -> Map<String, Value> {
        let mut document = Map::new();
        let certificates = self.anchors.iter().filter_map(|anchor| certificate_jwk(anchor));
        let keys: Vec<Value> = certificates.chain(self.jwt_keys.iter().map(JwtKey::to_jwk)).collect();
        document.insert("keys".into(), keys.into());
        if let Some(sequence) = self.sequence {
            document.insert("spiffe_sequence".into(), sequence.into());
        }
        if let Some(hint) = self.refresh_hint {
            document.insert("spiffe_refresh_hint".into(), hint.as_secs().into());
        }
        document
    }

    /// The keys of JWT-SVIDs alone, as the Workload API hands them out (SPIFFE Workload API 6.2.2).
    pub fn jwt_document(&self) -> String {
        json!({ "keys": self.jwt_keys.iter().map(JwtKey::to_jwk).collect::<Vec<_>>() }).to_string()
    }
}

/// The certificate of an `x509-svid` element: the first of `x5c`; `None` when there is none (X509-SVID 6.2).
fn authority(jwk: &Map<String, Value>) -> Result<Option<Vec<u8>>, String> {
    if !matches!(jwk.get("kty").and_then(Value::as_str), Some("EC" | "RSA" | "OKP")) {
        return Ok(None);
    }
    let Some(first) = jwk.get("x5c").and_then(Value::as_array).and_then(|chain| chain.first()) else {
        return Ok(None);
    };
    let text = first.as_str().ok_or("`x5c` does not hold text")?;
    STANDARD.decode(text).map(Some).map_err(|cause| format!("`x5c` is not base64: {cause}"))
}

/// `{kty, use, x5c}` and the members of the key itself, which RFC 7517 wants beside `x5c`.
fn certificate_jwk(der: &[u8]) -> Option<Value> {
    let certificate = crate::svid::read(der).ok()?;
    let mut jwk = crate::jwt_key::public_members(certificate.public_key());
    jwk.insert("use".into(), "x509-svid".into());
    jwk.insert("x5c".into(), json!([STANDARD.encode(der)]));
    Some(Value::Object(jwk))
}

fn whole_number(members: &Map<String, Value>, name: &str) -> Result<Option<u64>, String> {
    match members.get(name) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("`{name}` is not a whole number")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn domain() -> TrustDomain {
        "cluster.local".parse().unwrap()
    }

    /// `Ok((anchors, JWT keys))` or a part of the error.
    fn check(document: &str, expected: Result<(usize, usize), &str>) {
        match (Bundle::from_document(domain(), document.as_bytes()), expected) {
            (Ok(bundle), Ok(counts)) => {
                assert_eq!((bundle.anchors.len(), bundle.jwt_keys.len()), counts, "{document}");
                let again = Bundle::from_document(domain(), bundle.to_document().as_bytes()).unwrap();
                assert_eq!(again, bundle);
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{error} should contain {part}"),
            (result, expected) => panic!("{document}: {result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn spiffe_bundle_4_documents_are_read_whole_or_refused_whole() {
        let cert = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap().cert;
        let x5c = STANDARD.encode(cert.der());
        let x509 = format!(r#"{{"kty":"EC","use":"x509-svid","x5c":["{x5c}"]}}"#);
        let coordinate = "A".repeat(43);
        let ec = format!(
            r#"{{"kty":"EC","use":"jwt-svid","kid":"one","crv":"P-256","x":"{coordinate}","y":"{coordinate}"}}"#
        );
        let rsa = r#"{"kty":"RSA","use":"jwt-svid","kid":"two","n":"AQAB","e":"AQAB"}"#;
        let with = |keys: &str| format!(r#"{{"keys":[{keys}]}}"#);
        check(r#"{"keys":[]}"#, Ok((0, 0)));
        check(&with(&format!("{x509},{ec},{rsa}")), Ok((1, 2)));
        check(&with(&format!("{x509},{x509}")), Ok((1, 0)));
        check(
            &format!(
                r#"{{"spiffe_sequence":18446744073709551615,"spiffe_refresh_hint":60,"keys":[{x509}]}}"#
            ),
            Ok((1, 0)),
        );
        // Unknown kinds are skipped.
        for skipped in [
            r#"{"kty":"EC","use":"wit-svid"}"#,
            r#"{"kty":"EC"}"#,
            r#"{"kty":"oct","use":"jwt-svid","kid":"k","k":"AAAA"}"#,
            r#"{"kty":"EC","use":"jwt-svid","kid":"k","crv":"secp256k1","x":"AA","y":"AA"}"#,
            r#"{"kty":"EC","use":"X509-SVID","x5c":["!"]}"#,
            r#"{"kty":"EC","use":"x509-svid"}"#,
            r#"{"kty":"EC","use":"x509-svid","x5c":[]}"#,
        ] {
            check(&with(&format!("{skipped},{ec}")), Ok((0, 1)));
        }
        for (document, part) in [
            ("", "not JSON"),
            ("[]", "not a JSON object"),
            ("{}", "no `keys` array"),
            (r#"{"keys":{}}"#, "no `keys` array"),
            (r#"{"keys":[],"keys":[]}"#, "occurs twice"),
            (r#"{"keys":[1]}"#, "key 1: not an object"),
            (r#"{"keys":[],"spiffe_sequence":-1}"#, "not a whole number"),
            (r#"{"keys":[],"spiffe_sequence":"1"}"#, "not a whole number"),
            (r#"{"keys":[],"spiffe_refresh_hint":1.5}"#, "not a whole number"),
        ] {
            check(document, Err(part));
        }
        for (key, part) in [
            (r#"{"kty":"EC","use":"x509-svid","x5c":["%"]}"#, "key 2: `x5c` is not base64"),
            (r#"{"kty":"EC","use":"x509-svid","x5c":["AAAA"]}"#, "not X.509"),
            (r#"{"kty":"EC","use":"x509-svid","x5c":[1]}"#, "does not hold text"),
            (r#"{"kty":"RSA","use":"jwt-svid","n":"AQAB","e":"AQAB"}"#, "`kid` is missing"),
            (
                r#"{"kty":"RSA","use":"jwt-svid","kid":"","n":"AQAB","e":"AQAB"}"#,
                "`kid` of a jwt-svid key is empty",
            ),
            (r#"{"kty":"RSA","use":"jwt-svid","kid":"k","n":"AAAA","e":"AQAB"}"#, "`n` is zero"),
            (r#"{"kty":"EC","use":"jwt-svid","kid":"k","crv":"P-256","x":"AA","y":"AA"}"#, "have 32 bytes"),
            (
                r#"{"kty":"RSA","use":"jwt-svid","kid":"one","n":"AQAB","e":"AQAB"}"#,
                "`kid` `one` occurs twice",
            ),
        ] {
            check(&with(&format!("{ec},{key}")), Err(part));
        }
    }
}
