//! Tables for X509-SVID sections 2 to 5: every MUST with a certificate that breaks it, each beside its good twin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod mint;

use mint::*;
use postern_identity::{Accept, Refusal, TrustBundles, verify::verify};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Purpose, GeneralSubtree, IsCa,
    KeyPair, KeyUsagePurpose as Usage, NameConstraints, SanType,
};
use rustls_pki_types::CertificateDer;

fn anybody() -> Accept {
    Accept::TrustDomains([TD, "other.example"].map(|td| td.parse().unwrap()).into())
}

/// Verifies in both directions; `Ok(id)`, or the code of the refusal.
fn check(
    chain: &[&CertificateDer<'static>],
    trust: &TrustBundles,
    expected: Result<&str, &str>,
) -> Option<Refusal> {
    let chain: Vec<_> = chain.iter().map(|certificate| (*certificate).clone()).collect();
    let client = verify(&chain, trust, &anybody(), false, now());
    let server = verify(&chain, trust, &anybody(), true, now());
    assert_eq!(client, server, "both directions hold to the same rules");
    match (&client, expected) {
        (Ok(peer), Ok(id)) => assert_eq!(peer.id().as_str(), id),
        (Err(refusal), Err(code)) => assert_eq!(refusal.code(), code, "{refusal}"),
        (result, expected) => panic!("{result:?}, expected {expected:?}"),
    }
    client.err()
}

/// A leaf directly below a sound root.
fn check_leaf(expected: Result<&str, &str>, change: impl FnOnce(&mut CertificateParams)) -> Option<Refusal> {
    check_leaf_of(CART, expected, change)
}

fn check_leaf_of(
    id: &str,
    expected: Result<&str, &str>,
    change: impl FnOnce(&mut CertificateParams),
) -> Option<Refusal> {
    let root = root(TD, |_| {});
    check(&[&root.leaf(id, change).der], &root.trust(TD), expected)
}

/// A good leaf below an intermediate below a sound root.
fn check_intermediate(
    expected: Result<&str, &str>,
    change: impl FnOnce(&mut CertificateParams),
) -> Option<Refusal> {
    let root = root(TD, |_| {});
    let intermediate = root.intermediate(TD, change);
    let refusal =
        check(&[&intermediate.leaf(CART, |_| {}).der, &intermediate.der], &root.trust(TD), expected);
    // Whatever is wrong above it, who presented it stands there.
    assert!(refusal.iter().all(|refusal| refusal.to_string().contains(CART)), "{refusal:?}");
    refusal
}

/// A good leaf below a root.
fn check_root(expected: Result<&str, &str>, change: impl FnOnce(&mut CertificateParams)) -> Option<Refusal> {
    let root = root(TD, change);
    check(&[&root.leaf(CART, |_| {}).der], &root.trust(TD), expected)
}

#[test]
fn x509_svid_2_a_leaf_has_exactly_one_uri() {
    check_leaf(Ok(CART), |_| {});
    check_leaf(Ok(CART), |p| p.subject_alt_names.push(SanType::DnsName("cart.shop".try_into().unwrap())));
    check_leaf(Ok(CART), |p| p.subject_alt_names.insert(0, SanType::IpAddress([10, 0, 0, 1].into())));
    check_leaf(Err("no-uri-san"), |p| p.subject_alt_names.clear());
    check_leaf(Err("no-uri-san"), |p| {
        p.subject_alt_names = vec![SanType::DnsName("cart.shop".try_into().unwrap())]
    });
    check_leaf(Err("several-uri-sans"), |p| p.subject_alt_names.push(uri(API)));
    check_leaf(Err("several-uri-sans"), |p| p.subject_alt_names.push(uri(CART)));
    check_leaf(Err("several-uri-sans"), |p| p.subject_alt_names.push(uri("https://example.com/")));
    check_leaf(Err("several-uri-sans"), |p| p.subject_alt_names.insert(0, uri("https://example.com/")));
}

#[test]
fn x509_svid_2_the_uri_is_a_canonical_spiffe_id_of_a_workload() {
    for (id, code) in [
        ("https://cluster.local/ns/shop/sa/cart", "invalid-id"),
        ("SPIFFE://cluster.local/ns/shop/sa/cart", "invalid-id"),
        ("spiffe://Cluster.local/ns/shop/sa/cart", "invalid-id"),
        ("spiffe://cluster.local:443/a", "invalid-id"),
        ("spiffe://user@cluster.local/a", "invalid-id"),
        ("spiffe://cluster.local/a?b", "invalid-id"),
        ("spiffe://cluster.local/a#b", "invalid-id"),
        ("spiffe:///a", "invalid-id"),
        ("spiffe://cluster.local/a/", "invalid-id"),
        ("spiffe://cluster.local//a", "invalid-id"),
        ("spiffe://cluster.local/../a", "invalid-id"),
        ("spiffe://cluster.local/%61", "invalid-id"),
        ("spiffe://cluster.local/", "invalid-id"),
        ("spiffe://cluster.local", "id-without-path"),
        ("", "invalid-id"),
    ] {
        check_leaf_of(id, Err(code), |_| {});
    }
    let long = format!("spiffe://{TD}/{}", "a".repeat(2048 - 10 - TD.len()));
    check_leaf_of(&long, Ok(&long), |_| {});
    check_leaf_of(&format!("{long}a"), Err("invalid-id"), |_| {});
}

#[test]
fn rfc_5280_names_with_nul_control_or_foreign_letters_are_refused() {
    let named = |names: &[(u8, &[u8])], expected| {
        check_leaf(expected, |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(raw_names(true, names));
        })
    };
    const URI: u8 = 6;
    const DNS: u8 = 2;
    named(&[(URI, CART.as_bytes()), (DNS, b"cart")], Ok(CART));
    for wrong in ["\0", "\r\n", "\u{7f}", "é"] {
        named(&[(URI, format!("{CART}{wrong}").as_bytes())], Err("name-not-ascii"));
        named(&[(URI, CART.as_bytes()), (DNS, format!("cart{wrong}").as_bytes())], Err("name-not-ascii"));
    }
    named(&[(URI, b"spiffe://cluster.local/\xff")], Err("name-not-ascii"));
    let refusal = named(&[(URI, b"spiffe://a\0.cluster.local/x")], Err("name-not-ascii")).unwrap();
    assert!(
        refusal.to_string().contains("`spiffe://a\\0.cluster.local/x`"),
        "escaped for the log: {refusal}"
    );
}

