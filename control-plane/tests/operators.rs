//! What operators ask for on the admin socket, and what sidecars see of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod sidecar;

use postern_api::v1::{self, authority_client::AuthorityClient, control_message, sidecar_message};
use postern_control_plane::{
    ControlPlane,
    admin::pages::{Authorities, Authority, Certificates, Problem},
};
use postern_identity::{Bundle, KeyId};
use rustls::sign::CertifiedKey;
use serde::de::DeserializeOwned;
use sidecar::{Silent, Stream, channel, csr, issue, join, read, soon, start};
use std::{
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
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
";

/// A control plane with its admin socket.
struct Operated {
    control_plane: ControlPlane,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Operated {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let control_plane = start().await;
        control_plane.apply(read(MESH));
        control_plane.open_admin_socket(socket.clone()).unwrap();
        Self { control_plane, socket, _folder: folder }
    }

    /// Status and body of an answer.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: control-plane\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let socket = self.socket.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let answer = soon("an answer", answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn page<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.ask("GET", path, "").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn authority(&self, kind: &str, slot: &str) -> Option<Authority> {
        let page: Authorities = self.page("/authorities").await;
        page.authorities.into_iter().find(|one| one.kind == kind && one.slot == slot && !one.revoked)
    }

    /// A refusal.
    async fn refused(&self, path: &str, body: &str) -> Problem {
        let (status, body) = self.ask("POST", path, body).await;
        assert!(status >= 400, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn done(&self, path: &str, body: &str) -> String {
        let (status, body) = self.ask("POST", path, body).await;
        assert_eq!(status, 200, "{body}");
        body
    }
}

/// A connected sidecar that has taken the first trust and reported its certificate.
struct Front {
    stream: Stream,
    key: Arc<CertifiedKey>,
}

impl Front {
    async fn connect(operated: &Operated) -> Self {
        let key = join(&operated.control_plane, "shop", "front", "front").await;
        let mut stream =
            Stream::open(channel(&operated.control_plane, Some(key.clone())).await, "front").await.unwrap();
        let bundles = stream.hear().await.unwrap();
        stream.ack(&bundles).await;
        let (policy, _) = stream.hear_policy().await;
        stream.ack(&policy).await;
        let mut front = Self { stream, key };
        front.report(operated).await;
        front
    }

    async fn report(&mut self, operated: &Operated) {
        let (_, leaf) = x509_parser::parse_x509_certificate(&self.key.cert[0]).unwrap();
        let page: Authorities = operated.page("/authorities").await;
        let issuer = KeyId::of_certificate(&self.key.cert[1]).unwrap();
        let root = page.authorities.iter().find(|one| one.id == issuer.to_string()).unwrap().root.clone();
        let root: KeyId = root.unwrap().parse().unwrap();
        let report = v1::Certificate {
            serial: leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            not_before_unix_seconds: leaf.validity().not_before.timestamp(),
            not_after_unix_seconds: leaf.validity().not_after.timestamp(),
            authorities: [issuer, root].iter().map(|key| key.as_bytes().to_vec()).collect(),
        };
        self.stream.say(sidecar_message::Message::Certificate(report)).await;
    }

    /// The next bundles, and the update that carries them.
    async fn bundles(&mut self) -> (v1::ControlMessage, v1::BundleUpdate) {
        let update = self.stream.hear().await.unwrap();
        let Some(control_message::Message::Bundles(bundles)) = update.message.clone() else {
            panic!("{update:?}")
        };
        (update, bundles)
    }

    /// A new certificate by the current one.
    async fn renew(&mut self, operated: &Operated) {
        let (key, request) = csr();
        let connection = channel(&operated.control_plane, Some(self.key.clone())).await;
        self.key = sidecar::certified(issue(connection, request, "").await.unwrap(), &key);
        self.report(operated).await;
    }
}

fn anchors(bundles: &v1::BundleUpdate) -> Vec<KeyId> {
    let domain = "cluster.local".parse().unwrap();
    let bundle = Bundle::from_document(domain, &bundles.bundles[0].document).unwrap();
    bundle.anchors.iter().map(|anchor| KeyId::of_certificate(anchor).unwrap()).collect()
}

#[tokio::test]
async fn a_root_rotates_by_evidence_and_who_lags_is_named() {
    let operated = Operated::start().await;
    let mut front = Front::connect(&operated).await;
    let first = operated.authority("root", "active").await.unwrap();

    operated.done("/authorities/rotate", r#"{"kind": "root"}"#).await;
    let next = operated.authority("root", "prepared").await.expect("published before it signs");
    let (update, bundles) = front.bundles().await;
    assert_eq!(anchors(&bundles).len(), 2);
    // Not acknowledged: named, refused, and it does not go on by itself.
    let page: Authorities = operated.page("/authorities").await;
    assert!(page.pending[0].automatic);
    assert_eq!(
        (page.pending[0].step.as_str(), page.pending[0].lagging[0].who.as_str()),
        ("activate", "shop/front")
    );
    let refused = operated.refused("/authorities/rotate", r#"{"kind": "root", "step": "activate"}"#).await;
    assert!(refused.lagging[0].reason.contains("has acknowledged trust"), "{refused:?}");
    assert!(operated.authority("root", "prepared").await.is_some());

    // Acknowledged: it signs, and the old one is tainted, so that whoever holds something of it renews.
    front.stream.ack(&update).await;
    let tainted = loop {
        let (update, bundles) = front.bundles().await;
        front.stream.ack(&update).await;
        if !bundles.tainted.is_empty() {
            break bundles.tainted;
        }
    };
    assert_eq!(KeyId::try_from(&tainted[0][..]).unwrap().to_string(), first.id);
    assert_eq!(operated.authority("root", "active").await.unwrap().id, next.id);
    let page: Authorities = operated.page("/authorities").await;
    let retire = page.pending.iter().find(|pending| pending.step == "retire").unwrap();
    assert!(retire.lagging[0].reason.contains("holds a certificate below"), "{retire:?}");

    // Renewed: the old one is gone.
    front.renew(&operated).await;
    let (_, bundles) = front.bundles().await;
    assert_eq!(anchors(&bundles), [next.id.parse().unwrap()]);
    let page: Authorities = operated.page("/authorities").await;
    assert_eq!(page.pending, [], "nothing is left to do");
    assert!(operated.authority("root", "old").await.is_none());
}

#[tokio::test]
async fn a_step_is_forced_only_when_somebody_says_so() {
    let operated = Operated::start().await;
    operated.done("/authorities/rotate", r#"{"kind": "root", "step": "prepare"}"#).await;
    let refused = operated.refused("/authorities/rotate", r#"{"kind": "root", "step": "activate"}"#).await;
    assert_eq!((refused.status, refused.lagging[0].who.as_str()), (409, "shop/front"));
    assert!(refused.lagging[0].reason.contains("has not connected since"), "{refused:?}");
    let forced = r#"{"kind": "root", "step": "activate", "force": true}"#;
    assert!(operated.done("/authorities/rotate", forced).await.contains("signs now"));
}

#[tokio::test]
async fn a_revoked_authority_ends_the_stream_the_connection_and_every_renewal_below_it() {
    let operated = Operated::start().await;
    let mut front = Front::connect(&operated).await;
    let connection = channel(&operated.control_plane, Some(front.key.clone())).await;
    issue(connection.clone(), csr().1, "").await.expect("as long as it is trusted");
    let silent = Silent::open(&operated.control_plane, front.key.clone()).await;
    let mut tokens = AuthorityClient::new(connection.clone());
    let wanted = v1::IssueJwtSvidRequest { audience: vec!["db".into()], lifetime_seconds: 0 };
    tokens.issue_jwt_svid(wanted.clone()).await.expect("as long as it is trusted");

    let intermediate = operated.authority("intermediate", "active").await.unwrap();
    let path = format!("/authorities/{}/revoke", intermediate.id);
    let refused = operated.refused(&path, "").await;
    assert!(refused.lagging[0].reason.contains("holds a certificate below"), "{refused:?}");
    operated.done(&path, r#"{"force": true}"#).await;

    // First the trust that says so, then the end of the stream.
    let (_, bundles) = front.bundles().await;
    assert_eq!(bundles.bundles[0].revoked.len(), 1);
    let ended = front.stream.hear().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    issue(connection.clone(), csr().1, "").await.expect_err("a certificate for a revoked one");
    tokens.issue_jwt_svid(wanted).await.expect_err("a token for a revoked certificate");
    // The connections themselves end within five seconds, whatever they carry.
    tokio::time::timeout(Duration::from_secs(5), silent.ended()).await.expect("the connection stays open");
    issue(connection, csr().1, "").await.expect_err("a certificate for a revoked one");
    let again = sidecar::join(&operated.control_plane, "shop", "front", "front").await;
    issue(channel(&operated.control_plane, Some(again)).await, csr().1, "").await.expect("a new one is good");
}

#[tokio::test]
async fn a_token_is_for_the_identity_of_the_connection_and_for_sound_audiences() {
    let operated = Operated::start().await;
    let key = join(&operated.control_plane, "shop", "front", "front").await;
    let mut known = AuthorityClient::new(channel(&operated.control_plane, Some(key)).await);
    let mut stranger = AuthorityClient::new(channel(&operated.control_plane, None).await);
    let request = |audience: Vec<String>| v1::IssueJwtSvidRequest { audience, lifetime_seconds: 60 };
    let issued = known.issue_jwt_svid(request(vec!["db".into()])).await.unwrap().into_inner();
    assert_eq!(issued.token.split('.').count(), 3);

    let refused = stranger.issue_jwt_svid(request(vec!["db".into()])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    for (audience, sound) in [
        (vec![], false),
        (vec![String::new()], false),
        (vec!["a".repeat(257)], false),
        (vec!["a".repeat(256)], true),
        (vec!["a".into(); 17], false),
        ((0..16).map(|n| n.to_string()).collect(), true),
    ] {
        match known.issue_jwt_svid(request(audience.clone())).await {
            Ok(_) => assert!(sound, "{audience:?}"),
            Err(refused) => {
                assert!(!sound && refused.code() == Code::InvalidArgument, "{audience:?}: {refused:?}")
            }
        }
    }
    operated
        .control_plane
        .apply(read(&MESH.replace("serviceAccountName: front", "serviceAccountName: other")));
    let refused = known.issue_jwt_svid(request(vec!["db".into()])).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "its pod has gone: {refused:?}");
}

#[tokio::test]
async fn certificates_and_numbers_show_who_holds_what() {
    let operated = Operated::start().await;
    let page: Certificates = operated.page("/certificates").await;
    assert_eq!((page.certificates.len(), page.missing[0].who.as_str()), (0, "shop/front"));
    let mut front = Front::connect(&operated).await;
    // What comes after the report is answered after it.
    front.stream.subscribe("10.0.0.9:80").await;
    front.stream.hear_destination().await;
    let page: Certificates = operated.page("/certificates").await;
    let one = &page.certificates[0];
    assert_eq!(one.identity, "spiffe://cluster.local/ns/shop/sa/front");
    assert_eq!(one.issuer, Some(KeyId::of_certificate(&front.key.cert[1]).unwrap().to_string()));
    assert!(one.remaining.unwrap() > 0.9);
    let (_, numbers) = operated.ask("GET", "/metrics", "").await;
    for line in [
        "postern_sidecars_connected 1\n",
        "postern_sidecars_missing 0\n",
        "postern_authority_expiry_timestamp_seconds{kind=\"root\",id=\"",
        "postern_authority_not_before_timestamp_seconds{kind=\"root\",id=\"",
        "{outcome=\"issued\"} 1\n",
    ] {
        assert!(numbers.contains(line), "{line} is not in\n{numbers}");
    }
}

#[tokio::test]
async fn the_admin_socket_is_its_owners_and_answers_nonsense_with_a_problem() {
    let operated = Operated::start().await;
    let mode = std::fs::metadata(&operated.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (method, path, body, status) in [
        ("GET", "/nothing", "", 404),
        ("PUT", "/authorities", "", 404),
        ("POST", "/authorities/rotate", "", 400),
        ("POST", "/authorities/rotate", r#"{"kind": "moon"}"#, 400),
        ("POST", "/authorities/rotate", r#"{"kind": "root", "forse": true}"#, 400),
        ("POST", "/authorities/12/taint", "", 400),
        ("POST", "/authorities/rotate", &" ".repeat(5000), 400),
        ("GET", "/authorities", "", 200),
    ] {
        let (found, told) = operated.ask(method, path, body).await;
        assert_eq!(found, status, "{method} {path} {body}: {told}");
    }
    let unknown = format!("/authorities/{}/taint", "ab".repeat(32));
    assert_eq!(operated.refused(&unknown, "").await.status, 404);
    operated.control_plane.shutdown().await;
    assert!(!operated.socket.exists(), "the file goes with the control plane");
}

#[tokio::test]
async fn a_report_that_is_none_ends_the_stream() {
    let operated = Operated::start().await;
    let mut front = Front::connect(&operated).await;
    front.stream.say(sidecar_message::Message::Certificate(v1::Certificate::default())).await;
    let ended = front.stream.hear().await.unwrap_err();
    assert_eq!(ended.code(), Code::InvalidArgument, "{ended:?}");
}
