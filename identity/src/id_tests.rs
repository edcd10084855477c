//! Tables for SPIFFE-ID sections 2 to 2.4.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use proptest::prelude::*;

/// `Ok((trust domain, path))`, or a part of the error.
fn check(text: &str, expected: Result<(&str, &str), &str>) {
    match (text.parse::<SpiffeId>(), expected) {
        (Ok(id), Ok(parts)) => {
            assert_eq!((id.trust_domain(), id.path()), parts, "{text}");
            assert_eq!(id.as_str(), text, "an ID prints as it was written");
            assert_eq!(id.principal(), &text["spiffe://".len()..]);
        }
        (Err(error), Err(part)) => {
            assert!(error.0.contains(part), "{text}: `{error}` should contain `{part}`")
        }
        (result, expected) => panic!("{text}: {result:?}, expected {expected:?}"),
    }
}

#[test]
fn spiffe_id_2_accepts_what_the_standard_allows() {
    for (text, trust_domain, path) in [
        ("spiffe://td", "td", ""),
        ("spiffe://cluster.local/ns/shop/sa/cart", "cluster.local", "/ns/shop/sa/cart"),
        ("spiffe://1.2.3.4/a", "1.2.3.4", "/a"),
        ("spiffe://../a", "..", "/a"),
        ("spiffe://-a_b./x", "-a_b.", "/x"),
        ("spiffe://td/.path", "td", "/.path"),
        ("spiffe://td/..path", "td", "/..path"),
        ("spiffe://td/...", "td", "/..."),
        ("spiffe://td/A-Z_0.9", "td", "/A-Z_0.9"),
    ] {
        check(text, Ok((trust_domain, path)));
    }
}

#[test]
fn spiffe_id_2_refuses_everything_else_and_says_what_to_write() {
    for (text, part) in [
        ("", "must start with `spiffe://`"),
        ("spiffe:", "must start with"),
        ("spiffe:/td/a", "must start with"),
        ("https://td/a", "must start with"),
        ("cluster.local/ns/a/sa/b", "for example `spiffe://cluster.local/"),
        (" spiffe://td/a", "must start with"),
        ("SPIFFE://td/a", "write `spiffe://`"),
        ("Spiffe://td/a", "write `spiffe://`"),
        ("spiffe://", "trust domain is empty"),
        ("spiffe:///path", "trust domain is empty"),
        ("spiffe://Cluster.Local/a", "write `cluster.local`"),
        ("spiffe://user@td/a", "user information"),
        ("spiffe://user:pw@td/a", "not allowed"),
        ("spiffe://td:443/a", "a port is not allowed"),
        ("spiffe://[::1]/a", "holds `[`"),
        ("spiffe://t%64/a", "percent-encoding"),
        ("spiffe://td?q=1", "a query is not allowed"),
        ("spiffe://td#f", "a fragment is not allowed"),
        ("spiffe://td/a?q=1", "a query is not allowed"),
        ("spiffe://td/a#f", "a fragment is not allowed"),
        ("spiffe://td/", "trailing slash"),
        ("spiffe://td/a/", "trailing slash"),
        ("spiffe://td//a", "doubled slash"),
        ("spiffe://td/a//b", "doubled slash"),
        ("spiffe://td/.", "segment `.`"),
        ("spiffe://td/a/../b", "segment `..`"),
        ("spiffe://td/a/./b", "segment `.`"),
        ("spiffe://td/%61", "percent-encoding"),
        ("spiffe://td/a b", "holds ` `"),
        ("spiffe://td/a:b", "holds `:`"),
        ("spiffe://td/a\0", "holds `\\0`"),
        ("spiffe://td/a\r\nx", "holds `\\r`"),
        ("spiffe://td/ä", "holds `ä`"),
        ("spiffe://tḋ/a", "holds `ḋ`"),
    ] {
        check(text, Err(part));
    }
}