#[test]
fn x509_svid_2_names_are_critical_when_the_subject_is_empty() {
    let names = |critical| raw_names(critical, &[(6, CART.as_bytes())]);
    let replace = |p: &mut CertificateParams, critical| {
        p.subject_alt_names.clear();
        p.custom_extensions.push(names(critical));
    };
    check_leaf(Ok(CART), |p| replace(p, true));
    check_leaf(Err("san-not-critical"), |p| replace(p, false));
    check_leaf(Ok(CART), |p| {
        replace(p, false);
        p.distinguished_name.push(DnType::CommonName, "cart");
    });
}

#[test]
fn x509_svid_4_1_a_leaf_is_no_authority() {
    check_leaf(Ok(CART), |p| p.is_ca = IsCa::NoCa);
    check_leaf(Ok(CART), |p| p.is_ca = IsCa::ExplicitNoCa);
    check_leaf(Err("leaf-is-authority"), |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    check_leaf(Err("leaf-is-authority"), |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    // A signing certificate itself, used to authenticate.
    let root = root(TD, |_| {});
    check(&[&root.der], &root.trust(TD), Err("id-without-path"));
    check(&[&root.intermediate(TD, |_| {}).der], &root.trust(TD), Err("id-without-path"));
}

#[test]
fn x509_svid_4_3_key_usage_of_a_leaf() {
    check_leaf(Ok(CART), |p| p.key_usages.extend([Usage::KeyEncipherment, Usage::KeyAgreement]));
    check_leaf(Err("key-usage-missing"), |p| p.key_usages.clear());
    check_leaf(Err("no-digital-signature"), |p| p.key_usages = vec![Usage::KeyAgreement]);
    check_leaf(Err("leaf-can-sign-certificates"), |p| p.key_usages.push(Usage::KeyCertSign));
    check_leaf(Err("leaf-can-sign-crls"), |p| p.key_usages.push(Usage::CrlSign));
    let digital_signature = || vec![0x03, 0x02, 0x07, 0x80];
    check_leaf(Ok(CART), |p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(KEY_USAGE, true, digital_signature()));
    });
    check_leaf(Err("key-usage-not-critical"), |p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(KEY_USAGE, false, digital_signature()));
    });
    check_leaf(Err("malformed"), |p| {
        p.custom_extensions.push(extension(KEY_USAGE, true, digital_signature()))
    });
    check_leaf(Err("malformed"), |p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(KEY_USAGE, true, vec![0x04, 0x00]));
    });
}

