//! A server that answers as Vault does and signs for real, in every mood.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::VaultPki;
use crate::authority::{
    Authority, AuthorityKind, Event, INTERMEDIATE_LIFETIME, Settings, Slot, Upstream,
    tests::{HOUR, attested, now, p256, request},
    unix,
};
use postern_identity::{Accept, Bundle, KeyId, TrustBundles, verify::verify};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// What the server does with a request to sign.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Good,
    Refuses(u16, &'static str),
    Garbage,
    Endless,
    HangsUp,
    AnotherKey,
    Expired,
    NoAuthority,
    /// Signs with a root that it does not name.
    AnotherRoot,
    ForeignTrustDomain,
}

struct Server {
    ca: Mutex<(String, Issuer<'static, KeyPair>)>,
    /// What `ca_chain` says; a mount that holds the root itself says nothing.
    chain: Mutex<String>,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<String>>,
    now: Mutex<SystemTime>,
}

fn ca() -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "vault root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(now() - HOUR * 24);
    params.not_after = OffsetDateTime::from(now() + HOUR * 24 * 365);
    let key = p256();
    (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key))
}

/// An authority of a mount below a root that lies elsewhere, which may have one more below it.
fn ca_below(root: &Issuer<'static, KeyPair>) -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "vault intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(now() - HOUR);
    params.not_after = OffsetDateTime::from(now() + HOUR * 24 * 30);
    let key = p256();
    (params.signed_by(&key, root).unwrap().pem(), Issuer::new(params, key))
}

impl Server {
    async fn start() -> (Arc<Self>, String) {
        let (server, port) = Self::start_over(|stream| async { Ok(stream) }).await;
        (server, format!("http://127.0.0.1:{port}"))
    }

    /// Serves what `prepare` makes of each connection. Gives the port.
    async fn start_over<S, F>(prepare: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> (Arc<Self>, u16)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
        F: Future<Output = std::io::Result<S>> + Send,
    {
        let ca = Mutex::new(ca());
        let (mood, asked) = (Mutex::new(Mood::Good), Mutex::default());
        let server = Arc::new(Self { ca, chain: Mutex::default(), mood, asked, now: Mutex::new(now()) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = prepare(stream).await {
                    let _ = serving.answer(stream).await;
                }
            }
        });
        (server, port)
    }

    async fn answer(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        let (head, body) = loop {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
            // TLS is not spoken here.
            if bytes.first() == Some(&0x16) {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                break (head.to_owned(), body.to_owned());
            }
        };
        self.asked.lock().unwrap().push(head.clone());
        let mood = *self.mood.lock().unwrap();
        let (status, answer) = match head.split(' ').nth(1).unwrap() {
            _ if !head.contains("x-vault-token: s.secret") => {
                (403, json!({"errors": ["no token"]}).to_string())
            }
            "/v1/pki/ca_chain" => (200, self.chain.lock().unwrap().clone()),
            "/v1/pki/ca/pem" if matches!(mood, Mood::NoAuthority) => (200, String::new()),
            "/v1/pki/ca/pem" => (200, self.root()),
            "/v1/pki/root/sign-intermediate" => match mood {
                Mood::Refuses(status, said) => (status, json!({ "errors": [said] }).to_string()),
                Mood::Garbage => (200, "<html>".into()),
                Mood::Endless => (200, "x".repeat(2 * 1024 * 1024)),
                Mood::HangsUp => return Ok(()),
                _ => (200, self.signed(&body, mood)),
            },
            _ => (404, json!({ "errors": ["no handler"] }).to_string()),
        };
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    }

    fn root(&self) -> String {
        self.ca.lock().unwrap().0.clone()
    }