#[test]
fn spiffe_id_2_3_limits_hold_to_the_byte() {
    let with_length = |length: usize| format!("spiffe://td/{}", "a".repeat(length - "spiffe://td/".len()));
    assert!(with_length(2048).parse::<SpiffeId>().is_ok());
    check(&with_length(2049), Err("the limit is 2048"));
    assert!("a".repeat(255).parse::<TrustDomain>().is_ok());
    assert!("a".repeat(256).parse::<TrustDomain>().unwrap_err().0.contains("the limit is 255"));
}

#[test]
fn spiffe_id_2_1_every_single_byte_in_a_trust_domain_and_in_a_path() {
    for byte in 0u8..128 {
        let c = char::from(byte);
        let common = matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        assert_eq!(format!("spiffe://td{c}x").parse::<SpiffeId>().is_ok(), common || c == '/', "{c:?} in td");
        let path = common || c.is_ascii_uppercase() || c == '/';
        assert_eq!(format!("spiffe://td/a{c}x").parse::<SpiffeId>().is_ok(), path, "{c:?} in path");
        assert_eq!(c.to_string().parse::<TrustDomain>().is_ok(), common, "{c:?} as td");
    }
}

#[test]
fn trust_domain_errors_name_the_repair() {
    for (text, part) in [
        ("", "empty"),
        ("Cluster.Local", "write `cluster.local`"),
        ("spiffe://td", "remove the scheme"),
        ("td/ns", "bare name"),
        ("td:1", "port"),
    ] {
        let error = text.parse::<TrustDomain>().unwrap_err().0;
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn istio_service_account_form_is_written_and_read() {
    let td: TrustDomain = "cluster.local".parse().unwrap();
    let id = SpiffeId::for_service_account(&td, "payments", "api").unwrap();
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/payments/sa/api");
    assert_eq!(id.service_account(), Some(("payments", "api")));
    assert_eq!(id.principal(), "cluster.local/ns/payments/sa/api");
    assert_eq!(SpiffeId::for_trust_domain(&td).as_str(), "spiffe://cluster.local");
    for (namespace, account) in [("", "a"), ("a", ""), ("a/b", "c"), ("a", ".."), ("a", "b c")] {
        assert!(SpiffeId::for_service_account(&td, namespace, account).is_err(), "{namespace:?} {account:?}");
    }
    for other in [
        "spiffe://td",
        "spiffe://td/ns/a",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/NS/a/sa/b",
        "spiffe://td/ns/a/b/sa/c",
    ] {
        assert_eq!(other.parse::<SpiffeId>().unwrap().service_account(), None, "{other}");
    }
}

#[test]
fn json_carries_ids_as_checked_text() {
    let id: SpiffeId = serde_json::from_str("\"spiffe://td/a\"").unwrap();
    assert_eq!(serde_json::to_string(&id).unwrap(), "\"spiffe://td/a\"");
    assert!(
        serde_json::from_str::<SpiffeId>("\"spiffe://TD/a\"").unwrap_err().to_string().contains("write `td`")
    );
}

proptest! {
    #[test]
    fn parsing_is_total_and_prints_what_it_read(text in "\\PC{0,80}") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.as_str(), text);
        }
    }

    #[test]
    fn near_misses_never_panic_and_keep_their_parts(
        td in "[a-z0-9._-]{1,20}", path in proptest::collection::vec("[a-zA-Z0-9._-]{1,8}", 0..5), junk in "[ -~]{0,2}", at in 0usize..60,
    ) {
        let path: String = path.iter().map(|segment| format!("/{segment}")).collect();
        let mut text = format!("spiffe://{td}{path}");
        let sound = !path.split('/').any(|segment| segment == "." || segment == "..");
        prop_assert_eq!(text.parse::<SpiffeId>().is_ok(), sound);
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text.clone());
        }
        text.insert_str(at.min(text.len()), &junk);
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b"/:._-".contains(&b)));
        }
    }
}
