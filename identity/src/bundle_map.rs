//! The SPIFFE bundle map: the bundles of several trust domains in one document
//! (SPIFFE Trust Domain and Bundle, the section on bundle maps).

use crate::{Bundle, TrustBundles, TrustDomain, json};
use serde_json::{Map, Value};

impl TrustBundles {
    /// Reads `{"trust_domains": {"<name>": <bundle document>}}`. A trust domain named twice refuses the whole map, and so
    /// does any bundle in it that cannot be read; no trust domain at all is a map that trusts nobody.
    ///
    /// # Errors
    /// What is wrong, and with which trust domain.
    pub fn from_document(document: &[u8]) -> Result<Self, String> {
        let wrong = |cause: &str| format!("bundle map: {cause}");
        let members = match json::read(document) {
            Ok(Value::Object(members)) => members,
            Ok(_) => return Err(wrong("not a JSON object")),
            Err(cause) => return Err(wrong(&format!("not JSON: {cause}"))),
        };
        let Some(Value::Object(bundles)) = members.get("trust_domains") else {
            return Err(wrong("no object `trust_domains` with a bundle for each trust domain"));
        };
        let each = bundles.iter().map(|(name, bundle)| {
            let trust_domain: TrustDomain =
                name.parse().map_err(|cause: crate::IdError| wrong(&cause.to_string()))?;
            let Value::Object(bundle) = bundle else {
                return Err(wrong(&format!("the bundle of `{trust_domain}` is not a JSON object")));
            };
            Bundle::from_members(trust_domain, bundle).map_err(|cause| wrong(&cause))
        });
        Self::distinct(each.collect::<Result<Vec<_>, _>>()?)
    }

    /// The document form, as [`TrustBundles::from_document`] reads it.
    pub fn to_document(&self) -> String {
        let bundles: Map<String, Value> = self
            .iter()
            .map(|bundle| (bundle.trust_domain.to_string(), Value::Object(bundle.to_members())))
            .collect();
        Value::Object(Map::from_iter([("trust_domains".to_owned(), Value::Object(bundles))])).to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    /// `Ok(trust domains)` or a part of the error.
    fn check(document: &str, expected: Result<&[&str], &str>) {
        match (TrustBundles::from_document(document.as_bytes()), expected) {
            (Ok(bundles), Ok(names)) => {
                let read: Vec<&str> = bundles.iter().map(|bundle| bundle.trust_domain.as_str()).collect();
                assert_eq!(read, names, "{document}");
                let again = TrustBundles::from_document(bundles.to_document().as_bytes()).unwrap();
                assert_eq!(again, bundles);
            }
            (Err(error), Err(part)) => {
                assert!(error.starts_with("bundle map: ") && error.contains(part), "{error} has no {part}")
            }
            (result, expected) => panic!("{document}: {result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn spiffe_bundle_map_names_each_trust_domain_once_and_reads_each_bundle_whole() {
        let bundle = r#"{"keys":[],"spiffe_sequence":7}"#;
        let key = r#"{"kty":"RSA","use":"jwt-svid","kid":"a","n":"AQAB","e":"AQAB"}"#;
        let map = |inside: &str| format!(r#"{{"trust_domains":{{{inside}}}}}"#);
        check(&map(""), Ok(&[]));
        check(
            &map(&format!(r#""b.example":{bundle},"a.example":{{"keys":[{key}]}}"#)),
            Ok(&["a.example", "b.example"]),
        );
        check(&format!(r#"{{"other":1,"trust_domains":{{"a":{bundle}}}}}"#), Ok(&["a"]));
        for (document, part) in [
            (String::new(), "not JSON"),
            ("[]".into(), "not a JSON object"),
            ("{}".into(), "no object `trust_domains`"),
            (r#"{"trust_domains":[]}"#.into(), "no object `trust_domains`"),
            (r#"{"trust_domains":{},"trust_domains":{}}"#.into(), "occurs twice"),
            (map(&format!(r#""a":{bundle},"a":{bundle}"#)), "member `a` occurs twice"),
            (map(&format!(r#""a":{bundle},"\u0061":{bundle}"#)), "member `a` occurs twice"),
            (map(r#""a":{"keys":[],"keys":[]}"#), "occurs twice"),
            (map(r#""a":[]"#), "the bundle of `a` is not a JSON object"),
            (map(r#""a":{}"#), "no `keys` array"),
            (map(&format!(r#""A":{bundle}"#)), "write `a`"),
            (map(&format!(r#""spiffe://a":{bundle}"#)), "remove the scheme"),
            (map(&format!(r#""":{bundle}"#)), "empty"),
            (map(&format!(r#""a":{{"keys":[{key},{key}]}}"#)), "`kid` `a` occurs twice"),
        ] {
            check(&document, Err(part));
        }
    }
}