    /// As Vault signs: the subject and names of the request, everything else by its own mind.
    fn signed(&self, body: &str, mood: Mood) -> String {
        let asked: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&asked["use_csr_values"], &asked["max_path_length"]), (&json!(true), &json!(0)));
        let request = CertificateSigningRequestParams::from_pem(asked["csr"].as_str().unwrap()).unwrap();
        let mut params = request.params;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let seconds: u64 = asked["ttl"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
        let now = *self.now.lock().unwrap();
        params.not_before = OffsetDateTime::from(now - Duration::from_secs(30));
        params.not_after = OffsetDateTime::from(now + Duration::from_secs(seconds));
        if matches!(mood, Mood::Expired) {
            params.not_before = OffsetDateTime::from(now - HOUR * 2);
            params.not_after = OffsetDateTime::from(now - HOUR);
        }
        if matches!(mood, Mood::ForeignTrustDomain) {
            params.subject_alt_names =
                vec![rcgen::SanType::URI("spiffe://other.example".try_into().unwrap())];
        }
        let mut key = SubjectPublicKeyInfo::from_der(&request.public_key.subject_public_key_info()).unwrap();
        if matches!(mood, Mood::AnotherKey) {
            key = SubjectPublicKeyInfo::from_der(&p256().subject_public_key_info()).unwrap();
        }
        let (other, ca) = (ca().1, self.ca.lock().unwrap());
        let issuer = if matches!(mood, Mood::AnotherRoot) { &other } else { &ca.1 };
        let certificate = params.signed_by(&key, issuer).unwrap().pem();
        json!({ "data": { "certificate": certificate, "issuing_ca": ca.0 } }).to_string()
    }
}

fn settings(address: &str, token_file: &Path) -> Settings {
    Settings {
        state: None,
        trust_domain: "cluster.local".parse().unwrap(),
        upstream: Upstream::Vault(VaultPki {
            address: address.to_owned(),
            mount: "pki".into(),
            token_file: token_file.to_owned(),
            server_roots: None,
        }),
        intermediate_lifetime: INTERMEDIATE_LIFETIME,
        leaf_lifetime: HOUR,
        allow_ending: false,
    }
}

fn token(folder: &Path) -> std::path::PathBuf {
    let file = folder.join("token");
    fs::write(&file, "s.secret\n").unwrap();
    file
}

fn chain(authority: &Authority, at: SystemTime) -> Vec<CertificateDer<'static>> {
    authority.issue(&request(&p256(), |_| {}), &attested(), HOUR, at).unwrap().chain
}

fn chain_of(authority: &Authority) -> Vec<CertificateDer<'static>> {
    chain(authority, now())
}