#[test]
fn x509_svid_4_4_extended_key_usage_of_a_leaf_is_both_or_absent() {
    check_leaf(Ok(CART), |p| p.extended_key_usages.clear());
    check_leaf(Ok(CART), |p| p.extended_key_usages.push(Purpose::CodeSigning));
    check_leaf(Err("half-extended-key-usage"), |p| p.extended_key_usages = vec![Purpose::ServerAuth]);
    check_leaf(Err("half-extended-key-usage"), |p| p.extended_key_usages = vec![Purpose::ClientAuth]);
    check_leaf(Err("half-extended-key-usage"), |p| p.extended_key_usages = vec![Purpose::CodeSigning]);
    check_leaf(Err("half-extended-key-usage"), |p| p.extended_key_usages = vec![Purpose::Any]);
}

#[test]
fn validity_of_the_leaf_is_inclusive_and_the_refusal_shows_all_times() {
    check_leaf(Ok(CART), |p| p.not_after = at(NOW));
    check_leaf(Ok(CART), |p| p.not_before = at(NOW));
    let expired = check_leaf(Err("expired"), |p| p.not_after = at(NOW - 3_725)).unwrap().to_string();
    assert!(expired.contains("now 2026-05-28T20:26:40Z"), "{expired}");
    assert!(expired.contains("notAfter 2026-05-28T19:24:35Z") && expired.contains("notBefore "), "{expired}");
    assert!(expired.contains("1h 2m ago") && expired.contains(CART), "{expired}");
    let early = check_leaf(Err("not-yet-valid"), |p| p.not_before = at(NOW + 10)).unwrap().to_string();
    assert!(early.contains("10s from now; compare the clocks"), "{early}");
}

#[test]
fn x509_svid_5_1_only_the_bundle_of_the_ids_own_trust_domain_counts() {
    let (ours, theirs) = (root(TD, |_| {}), root("other.example", |_| {}));
    let both = TrustBundles::from_iter([ours.bundle(TD), theirs.bundle("other.example")]);
    let foreign = "spiffe://other.example/ns/a/sa/b";
    check(&[&ours.leaf(CART, |_| {}).der], &both, Ok(CART));
    check(&[&theirs.leaf(foreign, |_| {}).der], &both, Ok(foreign));
    check(&[&theirs.leaf(CART, |_| {}).der], &both, Err("unknown-issuer"));
    check(&[&ours.leaf(foreign, |_| {}).der], &both, Err("unknown-issuer"));
    let unknown =
        check(&[&theirs.leaf(foreign, |_| {}).der], &ours.trust(TD), Err("unknown-trust-domain")).unwrap();
    assert!(unknown.to_string().contains("(known: cluster.local)"), "{unknown}");
    check(&[&self_signed(CART).der], &both, Err("unknown-issuer"));
    // An authority of the same name with another key.
    check(&[&root(TD, |_| {}).leaf(CART, |_| {}).der], &both, Err("bad-signature"));
    check(&[&ours.leaf(CART, |_| {}).der], &TrustBundles::default(), Err("unknown-trust-domain"));
    // The leaf itself put into the bundle is no authority.
    let lonely = self_signed(CART);
    let trust = TrustBundles::from_iter([postern_identity::Bundle::new(
        TD.parse().unwrap(),
        vec![lonely.der.clone()],
    )]);
    check(&[&lonely.der], &trust, Err("no-usable-authority"));
}

