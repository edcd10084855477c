//! Federation with real endpoints: two control planes with each other, and one with an endpoint that does everything wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod endpoint;
mod sidecar;

use endpoint::{Answer, Endpoint, Root, answer, document, good};
use postern_config::Documents;
use postern_control_plane::{
    ControlPlane, FederationStatus, Options,
    federation::{Settings, Source, Timing},
};
use sidecar::{Stream, channel, join, read, soon, try_channel};
use std::{path::PathBuf, time::Duration};

const ENDPOINT: &str = "spiffe://other.example/ns/postern-system/sa/control-plane";
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {sidecar.istio.io/inject: 'true'}}
spec: {serviceAccountName: web, containers: [{name: c, command: [serve]}]}
status: {podIP: 10.0.0.1}
";

/// Looks follow each other quickly.
const TIMING: Timing = Timing {
    interval: Duration::from_millis(20),
    shortest: Duration::from_millis(20),
    longest: Duration::from_millis(20),
    deadline: Duration::from_millis(400),
};

async fn start(trust_domain: &str, state: Option<PathBuf>, federation: Settings) -> ControlPlane {
    postern_control_plane::start(Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        state,
        trust_domain: trust_domain.into(),
        certificate_lifetime: Duration::from_secs(3600),
        unix_socket: None,
        kubernetes: None,
        upstream: postern_control_plane::Upstream::Own,
        allow_ending_authority: false,
        federation,
    })
    .await
    .unwrap()
}

fn settings() -> Settings {
    Settings { listen: Some("127.0.0.1:0".parse().unwrap()), timing: TIMING, ..Settings::default() }
}

/// A pod, and federation with `trust_domain`; `profile` in YAML flow style.
fn documents(own: &str, trust_domain: &str, url: &str, profile: &str, bundle: &str) -> Documents {
    let indented: String = bundle.lines().map(|line| format!("    {line}\n")).collect();
    let bundle =
        if bundle.is_empty() { String::new() } else { format!("  trustDomainBundle: |\n{indented}") };
    read(&format!(
        "{POD}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data: {{mesh: \"trustDomain: {own}\"}}\n---\n\
         apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {{name: partner}}\n\
         spec:\n  trustDomain: {trust_domain}\n  bundleEndpointURL: {url}\n  bundleEndpointProfile: {{{profile}}}\n{bundle}"
    ))
}

fn spiffe(id: &str) -> String {
    format!("type: https_spiffe, endpointSPIFFEID: '{id}'")
}

