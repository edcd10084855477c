//! Tokens, read with nothing but the specification and the published key.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;
use crate::authority::{
    Authority, AuthorityKind, Slot,
    tests::{authority, now},
};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use postern_identity::{Bundle, jwt::PublicKey};
use serde_json::Value;

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

fn issue(authority: &Authority, at: SystemTime) -> JwtIssued {
    authority.issue_jwt(&id(), &["bank".into()], DEFAULT_JWT_LIFETIME, at).unwrap()
}

/// The claims, when a key of the bundle signed it.
fn read(bundle: &Bundle, token: &str) -> Option<(Value, Value)> {
    let parts: Vec<&str> = token.split('.').collect();
    let decoded: Vec<Vec<u8>> = parts.iter().map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
    let header: Value = serde_json::from_slice(&decoded[0]).unwrap();
    let key = bundle.jwt_keys.iter().find(|key| header["kid"] == key.kid.as_str())?;
    let PublicKey::Ec { point, .. } = &key.key else { panic!("{key:?}") };
    let signed = format!("{}.{}", parts[0], parts[1]);
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed.as_bytes(), &decoded[2]).ok()?;
    Some((header, serde_json::from_slice(&decoded[1]).unwrap()))
}

#[test]
fn jwt_svid_2_and_3_a_token_says_exactly_what_it_must() {
    let authority = authority();
    let issued = issue(&authority, now());
    assert_eq!(issued.expires, now() + DEFAULT_JWT_LIFETIME);
    let (header, claims) = read(&authority.bundle(), &issued.token).unwrap();
    let kid = &authority.bundle().jwt_keys[0].kid;
    assert_eq!(header, json!({ "alg": "ES256", "kid": kid, "typ": "JWT" }));
    let at = seconds(now());
    assert_eq!(claims["sub"], "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(claims["aud"], json!(["bank"]));
    assert_eq!((&claims["iat"], &claims["exp"]), (&json!(at), &json!(at + 300)));
    assert_eq!(claims["jti"].as_str().unwrap().len(), 32);
    assert_eq!(claims.as_object().unwrap().len(), 5);
    assert_ne!(issue(&authority, now()).token, issued.token);
    assert!(!format!("{issued:?}").contains(&issued.token));
    assert!(
        read(&Authority::in_memory("cluster.local".parse().unwrap(), now()).unwrap().bundle(), &issued.token)
            .is_none()
    );
}

/// `Ok` or a part of the refusal.
fn check(who: &str, audience: &[&str], lifetime: Duration, expected: Result<u64, &str>) {
    let audience: Vec<String> = audience.iter().map(|name| (*name).to_owned()).collect();
    match (authority().issue_jwt(&who.parse().unwrap(), &audience, lifetime, now()), expected) {
        (Ok(issued), Ok(lives)) => assert_eq!(issued.expires, now() + Duration::from_secs(lives)),
        (Err(refusal), Err(part)) => {
            assert!(refusal.to_string().contains(part), "{refusal} should contain {part}")
        }
        (result, expected) => panic!("{result:?}, expected {expected:?}"),
    }
}

#[test]
fn tokens_are_for_our_workloads_an_audience_and_minutes() {
    let (cart, minute) = ("spiffe://cluster.local/ns/shop/sa/cart", Duration::from_secs(60));
    check(cart, &["a"], minute, Ok(60));
    check(cart, &["a", "b"], minute, Ok(60));
    check(cart, &["a"], minute * 60 * 24, Ok(3600));
    check(cart, &["a"], Duration::from_millis(999), Err("less than a second"));
    check(cart, &[], minute, Err("missing"));
    check(cart, &[""], minute, Err("an empty name"));
    check(cart, &["a"; 17], minute, Err("too many names"));
    check(cart, &["a".repeat(1025).as_str()], minute, Err("too long"));
    check("spiffe://other.example/ns/shop/sa/cart", &["a"], minute, Err("no workload of this trust domain"));
    check("spiffe://cluster.local", &["a"], minute, Err("no workload of this trust domain"));
}

#[test]
fn a_token_key_is_published_before_it_signs_and_as_long_as_its_tokens_live() {
    let authority = authority();
    let first = issue(&authority, now());
    let next = authority.prepare(AuthorityKind::JwtKey, now()).unwrap();
    assert_eq!(authority.bundle().jwt_keys.len(), 2);
    authority.activate(AuthorityKind::JwtKey, now()).unwrap();
    let second = issue(&authority, now());
    assert_eq!(read(&authority.bundle(), &second.token).unwrap().0["kid"], next.to_string());
    assert!(read(&authority.bundle(), &first.token).is_some());
    authority.tick(now() + MAX_JWT_LIFETIME);
    assert!(read(&authority.bundle(), &first.token).is_some());
    authority.tick(now() + MAX_JWT_LIFETIME * 2);
    assert!(read(&authority.bundle(), &first.token).is_none(), "no token of it can be valid any more");
    // Revoked without a prepared one: a new one signs at once.
    let third = issue(&authority, now());
    authority.revoke(next, now()).unwrap();
    assert!(read(&authority.bundle(), &third.token).is_none());
    assert!(read(&authority.bundle(), &issue(&authority, now()).token).is_some());
    let keys = authority.status(now()).into_iter().filter(|one| one.kind == AuthorityKind::JwtKey);
    assert_eq!(keys.map(|key| (key.slot, key.has_key)).collect::<Vec<_>>(), [(Slot::Active, true)]);
}

#[test]
fn a_token_never_outlives_its_key() {
    let authority = authority();
    let end = now() + Duration::from_secs(30 * 24 * 3600);
    assert_eq!(issue(&authority, end - Duration::from_secs(10)).expires, end);
    let refusal = authority.issue_jwt(&id(), &["a".into()], DEFAULT_JWT_LIFETIME, end).unwrap_err();
    assert_eq!(refusal, IssueError::AuthorityNotValid);
}
