//! The corpora of the fuzz targets of this crate as plain tests: what was once found, and what is worth starting from. Each
//! check is the one of the target of the same name in `fuzz/fuzz_targets`, which need nightly Rust; this needs nothing.
//! And the same checks on what proptest makes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use proptest::prelude::*;
use std::{fs, path::Path};

#[path = "../../fuzz/src/identity_checks.rs"]
mod checks;
mod mint;

fn each(target: &str, check: impl Fn(&str)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        check(&String::from_utf8_lossy(&fs::read(entry.unwrap().path()).unwrap()));
        seen += 1;
    }
    assert!(seen >= 4, "{target}: {seen} files");
}

#[test]
fn identity() {
    each("identity", checks::identity);
}

#[test]
fn bundle() {
    each("bundle", checks::bundle);
}

#[test]
fn token() {
    each("token", checks::token);
}

#[test]
fn chain() {
    each("chain", checks::chain);
}

/// A document with sound and unsound elements, in any order.
fn document() -> impl Strategy<Value = String> {
    let x5c = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(mint::root("fuzz.example", |_| {}).der)
    };
    let coordinate = "A".repeat(43);
    let element = prop::sample::select(vec![
        format!(r#"{{"kty":"EC","use":"x509-svid","x5c":["{x5c}"]}}"#),
        format!(
            r#"{{"kty":"EC","use":"jwt-svid","kid":"a","crv":"P-256","x":"{coordinate}","y":"{coordinate}"}}"#
        ),
        r#"{"kty":"RSA","use":"jwt-svid","kid":"b","n":"AQAB","e":"AQAB"}"#.into(),
        r#"{"kty":"RSA","use":"jwt-svid","kid":"c","n":"AAAB","e":"AQAB"}"#.into(),
        r#"{"kty":"EC","use":"x509-svid","x5c":["AAAA"]}"#.into(),
        r#"{"kty":"oct","use":"jwt-svid","kid":"d"}"#.into(),
        r#"{"use":"wit-svid"}"#.into(),
        "{}".into(),
        "1".into(),
    ]);
    let keys = prop::collection::vec(element, 0..5);
    (keys, any::<Option<u64>>(), any::<Option<u32>>()).prop_map(|(keys, sequence, hint)| {
        let mut members = vec![format!(r#""keys":[{}]"#, keys.join(","))];
        members.extend(sequence.map(|n| format!(r#""spiffe_sequence":{n}"#)));
        members.extend(hint.map(|n| format!(r#""spiffe_refresh_hint":{n}"#)));
        format!("{{{}}}", members.join(","))
    })
}

proptest! {
    #[test]
    fn spiffe_id_2_what_is_accepted_is_what_the_grammar_has(
        text in "(spiffe://|Spiffe://|spiffe:/|https://)?([a-z0-9._-]{0,6}|[A-Z@:%?#\\PC]{0,2}){0,3}(/([a-zA-Z0-9._-]{0,4}|[%?#:@ ~]|\\PC)){0,4}/?",
    ) {
        checks::identity(&text);
    }

    #[test]
    fn spiffe_id_2_3_limits(domain in 250usize..260, total in 2040usize..2056) {
        let id = format!("spiffe://{}/", "a".repeat(domain));
        checks::identity(&format!("{id}a"));
        checks::identity(&format!("{id}{}", "b".repeat(total - id.len())));
        checks::identity(&"a".repeat(domain));
    }

    #[test]
    fn spiffe_bundle_4_documents_survive_the_round_trip(document in document()) {
        checks::bundle(&document);
        checks::bundle(&format!(r#"{{"trust_domains":{{"fuzz.example":{document}}}}}"#));
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        checks::bundle(&text);
        checks::token(&text);
        checks::chain(&text);
    }
}
