//! What is kept, what is left aside, and that nobody else may read it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::control::destinations::Asked;
use crate::{
    control::destinations::Bounds,
    state::{Credentials, Destination},
    telemetry::Telemetry,
};
use postern_identity::{Bundle, SpiffeId, tls};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{fs, os::unix::fs::PermissionsExt};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn own() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

/// A certificate for [`CART`] that ends in so many seconds.
fn credentials(seconds: i64) -> Credentials {
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    root.subject_alt_names = vec![uri("spiffe://cluster.local")];
    let root_key = KeyPair::generate().unwrap();
    let anchor = root.self_signed(&root_key).unwrap().der().clone();
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.subject_alt_names = vec![uri(CART)];
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.not_before = time::OffsetDateTime::now_utc() - Duration::from_secs(60);
    leaf.not_after = time::OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
    let key = KeyPair::generate().unwrap();
    let chain = vec![leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap().der().clone()];
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let certified = tls::certified_key(chain, der).unwrap();
    let bundle = Bundle::new(own(), vec![anchor]);
    Credentials::prove(certified, key.serialize_der().into(), Arc::new([bundle].into_iter().collect()))
        .unwrap()
}

/// What a store holds after it recalled a folder.
fn recalled(folder: &Folder) -> (Store, Destinations) {
    let (store, destinations) = (Store::default(), Destinations::new(Bounds::default(), Telemetry::silent()));
    recall(folder, &store, &destinations, &own());
    (store, destinations)
}

fn open() -> (tempfile::TempDir, Folder) {
    let place = tempfile::tempdir().unwrap();
    let folder = Folder::open(&place.path().join("state"), true).unwrap();
    (place, folder)
}

#[test]
fn the_certificate_comes_back_whole_and_nobody_else_can_read_it() {
    let (place, folder) = open();
    let current = credentials(3600);
    identity::keep(&folder, &current);
    let (store, _) = recalled(&folder);
    let back = store.credentials().unwrap();
    assert_eq!((back.serial.as_str(), back.id.as_str()), (current.serial.as_str(), CART));
    assert_eq!(back.trust, current.trust);
    let mode = |path: &str| fs::metadata(place.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state"), mode("state/identity.json")), (0o700, 0o600));
}

#[test]
fn what_is_damaged_over_foreign_or_open_to_others_is_left_aside() {
    let (place, folder) = open();
    let file = place.path().join("state/identity.json");
    let absent = |why: &str| assert!(recalled(&folder).0.credentials().is_none(), "{why}");
    identity::keep(&folder, &credentials(3600));
    let good = fs::read_to_string(&file).unwrap();

    fs::write(&file, &good[..good.len() / 2]).unwrap();
    absent("cut off");
    fs::write(&file, good.replace("cluster.local", "other.example")).unwrap();
    absent("another trust domain");
    fs::write(&file, &good).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    absent("others may read it");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    // The twin: the same bytes, ours alone.
    assert!(recalled(&folder).0.credentials().is_some());

    // Proven while it was good; over by the time of the restart.
    let over = credentials(1);
    identity::keep(&folder, &over);
    let id: SpiffeId = CART.parse().unwrap();
    assert_eq!(over.id, id);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while recalled(&folder).0.credentials().is_some() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    absent("over");
}

#[test]
fn the_policy_comes_back_for_the_same_workload_only() {
    let (place, folder) = open();
    identity::keep(&folder, &credentials(3600));
    for (namespace, is_back) in [("shop", true), ("bank", false)] {
        let spec = serde_json::json!({
            "version": "7", "spec": serde_json::to_value(postern_config::InboundSpec {
                workload: postern_config::snapshot::Workload {
                    namespace: namespace.into(), name: "cart-1".into(), ..Default::default()
                },
                mesh: Default::default(), ports: vec![], peer_authentications: vec![], authorization_policies: vec![],
                telemetries: vec![],
                upgrades: Default::default(),
            }).unwrap(),
        });
        folder.keep(POLICY, spec.to_string().as_bytes());
        let (store, _) = recalled(&folder);
        assert_eq!(store.inbound().map(|inbound| inbound.version.clone()), is_back.then(|| "7".into()));
    }
    // Without a certificate nobody knows whose policy it is.
    fs::remove_file(place.path().join("state/identity.json")).unwrap();
    assert!(recalled(&folder).0.inbound().is_none());
}

#[test]
fn destinations_come_back_as_they_were() {
    let (_place, folder) = open();
    identity::keep(&folder, &credentials(3600));
    let (_, destinations) = recalled(&folder);
    let address = Asked::parse("//api.example.com:443").unwrap();
    let known = Destination::Outside { blocked: true, by_name: false, in_mesh: true };
    destinations.recall(address.clone(), known.clone());
    folder.keep(destinations::FILE, &destinations::encode(&destinations));
    let (_, back) = recalled(&folder);
    assert_eq!(
        back.list().into_iter().map(|(a, d)| (a, (*d.unwrap()).clone())).collect::<Vec<_>>(),
        [(address, known)]
    );
}

#[test]
fn a_folder_on_a_disk_is_refused_unless_it_is_asked_for() {
    let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let refused = Folder::open(disk.path(), false).unwrap_err().to_string();
    assert!(refused.contains("lies on a disk"), "{refused}");
    Folder::open(disk.path(), true).unwrap();
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() {
        let memory = tempfile::tempdir_in(memory).unwrap();
        Folder::open(memory.path(), false).unwrap();
    }
}