/// Waits until the one relationship is as wanted.
async fn becomes(
    control: &ControlPlane,
    what: &str,
    wanted: impl Fn(&FederationStatus) -> bool,
) -> FederationStatus {
    let mut last = None;
    let waiting = async {
        loop {
            let status = control.federation().into_iter().next();
            if let Some(status) = status.clone().filter(|status| wanted(status)) {
                return status;
            }
            last = status;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(20), waiting).await {
        Ok(status) => status,
        Err(_) => panic!("in vain: {what}; last: {last:#?}"),
    }
}

fn is_fetched(status: &FederationStatus) -> bool {
    status.source == Some(Source::Fetched)
}

/// The trust domains of the bundles that a sidecar is pushed next.
async fn pushed(stream: &mut Stream) -> Vec<String> {
    stream.hear_bundles().await.into_iter().map(|bundle| bundle.trust_domain).collect()
}

async fn sidecar(control: &ControlPlane, trust_domain: &str) -> Stream {
    assert_eq!(trust_domain, "cluster.local", "what the sidecar of these tests expects at the other end");
    let key = join(control, "shop", "web", "web").await;
    Stream::open(channel(control, Some(key)).await, "web").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_control_planes_federate_by_https_spiffe_and_their_sidecars_hear_of_it_and_of_its_end() {
    let ours = start("cluster.local", None, settings()).await;
    let other = start("other.example", None, settings()).await;
    let url = |control: &ControlPlane| format!("https://{}/bundle", control.bundle_endpoint().unwrap());
    ours.apply(read(POD));
    let mut stream = sidecar(&ours, "cluster.local").await;
    assert_eq!(pushed(&mut stream).await, ["cluster.local"]);
    stream.hear_policy().await;

    let profile = spiffe(ENDPOINT);
    let with = documents("cluster.local", "other.example", &url(&other), &profile, &other.trust_bundle_pem());
    ours.apply(with.clone());
    let profile = spiffe("spiffe://cluster.local/ns/postern-system/sa/control-plane");
    // A foreign mesh that is called `cluster.local` cannot be named in policies, which is why documents may not say so.
    let mut back = with.clone();
    back.federated_trust_domains[0].value = {
        let mut federated = with.federated_trust_domains[0].value.clone();
        federated.trust_domain = "cluster.local".parse().unwrap();
        federated.url = url(&ours).parse().unwrap();
        let id = profile.split('\'').nth(1).unwrap().parse().unwrap();
        federated.profile = postern_config::documents::federation::EndpointProfile::Spiffe(id);
        let pem = ours.trust_bundle_pem();
        federated.bundle = Some(
            postern_identity::Bundle::from_pem("cluster.local".parse().unwrap(), pem.as_bytes()).unwrap(),
        );
        federated
    };
    other.apply(back);

    for control in [&ours, &other] {
        let status = becomes(control, "the other side's bundle is fetched", is_fetched).await;
        assert_eq!((status.authorities, status.failures, &status.last_error), (1, 0, &None), "{status:?}");
        assert!(status.fetched_at.is_some());
    }
    assert_eq!(pushed(&mut stream).await, ["cluster.local", "other.example"]);

    ours.apply(read(POD));
    assert_eq!(ours.federation(), []);
    // The fetched bundle may have been pushed before, when it was another one than the document's.
    while pushed(&mut stream).await != ["cluster.local"] {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_web_is_served_from_files_and_fetched_under_the_authorities_of_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (web, stranger) = (Root::new("web"), Root::new("web"));
    let (certificate, key) = web.web_pem();
    for (name, text) in
        [("cert.pem", &certificate), ("key.pem", &key), ("ca.pem", &web.pem), ("stranger.pem", &stranger.pem)]
    {
        std::fs::write(path(name), text).unwrap();
    }
    let serving = Settings { certificate: Some((path("cert.pem"), path("key.pem"))), ..settings() };
    let other = start("other.example", None, serving).await;
    let url = format!("https://{}/", other.bundle_endpoint().unwrap());
    let documents = documents("cluster.local", "other.example", &url, "type: https_web", "");
    let federate = async |authorities: &str| {
        let settings = Settings { web_authorities: Some(path(authorities)), ..settings() };
        let ours = start("cluster.local", None, settings).await;
        ours.apply(documents.clone());
        ours
    };

    let refused = federate("stranger.pem").await;
    let status = becomes(&refused, "a stranger's certificate is refused", |s| s.failures > 1).await;
    assert_eq!(status.source, None);
    assert!(status.last_error.as_ref().unwrap().contains("did not prove itself"), "{status:?}");

    let ours = federate("ca.pem").await;
    becomes(&ours, "the bundle is fetched", is_fetched).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_endpoint_answers_get_of_its_two_paths_as_json_and_asks_for_no_certificate() {
    let ours = start("cluster.local", None, settings()).await;
    let bundle = postern_identity::Bundle::from_pem(
        "cluster.local".parse().unwrap(),
        ours.trust_bundle_pem().as_bytes(),
    )
    .unwrap();
    let ask = async |request: &str| {
        let trust = [bundle.clone()].into_iter().collect();
        let id = "spiffe://cluster.local/ns/postern-system/sa/control-plane".parse().unwrap();
        let config = postern_identity::tls::client_config(
            None,
            std::sync::Arc::new(trust),
            postern_identity::Accept::only(id),
            &[b"http/1.1"],
        )
        .unwrap();
        let stream = tokio::net::TcpStream::connect(ours.bundle_endpoint().unwrap()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let name = rustls::pki_types::ServerName::try_from("bundle.example").unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nhost: a\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let _ = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text).await;
        text
    };
    for (request, status, part) in [
        ("GET /", "200", "content-type: application/json"),
        ("GET /bundle", "200", "\"keys\":[{"),
        ("GET /bundle?x", "200", "x509-svid"),
        ("POST /bundle", "405", "allow: GET"),
        ("GET /other", "404", ""),
        ("GET /../bundle", "404", ""),
    ] {
        let text = soon(request, ask(request)).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")) && text.contains(part), "{request}: {text}");
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}

/// One control plane that has fetched sequence 5 from an endpoint.
struct Stage {
    endpoint: Endpoint,
    ours: ControlPlane,
    root: Root,
}

async fn stage() -> Stage {
    let root = Root::new("other.example");
    let key = root.svid(ENDPOINT, time::Duration::hours(1));
    let endpoint = Endpoint::start(key, good(&document(5, &[&root]))).await;
    let ours = start("cluster.local", None, Settings { timing: TIMING, ..Settings::default() }).await;
    let initial = document(1, &[&root]);
    ours.apply(documents("cluster.local", "other.example", &endpoint.url(), &spiffe(ENDPOINT), &initial));
    becomes(&ours, "the bundle is fetched", |s| is_fetched(s) && s.sequence == Some(5)).await;
    Stage { endpoint, ours, root }
}

impl Stage {
    /// The next looks fail, for this reason, and the last good bundle stays; then all is well again.
    async fn check(&self, what: &str, part: &str) {
        let status = becomes(&self.ours, what, |s| s.failures > 1).await;
        let reason = status.last_error.clone().unwrap();
        assert!(reason.contains(part), "{what}: {reason}");
        assert_eq!((status.sequence, status.authorities), (Some(5), 1), "{what}: the last good one stays");
        self.endpoint.shows(self.root.svid(ENDPOINT, time::Duration::hours(1)));
        self.endpoint.says(good(&document(5, &[&self.root])));
        let status = becomes(&self.ours, "the endpoint is well again", |s| s.failures == 0).await;
        assert_eq!(status.last_error, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_broken_endpoint_says_the_last_good_bundle_stays_and_the_reason_is_told() {
    let stage = stage().await;
    let next = document(6, &[&stage.root]);
    let twice = next.replacen('{', "{\"keys\":[],", 1);
    let large = next.replacen('{', &format!("{{\"x\":\"{}\",", "y".repeat(2 << 20)), 1);
    let many: Vec<Root> = (0..120).map(|_| Root::new("other.example")).collect();
    let many = document(6, &many.iter().collect::<Vec<_>>());
    for (what, says, part) in [
        ("broken JSON", good(&next[..next.len() / 2]), "not JSON"),
        ("a member twice", good(&twice), "occurs twice"),
        ("no keys", good("{}"), "no `keys` array"),
        ("HTML", good("<html>"), "not JSON"),
        ("2 MiB", good(&large), "1048576"),
        ("too many authorities", good(&many), "the limit is 65536"),
        ("nothing after the head", Answer::Hang, "did not answer whole within"),
        (
            "half a body",
            Answer::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".to_vec()),
            "not read whole",
        ),
        ("no HTTP", Answer::Bytes(b"SSH-2.0-x\r\n".to_vec()), "127.0.0.1"),
        ("500", answer("500 Internal Server Error", "", b"{}"), "answered 500"),
        ("204", answer("204 No Content", "", b""), "answered 204"),
        ("a redirect to http", answer("302 Found", "location: http://127.0.0.1:1/\r\n", b""), "https://"),
        ("a redirect to nowhere", answer("302 Found", "", b""), "does not say where"),
        ("a redirect loop", answer("302 Found", "location: /bundle\r\n", b""), "more than 3 times"),
        ("a roll-back", good(&document(4, &[&stage.root, &Root::new("other.example")])), "roll-back"),
    ] {
        stage.endpoint.says(says);
        stage.check(what, part).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_does_not_prove_itself_is_not_asked_at_all() {
    let stage = stage().await;
    let hour = time::Duration::hours(1);
    let stranger = Root::new("other.example");
    for (what, key, part) in [
        (
            "another SPIFFE ID",
            stage.root.svid("spiffe://other.example/ns/shop/sa/web", hour),
            "control-plane",
        ),
        ("another root", stranger.svid(ENDPOINT, hour), "other.example"),
        ("ended", stage.root.svid(ENDPOINT, -time::Duration::minutes(10)), "is expired"),
        (
            "our own domain",
            stage.root.svid("spiffe://cluster.local/ns/postern-system/sa/control-plane", hour),
            "cluster.local",
        ),
        ("a web certificate", stage.root.web(hour), "SPIFFE"),
    ] {
        stage.endpoint.shows(key);
        // What is under way may still have been answered.
        becomes(&stage.ours, what, |s| s.failures > 0).await;
        let before = stage.endpoint.requests();
        becomes(&stage.ours, what, |s| s.failures > 2).await;
        assert_eq!(stage.endpoint.requests(), before, "{what}");
        stage.check(what, part).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_web_needs_the_name_of_the_url_in_a_certificate_that_is_valid_now() {
    let folder = tempfile::tempdir().unwrap();
    let web = Root::new("web");
    std::fs::write(folder.path().join("ca.pem"), &web.pem).unwrap();
    let root = Root::new("other.example");
    let hour = time::Duration::hours(1);
    let endpoint = Endpoint::start(web.web(hour), good(&document(5, &[&root]))).await;
    let authorities = Some(folder.path().join("ca.pem"));
    let settings = Settings { timing: TIMING, web_authorities: authorities, ..Settings::default() };
    let ours = start("cluster.local", None, settings).await;
    ours.apply(documents("cluster.local", "other.example", &endpoint.url(), "type: https_web", ""));
    becomes(&ours, "the bundle is fetched", is_fetched).await;
    for (what, key) in [
        ("another host", web.web_for("evil.example")),
        ("ended", web.web(-time::Duration::minutes(10))),
        ("another authority", Root::new("web").web(hour)),
        ("an SVID of the very root", web.svid(ENDPOINT, hour)),
    ] {
        endpoint.shows(key);
        let status = becomes(&ours, what, |s| s.failures > 0).await;
        assert!(status.last_error.unwrap().contains("did not prove itself"), "{what}");
        assert_eq!(status.sequence, Some(5), "{what}");
        endpoint.shows(web.web(hour));
        becomes(&ours, "the endpoint is well again", |s| s.failures == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_roots_are_followed_by_the_latest_bundle_and_an_empty_one_is_obeyed() {
    let stage = stage().await;
    let second = Root::new("other.example");
    stage.endpoint.says(good(&document(6, &[&stage.root, &second])));
    becomes(&stage.ours, "the new root is known", |s| s.authorities == 2).await;
    // The endpoint changes to its new root, and the old one goes: `trustDomainBundle` does not hold the new one.
    stage.endpoint.shows(second.svid(ENDPOINT, time::Duration::hours(1)));
    stage.endpoint.says(good(&document(7, &[&second])));
    let status = becomes(&stage.ours, "the old root is gone", |s| s.sequence == Some(7)).await;
    assert_eq!(status.authorities, 1);
    stage.endpoint.shows(stage.root.svid(ENDPOINT, time::Duration::hours(1)));
    becomes(&stage.ours, "the old root proves nothing any more", |s| s.failures > 1).await;
    stage.endpoint.shows(second.svid(ENDPOINT, time::Duration::hours(1)));
    becomes(&stage.ours, "the new one does", |s| s.failures == 0).await;

    stage.endpoint.says(good(r#"{"keys":[],"spiffe_sequence":8}"#));
    let status = becomes(&stage.ours, "everything is revoked", |s| s.authorities == 0).await;
    assert_eq!(status.sequence, Some(8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_good_bundle_survives_a_restart_and_ends_when_people_give_another_first_one() {
    let folder = tempfile::tempdir().unwrap();
    let (root, second) = (Root::new("other.example"), Root::new("other.example"));
    let key = root.svid(ENDPOINT, time::Duration::hours(1));
    let endpoint = Endpoint::start(key, good(&document(5, &[&root]))).await;
    let settings = || Settings { timing: TIMING, ..Settings::default() };
    let state = Some(folder.path().join("state"));
    let written = |initial: &str| {
        documents("cluster.local", "other.example", &endpoint.url(), &spiffe(ENDPOINT), initial)
    };
    let initial = document(1, &[&root]);
    let first = start("cluster.local", state.clone(), settings()).await;
    first.apply(written(&initial));
    becomes(&first, "the bundle is fetched", |s| s.sequence == Some(5)).await;
    first.shutdown().await;

    endpoint.says(answer("500 Internal Server Error", "", b""));
    let again = start("cluster.local", state.clone(), settings()).await;
    again.apply(written(&initial));
    let status = becomes(&again, "the endpoint is away", |s| s.failures > 0).await;
    assert_eq!((status.source, status.sequence), (Some(Source::Stored), Some(5)));

    // The other side lost everything and began anew: with a lower sequence, and with another root.
    endpoint.shows(second.svid(ENDPOINT, time::Duration::hours(1)));
    endpoint.says(good(&document(1, &[&second])));
    let status = becomes(&again, "the new root is not known", |s| s.failures > 2).await;
    assert_eq!(status.sequence, Some(5));
    again.apply(written(&document(1, &[&second])));
    becomes(&again, "it is, by the word of people", |s| is_fetched(s) && s.sequence == Some(1)).await;
    again.shutdown().await;

    // A damaged file is told and costs no more than the time until the next look.
    let file = folder.path().join("state/federation/other.example.json");
    std::fs::write(&file, "{").unwrap();
    endpoint.says(answer("500 Internal Server Error", "", b""));
    let third = start("cluster.local", state, settings()).await;
    third.apply(written(&document(1, &[&second])));
    let status = third.federation().remove(0);
    assert_eq!(status.source, Some(Source::Document));
    endpoint.says(good(&document(2, &[&second])));
    becomes(&third, "it is fetched again", |s| is_fetched(s) && s.sequence == Some(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_of_a_federated_domain_gets_no_certificate_and_no_stream_from_us() {
    let stage = stage().await;
    // Its name is that of a pod of ours, and its certificate is good.
    let foreign = stage.root.svid("spiffe://other.example/ns/shop/sa/web", time::Duration::hours(1));
    // The refusal is one of the handshake: a client learns of it with the connection or with the first use of it.
    let connected = || try_channel(&stage.ours, Some(foreign.clone()));
    if let Ok(channel) = connected().await {
        sidecar::issue(channel, sidecar::csr().1, "").await.expect_err("a certificate");
    }
    if let Ok(channel) = connected().await {
        match Stream::open(channel, "web").await {
            Ok(mut stream) => drop(stream.hear().await.expect_err("a stream")),
            Err(refused) => assert_ne!(refused.code(), tonic::Code::Ok),
        }
    }
    assert!(stage.ours.status().is_empty(), "{:?}", stage.ours.status());
    let ours = self::stage().await.ours;
    let mut twin = sidecar(&ours, "cluster.local").await;
    assert_eq!(pushed(&mut twin).await, ["cluster.local", "other.example"]);
}
