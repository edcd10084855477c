//! A bundle endpoint that says exactly what a test tells it to, over real TLS, under a certificate of any kind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![allow(dead_code)]

use parking_lot::Mutex;
use postern_identity::tls;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::ResolvesServerCert,
    sign::CertifiedKey,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// A root, for SVIDs of one trust domain or for the web.
pub struct Root {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
    pub pem: String,
}

impl Root {
    pub fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(params, key), certificate: der, pem }
    }

    fn leaf(&self, name: SanType, until: time::Duration) -> (String, KeyPair, CertificateDer<'static>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![name];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(1);
        params.not_after = OffsetDateTime::now_utc() + until;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key, certificate.der().clone())
    }

    fn certified(&self, name: SanType, until: time::Duration) -> Arc<CertifiedKey> {
        let (_, key, der) = self.leaf(name, until);
        tls::certified_key(vec![der], PrivatePkcs8KeyDer::from(key.serialize_der()).into()).unwrap()
    }

    /// An SVID that ends after `until`.
    pub fn svid(&self, id: &str, until: time::Duration) -> Arc<CertifiedKey> {
        self.certified(SanType::URI(id.try_into().unwrap()), until)
    }

    /// A certificate for 127.0.0.1.
    pub fn web(&self, until: time::Duration) -> Arc<CertifiedKey> {
        self.certified(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()), until)
    }

    /// The same, as PEM of certificate and key.
    pub fn web_pem(&self) -> (String, String) {
        let (pem, key, _) =
            self.leaf(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()), time::Duration::hours(1));
        (pem, key.serialize_pem())
    }

    /// A certificate for a host of the web.
    pub fn web_for(&self, host: &str) -> Arc<CertifiedKey> {
        self.certified(SanType::DnsName(host.try_into().unwrap()), time::Duration::hours(1))
    }
}

/// A SPIFFE bundle document.
pub fn document(sequence: u64, roots: &[&Root]) -> String {
    let trust_domain = "other.example".parse().unwrap();
    let anchors = roots.iter().map(|root| root.certificate.clone()).collect();
    let mut bundle = postern_identity::Bundle::new(trust_domain, anchors);
    bundle.sequence = Some(sequence);
    bundle.to_document()
}

/// What the endpoint does with a request.
#[derive(Clone)]
pub enum Answer {
    /// These bytes, and an orderly end.
    Bytes(Vec<u8>),
    /// The head of an answer, and nothing more.
    Hang,
}

/// An answer of this status with a body.
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Answer {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    Answer::Bytes([head.as_bytes(), body].concat())
}

/// The document, as a good endpoint gives it.
pub fn good(document: &str) -> Answer {
    answer("200 OK", "content-type: application/json\r\n", document.as_bytes())
}

#[derive(Debug)]
struct Shown(Arc<Mutex<Arc<CertifiedKey>>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().clone())
    }
}

/// A running endpoint.
pub struct Endpoint {
    pub address: SocketAddr,
    shown: Arc<Mutex<Arc<CertifiedKey>>>,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Endpoint {
    pub async fn start(key: Arc<CertifiedKey>, first: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shown = Arc::new(Mutex::new(key));
        let answer = Arc::new(Mutex::new(first));
        let requests = Arc::new(AtomicUsize::new(0));
        let config = ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shown(shown.clone())));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let (says, counts) = (answer.clone(), requests.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, says, counts) = (acceptor.clone(), says.clone(), counts.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    counts.fetch_add(1, Ordering::SeqCst);
                    let answer = says.lock().clone();
                    match answer {
                        Answer::Bytes(bytes) => {
                            let _ = stream.write_all(&bytes).await;
                            let _ = stream.shutdown().await;
                        }
                        Answer::Hang => {
                            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{";
                            let _ = stream.write_all(head).await;
                            let _ = stream.flush().await;
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        Self { address, shown, answer, requests, task }
    }

    pub fn url(&self) -> String {
        format!("https://{}/bundle", self.address)
    }

    pub fn says(&self, answer: Answer) {
        *self.answer.lock() = answer;
    }

    pub fn shows(&self, key: Arc<CertifiedKey>) {
        *self.shown.lock() = key;
    }

    /// Requests that came through a handshake.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}
