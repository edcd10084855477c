//! One session with a scripted control plane.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::{
    control::destinations::Bounds,
    ready::Ready,
    state::signer::{HOUR, Signer, trust},
};
use postern_config::snapshot::Workload;
use postern_config::{
    InboundSpec,
    documents::{
        AuthorizationPolicy, Metadata,
        authorization_policy::{From, Rule, Source},
    },
};
use postern_identity::TrustBundles;

fn subscriber() -> (Subscriber, Arc<Store>, Ready) {
    let telemetry = Telemetry::silent();
    let store = Arc::new(Store::default());
    let ready = Ready::default();
    let control = ControlPlane::new(
        std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into(),
        "cluster.local".parse().unwrap(),
        TrustBundles::default(),
        None,
    )
    .unwrap();
    let subscriber = Subscriber::new(
        Arc::new(control),
        store.clone(),
        Destinations::new(Bounds::default(), telemetry.clone()),
        telemetry,
        "web-1".into(),
        Duration::from_secs(10),
        Some(ready.block("policy")),
    );
    (subscriber, store, ready)
}

fn spec(name: &str) -> InboundSpec {
    InboundSpec {
        workload: Workload { namespace: "shop".into(), name: name.into(), ..Default::default() },
        mesh: Default::default(),
        ports: Vec::new(),
        peer_authentications: Vec::new(),
        authorization_policies: Vec::new(),
        telemetries: Vec::new(),
        upgrades: Default::default(),
    }
}

fn policy(version: &str, spec: Vec<u8>) -> v1::ControlMessage {
    let message = control_message::Message::Inbound(v1::InboundPolicy { spec });
    v1::ControlMessage { version: version.into(), nonce: format!("n-{version}"), message: Some(message) }
}

#[test]
fn a_good_policy_is_put_in_force_and_acknowledged_and_makes_us_ready() {
    let (mut subscriber, store, ready) = subscriber();
    assert_eq!(ready.missing(), ["policy"]);
    let answer = subscriber.take(policy("1", serde_json::to_vec(&spec("web")).unwrap())).unwrap();
    let Some(sidecar_message::Message::Ack(ack)) = answer.message else { panic!("{answer:?}") };
    assert_eq!((ack.nonce.as_str(), ack.version.as_str()), ("n-1", "1"));
    assert_eq!(&*store.inbound().unwrap().version, "1");
    assert!(ready.missing().is_empty());
}

#[test]
fn a_bad_policy_is_refused_with_its_nonce_and_the_last_good_one_stays() {
    let (mut subscriber, store, _) = subscriber();
    subscriber.take(policy("1", serde_json::to_vec(&spec("web")).unwrap())).unwrap();
    for (version, bytes) in [("2", b"{".to_vec()), ("3", b"{\"workload\":7}".to_vec()), ("4", Vec::new())] {
        let answer = subscriber.take(policy(version, bytes)).unwrap();
        let Some(sidecar_message::Message::Nack(nack)) = answer.message else { panic!("{answer:?}") };
        assert_eq!((nack.nonce, nack.version), (format!("n-{version}"), version.to_owned()));
        assert!(!nack.reason.is_empty());
        assert_eq!(&*store.inbound().unwrap().version, "1");
    }
}

