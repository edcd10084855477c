//! What another's Workload API may say, and what is made of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::collections::HashMap;

const ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";

struct Root(Issuer<'static, KeyPair>, Vec<u8>);

fn root() -> Root {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    Root(Issuer::new(params, key), der)
}

impl Root {
    fn message(&self, id: &str, from_hour: i64) -> X509svidResponse {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = time::OffsetDateTime::now_utc() + time::Duration::hours(from_hour);
        params.not_after = params.not_before + time::Duration::hours(2);
        let key = KeyPair::generate().unwrap();
        let svid = X509svid {
            spiffe_id: id.into(),
            x509_svid: params.signed_by(&key, &self.0).unwrap().der().to_vec().into(),
            x509_svid_key: key.serialize_der().into(),
            bundle: self.1.clone().into(),
            hint: String::new(),
        };
        X509svidResponse { svids: vec![svid], crl: vec![], federated_bundles: HashMap::new() }
    }
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn check(message: X509svidResponse, expected: Result<(), &str>) {
    match (read(message, &domain(), None), expected) {
        (Ok(credentials), Ok(())) => assert_eq!(credentials.id.as_str(), ID),
        (Err(reason), Err(part)) => assert!(reason.contains(part), "`{reason}` should contain `{part}`"),
        (Ok(_), Err(part)) => panic!("taken, expected `{part}`"),
        (Err(reason), Ok(())) => panic!("{reason}"),
    }
}

#[test]
fn a_sound_identity_is_taken_and_each_way_to_be_unsound_has_its_reason() {
    let root = root();
    let with = |change: &dyn Fn(&mut X509svidResponse)| {
        let mut message = root.message(ID, -1);
        change(&mut message);
        message
    };
    let other = root.message(ID, -1);
    check(with(&|_| {}), Ok(()));
    check(with(&|m| m.svids.clear()), Err("no identity at all"));
    check(with(&|m| m.svids[0].spiffe_id = "cart".into()), Err("its SPIFFE ID"));
    check(with(&|m| m.svids[0].spiffe_id = format!("{ID}-2")), Err("gives the certificate of"));
    check(root.message("spiffe://cluster.local/web", -1), Err("Register the workload"));
    check(root.message("spiffe://other.example/ns/shop/sa/cart", -1), Err("--trust-domain"));
    check(with(&|m| m.svids[0].x509_svid = vec![0x30, 3, 1].into()), Err("certificate 1 cannot be read"));
    check(with(&|m| m.svids[0].x509_svid.clear()), Err("chain is empty"));
    check(with(&|m| m.svids[0].x509_svid_key = vec![1, 2, 3].into()), Err("private key cannot be used"));
    check(
        with(&|m| m.svids[0].x509_svid_key = other.svids[0].x509_svid_key.clone()),
        Err("does not belong to the certificate"),
    );
    check(with(&|m| m.svids[0].bundle.clear()), Err("no certificate"));
    check(with(&|m| m.svids[0].bundle = self::root().1.into()), Err("would be refused by our peers"));
    check(root.message(ID, -5), Err("would be refused by our peers"));
    check(root.message(ID, 5), Err("would be refused by our peers"));
    let foreign = |name: &str, der: Vec<u8>| HashMap::from([(name.to_owned(), der.into())]);
    check(with(&|m| m.federated_bundles = foreign("spiffe://b.example", self::root().1)), Ok(()));
    check(with(&|m| m.federated_bundles = foreign("spiffe://B", self::root().1)), Err("federated bundle"));
    check(with(&|m| m.federated_bundles = foreign("spiffe://b.example", vec![1])), Err("b.example"));
}

#[test]
fn what_the_control_plane_knows_of_trust_outlives_a_new_certificate() {
    let root = root();
    let mut bundle = Bundle::from_der(domain(), [root.1.clone()]).unwrap();
    bundle.sequence = Some(7);
    let known = Arc::new(TrustBundles::from_iter([bundle]));
    let credentials = read(root.message(ID, -1), &domain(), Some(known.clone())).unwrap();
    assert_eq!(credentials.trust, known);
    // Under trust that does not know its authority, its own is what is left.
    let strange = Arc::new(TrustBundles::from_iter([Bundle::from_der(domain(), [self::root().1]).unwrap()]));
    let credentials = read(root.message(ID, -1), &domain(), Some(strange.clone())).unwrap();
    assert_ne!(credentials.trust, strange);
}
