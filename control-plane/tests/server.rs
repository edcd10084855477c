//! What a sidecar, or somebody who is none, gets from the running control plane.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod sidecar;

use postern_api::v1::{self, destination::Kind, sidecar_message};
use postern_control_plane::ControlPlane;
use sidecar::{
    Stream, certified, channel, csr, issue, join, read, shown_certificate, soon, start, start_with,
    status_becomes,
};
use std::time::{Duration, SystemTime};
use tonic::Code;

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
---
apiVersion: v1
kind: Pod
metadata: {name: back, namespace: shop, labels: {app: back}}
spec: {serviceAccountName: back, containers: [{name: c, command: [serve]}]}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: back, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: back}, ports: [{name: http, port: 80, targetPort: 8080}]}
";
const SECOND_BACK: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: back-2, namespace: shop, labels: {app: back}}
spec: {serviceAccountName: back, containers: [{name: c, command: [serve]}]}
status: {podIP: 10.0.0.3}
";
const BACK_ALLOWS_NOTHING: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: shop}
spec: {selector: {matchLabels: {app: back}}}
";
const SERVICE: &str = "10.1.0.1:80";

async fn mesh() -> ControlPlane {
    let control_plane = start().await;
    control_plane.apply(read(MESH));
    control_plane
}

/// A stream that has got its bundles and its policy.
async fn connect(control_plane: &ControlPlane, pod: &str) -> Stream {
    let key = join(control_plane, "shop", pod, pod).await;
    let mut stream = Stream::open(channel(control_plane, Some(key)).await, pod).await.unwrap();
    assert_eq!(stream.hear_bundles().await[0].trust_domain, "cluster.local");
    let (update, spec) = stream.hear_policy().await;
    assert_eq!((spec.workload.name.as_str(), spec.workload.service_account.as_str()), (pod, pod));
    stream.ack(&update).await;
    stream
}

fn endpoints(destination: &v1::Destination) -> Vec<&str> {
    let Some(Kind::Service(service)) = &destination.kind else { panic!("{destination:?}") };
    service.endpoints.iter().map(|endpoint| endpoint.dial.as_str()).collect()
}

#[tokio::test]
async fn a_join_token_gives_one_certificate_and_not_a_second() {
    let control_plane = mesh().await;
    let token = control_plane.join_token("shop", "front", "front");
    let (key, request) = csr();
    let before = SystemTime::now();
    let issued = issue(channel(&control_plane, None).await, request.clone(), &token).await.unwrap();
    assert_eq!(issued.trust.as_ref().unwrap().bundles[0].trust_domain, "cluster.local");
    let clock = SystemTime::UNIX_EPOCH
        + Duration::from_millis(u64::try_from(issued.server_time_unix_millis).unwrap());
    assert!(clock + Duration::from_secs(1) > before && clock < before + Duration::from_secs(60));
    let chain: Vec<_> = issued.chain.iter().map(|der| der.clone().into()).collect();
    let bundle = postern_identity::Bundle::from_pem(
        "cluster.local".parse().unwrap(),
        control_plane.trust_bundle_pem().as_bytes(),
    );
    let trust = [bundle.unwrap()].into_iter().collect();
    let accept = postern_identity::Accept::TrustDomains(["cluster.local".parse().unwrap()].into());
    let peer =
        postern_identity::verify::verify(&chain, &trust, &accept, false, rustls::pki_types::UnixTime::now())
            .unwrap();
    assert_eq!(peer.id().as_str(), "spiffe://cluster.local/ns/shop/sa/front");
    certified(issued, &key);

    let refused = issue(channel(&control_plane, None).await, request, &token).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
}

#[tokio::test]
async fn a_made_up_token_and_no_evidence_at_all_are_refused() {
    let control_plane = mesh().await;
    for token in ["made-up", ""] {
        let refused = issue(channel(&control_plane, None).await, csr().1, token).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{token}: {refused:?}");
    }
}