#[test]
fn a_policy_that_does_not_compile_is_refused_with_all_its_problems_and_its_correct_twin_is_taken() {
    for (sources, is_taken) in [(&["10.0.0.0/33", "ten"][..], false), (&["10.0.0.0/8"][..], true)] {
        let (mut subscriber, store, _) = subscriber();
        let mut spec = spec("web");
        spec.authorization_policies.push(AuthorizationPolicy {
            metadata: Metadata { name: "a".into(), namespace: "shop".into(), ..Default::default() },
            rules: vec![Rule {
                from: vec![From {
                    source: Source {
                        ip_blocks: sources.iter().map(ToString::to_string).collect(),
                        ..Default::default()
                    },
                }],
                ..Default::default()
            }],
            ..Default::default()
        });
        let answer = subscriber.take(policy("1", serde_json::to_vec(&spec).unwrap())).unwrap();
        assert_eq!(store.inbound().is_some(), is_taken, "{answer:?}");
        match answer.message {
            Some(sidecar_message::Message::Ack(_)) => assert!(is_taken),
            Some(sidecar_message::Message::Nack(nack)) => {
                assert!(!is_taken);
                assert!(sources.iter().all(|source| nack.reason.contains(source)), "{}", nack.reason);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn before_the_first_good_policy_a_bad_one_leaves_us_without() {
    let (mut subscriber, store, ready) = subscriber();
    subscriber.take(policy("1", b"not json".to_vec())).unwrap();
    assert!(store.inbound().is_none());
    assert_eq!(ready.missing(), ["policy"]);
}

#[test]
fn the_same_policy_again_wakes_nobody_and_a_new_one_does() {
    let (mut subscriber, store, _) = subscriber();
    let mut generation = store.policy_generation();
    subscriber.take(policy("1", serde_json::to_vec(&spec("web")).unwrap())).unwrap();
    assert!(generation.has_changed().unwrap());
    generation.mark_unchanged();
    subscriber.take(policy("1", serde_json::to_vec(&spec("web")).unwrap())).unwrap();
    assert!(!generation.has_changed().unwrap());
    subscriber.take(policy("1", serde_json::to_vec(&spec("other")).unwrap())).unwrap();
    assert!(generation.has_changed().unwrap());
}

fn bundles(content: v1::BundleUpdate) -> v1::ControlMessage {
    let message = Some(control_message::Message::Bundles(content));
    v1::ControlMessage { version: "1".into(), nonce: "n".into(), message }
}

#[test]
fn bundles_that_are_wrong_or_older_are_refused_and_the_last_good_ones_stay() {
    let (root, other) = (Signer::new("root", None), Signer::new("other", None));
    let wire = |domain: &str, anchors: &[&Signer], sequence| {
        let trust = trust(anchors, &[], sequence);
        let document = trust.get("cluster.local").unwrap().to_document().into_bytes();
        v1::Bundle { trust_domain: domain.into(), document, revoked: vec![] }
    };
    let ours = |anchors: &[&Signer], sequence| wire("cluster.local", anchors, sequence);
    let update = |bundles: Vec<v1::Bundle>| v1::BundleUpdate { bundles, ..v1::BundleUpdate::default() };
    let both = || ours(&[&root, &other], 7);
    let text = |document: &[u8]| update(vec![v1::Bundle { document: document.to_vec(), ..both() }]);
    let foreign = || wire("other.example", &[&other], 1);
    let tainted = v1::BundleUpdate { tainted: vec![vec![1, 2, 3]], ..update(vec![both()]) };
    for (what, content, part) in [
        ("nothing", update(vec![]), Some("no bundle of our own trust domain")),
        ("not JSON", text(b"{"), Some("cluster.local")),
        ("not UTF-8", text(b"\xff"), Some("cluster.local")),
        ("another document", text(br#"{"keys":7}"#), Some("keys")),
        ("no anchors", text(br#"{"keys":[],"spiffe_sequence":7}"#), Some("no usable authority")),
        (
            "a damaged anchor",
            text(br#"{"keys":[{"kty":"EC","use":"x509-svid","x5c":["AAAA"]}],"spiffe_sequence":7}"#),
            Some("certificate 1"),
        ),
        ("another domain alone", update(vec![foreign()]), Some("no bundle of our own trust domain")),
        ("a NUL", update(vec![both(), wire("other\0.example", &[&other], 1)]), Some("not a trust domain")),
        ("upper case", update(vec![both(), wire("Other.example", &[&other], 1)]), Some("not a trust domain")),
        ("one domain twice", update(vec![both(), both()]), Some("two bundles for trust domain")),
        (
            "a key of three bytes revoked",
            update(vec![v1::Bundle { revoked: vec![vec![1, 2, 3]], ..both() }]),
            Some("a key id has 32 bytes, not 3"),
        ),
        ("a key of three bytes tainted", tainted, Some("a key id has 32 bytes, not 3")),
        ("without our authority", update(vec![ours(&[&other], 7)]), Some("would be refused by our peers")),
        (
            "older",
            update(vec![ours(&[&root, &other], 4)]),
            Some("sequence 4, older than the one in force (5)"),
        ),
        ("the same again", update(vec![ours(&[&root], 5)]), None),
        ("as old, and a foreign domain", update(vec![ours(&[&root], 5), foreign()]), None),
        ("newer", update(vec![both()]), None),
    ] {
        let (mut subscriber, store, _) = subscriber();
        let first = trust(&[&root], &[], 5);
        store.publish_credentials(root.credentials(&[], first.clone(), HOUR).unwrap()).unwrap();
        let count = content.bundles.len();
        let answer = subscriber.take(bundles(content)).unwrap().message;
        match (answer, part) {
            (Some(sidecar_message::Message::Ack(_)), None) => {
                assert_eq!(store.trust().unwrap().iter().count(), count, "{what}");
            }
            (Some(sidecar_message::Message::Nack(nack)), Some(part)) => {
                assert!(nack.reason.contains(part), "{what}: {}", nack.reason);
                assert_eq!(*store.trust().unwrap(), first, "{what}");
            }
            (answer, _) => panic!("{what}: {answer:?}"),
        }
        assert!(store.own().is_ok(), "{what}");
    }
}

#[test]
fn an_update_from_the_future_is_refused() {
    let (mut subscriber, _, _) = subscriber();
    let answer = subscriber
        .take(v1::ControlMessage { version: "1".into(), nonce: "n".into(), message: None })
        .unwrap();
    assert!(matches!(answer.message, Some(sidecar_message::Message::Nack(_))));
}

#[test]
fn the_name_in_traces_is_the_apps() {
    for (labels, expected) in [
        (&[][..], "web-6b4f"),
        (&[("app", "web")][..], "web"),
        (&[("app", "web"), ("app.kubernetes.io/name", "shop-web")][..], "shop-web"),
    ] {
        let mut workload = spec("web-6b4f").workload;
        workload.labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert_eq!(workload.canonical_service(), expected);
    }
}