#[test]
fn x509_svid_4_intermediates_are_signing_certificates_of_the_same_trust_domain() {
    check_intermediate(Ok(CART), |_| {});
    check_intermediate(Ok(CART), |p| p.subject_alt_names.clear());
    check_intermediate(Err("signing-not-authority"), |p| p.is_ca = IsCa::NoCa);
    check_intermediate(Err("signing-no-key-cert-sign"), |p| p.key_usages = vec![Usage::DigitalSignature]);
    check_intermediate(Err("signing-no-key-cert-sign"), |p| p.key_usages.clear());
    check_intermediate(Err("signing-no-key-cert-sign"), |p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(KEY_USAGE, false, vec![0x03, 0x02, 0x02, 0x04]));
    });
    check_intermediate(Err("signing-id-with-path"), |p| p.subject_alt_names = vec![uri(CART)]);
    check_intermediate(Err("signing-foreign-trust-domain"), |p| {
        p.subject_alt_names = vec![uri("spiffe://other.example")];
    });
    check_intermediate(Err("invalid-id"), |p| p.subject_alt_names = vec![uri("Spiffe://cluster.local")]);
    let expired = check_intermediate(Err("expired"), |p| p.not_after = at(NOW - 60)).unwrap().to_string();
    assert!(expired.contains("signing certificate `CN=cluster.local intermediate`"), "{expired}");
    check_intermediate(Err("not-yet-valid"), |p| p.not_before = at(NOW + 60));
}

#[test]
fn rfc_5280_path_length_and_missing_links() {
    let root = root(TD, |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)));
    let first = root.intermediate(TD, |_| {});
    let second = first.intermediate(TD, |p| p.distinguished_name.push(DnType::OrganizationName, "second"));
    let trust = root.trust(TD);
    check(&[&first.leaf(CART, |_| {}).der, &first.der], &trust, Ok(CART));
    check(&[&first.leaf(CART, |_| {}).der], &trust, Err("unknown-issuer"));
    let closed = root.intermediate(TD, |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below = closed.intermediate(TD, |p| p.distinguished_name.push(DnType::OrganizationName, "below"));
    check(&[&below.leaf(CART, |_| {}).der, &below.der, &closed.der], &trust, Err("path-length"));
    // Anchors are trusted as keys; the path library still counts below the intermediates.
    check(&[&second.leaf(CART, |_| {}).der, &second.der], &trust, Err("unknown-issuer"));
    // A stray certificate in the chain is no path, and does no harm.
    check(&[&root.leaf(CART, |_| {}).der, &self_signed(API).der], &trust, Ok(CART));
}

#[test]
fn x509_svid_5_1_anchors_that_may_not_be_used_now_are_not_used() {
    check_root(Ok(CART), |_| {});
    check_root(Ok(CART), |p| p.subject_alt_names.clear());
    check_root(Ok(CART), |p| p.subject_alt_names = vec![uri("https://ca.example/")]);
    let expired = check_root(Err("no-usable-authority"), |p| p.not_after = at(NOW - 60)).unwrap().to_string();
    assert!(expired.contains("is expired") && expired.contains("1m 0s ago"), "{expired}");
    check_root(Err("no-usable-authority"), |p| p.not_before = at(NOW + 60));
    check_root(Err("no-usable-authority"), |p| p.key_usages.clear());
    check_root(Err("no-usable-authority"), |p| p.is_ca = IsCa::NoCa);
    check_root(Err("no-usable-authority"), |p| p.subject_alt_names = vec![uri("spiffe://other.example")]);
    check_root(Err("no-usable-authority"), |p| p.subject_alt_names = vec![uri(CART)]);
    // One unusable anchor does not spoil its neighbour.
    let (old, new) = (root(TD, |p| p.not_after = at(NOW - 60)), root(TD, |_| {}));
    let mut bundle = old.bundle(TD);
    bundle.anchors.push(new.der.clone());
    assert_eq!(bundle.problems(now()).len(), 1);
    let trust = TrustBundles::from_iter([bundle]);
    check(&[&new.leaf(CART, |_| {}).der], &trust, Ok(CART));
    check(&[&old.leaf(CART, |_| {}).der], &trust, Err("bad-signature"));
}

