//! What clients hear while trust changes under them, and while there is no certificate to hand out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::{
    control::ControlPlane,
    state::{
        Store, Tainted,
        signer::{HOUR, Signer, trust},
    },
    workload_api::view,
};
use postern_identity::{Bundle, JwtKey, TrustBundles, jwt::PublicKey};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::Code;

const OWN: &str = "spiffe://cluster.local";
const DEADLINE: Duration = Duration::from_secs(10);

/// What is served while `store` holds what it holds.
async fn served(store: &Arc<Store>) -> Workload {
    let control = ControlPlane::new(
        std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into(),
        "cluster.local".parse().unwrap(),
        TrustBundles::default(),
        None,
    );
    let mut views = view::follow(store.clone(), CancellationToken::new());
    views.wait_for(Option::is_some).await.unwrap();
    Workload::new(views, Tokens::new(store.clone(), Arc::new(control.unwrap())))
}

/// The next word of a stream.
async fn next<T>(messages: &mut Messages<T>) -> Result<T, Code> {
    let next = tokio::time::timeout(DEADLINE, messages.next()).await.expect("a word in time");
    next.expect("a word, or why there is none").map_err(|status| status.code())
}

async fn svids(workload: &Workload) -> Result<Messages<X509svidResponse>, Code> {
    let answer = workload.fetch_x509svid(Request::new(X509svidRequest {})).await;
    answer.map(Response::into_inner).map_err(|status| status.code())
}

async fn bundles(workload: &Workload) -> Messages<X509BundlesResponse> {
    workload.fetch_x509_bundles(Request::new(X509BundlesRequest {})).await.unwrap().into_inner()
}

async fn token_keys(workload: &Workload) -> Messages<JwtBundlesResponse> {
    workload.fetch_jwt_bundles(Request::new(JwtBundlesRequest {})).await.unwrap().into_inner()
}

fn der(signers: &[&Signer]) -> Vec<u8> {
    signers.iter().flat_map(|signer| signer.der.to_vec()).collect()
}

/// The same trust with one key of tokens, named `kid`.
fn with_token_key(trust: TrustBundles, kid: &str) -> TrustBundles {
    let key = PublicKey::Ec { curve: jwt::Curve::P256, point: vec![4; 65] };
    let add = |bundle: &Bundle| Bundle {
        jwt_keys: vec![JwtKey { kid: kid.to_owned(), key: key.clone() }],
        ..bundle.clone()
    };
    trust.iter().map(add).collect()
}

#[tokio::test]
async fn a_withdrawn_certificate_ends_its_streams_and_bundles_go_on_with_what_is_trusted_now() {
    let (root, other, third) =
        (Signer::new("root", None), Signer::new("other", None), Signer::new("third", None));
    let store = Arc::new(Store::default());
    let first = with_token_key(trust(&[&root, &other], &[], 1), "first");
    store.publish_credentials(root.credentials(&[], first, HOUR).unwrap()).unwrap();
    let workload = served(&store).await;
    let mut svid = svids(&workload).await.unwrap();
    let (mut x509, mut jwt) = (bundles(&workload).await, token_keys(&workload).await);
    assert_eq!(next(&mut svid).await.unwrap().svids[0].bundle, der(&[&root, &other]));
    assert_eq!(next(&mut x509).await.unwrap().bundles[OWN], der(&[&root, &other]));
    assert!(String::from_utf8_lossy(&next(&mut jwt).await.unwrap().bundles[OWN]).contains("first"));

    // The root is published still: what is revoked goes all the same.
    let second = with_token_key(trust(&[&root, &other], &[root.key()], 2), "second");
    store.publish_trust(second.clone(), Tainted::default()).unwrap();
    assert_eq!(next(&mut svid).await.unwrap_err(), Code::PermissionDenied);
    assert_eq!(next(&mut x509).await.unwrap().bundles[OWN], der(&[&other]));
    assert!(String::from_utf8_lossy(&next(&mut jwt).await.unwrap().bundles[OWN]).contains("second"));
    // Who comes anew hears the same.
    assert_eq!(svids(&workload).await.err(), Some(Code::PermissionDenied));
    let token = JwtsvidRequest { audience: vec!["a".into()], spiffe_id: String::new() };
    let token = workload.fetch_jwtsvid(Request::new(token)).await.unwrap_err();
    assert_eq!(token.code(), Code::PermissionDenied);
    assert_eq!(next(&mut bundles(&workload).await).await.unwrap().bundles[OWN], der(&[&other]));
    let newer = trust(&[&other, &third], &[root.key()], 3);
    store.publish_trust(newer.clone(), Tainted::default()).unwrap();
    assert_eq!(next(&mut x509).await.unwrap().bundles[OWN], der(&[&other, &third]));

    let again = other.credentials(&[], newer, HOUR).unwrap();
    let serial = again.key.cert[0].to_vec();
    store.publish_credentials(again).unwrap();
    let mut views = workload.views.clone();
    views.wait_for(|view| view.as_ref().is_some_and(|view| view.identity.is_ok())).await.unwrap();
    let mut svid = svids(&workload).await.unwrap();
    assert_eq!(next(&mut svid).await.unwrap().svids[0].x509_svid, serial);
}

#[tokio::test]
async fn trust_that_leaves_the_certificate_alone_ends_nothing() {
    let (root, other) = (Signer::new("root", None), Signer::new("other", None));
    let store = Arc::new(Store::default());
    let first = trust(&[&root, &other], &[], 1);
    store.publish_credentials(root.credentials(&[], first, HOUR).unwrap()).unwrap();
    let workload = served(&store).await;
    let mut svid = svids(&workload).await.unwrap();
    let given = next(&mut svid).await.unwrap();
    store.publish_trust(trust(&[&root], &[other.key()], 2), Tainted::default()).unwrap();
    let now = next(&mut svid).await.unwrap();
    assert_eq!(now.svids[0].bundle, der(&[&root]));
    assert_eq!(now.svids[0].x509_svid, given.svids[0].x509_svid);
}

#[tokio::test]
async fn a_certificate_that_ends_ends_its_streams_and_who_has_it_shall_come_again() {
    let root = Signer::new("root", None);
    let store = Arc::new(Store::default());
    let trust = trust(&[&root], &[], 1);
    // The least that is there for sure in whole seconds.
    let brief = root.credentials(&[], trust.clone(), Duration::from_secs(2)).unwrap();
    store.publish_credentials(brief).unwrap();
    let workload = served(&store).await;
    let (mut svid, mut x509) = (svids(&workload).await.unwrap(), bundles(&workload).await);
    assert!(next(&mut svid).await.is_ok() && next(&mut x509).await.is_ok());
    assert_eq!(next(&mut svid).await.unwrap_err(), Code::Unavailable);
    assert_eq!(svids(&workload).await.err(), Some(Code::Unavailable));
    assert_eq!(next(&mut bundles(&workload).await).await.unwrap().bundles[OWN], der(&[&root]));
    let quiet = tokio::time::timeout(Duration::from_millis(50), x509.next()).await;
    assert!(quiet.is_err(), "bundles are as they were: {quiet:?}");
    store.publish_credentials(root.credentials(&[], trust, HOUR).unwrap()).unwrap();
    let mut views = workload.views.clone();
    views.wait_for(|view| view.as_ref().is_some_and(|view| view.identity.is_ok())).await.unwrap();
    assert!(next(&mut svids(&workload).await.unwrap()).await.is_ok());
}