fn judged(bundle: Bundle, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<(), String> {
    let accept = Accept::trust_domain(bundle.trust_domain.clone());
    verify(chain, &TrustBundles::from_iter([bundle]), &accept, true, unix(at))
        .map(|_| ())
        .map_err(|refusal| refusal.to_string())
}

#[tokio::test]
async fn vault_signs_an_intermediate_whose_key_never_leaves_us() {
    let folder = tempfile::tempdir().unwrap();
    let (server, address) = Server::start().await;
    let authority = Authority::open(settings(&address, &token(folder.path())), now()).await.unwrap();
    assert_eq!(authority.bundle().to_pem(), server.root().replace('\r', ""));
    let leaf = chain(&authority, now());
    assert_eq!(leaf.len(), 2);
    assert_eq!(judged(authority.bundle(), &leaf, now()), Ok(()));
    assert_eq!(judged(authority.bundle(), &authority.server_identity(now()).unwrap().cert, now()), Ok(()));
    // Nothing is asked of Vault before half of the life, and for issuing never.
    let asked = server.asked.lock().unwrap().len();
    assert!(authority.renew_upstream(now() + HOUR).await.is_empty());
    assert_eq!(server.asked.lock().unwrap().len(), asked);
    // Tainted: a new one is fetched at the next look.
    let first = KeyId::of_certificate(&leaf[1]).unwrap();
    authority.taint(first, now() + HOUR).unwrap();
    assert_eq!(authority.published().tainted, [first].into());
    *server.now.lock().unwrap() = now() + HOUR;
    assert!(authority.renew_upstream(now() + HOUR).await.is_empty());
    assert_ne!(chain(&authority, now() + HOUR)[1], leaf[1]);
    authority.revoke(first, now() + HOUR).unwrap();
    assert!(judged(authority.bundle(), &leaf, now() + HOUR).unwrap_err().contains("revoked"));
    let roots = authority.status(now()).into_iter().filter(|one| one.kind == AuthorityKind::Root);
    assert_eq!(roots.map(|root| (root.slot, root.has_key)).collect::<Vec<_>>(), [(Slot::Active, false)]);
}

#[tokio::test]
async fn a_mount_below_a_root_that_lies_elsewhere_signs_with_its_chain() {
    let folder = tempfile::tempdir().unwrap();
    let (server, address) = Server::start().await;
    let (root, above) = ca();
    let (mount, issuer) = ca_below(&above);
    *server.ca.lock().unwrap() = (mount.clone(), issuer);
    let opened = async |chain: String| {
        *server.chain.lock().unwrap() = chain;
        Authority::open(settings(&address, &token(folder.path())), now()).await
    };
    let anchors = |authority: &Authority| authority.bundle().to_pem().replace('\r', "");
    let der = |pem: &str| {
        Bundle::from_pem("cluster.local".parse().unwrap(), pem.as_bytes()).unwrap().anchors.remove(0)
    };
    for chain in [mount.clone() + &root, root.clone() + &mount] {
        let authority = opened(chain).await.unwrap();
        assert_eq!(anchors(&authority), root.replace('\r', ""), "the root alone is trusted");
        let leaf = chain_of(&authority);
        assert_eq!((leaf.len(), &leaf[2]), (3, &der(&mount)), "ours, and the mount's own");
        assert_eq!(judged(authority.bundle(), &leaf, now()), Ok(()));
    }
    // Vault was not told of the root above: what it has is what everybody trusts.
    let authority = opened(mount.clone()).await.unwrap();
    assert_eq!(anchors(&authority), mount.replace('\r', ""));
    let leaf = chain_of(&authority);
    assert_eq!((leaf.len(), judged(authority.bundle(), &leaf, now())), (2, Ok(())));
    // Another mount's chain.
    let error = opened(ca_below(&above).0 + &root).await.unwrap_err().to_string();
    assert!(error.contains("cannot be used"), "{error}");
}

#[tokio::test]
async fn vault_is_asked_over_https_and_its_server_has_to_be_vouched_for_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let vouched = |name: &str| {
        let own = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        (own.cert.der().clone(), own.cert.pem(), rustls_pki_types::PrivateKeyDer::from(key))
    };
    for (name, has_file, part) in [
        ("127.0.0.1", true, None),
        ("127.0.0.1", false, Some("TLS handshake failed")),
        ("vault.example", true, Some("TLS handshake failed")),
    ] {
        let (certificate, pem, key) = vouched(name);
        let config = rustls::ServerConfig::builder_with_provider(postern_identity::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let (server, port) = Server::start_over(move |stream| {
            let acceptor = acceptor.clone();
            async move { acceptor.accept(stream).await }
        })
        .await;
        let mut settings = settings(&format!("https://127.0.0.1:{port}"), &token(folder.path()));
        let Upstream::Vault(vault) = &mut settings.upstream else { panic!() };
        let roots = folder.path().join("vault-ca.pem");
        fs::write(&roots, if has_file { pem } else { vouched(name).1 }).unwrap();
        vault.server_roots = Some(roots);
        match (Authority::open(settings, now()).await, part) {
            (Ok(authority), None) => {
                assert_eq!(judged(authority.bundle(), &chain_of(&authority), now()), Ok(()));
                assert_eq!(server.asked.lock().unwrap().len(), 3, "each over TLS");
            }
            (Err(error), Some(part)) => {
                assert!(error.to_string().contains(part), "{name}: {error}");
                assert_eq!(server.asked.lock().unwrap().len(), 0, "no token was sent");
            }
            (opened, part) => panic!("{name}: {opened:?}, expected {part:?}"),
        }
    }
}

#[tokio::test]
async fn an_intermediate_that_cannot_be_renewed_is_told_at_its_marks() {
    let folder = tempfile::tempdir().unwrap();
    let (server, address) = Server::start().await;
    let authority = Authority::open(settings(&address, &token(folder.path())), now()).await.unwrap();
    let first = KeyId::of_certificate(&chain(&authority, now())[1]).unwrap();
    *server.mood.lock().unwrap() = Mood::Refuses(503, "Vault is sealed");
    let mut told = Vec::new();
    for hour in 0..24 {
        let at = now() + HOUR * hour;
        authority.renew_upstream(at).await;
        for event in authority.tick(at) {
            if let Event::Remaining { kind: AuthorityKind::Intermediate, id, percent, not_after } = event {
                assert_eq!((id, not_after), (first, now() + INTERMEDIATE_LIFETIME));
                told.push((hour, percent));
            }
        }
    }
    assert_eq!(told, [(12, 50), (20, 20), (23, 5)]);
}

#[tokio::test]
async fn another_root_in_vault_is_published_first_and_signs_when_it_is_activated_or_when_it_is_time() {
    let folder = tempfile::tempdir().unwrap();
    let (server, address) = Server::start().await;
    for waits in [true, false] {
        let start = now();
        *server.now.lock().unwrap() = start;
        let authority = Authority::open(settings(&address, &token(folder.path())), start).await.unwrap();
        let known = authority.bundle();
        *server.ca.lock().unwrap() = ca();
        let half = start + INTERMEDIATE_LIFETIME / 2;
        *server.now.lock().unwrap() = half;
        assert!(authority.renew_upstream(half).await.is_empty());
        let told = authority.tick(half);
        assert!(!told.iter().any(|event| matches!(event, Event::Activated { .. })), "{told:?}");
        assert_eq!(authority.bundle().anchors.len(), 2);
        let late = start + INTERMEDIATE_LIFETIME * 94 / 100;
        if waits {
            authority.tick(late);
            assert_eq!(judged(known.clone(), &chain(&authority, late), late), Ok(()), "the old one signs");
            let told = authority.tick(start + INTERMEDIATE_LIFETIME * 96 / 100);
            assert!(told.iter().any(|event| matches!(event, Event::Activated { .. })), "{told:?}");
        } else {
            authority.activate(AuthorityKind::Root, half).unwrap();
        }
        let leaf = chain(&authority, late);
        assert!(judged(known, &leaf, late).is_err());
        assert_eq!(judged(authority.bundle(), &leaf, late), Ok(()));
    }
}

/// Opens with a mood, and renews with it: both must say `part`, and the last good intermediate stays.
async fn check(mood: Mood, part: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (server, address) = Server::start().await;
    let settings = settings(&address, &token(folder.path()));
    *server.mood.lock().unwrap() = mood;
    let error = Authority::open(settings.clone(), now()).await.unwrap_err().to_string();
    assert!(error.contains(part) && !error.contains("s.secret"), "{mood:?}: {error} should contain {part}");
    *server.mood.lock().unwrap() = Mood::Good;
    let authority = Authority::open(settings, now()).await.unwrap();
    let good = chain(&authority, now())[1].clone();
    let later = now() + INTERMEDIATE_LIFETIME / 2;
    *server.now.lock().unwrap() = later;
    *server.mood.lock().unwrap() = mood;
    let events = authority.renew_upstream(later).await;
    let [Event::RenewalFailed { reason }] = events.as_slice() else { panic!("{mood:?}: {events:?}") };
    assert!(reason.contains(part), "{mood:?}: {reason} should contain {part}");
    authority.tick(later);
    let leaf = chain(&authority, later);
    assert_eq!(leaf[1], good, "{mood:?}");
    assert_eq!(judged(authority.bundle(), &leaf, later), Ok(()));
    // Told once a minute, tried more often.
    let soon = later + Duration::from_secs(10);
    assert!(authority.renew_upstream(soon).await.is_empty());
    *server.mood.lock().unwrap() = Mood::Good;
    authority.renew_upstream(soon + Duration::from_secs(10)).await;
    assert_ne!(chain(&authority, soon)[1], good, "{mood:?}");
}

#[tokio::test]
async fn whatever_vault_answers_the_last_good_intermediate_stays() {
    check(Mood::Refuses(403, "permission denied"), "permission denied").await;
    check(Mood::Refuses(503, "Vault is sealed"), "unseal it").await;
    check(Mood::Refuses(404, "no handler for route"), "check the path of the mount").await;
    check(Mood::Refuses(500, "internal"), "HTTP 500").await;
    check(Mood::Garbage, "not JSON").await;
    check(Mood::Endless, "cannot be read").await;
    check(Mood::HangsUp, "the connection broke").await;
    check(Mood::AnotherKey, "another key").await;
    check(Mood::Expired, "cannot be used").await;
    check(Mood::NoAuthority, "no authority in this mount").await;
    check(Mood::AnotherRoot, "cannot be used").await;
    check(Mood::ForeignTrustDomain, "other.example").await;
}

/// An address or token that cannot work; a part of the error.
async fn check_place(address: &str, token: &str, part: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    if !token.is_empty() {
        fs::write(&file, token).unwrap();
    }
    let error = Authority::open(settings(address, &file), now()).await.unwrap_err().to_string();
    assert!(error.contains(part), "{error} should contain {part}");
}

#[tokio::test]
async fn the_token_goes_to_vault_only_and_never_readable_over_a_network() {
    let (_server, address) = Server::start().await;
    check_place(&address, "", "token").await;
    check_place(&address, "wrong", "403").await;
    check_place(&address, "two\nlines", "characters that no token has").await;
    check_place("http://192.0.2.1:8200", "s.secret", "use https").await;
    check_place("ftp://127.0.0.1", "s.secret", "neither https nor http").await;
    check_place("nonsense", "s.secret", "URL").await;
    check_place(&address.replace("http", "https"), "s.secret", "TLS handshake failed").await;
}