#[tokio::test]
async fn a_csr_that_is_none_or_tampered_with_or_too_large_is_refused() {
    let control_plane = mesh().await;
    let (_, mut tampered) = csr();
    *tampered.last_mut().unwrap() ^= 1;
    for wrong in [b"no csr".to_vec(), tampered, vec![0; 17 * 1024], Vec::new()] {
        let token = control_plane.join_token("shop", "front", "front");
        let refused = issue(channel(&control_plane, None).await, wrong, &token).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    let token = control_plane.join_token("shop", "front", "front");
    issue(channel(&control_plane, None).await, csr().1, &token).await.expect("the same with a good CSR");
}

#[tokio::test]
async fn the_current_certificate_renews_itself_until_the_pod_is_removed() {
    let control_plane = mesh().await;
    let first = join(&control_plane, "shop", "front", "front").await;
    let connection = channel(&control_plane, Some(first)).await;
    let (key, request) = csr();
    let second = certified(issue(connection.clone(), request, "").await.unwrap(), &key);
    issue(channel(&control_plane, Some(second)).await, csr().1, "").await.expect("the new one renews, too");

    control_plane.apply(read(&MESH.replace("serviceAccountName: front", "serviceAccountName: other")));
    let refused = issue(connection, csr().1, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
}

#[tokio::test]
async fn a_stream_needs_a_certificate() {
    let control_plane = mesh().await;
    let refused = Stream::open(channel(&control_plane, None).await, "front").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    connect(&control_plane, "front").await;
}

#[tokio::test]
async fn an_identity_gets_the_policy_of_its_own_pod_and_of_no_other() {
    let control_plane = mesh().await;
    let key = join(&control_plane, "shop", "front", "front").await;
    let connection = channel(&control_plane, Some(key)).await;
    for other in ["back", "shop/back", "nobody", "", "other/front"] {
        let mut stream = Stream::open(connection.clone(), other).await.unwrap();
        let refused = stream.hear().await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{other}: {refused:?}");
        assert!(refused.message().contains("runs as spiffe://cluster.local/ns/shop/sa/front"), "{refused:?}");
    }
    for own in ["front", "shop/front"] {
        let mut stream = Stream::open(connection.clone(), own).await.unwrap();
        stream.hear_bundles().await;
        assert_eq!(stream.hear_policy().await.1.workload.name, "front");
    }
}

#[tokio::test]
async fn before_the_first_documents_a_sidecar_is_told_to_come_again() {
    let control_plane = start().await;
    let key = join(&control_plane, "shop", "front", "front").await;
    let connection = channel(&control_plane, Some(key)).await;
    let refused = Stream::open(connection.clone(), "front").await.unwrap().hear().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    control_plane.apply(read(MESH));
    Stream::open(connection, "front").await.unwrap().hear_bundles().await;
}

#[tokio::test]
async fn a_destination_comes_when_asked_for_and_again_when_it_changes() {
    let control_plane = mesh().await;
    let mut stream = connect(&control_plane, "front").await;
    stream.subscribe(SERVICE).await;
    let (first, destination) = stream.hear_destination().await;
    assert_eq!((destination.address.as_str(), endpoints(&destination)), (SERVICE, vec!["10.0.0.2:8080"]));

    control_plane.apply(read(&format!("{MESH}{SECOND_BACK}")));
    let (second, destination) = stream.hear_destination().await;
    assert_eq!(endpoints(&destination), ["10.0.0.2:8080", "10.0.0.3:8080"]);
    assert!(first.version != second.version && first.nonce != second.nonce);

    // Back to what it was: the same content has the same version.
    control_plane.apply(read(MESH));
    assert_eq!(stream.hear_destination().await.0.version, first.version);
}

#[tokio::test]
async fn what_did_not_change_is_not_pushed() {
    let control_plane = mesh().await;
    let mut front = connect(&control_plane, "front").await;
    let mut back = connect(&control_plane, "back").await;
    front.subscribe(SERVICE).await;
    front.hear_destination().await;
    let pushes = |pod: &str| {
        control_plane
            .status()
            .iter()
            .find(|session| session.instance == pod)
            .map(|session| session.pushes)
            .unwrap()
    };
    assert_eq!((pushes("front"), pushes("back")), (3, 2));

    // The same again; then a policy that concerns only `back`: it hears exactly that.
    control_plane.apply(read(MESH));
    control_plane.apply(read(&format!("{MESH}{BACK_ALLOWS_NOTHING}")));
    let (_, spec) = back.hear_policy().await;
    assert_eq!(spec.authorization_policies.len(), 1);
    // `front` has seen these states when it answers a question that comes after them, and has heard nothing in between.
    front.subscribe("192.0.2.1:443").await;
    assert_eq!(front.hear_destination().await.1.address, "192.0.2.1:443");
    assert_eq!((pushes("front"), pushes("back")), (4, 3));
}

#[tokio::test]
async fn an_ack_and_a_nack_are_noted_and_the_refused_version_is_not_sent_again() {
    let control_plane = mesh().await;
    let mut back = connect(&control_plane, "back").await;
    let front = connect(&control_plane, "front").await;
    let first = control_plane.status()[0].version_sent.clone();
    status_becomes(&control_plane, "the ack", |sessions| sessions[0].version_acked == first).await;

    control_plane.apply(read(&format!("{MESH}{BACK_ALLOWS_NOTHING}")));
    let (update, _) = back.hear_policy().await;
    back.nack(&update, "no such\nmatcher").await;
    status_becomes(&control_plane, "the nack", |sessions| sessions[0].nacks == 1).await;
    let session = control_plane.status().swap_remove(0);
    assert_eq!(
        (session.instance.as_str(), session.identity.as_str()),
        ("back", "spiffe://cluster.local/ns/shop/sa/back")
    );
    assert_eq!(session.version_acked, first, "the last good one stays");
    assert_eq!(session.version_sent, update.version);
    let nack = &session.last_nacks[0];
    assert_eq!((nack.resource.as_str(), nack.reason.as_str()), ("inbound policy", "no such matcher"));
    assert_eq!(nack.version, update.version);

    // Applied again, unchanged: nothing. Put right: the good version comes.
    control_plane.apply(read(&format!("{MESH}{BACK_ALLOWS_NOTHING}")));
    control_plane.apply(read(MESH));
    assert_eq!(back.hear_policy().await.0.version, first);
    drop((front, back));
    status_becomes(&control_plane, "an empty table", <[_]>::is_empty).await;
}

#[tokio::test]
async fn a_pod_that_is_removed_loses_its_stream_and_others_keep_theirs() {
    let control_plane = mesh().await;
    let mut front = connect(&control_plane, "front").await;
    let mut back = connect(&control_plane, "back").await;
    control_plane.apply(read(&MESH.replace("name: front, namespace", "name: gone, namespace")));
    assert_eq!(front.hear().await.unwrap_err().code(), Code::PermissionDenied);
    back.subscribe(SERVICE).await;
    back.hear_destination().await;
}

#[tokio::test]
async fn a_stream_that_breaks_the_rules_is_ended_with_the_reason() {
    let control_plane = mesh().await;
    let hello = || sidecar_message::Message::Hello(v1::Hello::default());
    let subscribe =
        |address: &str| sidecar_message::Message::Subscribe(v1::Subscribe { address: address.into() });
    for wrong in [hello(), subscribe("back.shop:80"), subscribe("10.0.0.1"), subscribe("")] {
        let mut stream = connect(&control_plane, "front").await;
        stream.say(wrong).await;
        let refused = stream.hear().await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
}

#[tokio::test]
async fn a_forgotten_destination_is_not_kept_fresh() {
    let control_plane = mesh().await;
    let mut stream = connect(&control_plane, "front").await;
    stream.subscribe(SERVICE).await;
    stream.hear_destination().await;
    stream.say(sidecar_message::Message::Unsubscribe(v1::Unsubscribe { address: SERVICE.into() })).await;
    status_becomes(&control_plane, "the end of the subscription", |sessions| sessions[0].subscriptions == 0)
        .await;
    control_plane.apply(read(&format!("{MESH}{SECOND_BACK}")));
    stream.subscribe("192.0.2.1:443").await;
    assert_eq!(stream.hear_destination().await.1.address, "192.0.2.1:443");
}

#[tokio::test]
async fn stopping_ends_the_streams_and_frees_the_port() {
    let control_plane = mesh().await;
    let address = control_plane.address();
    let mut stream = connect(&control_plane, "front").await;
    soon("the end", control_plane.shutdown()).await;
    assert!(stream.hear().await.is_err());
    tokio::net::TcpListener::bind(address).await.expect("the port is free");
}

#[tokio::test]
async fn a_port_in_use_is_said_with_its_number_and_the_remedy() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = postern_control_plane::Options {
        listen: taken.local_addr().unwrap(),
        state: None,
        trust_domain: "cluster.local".into(),
        certificate_lifetime: Duration::from_secs(60),
        unix_socket: None,
        kubernetes: None,
        federation: Default::default(),
        upstream: postern_control_plane::Upstream::Own,
        allow_ending_authority: false,
    };
    let reason = postern_control_plane::start(options.clone()).await.err().unwrap().to_string();
    let port = options.listen.port();
    assert!(reason.contains(&format!("port {port} is in use")) && reason.contains("--listen"), "{reason}");
    let too_long = postern_control_plane::Options {
        certificate_lifetime: Duration::from_secs(24 * 3600 + 1),
        ..options
    };
    assert!(
        postern_control_plane::start(too_long).await.err().unwrap().to_string().contains("at most 86400 s")
    );
}

#[tokio::test]
async fn bytes_that_are_no_tls_do_not_disturb_those_who_connect_properly() {
    use tokio::io::AsyncWriteExt as _;
    let control_plane = mesh().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        let mut stream = tokio::net::TcpStream::connect(control_plane.address()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        silent.push(tokio::net::TcpStream::connect(control_plane.address()).await.unwrap());
    }
    connect(&control_plane, "front").await;
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate_that_opened_it_and_an_ended_one_renews_nothing() {
    let control_plane = start_with(Duration::from_secs(2)).await;
    control_plane.apply(read(MESH));
    let key = join(&control_plane, "shop", "front", "front").await;
    let connection = channel(&control_plane, Some(key)).await;
    let mut stream = Stream::open(connection.clone(), "front").await.unwrap();
    stream.hear_bundles().await;
    stream.hear_policy().await;
    issue(connection.clone(), csr().1, "").await.expect("a renewal in time");
    let ended = stream.hear().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    let refused = issue(connection, csr().1, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
}

#[tokio::test]
async fn a_new_certificate_of_the_control_plane_drops_no_stream() {
    let control_plane = mesh().await;
    let mut stream = connect(&control_plane, "front").await;
    let before = shown_certificate(&control_plane).await;
    control_plane.renew_own_certificate().unwrap();
    assert_ne!(shown_certificate(&control_plane).await, before);
    stream.subscribe(SERVICE).await;
    stream.hear_destination().await;
}

#[tokio::test]
async fn nobody_gets_the_identity_of_the_control_plane() {
    let control_plane = mesh().await;
    let token = |account| control_plane.join_token("postern-system", account, "pod");
    let refused =
        issue(channel(&control_plane, None).await, csr().1, &token("control-plane")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    issue(channel(&control_plane, None).await, csr().1, &token("other"))
        .await
        .expect("another account of the namespace");
}

#[tokio::test]
async fn who_has_been_told_of_a_state_of_the_documents_and_has_not_answered_is_known() {
    let control_plane = mesh().await;
    let key = join(&control_plane, "shop", "front", "front").await;
    let mut front = Stream::open(channel(&control_plane, Some(key)).await, "front").await.unwrap();
    for _ in ["bundles", "policy"] {
        let update = front.hear().await.unwrap();
        front.ack(&update).await;
    }
    let answered = |number| {
        move |sessions: &[postern_control_plane::SessionStatus]| {
            sessions.iter().all(|one| one.documents == number && one.unanswered == 0)
        }
    };
    status_becomes(&control_plane, "the answers of the start", answered(1)).await;
    // What concerns it not is told by silence: the number alone goes up.
    assert_eq!(control_plane.apply(read(MESH)), 2);
    status_becomes(&control_plane, "the same again", answered(2)).await;
    // What concerns it waits for its answer.
    front.subscribe(SERVICE).await;
    let (update, _) = front.hear_destination().await;
    status_becomes(&control_plane, "an answer that is due", |sessions| sessions[0].unanswered == 1).await;
    front.ack(&update).await;
    status_becomes(&control_plane, "the answer", answered(2)).await;
}