#[test]
fn name_constraints_are_obeyed_and_uri_constraints_reported() {
    let constrain = |p: &mut CertificateParams, name: &str| {
        p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(name.into())],
            excluded_subtrees: vec![],
        });
    };
    let root = root(TD, |_| {});
    let intermediate = root.intermediate(TD, |p| constrain(p, "shop.svc"));
    let named = |name: &str, expected| {
        let leaf =
            intermediate.leaf(CART, |p| p.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap())));
        check(&[&leaf.der, &intermediate.der], &root.trust(TD), expected);
    };
    named("cart.shop.svc", Ok(CART));
    named("cart.bank.svc", Err("name-constraint"));
    // permittedSubtrees { URI cluster.local }
    let uris =
        || extension(NAME_CONSTRAINTS, true, der(0x30, &der(0xa0, &der(0x30, &der(0x86, TD.as_bytes())))));
    let refusal =
        check_intermediate(Err("uri-name-constraint"), |p| p.custom_extensions.push(uris())).unwrap();
    assert!(refusal.to_string().contains("URI name constraint"), "{refusal}");
    let refusal = check_root(Err("no-usable-authority"), |p| p.custom_extensions.push(uris())).unwrap();
    assert!(refusal.to_string().contains("without URI name constraints"), "{refusal}");
}

#[test]
fn rsa_keys_below_2048_bits_are_refused_on_leaf_intermediate_and_root() {
    let root = root(TD, |_| {});
    for (bits, expected) in [
        (512, Err("weak-key")),
        (1024, Err("weak-key")),
        (2040, Err("weak-key")),
        (2048, Ok(CART)),
        (4096, Ok(CART)),
    ] {
        let leaf = root.certify(&RsaOf::bits(bits), &leaf_params(CART));
        let refusal = check(&[&leaf], &root.trust(TD), expected);
        if let Some(refusal) = refusal {
            assert!(refusal.to_string().contains(&format!("RSA key of {bits} bits")), "{refusal}");
        }
    }
    // As an authority: the reason stands in the list of the anchors that cannot be used.
    let weak = root.certify(&RsaOf::bits(1024), &authority_params(TD));
    let trust = TrustBundles::from_iter([postern_identity::Bundle::new(TD.parse().unwrap(), vec![weak])]);
    let refusal = check(&[&root.leaf(CART, |_| {}).der], &trust, Err("no-usable-authority")).unwrap();
    assert!(refusal.to_string().contains("RSA key of 1024 bits"), "{refusal}");
}

#[test]
fn signatures_with_sha1_are_refused_for_the_algorithm() {
    // sha256WithRSAEncryption and sha1WithRSAEncryption differ in one byte.
    const SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
    let root = root_with(KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap(), TD, |_| {});
    let leaf = root.leaf(CART, |_| {}).der;
    check(&[&leaf], &root.trust(TD), Ok(CART));
    let mut sha1 = leaf.to_vec();
    let places: Vec<usize> =
        (0..sha1.len() - SHA256.len()).filter(|at| sha1[*at..].starts_with(SHA256)).collect();
    assert_eq!(places.len(), 2, "inside and outside of what is signed");
    for at in places {
        sha1[at + SHA256.len() - 1] = 0x05;
    }
    check(&[&sha1.into()], &root.trust(TD), Err("signature-algorithm"));
}

