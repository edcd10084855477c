//! The Workload API and SDS as their clients see them: the strictest (crate `spiffe`), the one that needs help (PyPI `spiffe`
//! on gRPC's C-core), and one that breaks the rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_api::open::{
    X509BundlesRequest, X509svidRequest,
    envoy::service::{
        discovery::v3::DiscoveryRequest,
        secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
    },
    spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use postern_identity::{Accept, Bundle, verify::verify};
use postern_tests::{
    Mesh,
    mesh::{DEADLINE, within},
    scenario::payments,
    standalone::{self, Standalone},
    workload_api::{Client, channel, endpoint, go, marked, python, renew, settings},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::collections::BTreeSet;
use tokio_stream::StreamExt as _;
use tonic::Code;

const ID: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
const ROTATIONS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_crate_spiffe_follows_three_rotations_and_reads_every_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = Mesh::start_with(&payments(""), settings(folder.path())).await;
    let socket = endpoint(folder.path(), "checkout-api");
    let source = within("the source", spiffe::X509Source::builder().endpoint(&socket).build()).await.unwrap();
    let mut updates = source.updated();
    let serial = |source: &spiffe::X509Source| {
        let svid = source.svid().unwrap();
        assert_eq!(svid.spiffe_id().to_string(), ID);
        svid.leaf().as_bytes().to_vec()
    };
    let mut seen = BTreeSet::from([serial(&source)]);
    for _ in 0..ROTATIONS {
        renew(mesh.workload("checkout-api")).await;
        within("the source sees it", updates.changed()).await.unwrap();
        seen.insert(serial(&source));
    }
    assert_eq!(seen.len(), ROTATIONS + 1);
    let client = spiffe::WorkloadApiClient::connect_to(&socket).await.unwrap();
    let bundles = client.fetch_x509_bundles().await.unwrap();
    assert_eq!(bundles.len(), 1);
    source.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pypi_spiffe_on_c_core_follows_three_rotations() {
    let Some(python) = tokio::task::spawn_blocking(python).await.unwrap() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mesh = Mesh::start_with(&payments(""), settings(folder.path())).await;
    let socket = endpoint(folder.path(), "checkout-api");
    let mut client = Client::python(&python, &[&socket, "rotations", &(ROTATIONS + 1).to_string()]);
    let mut seen = client.says().await;
    assert_eq!(seen["id"], ID);
    for _ in 0..ROTATIONS {
        let expected = renew(mesh.workload("checkout-api")).await;
        seen = client.says().await;
        let (seen, expected) = (seen["serial"].as_str().unwrap(), expected.replace(':', ""));
        assert_eq!(seen, expected.trim_start_matches('0'));
    }
    let said = Client::python(&python, &[&socket, "calls"]).says().await;
    assert_eq!(said["id"], ID);
    assert_eq!(said["authorities"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_spiffe_follows_three_rotations() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_owned();
    let Some(go) = tokio::task::spawn_blocking(move || go(&at)).await.unwrap() else { return };
    let mesh = Mesh::start_with(&payments(""), settings(folder.path())).await;
    let mut command = tokio::process::Command::new(go);
    command.args([endpoint(folder.path(), "checkout-api"), (ROTATIONS + 1).to_string()]);
    let mut client = Client::start(command);
    let first = client.says().await;
    assert_eq!((&first["id"], &first["authorities"]), (&ID.into(), &1.into()));
    for _ in 0..ROTATIONS {
        let expected = renew(mesh.workload("checkout-api")).await.replace(':', "");
        assert_eq!(client.says().await["serial"], expected.trim_start_matches('0'));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_crate_spiffe_and_pypi_spiffe_check_tokens_and_follow_the_key_that_signs_them() {
    const AUDIENCE: &str = "an-audience";
    const LATER: &str = "a-later-one";
    let mesh = Standalone::start(standalone::Settings::default()).await;
    let socket = format!("unix://{}", mesh.workload_api("client").display());
    let source = within("the source", spiffe::JwtSource::builder().endpoint(&socket).build()).await.unwrap();
    let domain = spiffe::TrustDomain::new("cluster.local").unwrap();
    let knows = |svid: &spiffe::JwtSvid| {
        let bundle = source.try_bundle_for_trust_domain(&domain).unwrap();
        bundle.find_jwt_authority(svid.key_id()).is_some()
    };
    // Without asking us: by the keys that FetchJWTBundles has said.
    let check =
        |token: &str, audience: &str| spiffe::JwtSvid::parse_and_validate(token, &source, &[audience]);
    let earlier = source.fetch_jwt_svid([AUDIENCE]).await.unwrap();
    assert_eq!(check(earlier.token(), AUDIENCE).unwrap().spiffe_id(), earlier.spiffe_id());
    assert!(check(earlier.token(), "another").is_err(), "for somebody else");
    let (signed, signature) = earlier.token().rsplit_once('.').unwrap();
    let other = if signature.starts_with('A') { 'B' } else { 'A' };
    assert!(check(&format!("{signed}.{other}{}", &signature[1..]), AUDIENCE).is_err(), "another signature");

    let mut updates = source.updated();
    mesh.must(&["ca", "rotate", "--kind", "jwt"]);
    // For another audience: a token that is good for a while yet is not made anew.
    let later = source.fetch_jwt_svid([LATER]).await.unwrap();
    assert_ne!(later.key_id(), earlier.key_id());
    while !knows(&later) {
        within("the source sees the new key", updates.changed()).await.unwrap();
    }
    for (svid, audience) in [(&earlier, AUDIENCE), (&later, LATER)] {
        check(svid.token(), audience).unwrap();
    }

    let Some(python) = tokio::task::spawn_blocking(python).await.unwrap() else { return };
    let mut client = Client::python(&python, &[&socket, "tokens", AUDIENCE]);
    let (fetched, accepted, refused) = (client.says().await, client.says().await, client.says().await);
    let id = earlier.spiffe_id().to_string();
    assert_eq!((&fetched["id"], &accepted["accepted"]), (&id.clone().into(), &id.into()));
    assert!(fetched["keys"].as_u64().unwrap() >= 1, "{fetched}");
    assert!(refused["refused"].as_str().unwrap().contains("is not for `somebody-else`"), "{refused}");
    source.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_crate_spiffe_follows_the_rotation_of_a_root() {
    let mesh = Standalone::start(standalone::Settings::default()).await;
    let socket = format!("unix://{}", mesh.workload_api("client").display());
    let source = within("the source", spiffe::X509Source::builder().endpoint(&socket).build()).await.unwrap();
    let domain = spiffe::TrustDomain::new("cluster.local").unwrap();
    let roots = || -> BTreeSet<Vec<u8>> {
        let bundle = source.try_bundle_for_trust_domain(&domain).unwrap();
        bundle.authorities().iter().map(|root| root.as_bytes().to_vec()).collect()
    };
    let chain =
        || source.svid().unwrap().cert_chain().iter().map(|c| c.as_bytes().to_vec()).collect::<Vec<_>>();
    let (old, before) = (roots(), chain());
    let mut updates = source.updated();
    mesh.must(&["ca", "rotate"]);
    // Both roots, the new one's certificate, the old root gone: each is an update, and what came last is asserted.
    while !roots().is_disjoint(&old) {
        within("the source sees the new root alone", updates.changed()).await.unwrap();
    }
    let after = chain();
    assert_ne!(
        (&before[0], &before[1]),
        (&after[0], &after[1]),
        "another certificate, below another authority"
    );
    let anchors: Vec<_> = roots().into_iter().map(CertificateDer::from).collect();
    assert_eq!(anchors.len(), 1);
    let trust = [Bundle::new("cluster.local".parse().unwrap(), anchors)].into_iter().collect();
    let after: Vec<_> = after.into_iter().map(CertificateDer::from).collect();
    let anybody = Accept::TrustDomains(["cluster.local".parse().unwrap()].into());
    verify(&after, &trust, &anybody, true, UnixTime::now()).unwrap();
    source.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_the_security_header_is_refused_and_one_with_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let _mesh = Mesh::start_with(&payments(""), settings(folder.path())).await;
    let mut client = SpiffeWorkloadApiClient::new(channel(folder.path().join("checkout-api.sock")).await);
    assert!(client.fetch_x509svid(marked(X509svidRequest {})).await.is_ok());
    let bare = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(bare.code(), Code::InvalidArgument);
    let mut wrong = marked(X509svidRequest {});
    wrong.metadata_mut().insert("workload.spiffe.io", "TRUE".parse().unwrap());
    assert_eq!(client.fetch_x509svid(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    let mut twice = marked(X509svidRequest {});
    twice.metadata_mut().append("workload.spiffe.io", "true".parse().unwrap());
    assert_eq!(client.fetch_x509svid(twice).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_begins_at_once_says_everything_and_only_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = Mesh::start_with(&payments(""), settings(folder.path())).await;
    let mut client = SpiffeWorkloadApiClient::new(channel(folder.path().join("checkout-api.sock")).await);
    let mut svids = client.fetch_x509svid(marked(X509svidRequest {})).await.unwrap().into_inner();
    let mut bundles = client.fetch_x509_bundles(marked(X509BundlesRequest {})).await.unwrap().into_inner();
    let first = within("the first certificate", svids.message()).await.unwrap().unwrap();
    let trust = within("the bundles", bundles.message()).await.unwrap().unwrap();
    assert_eq!(first.svids[0].spiffe_id, ID);
    assert_eq!(trust.bundles["spiffe://cluster.local"], first.svids[0].bundle);
    assert!(!format!("{first:?}").contains("key"), "a key is never printed");
    renew(mesh.workload("checkout-api")).await;
    let second = within("the second certificate", svids.message()).await.unwrap().unwrap();
    assert_ne!(first.svids[0].x509_svid_key, second.svids[0].x509_svid_key);
    // The bundles are as they were, so that nothing comes; what would come was sent before the second certificate.
    let quiet = tokio::time::timeout(std::time::Duration::from_millis(200), bundles.message()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_go_by_the_names_that_envoy_is_configured_with_and_unknown_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = Mesh::start_with(&payments(""), settings(folder.path())).await;
    let mut client =
        SecretDiscoveryServiceClient::new(channel(folder.path().join("checkout-api.sock")).await);
    let ask = |names: &[&str]| DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DiscoveryRequest::default()
    };
    for (names, resources) in [
        (&["default"][..], 1),
        (&[ID], 1),
        (&["ROOTCA", "default", "default"], 2),
        (&["spiffe://cluster.local"], 1),
        (&["ALL"], 1),
        (&[], 2),
    ] {
        let answer = client.fetch_secrets(ask(names)).await.unwrap().into_inner();
        assert_eq!(answer.resources.len(), resources, "{names:?}");
    }
    for name in ["spiffe://cluster.local/ns/checkout/sa/reports", "spiffe://other.example", "nothing", ""] {
        let refused = client.fetch_secrets(ask(&[name])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name}");
    }

    let (requests, stream) = tokio::sync::mpsc::channel(4);
    requests.send(ask(&["default"])).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut answers = client.stream_secrets(stream).await.unwrap().into_inner();
    let first = within("the first secret", answers.message()).await.unwrap().unwrap();
    let ack = |answer: &str| DiscoveryRequest { response_nonce: answer.into(), ..ask(&["default"]) };
    requests.send(ack(&first.nonce)).await.unwrap();
    renew(mesh.workload("checkout-api")).await;
    let second = within("the second secret", answers.message()).await.unwrap().unwrap();
    assert_ne!(first.resources, second.resources);
    assert_ne!((&first.version_info, &first.nonce), (&second.version_info, &second.nonce));
    // An answer to the first is stale by now: it changes nothing, whatever it asks for.
    requests.send(DiscoveryRequest { response_nonce: first.nonce, ..ask(&["nothing"]) }).await.unwrap();
    requests
        .send(DiscoveryRequest { response_nonce: second.nonce, ..ask(&["default", "ROOTCA"]) })
        .await
        .unwrap();
    let third = within("what was added", answers.message()).await.unwrap().unwrap();
    assert_eq!(third.resources.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_sidecar_whose_authority_is_revoked_are_told_to_stop_and_what_to_trust() {
    let mesh = Standalone::start(standalone::Settings::default()).await;
    let old = mesh.authority("root", "active").unwrap();
    let mut client = SpiffeWorkloadApiClient::new(channel(mesh.workload_api("client")).await);
    let mut svids = client.fetch_x509svid(marked(X509svidRequest {})).await.unwrap().into_inner();
    let mut bundles = client.fetch_x509_bundles(marked(X509BundlesRequest {})).await.unwrap().into_inner();
    let first = within("the first certificate", svids.message()).await.unwrap().unwrap();
    let old_root = first.svids[0].bundle.clone();
    // An Envoy beside it.
    let mut envoy = SecretDiscoveryServiceClient::new(channel(mesh.workload_api("client")).await);
    let wanted = DiscoveryRequest { resource_names: vec!["default".into()], ..DiscoveryRequest::default() };
    let asks = tokio_stream::iter([wanted]).chain(tokio_stream::pending());
    let mut secrets = envoy.stream_secrets(asks).await.unwrap().into_inner();
    assert!(within("the first secret", secrets.message()).await.unwrap().is_some());
    mesh.must(&["ca", "rotate", "--step", "prepare"]);
    mesh.all_heard().await;
    mesh.must(&["ca", "revoke", &old, "--force"]);
    let ended = within("the stream of certificates ends", async {
        loop {
            match svids.message().await {
                Ok(Some(said)) => assert_eq!(said.svids[0].x509_svid, first.svids[0].x509_svid),
                ended => break ended,
            }
        }
    });
    assert_eq!(ended.await.unwrap_err().code(), Code::PermissionDenied);
    let ended = within("the stream of secrets ends", secrets.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
    let trusted = within("the old root is trusted no more", async {
        loop {
            let said = bundles.message().await.unwrap().unwrap().bundles["spiffe://cluster.local"].clone();
            if !said.windows(old_root.len()).any(|part| part == old_root) {
                break said;
            }
        }
    });
    let trusted = trusted.await;
    // A new join token brings it back, below the root that everybody was told of.
    mesh.ready("client").await;
    let mut svids = client.fetch_x509svid(marked(X509svidRequest {})).await.unwrap().into_inner();
    let next = within("the next certificate", svids.message()).await.unwrap().unwrap();
    assert_ne!(next.svids[0].x509_svid, first.svids[0].x509_svid);
    assert_eq!(next.svids[0].bundle, trusted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_first_certificate_callers_are_told_to_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("early.sock");
    let control = postern_tests::workload_api::nobody_there(socket.clone()).await;
    let mut client = SpiffeWorkloadApiClient::new(channel(socket.clone()).await);
    let early = client.fetch_x509svid(marked(X509svidRequest {})).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable);
    let mut secrets = SecretDiscoveryServiceClient::new(channel(socket.clone()).await);
    let early = secrets.fetch_secrets(DiscoveryRequest::default()).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable);
    control.drain().await;
    let gone = async {
        while socket.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("the file is removed with the sidecar");
}
