//! Tables for JWT-SVID sections 2 to 5: every MUST with a token that breaks it, each beside its good twin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::super::{Curve, PublicKey, assemble, signing_input};
use super::*;
use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{self as sig, EcdsaKeyPair, KeyPair, RsaKeyPair},
};
use proptest::prelude::*;
use serde_json::json;
use std::sync::LazyLock;

const TD: &str = "cluster.local";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const US: &str = "payments";
const NOW: i64 = 1_780_000_000;

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW as u64))
}

enum Secret {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// A key as an authority holds it.
struct Signer {
    kid: &'static str,
    secret: Secret,
}

impl Signer {
    fn ec(kid: &'static str, algorithm: &'static sig::EcdsaSigningAlgorithm) -> Self {
        Self { kid, secret: Secret::Ec(EcdsaKeyPair::generate(algorithm).unwrap()) }
    }

    fn p256(kid: &'static str) -> Self {
        Self::ec(kid, &sig::ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    fn public(&self) -> JwtKey {
        let key = match &self.secret {
            Secret::Rsa(pair) => {
                let big_endian = |number: &[u8]| number.iter().copied().skip_while(|b| *b == 0).collect();
                let public = pair.public_key();
                PublicKey::Rsa {
                    n: big_endian(public.modulus().big_endian_without_leading_zero()),
                    e: big_endian(public.exponent().big_endian_without_leading_zero()),
                }
            }
            Secret::Ec(pair) => {
                let point = pair.public_key().as_ref().to_vec();
                let curve = match point.len() {
                    65 => Curve::P256,
                    97 => Curve::P384,
                    _ => Curve::P521,
                };
                PublicKey::Ec { curve, point }
            }
        };
        JwtKey { kid: self.kid.into(), key }
    }

    fn sign(&self, alg: Algorithm, message: &[u8]) -> Vec<u8> {
        match &self.secret {
            Secret::Ec(pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Secret::Rsa(pair) => {
                let padding: &dyn sig::RsaEncoding = match alg {
                    Algorithm::Rs384 => &sig::RSA_PKCS1_SHA384,
                    Algorithm::Rs512 => &sig::RSA_PKCS1_SHA512,
                    Algorithm::Ps256 => &sig::RSA_PSS_SHA256,
                    Algorithm::Ps384 => &sig::RSA_PSS_SHA384,
                    Algorithm::Ps512 => &sig::RSA_PSS_SHA512,
                    _ => &sig::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// A token of exactly this text, whatever it says.
    fn token(&self, header: &str, claims: &str) -> String {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let alg = json::read(header.as_bytes()).ok().and_then(|h| Algorithm::from_name(h["alg"].as_str()?));
        assemble(&input, &self.sign(alg.unwrap_or(Algorithm::Rs256), input.as_bytes()))
    }
}

/// One mesh with one key for each algorithm, and a foreign one beside it.
struct World {
    p256: Signer,
    p384: Signer,
    p521: Signer,
    rsa: Signer,
    foreign: Signer,
    trust: TrustBundles,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let p256 = Signer::p256("p256");
    let p384 = Signer::ec("p384", &sig::ECDSA_P384_SHA384_FIXED_SIGNING);
    let p521 = Signer::ec("p521", &sig::ECDSA_P521_SHA512_FIXED_SIGNING);
    let rsa = Signer { kid: "rsa", secret: Secret::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()) };
    // The same `kid` in both trust domains: a key is looked for in one of them only.
    let foreign = Signer::p256("p256");
    let mut ours = Bundle::new(TD.parse().unwrap(), vec![]);
    ours.jwt_keys = [&p256, &p384, &p521, &rsa].map(Signer::public).into();
    let PublicKey::Rsa { n, e } = rsa.public().key else { unreachable!() };
    let weak = PublicKey::Rsa { n: n[..128].into(), e };
    ours.jwt_keys.push(JwtKey { kid: "weak".into(), key: weak });
    let mut theirs = Bundle::new("other.example".parse().unwrap(), vec![]);
    theirs.jwt_keys = vec![foreign.public()];
    let trust = TrustBundles::distinct([ours, theirs]).unwrap();
    World { p256, p384, p521, rsa, foreign, trust }
});

/// Claims that pass, with some replaced; `null` takes one away.
fn claims(changes: Value) -> String {
    let mut claims = json!({ "sub": CART, "aud": [US], "iat": NOW, "exp": NOW + 300 });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims.to_string()
}

const HEADER: &str = r#"{"alg":"ES256","kid":"p256","typ":"JWT"}"#;

/// The good token.
fn good() -> String {
    WORLD.p256.token(HEADER, &claims(json!({})))
}

/// `Ok(())`, or the code of the refusal, which is given back.
fn check(token: &str, expected: Result<(), &str>) -> Option<TokenRefusal> {
    let result = verify(token, &WORLD.trust, US, now());
    match (&result, expected) {
        (Ok(svid), Ok(())) => assert!(svid.audience.iter().any(|audience| audience == US)),
        (Err(refusal), Err(code)) => {
            assert_eq!(refusal.code(), code, "{refusal}");
            // Neither the sentence nor `Debug` may hold what could be used again.
            for part in token.split('.').filter(|part| part.len() > 20) {
                assert!(!format!("{refusal} {refusal:?}").contains(part), "{refusal:?}");
            }
        }
        (result, expected) => panic!("{result:?}, expected {expected:?}"),
    }
    result.err()
}

fn check_header(header: &str, expected: Result<(), &str>) -> Option<TokenRefusal> {
    check(&WORLD.p256.token(header, &claims(json!({}))), expected)
}

fn check_claims(changes: Value, expected: Result<(), &str>) -> Option<TokenRefusal> {
    check(&WORLD.p256.token(HEADER, &claims(changes)), expected)
}

#[test]
fn what_our_authority_composes_is_what_our_verifier_accepts() {
    let (id, audience) = (CART.parse().unwrap(), [US.to_owned(), "b".to_owned()]);
    let input = signing_input("p256", &id, &audience, NOW as u64, NOW as u64 + 300);
    let token = assemble(&input, &WORLD.p256.sign(Algorithm::Es256, input.as_bytes()));
    let svid = verify(&token, &WORLD.trust, "b", now()).unwrap();
    assert_eq!((svid.id, svid.audience), (id, audience.to_vec()));
    assert_eq!(svid.expires.as_secs(), NOW as u64 + 300);
    assert_eq!(svid.claims["iat"], NOW);
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    assert_eq!(header, json!({ "alg": "ES256", "kid": "p256", "typ": "JWT" }), "and nothing else");
}

#[test]
fn jwt_svid_2_the_token_is_a_jws_in_compact_form() {
    let token = good();
    check(&token, Ok(()));
    let parts: Vec<&str> = token.split('.').collect();
    let [header, body, signature] = parts[..] else { unreachable!() };
    for wrong in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        "....".into(),
        "abc".into(),
        format!("{header}.{body}"),
        format!("{header}.{body}."),
        format!(".{body}.{signature}"),
        format!("{header}..{signature}"),
        format!("{header}.{body}.{signature}."),
        format!("{header}.{body}.{signature}.{signature}"),
        format!("{header}.{body}.{signature}.{body}.{body}"),
        json!({ "protected": header, "payload": body, "signature": signature }).to_string(),
    ] {
        check(&wrong, Err("not-compact"));
    }
    for wrong in [
        format!(" {token}"),
        format!("{token}\n"),
        format!("{token}="),
        format!("Bearer {token}"),
        format!("{header}.{body}=.{signature}"),
        format!("{header}+.{body}.{signature}"),
        format!("{header}.{body}/.{signature}"),
        format!("{header}.{body}\0.{signature}"),
        format!("{header}.ä.{signature}"),
    ] {
        check(&wrong, Err("not-base64"));
    }
    // One content has one spelling: bits beyond the last byte are refused.
    let loose = format!("{}.{body}.{signature}", URL_SAFE_NO_PAD.encode("{}").replace("e30", "e31"));
    check(&loose, Err("not-base64"));
    check(&"a".repeat(MAX_TOKEN_BYTES + 1), Err("too-long"));
    check(&"a".repeat(MAX_TOKEN_BYTES), Err("not-compact"));
}

#[test]
fn jwt_svid_2_header_and_claims_are_objects_with_each_member_once() {
    for wrong in ["[]", "null", "\"x\"", "{", "{}{}", "\u{feff}{}", r#"{"alg":"ES256","alg":"ES256"}"#] {
        check_header(wrong, Err("not-json"));
        check(&WORLD.p256.token(HEADER, wrong), Err("not-json"));
    }
    let twice = claims(json!({})).replace("{", r#"{"aud":"other","#);
    check(&WORLD.p256.token(HEADER, &twice), Err("not-json"));
    let hidden = claims(json!({})).replace("{", r#"{"s\u0075b":"spiffe://cluster.local/x","#);
    check(&WORLD.p256.token(HEADER, &hidden), Err("not-json"));
}

#[test]
fn jwt_svid_2_the_header_has_alg_kid_and_typ_and_nothing_else() {
    check_header(r#"{"alg":"ES256"}"#, Ok(()));
    check_header(r#"{"alg":"ES256","kid":"p256"}"#, Ok(()));
    check_header(r#"{"alg":"ES256","typ":"JOSE"}"#, Ok(()));
    for other in
        ["crit", "b64", "jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "cty", "zip", "enc", "Alg", ""]
    {
        check_header(
            &json!({ "alg": "ES256", "kid": "p256", other: ["x"] }).to_string(),
            Err("header-not-allowed"),
        );
    }
    for kind in ["jwt", "JWT ", "at+jwt", "application/jwt", ""] {
        check_header(&json!({ "alg": "ES256", "typ": kind }).to_string(), Err("type-not-allowed"));
    }
    for name in ["alg", "kid", "typ"] {
        let mut header = json!({ "alg": "ES256" });
        for value in [json!(1), json!(null), json!(["ES256"])] {
            header[name] = value;
            check_header(&header.to_string(), Err("header-not-text"));
        }
    }
}

#[test]
fn jwt_svid_2_1_only_nine_algorithms_verify_and_each_with_its_own_kind_of_key() {
    let world = &*WORLD;
    for (algorithm, signer) in [
        ("RS256", &world.rsa),
        ("RS384", &world.rsa),
        ("RS512", &world.rsa),
        ("PS256", &world.rsa),
        ("PS384", &world.rsa),
        ("PS512", &world.rsa),
        ("ES256", &world.p256),
        ("ES384", &world.p384),
        ("ES512", &world.p521),
    ] {
        let header = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid, "typ": "JWT" }).to_string();
        let token = signer.token(&header(algorithm, signer.kid), &claims(json!({})));
        check(&token, Ok(()));
        // Without a `kid` every key of the bundle is tried.
        check(&signer.token(&json!({ "alg": algorithm }).to_string(), &claims(json!({}))), Ok(()));
        // A key of another kind, or of another curve, is not used.
        for other in [&world.rsa, &world.p256, &world.p384, &world.p521] {
            if !Algorithm::from_name(algorithm).unwrap().fits(&other.public().key) {
                check(
                    &signer.token(&header(algorithm, other.kid), &claims(json!({}))),
                    Err("no-fitting-key"),
                );
            }
        }
        // A changed signature, a changed claim, and a signature under another name of algorithm.
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        bytes[5] ^= 1;
        check(&assemble(signed, &bytes), Err("bad-signature"));
        check(&assemble(signed, &bytes[..bytes.len() - 1]), Err("bad-signature"));
        check(&assemble(signed, &vec![0; bytes.len()]), Err("bad-signature"));
        let forged = claims(json!({ "sub": "spiffe://cluster.local/ns/shop/sa/root" }));
        let head = signed.split('.').next().unwrap();
        check(&format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode(forged)), Err("bad-signature"));
    }
    for (alg, code) in [
        ("none", "algorithm-not-allowed"),
        ("None", "algorithm-not-allowed"),
        ("HS256", "algorithm-not-allowed"),
        ("EdDSA", "algorithm-not-allowed"),
        ("ES256K", "algorithm-not-allowed"),
        ("es256", "algorithm-not-allowed"),
    ] {
        check_header(&json!({ "alg": alg, "kid": "p256" }).to_string(), Err(code));
    }
    check_header(r#"{"kid":"p256"}"#, Err("no-algorithm"));
    // PKCS#1 and PSS are not the same.
    let input = |alg: &str| {
        let header = json!({ "alg": alg, "kid": "rsa" }).to_string();
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims(json!({}))))
    };
    let signed = input("RS256");
    check(&assemble(&signed, &world.rsa.sign(Algorithm::Ps256, signed.as_bytes())), Err("bad-signature"));
    check(&assemble(&signed, &world.rsa.sign(Algorithm::Rs256, signed.as_bytes())), Ok(()));
    // RFC 7518 3.3: no RSA key below 2048 bits.
    let weak = json!({ "alg": "RS256", "kid": "weak" }).to_string();
    check(&world.rsa.token(&weak, &claims(json!({}))), Err("no-fitting-key"));
    // An ES256 signature in DER is not the form of RFC 7518 3.4.
    let der = EcdsaKeyPair::generate(&sig::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let mut bundle = Bundle::new(TD.parse().unwrap(), vec![]);
    let point = der.public_key().as_ref().to_vec();
    bundle.jwt_keys = vec![JwtKey { kid: "d".into(), key: PublicKey::Ec { curve: Curve::P256, point } }];
    let input = signing_input("d", &CART.parse().unwrap(), &[US.into()], NOW as u64, NOW as u64 + 60);
    let signature = der.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    let result = verify(&assemble(&input, signature.as_ref()), &[bundle].into_iter().collect(), US, now());
    assert_eq!(result.unwrap_err().code(), "bad-signature");
}

#[test]
fn jwt_svid_2_2_the_kid_chooses_the_key() {
    check_header(r#"{"alg":"ES256","kid":"unknown"}"#, Err("unknown-key"));
    check_header(r#"{"alg":"ES256","kid":""}"#, Err("unknown-key"));
    check_header(r#"{"alg":"ES256","kid":"P256"}"#, Err("unknown-key"));
    // Two keys of one kind: the named one counts even though the other one would verify.
    let (one, two) = (Signer::p256("one"), Signer::p256("two"));
    let mut bundle = Bundle::new(TD.parse().unwrap(), vec![]);
    bundle.jwt_keys = vec![one.public(), two.public()];
    let trust: TrustBundles = [bundle].into_iter().collect();
    let token = |header: &str| two.token(header, &claims(json!({})));
    for (header, expected) in [
        (r#"{"alg":"ES256","kid":"two"}"#, None),
        (r#"{"alg":"ES256"}"#, None),
        (r#"{"alg":"ES256","kid":"one"}"#, Some("bad-signature")),
    ] {
        let result = verify(&token(header), &trust, US, now());
        assert_eq!(result.err().map(|refusal| refusal.code()), expected, "{header}");
    }
}

#[test]
fn jwt_svid_3_1_the_subject_is_the_canonical_id_of_a_workload() {
    check_claims(json!({ "sub": "spiffe://cluster.local/a" }), Ok(()));
    for missing in [json!(null), json!(1), json!([CART]), json!({ "id": CART })] {
        check_claims(json!({ "sub": missing }), Err("no-subject"));
    }
    for wrong in [
        "",
        "cart",
        "cluster.local/ns/shop/sa/cart",
        "https://cluster.local/a",
        "SPIFFE://cluster.local/a",
        "spiffe://Cluster.local/a",
        "spiffe://cluster.local/a/",
        "spiffe://cluster.local/a/../b",
        "spiffe://cluster.local/%61",
        "spiffe://cluster.local:1/a",
        "spiffe://user@cluster.local/a",
        "spiffe://cluster.local/a?q",
        "spiffe://cluster.local/a\0",
        "spiffe://cluster.local/a\r\n",
    ] {
        check_claims(json!({ "sub": wrong }), Err("invalid-subject"));
    }
    check_claims(json!({ "sub": "spiffe://cluster.local" }), Err("subject-without-path"));
    let long = format!("spiffe://{TD}/{}", "a".repeat(2048 - 10 - TD.len()));
    check_claims(json!({ "sub": long }), Ok(()));
    check_claims(json!({ "sub": format!("{long}a") }), Err("invalid-subject"));
}

#[test]
fn jwt_svid_3_2_the_verifiers_own_audience_must_be_named() {
    for aud in [json!(US), json!([US]), json!(["a", US, "b"])] {
        check_claims(json!({ "aud": aud }), Ok(()));
    }
    for aud in [json!(null), json!([]), json!(1), json!({}), json!([1]), json!([US, 1]), json!(true)] {
        check_claims(json!({ "aud": aud }), Err("no-audience"));
    }
    for aud in
        [json!("other"), json!(["other"]), json!(""), json!("Payments"), json!("payments "), json!([[US]])]
    {
        let code = if aud == json!([[US]]) { "no-audience" } else { "other-audience" };
        check_claims(json!({ "aud": aud }), Err(code));
    }
    // A verifier that does not say who it is accepts nothing.
    let token = WORLD.p256.token(HEADER, &claims(json!({ "aud": "" })));
    assert_eq!(verify(&token, &WORLD.trust, "", now()).unwrap_err().code(), "other-audience");
}

#[test]
fn jwt_svid_3_3_a_token_ends_and_the_refusal_shows_both_clocks() {
    check_claims(json!({ "exp": NOW + 1 }), Ok(()));
    check_claims(json!({ "exp": NOW as f64 + 1.5 }), Ok(()));
    check_claims(json!({ "exp": 1e300 }), Ok(()));
    check_claims(json!({ "exp": null }), Err("no-expiry"));
    for wrong in [json!("1780000300"), json!([NOW + 300]), json!(true)] {
        check_claims(json!({ "exp": wrong }), Err("time-not-number"));
    }
    for past in [json!(NOW), json!(NOW - 1), json!(0), json!(-1), json!(NOW as f64 + 0.9), json!(-1e300)] {
        check_claims(json!({ "exp": past }), Err("expired"));
    }
    let sentence = check_claims(json!({ "exp": NOW - 60 }), Err("expired")).unwrap().to_string();
    assert!(
        sentence.contains("now 2026-05-28T20:26:40Z") && sentence.contains("exp 2026-05-28T20:25:40Z"),
        "{sentence}"
    );
}

#[test]
fn rfc_7519_4_1_a_token_from_the_future_is_refused_beyond_a_small_leeway() {
    for claim in ["nbf", "iat"] {
        check_claims(json!({ claim: NOW + START_LEEWAY_SECONDS }), Ok(()));
        check_claims(json!({ claim: NOW - 86_400 }), Ok(()));
        check_claims(json!({ claim: "soon" }), Err("time-not-number"));
        let refusal =
            check_claims(json!({ claim: NOW + START_LEEWAY_SECONDS + 1 }), Err("not-yet-valid")).unwrap();
        let sentence = refusal.to_string();
        assert!(
            sentence.contains("now 2026-05-28T20:26:40Z")
                && sentence.contains(&format!("{claim} 2026-05-28T20:27:41Z"))
                && sentence.contains("compare the clocks"),
            "{sentence}"
        );
    }
    check_claims(json!({ "iat": null }), Ok(()));
}

#[test]
fn jwt_svid_5_2_the_key_comes_from_the_subjects_own_trust_domain_only() {
    let world = &*WORLD;
    let theirs = json!({ "sub": "spiffe://other.example/a" });
    check(&world.foreign.token(HEADER, &claims(theirs.clone())), Ok(()));
    check(&world.foreign.token(HEADER, &claims(json!({}))), Err("bad-signature"));
    check(&world.p256.token(HEADER, &claims(theirs)), Err("bad-signature"));
    let unknown = json!({ "sub": "spiffe://unknown.example/a" });
    let refusal = check(&world.p256.token(HEADER, &claims(unknown)), Err("unknown-trust-domain")).unwrap();
    assert!(refusal.to_string().contains("(known: cluster.local, other.example)"), "{refusal}");
    // A bundle without keys for tokens means that all tokens are revoked.
    let empty: TrustBundles = [Bundle::new(TD.parse().unwrap(), vec![])].into_iter().collect();
    assert_eq!(verify(&good(), &empty, US, now()).unwrap_err().code(), "unknown-key");
    let nameless = world.p256.token(r#"{"alg":"ES256"}"#, &claims(json!({})));
    assert_eq!(verify(&nameless, &empty, US, now()).unwrap_err().code(), "no-fitting-key");
}

#[test]
fn jwt_svid_5_2_audience_and_time_are_said_only_to_whoever_has_a_signature() {
    let world = &*WORLD;
    for changes in
        [json!({ "aud": "other" }), json!({ "exp": NOW - 1 }), json!({ "exp": null }), json!({ "aud": null })]
    {
        check(&world.foreign.token(HEADER, &claims(changes)), Err("bad-signature"));
    }
}

#[test]
fn other_claims_are_kept_and_do_no_harm() {
    let token =
        WORLD.p256.token(HEADER, &claims(json!({ "jti": "1", "iss": "x", "deep": { "a": [1, null] } })));
    let svid = verify(&token, &WORLD.trust, US, now()).unwrap();
    assert_eq!(svid.claims["deep"], json!({ "a": [1, null] }));
}

proptest! {
    #[test]
    fn any_text_is_answered_and_nothing_unsigned_is_accepted(text in "\\PC{0,60}(\\.[A-Za-z0-9_-]{0,40}){0,4}") {
        prop_assert!(verify(&text, &WORLD.trust, US, now()).is_err());
    }

    #[test]
    fn one_changed_byte_anywhere_spoils_a_token(at in 0usize..400, to in "[A-Za-z0-9_.-]") {
        let token = good();
        let at = at % token.len();
        let mut changed = token.clone();
        changed.replace_range(at..=at, &to);
        // ECDSA has no second signature of another spelling here: the base64 is canonical and the length fixed.
        prop_assert_eq!(verify(&changed, &WORLD.trust, US, now()).is_ok(), changed == token);
    }

    #[test]
    fn headers_and_claims_of_any_shape_never_panic(
        header in "\\{(\"(alg|kid|typ|crit)\":(\"ES256\"|\"JWT\"|\"p256\"|1|null|\\[\\]),?){0,4}\\}",
        claims in "\\{(\"(sub|aud|exp|nbf|iat)\":(\"spiffe://cluster.local/a\"|\"payments\"|-?[0-9]{1,20}|[0-9]e[0-9]{1,3}|\\[\"payments\"\\]),?){0,5}\\}",
    ) {
        let _ = verify(&WORLD.p256.token(&header, &claims), &WORLD.trust, US, now());
    }
}