#[test]
fn chains_that_are_no_chains_are_refused_without_harm() {
    let root = root(TD, |_| {});
    let (good, trust) = (root.leaf(CART, |_| {}).der, root.trust(TD));
    check(&[], &trust, Err("no-certificate"));
    check(&[&CertificateDer::from(Vec::new())], &trust, Err("malformed"));
    check(&[&CertificateDer::from(b"not a certificate".to_vec())], &trust, Err("malformed"));
    check(&[&CertificateDer::from([good.as_ref(), b"\0"].concat())], &trust, Err("malformed"));
    check(&[&good; 8], &trust, Ok(CART));
    check(&[&good; 9], &trust, Err("chain-too-long"));
    check_leaf(Err("unknown-critical-extension"), |p| {
        p.custom_extensions.push(extension(&[1, 3, 6, 1, 4, 1, 99999, 1], true, der(0x04, b"x")));
    });
    check_leaf(Ok(CART), |p| {
        p.custom_extensions.push(extension(&[1, 3, 6, 1, 4, 1, 99999, 1], false, der(0x04, b"x")));
    });
}

#[test]
fn no_flipped_bit_and_no_cut_makes_another_certificate_good() {
    let root = root(TD, |_| {});
    let (leaf, trust) = (root.leaf(CART, |_| {}).der, root.trust(TD));
    for position in 0..leaf.len() {
        let mut flipped = leaf.to_vec();
        flipped[position] ^= 1 << (position % 8);
        assert!(
            verify(&[flipped.into()], &trust, &anybody(), false, now()).is_err(),
            "flipped at {position}"
        );
        assert!(verify(&[leaf[..position].to_vec().into()], &trust, &anybody(), false, now()).is_err());
    }
}

#[test]
fn accept_decides_last_and_says_whom_it_expected() {
    let root = root(TD, |_| {});
    let (leaf, trust) = (root.leaf(CART, |_| {}).der, root.trust(TD));
    let asked = |accept: Accept| verify(std::slice::from_ref(&leaf), &trust, &accept, true, now());
    assert!(asked(Accept::only(CART.parse().unwrap())).is_ok());
    assert!(asked(Accept::trust_domain(TD.parse().unwrap())).is_ok());
    assert!(asked(Accept::Exactly([API, CART].map(|id| id.parse().unwrap()).into())).is_ok());
    let refusal = asked(Accept::only(API.parse().unwrap())).unwrap_err().to_string();
    assert!(refusal.contains(CART) && refusal.contains(API), "both identities are named: {refusal}");
    assert_eq!(
        asked(Accept::trust_domain("other.example".parse().unwrap())).unwrap_err().code(),
        "not-accepted"
    );
    assert_eq!(asked(Accept::Exactly([].into())).unwrap_err().code(), "not-accepted");
    assert_eq!(asked(Accept::TrustDomains([].into())).unwrap_err().code(), "not-accepted");
}

#[test]
fn a_peer_tells_what_the_leaf_says() {
    let root = root(TD, |_| {});
    let leaf = root.leaf_with(KeyPair::generate().unwrap(), CART, |p| {
        p.serial_number = Some(rcgen::SerialNumber::from(vec![0x00, 0xab, 0x0c]));
        p.not_after = at(NOW + 60);
    });
    let peer = verify(std::slice::from_ref(&leaf.der), &root.trust(TD), &anybody(), false, now()).unwrap();
    assert_eq!(peer.serial(), "ab0c");
    assert_eq!(peer.not_after(), std::time::UNIX_EPOCH + std::time::Duration::from_secs(NOW as u64 + 60));
    assert_eq!(
        peer.sha256().as_slice(),
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf.der).as_ref()
    );
    assert_eq!(postern_identity::tls::peer(Some(&[leaf.der])), Some(peer));
    assert_eq!(postern_identity::tls::peer(None), None);
}
