//! The handshake as `openssl s_client` sees it: versions, key exchange, and that nothing is ever resumed. Where a thing must
//! be missing, the same command first shows that it would see it: it is run against a server that has the thing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_identity::{Accept, Bundle, TrustBundles, tls};
use postern_tests::{
    Mesh,
    certificates::{Leaf, Pair, Signer},
    mesh::{Settings, within},
    scenario::{mode, payments},
};
use rustls::{NamedGroup, pki_types::pem::PemObject};
use serde_json::json;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

const CHECKOUT: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
const API: &str = "spiffe://cluster.local/ns/payments/sa/payments-api";

struct Stage {
    mesh: Mesh,
    good: Pair,
    folder: tempfile::TempDir,
}

/// A mesh that demands certificates, and a good one; nothing when openssl is missing, since the test then shows nothing.
async fn stage() -> Option<Stage> {
    if Command::new("openssl").arg("version").output().await.is_err() {
        eprintln!("SKIPPED: openssl is missing on this machine (make setup)");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("authority");
    let yaml = payments(&mode("payments", "STRICT"));
    let mesh = Mesh::start_with(&yaml, Settings { state: Some(state.clone()), ..Settings::default() }).await;
    let good = Signer::of_mesh(&state, folder.path()).sign("good", &Leaf::good(CHECKOUT));
    Some(Stage { mesh, good, folder })
}

impl Stage {
    fn gate(&self) -> SocketAddr {
        self.mesh.workload("payments-api").inbound(8080)
    }

    /// How many requests the app has seen.
    fn served(&self) -> usize {
        self.mesh.app("payments-api").received().len()
    }
}

/// One request through `openssl s_client`, read to the end of the connection: everything it printed.
async fn s_client(to: SocketAddr, pair: Option<&Pair>, more: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &to.to_string(), "-ign_eof"]).args(more);
    if let Some(pair) = pair {
        command.arg("-cert").arg(&pair.certificate).arg("-key").arg(&pair.key);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let request = b"GET /v1/charges HTTP/1.1\r\nHost: payments-api\r\nConnection: close\r\n\r\n";
    // A refused handshake closes it before all is written.
    let _ = child.stdin.as_mut().unwrap().write_all(request).await;
    let output = within("openssl has ended", child.wait_with_output()).await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// `openssl s_server`, which speaks TLS 1.2 and gives tickets; it ends with the value.
async fn lax_server(pair: &Pair) -> (SocketAddr, Child) {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert"]).arg(&pair.certificate);
    command.arg("-key").arg(&pair.key);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = within("the lax server listens", async {
        loop {
            let line = lines.next_line().await.unwrap().expect("openssl s_server says where it listens");
            if let Some(address) = line.strip_prefix("ACCEPT ") {
                return address.parse().unwrap();
            }
        }
    })
    .await;
    // What it prints later is read by nobody, and is not much.
    child.stdout = Some(lines.into_inner().into_inner());
    (address, child)
}

fn check(seen: &str, wanted: &[&str], unwanted: &[&str]) {
    for text in wanted {
        assert!(seen.contains(text), "`{text}` is missing in: {seen}");
    }
    for text in unwanted {
        assert!(!seen.contains(text), "`{text}` must not be in: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_2_is_refused_with_the_alert_for_it_before_the_app_hears_of_it() {
    let Some(stage) = stage().await else { return };
    let (lax, _server) = lax_server(&stage.good).await;
    check(&s_client(lax, Some(&stage.good), &["-tls1_2"]).await, &["New, TLSv1.2", "200 ok"], &[]);
    let seen = s_client(stage.gate(), Some(&stage.good), &["-tls1_2"]).await;
    check(&seen, &["alert protocol version", "no peer certificate available"], &["HTTP/1.1"]);
    assert_eq!(stage.mesh.app("payments-api").connections(), 0);
    let seen = s_client(stage.gate(), Some(&stage.good), &["-tls1_3"]).await;
    check(&seen, &["New, TLSv1.3", "HTTP/1.1 200"], &["alert"]);
    assert_eq!(stage.served(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ticket_is_given_and_one_from_elsewhere_replaces_no_certificate() {
    let Some(stage) = stage().await else { return };
    let ticket = "New Session Ticket arrived";
    let session = stage.folder.path().join("session.pem").to_string_lossy().into_owned();
    let (lax, _server) = lax_server(&stage.good).await;
    check(&s_client(lax, None, &["-sess_out", &session]).await, &["New, TLSv1.3", ticket], &["Reused"]);
    check(&s_client(lax, None, &["-sess_in", &session]).await, &["Reused, TLSv1.3"], &[]);

    let seen = s_client(stage.gate(), Some(&stage.good), &[]).await;
    check(&seen, &["New, TLSv1.3", "HTTP/1.1 200"], &[ticket, "Reused"]);
    // A pre-shared key is offered: with a certificate it is passed over, and without one it is worth nothing.
    let seen = s_client(stage.gate(), Some(&stage.good), &["-sess_in", &session]).await;
    check(&seen, &["New, TLSv1.3", "HTTP/1.1 200"], &[ticket, "Reused"]);
    assert_eq!(stage.served(), 2);
    let seen = s_client(stage.gate(), None, &["-sess_in", &session]).await;
    check(&seen, &["alert certificate required"], &[ticket, "Reused", "HTTP/1.1"]);
    assert_eq!(stage.served(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_agreed_on_over_x25519_or_p_256_and_no_other_curve() {
    let Some(stage) = stage().await else { return };
    for (group, key) in [("X25519", "Server Temp Key: X25519"), ("P-256", "prime256v1, 256 bits")] {
        let seen = s_client(stage.gate(), Some(&stage.good), &["-groups", group]).await;
        check(&seen, &[key, "HTTP/1.1 200"], &[]);
    }
    let served = stage.served();
    for group in ["P-521", "X448", "ffdhe2048"] {
        let seen = s_client(stage.gate(), Some(&stage.good), &["-groups", group]).await;
        check(&seen, &["alert handshake failure"], &["HTTP/1.1"]);
    }
    assert_eq!((served, stage.served()), (2, 2));
}

/// The openssl of today's distributions does not have the hybrid, so the client here is the one of our sidecars.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_can_agrees_on_a_key_that_a_quantum_computer_does_not_break() {
    let Some(stage) = stage().await else { return };
    let mut stream = connect(&stage, &stage.good).await;
    let connection = stream.get_ref().1;
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: payments-api\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    // How the other end closes is not asked here.
    let _ = within("the answer is read", stream.read_to_string(&mut answer)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let log = stage.mesh.access_log("payments-api");
    let line = log.next_with(&[("http.response.status_code", json!(200))]).await;
    assert_eq!(line["postern.source.id"], json!(CHECKOUT), "{line}");
}

async fn connect(stage: &Stage, pair: &Pair) -> tokio_rustls::client::TlsStream<TcpStream> {
    let roots = stage.mesh.control.trust_bundle_pem();
    let bundle = Bundle::from_pem("cluster.local".parse().unwrap(), roots.as_bytes()).unwrap();
    let trust = Arc::new(TrustBundles::from_iter([bundle]));
    let accept = Accept::only(API.parse().unwrap());
    let config = tls::client_config(Some(key(pair)), trust, accept, &[b"http/1.1"]).unwrap();
    let stream = TcpStream::connect(stage.gate()).await.unwrap();
    let name = "payments-api".try_into().unwrap();
    let handshake = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream);
    within("the handshake is done", handshake).await.unwrap()
}

fn key(pair: &Pair) -> Arc<rustls::sign::CertifiedKey> {
    fn read<T: PemObject>(path: &Path) -> T {
        T::from_pem_file(PathBuf::from(path)).unwrap()
    }
    tls::certified_key(vec![read(&pair.certificate)], read(&pair.key)).unwrap()
}
