//! A root that somebody else gives is rotated as our own: published first, signing when the sidecars have acknowledged it, and gone
//! when nobody holds anything below the one before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

#[allow(dead_code)]
#[path = "../../tests/src/cacerts.rs"]
mod cacerts;
mod sidecar;

use cacerts::Cacerts;
use postern_api::v1::{self, control_message, sidecar_message};
use postern_control_plane::{ControlPlane, Options, Upstream};
use postern_identity::{Bundle, KeyId};
use sidecar::{Stream, channel, csr, issue, join, read};
use std::time::{Duration, Instant};

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: front, namespace: shop, labels: {app: front}}
spec: {serviceAccountName: front, containers: [{name: c, command: [serve]}]}
status: {podIP: 10.0.0.1}
";

async fn start(cacerts: &std::path::Path) -> ControlPlane {
    let control_plane = postern_control_plane::start(Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        state: None,
        trust_domain: "cluster.local".into(),
        certificate_lifetime: Duration::from_secs(3600),
        unix_socket: None,
        kubernetes: None,
        federation: Default::default(),
        upstream: Upstream::Files(cacerts.to_owned()),
        allow_ending_authority: false,
    })
    .await
    .unwrap();
    control_plane.apply(read(MESH));
    control_plane
}

/// The published roots, the one that signs first.
fn published(control_plane: &ControlPlane) -> Vec<KeyId> {
    let pem = control_plane.trust_bundle_pem();
    let bundle = Bundle::from_pem("cluster.local".parse().unwrap(), pem.as_bytes()).unwrap();
    bundle.anchors.iter().map(|anchor| KeyId::of_certificate(anchor).unwrap()).collect()
}

/// The next bundles: how many roots, what is tainted.
async fn told(stream: &mut Stream) -> (v1::ControlMessage, usize, Vec<KeyId>) {
    let update = stream.hear().await.unwrap();
    let Some(control_message::Message::Bundles(bundles)) = &update.message else { panic!("{update:?}") };
    let domain = "cluster.local".parse().unwrap();
    let roots = Bundle::from_document(domain, &bundles.bundles[0].document).unwrap().anchors.len();
    let tainted = bundles.tainted.iter().map(|id| KeyId::try_from(&id[..]).unwrap()).collect();
    (update, roots, tainted)
}

/// Says that the sidecar holds a certificate below this root.
async fn report(stream: &Stream, leaf: &[u8], by: &Cacerts) {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).unwrap();
    let authorities = [KeyId::of_certificate(&by.signs).unwrap(), by.root_id()];
    let report = v1::Certificate {
        serial: leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        not_before_unix_seconds: leaf.validity().not_before.timestamp(),
        not_after_unix_seconds: leaf.validity().not_after.timestamp(),
        authorities: authorities.iter().map(|key| key.as_bytes().to_vec()).collect(),
    };
    stream.say(sidecar_message::Message::Certificate(report)).await;
}

#[tokio::test]
async fn another_root_in_the_files_signs_when_the_sidecars_have_acknowledged_it() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Cacerts::new(time::Duration::days(365)), Cacerts::new(time::Duration::days(365)));
    old.write(folder.path());
    let control_plane = start(folder.path()).await;
    let held = join(&control_plane, "shop", "front", "front").await;
    assert_eq!(held.cert[1].as_ref(), old.signs);
    let mut front = Stream::open(channel(&control_plane, Some(held.clone())).await, "front").await.unwrap();
    let (first, ..) = told(&mut front).await;
    front.ack(&first).await;
    let (policy, _) = front.hear_policy().await;
    front.ack(&policy).await;
    report(&front, &held.cert[0], &old).await;

    // The files name the new one only. It is published, and for as long as nobody has said that it is known, the old one signs.
    new.write(folder.path());
    let (update, roots, _) = told(&mut front).await;
    assert_eq!(roots, 2);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(published(&control_plane), [old.root_id(), new.root_id()]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (_, request) = csr();
    let issued = issue(channel(&control_plane, Some(held.clone())).await, request, "").await.unwrap();
    assert_eq!(issued.chain[1], old.signs);

    // Known: it signs, and whoever holds something below the old one renews.
    front.ack(&update).await;
    loop {
        let (update, _, tainted) = told(&mut front).await;
        front.ack(&update).await;
        if tainted == [old.root_id()] {
            break;
        }
    }
    assert_eq!(
        published(&control_plane),
        [new.root_id(), old.root_id()],
        "somebody holds something below it"
    );
    let (key, request) = csr();
    let issued = issue(channel(&control_plane, Some(held)).await, request, "").await.unwrap();
    assert_eq!(issued.chain[1], new.signs);
    let held = sidecar::certified(issued, &key);

    // Nobody holds anything below the old one, and the files do not name it: it is gone.
    report(&front, &held.cert[0], &new).await;
    loop {
        let (update, roots, _) = told(&mut front).await;
        // A stream of before ends with its root.
        if roots == 1 {
            break;
        }
        front.ack(&update).await;
    }
    assert_eq!(published(&control_plane), [new.root_id()]);
}
