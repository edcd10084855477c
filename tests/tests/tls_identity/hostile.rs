//! A client and a server that keep to no rule but those of TLS itself.

use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, HandshakeKind,
    ServerConfig, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

pub const REQUEST: &[u8] = b"GET /v1/charges HTTP/1.1\r\nHost: payments-api\r\n\r\n";
const DEADLINE: Duration = Duration::from_secs(10);

/// How a call ended for the caller.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// A head of an answer came.
    Answer(String),
    /// Nothing but this alert.
    Alert(AlertDescription),
    /// Something else, in words.
    Broken(String),
}

impl Outcome {
    fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(alert)) => Self::Alert(*alert),
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// Trusts everybody.
#[derive(Debug)]
struct Anybody;

fn schemes() -> Vec<SignatureScheme> {
    postern_identity::tls::provider().signature_verification_algorithms.supported_schemes()
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// A client that shows this certificate, would resume and send early data if it could; no versions means all.
pub fn client(
    key: Option<Arc<CertifiedKey>>,
    alpn: &[Vec<u8>],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let versions = if versions.is_empty() { rustls::ALL_VERSIONS } else { versions };
    let builder = ClientConfig::builder_with_provider(postern_identity::tls::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.to_vec();
    config.enable_early_data = true;
    Arc::new(config)
}

/// The handshake, as far as the client can tell.
pub async fn connect(to: SocketAddr, client: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from("payments-api").unwrap();
    TlsConnector::from(client.clone()).connect(name, stream).await
}

/// One call with this certificate.
pub async fn call(
    to: SocketAddr,
    key: Option<Arc<CertifiedKey>>,
    alpn: &[Vec<u8>],
    versions: &[&'static SupportedProtocolVersion],
) -> Outcome {
    let exchange = async {
        let mut stream = connect(to, &client(key, alpn, versions)).await?;
        // In TLS 1.3 the client is done before the server has looked at its certificate.
        let _ = stream.write_all(REQUEST).await;
        read_head(&mut stream).await
    };
    match tokio::time::timeout(DEADLINE, exchange).await {
        Ok(Ok(head)) => Outcome::Answer(head),
        Ok(Err(error)) => Outcome::of(&error),
        Err(_) => Outcome::Broken("no answer in time".into()),
    }
}

/// The same, with every byte of the hello in a segment of its own.
pub async fn call_in_pieces(to: SocketAddr, key: Arc<CertifiedKey>) -> Outcome {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let mut socket = TcpStream::connect(to).await.unwrap();
    socket.set_nodelay(true).unwrap();
    tokio::spawn(async move {
        let mut hello = vec![0; 16 << 10];
        let length = far.read(&mut hello).await.unwrap_or(0);
        for byte in &hello[..length] {
            socket.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let _ = tokio::io::copy_bidirectional(&mut far, &mut socket).await;
    });
    let name = ServerName::try_from("payments-api").unwrap();
    let exchange = async {
        let mut stream = TlsConnector::from(client(Some(key), &[], &[])).connect(name, near).await?;
        stream.write_all(REQUEST).await?;
        read_head(&mut stream).await
    };
    match tokio::time::timeout(DEADLINE, exchange).await {
        Ok(Ok(head)) => Outcome::Answer(head),
        Ok(Err(error)) => Outcome::of(&error),
        Err(_) => Outcome::Broken("no answer in time".into()),
    }
}

/// Reads up to the end of a head.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => head.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Sends bytes and the end, and gives back what came until the other end closed.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut back = Vec::new();
    let exchange = async {
        // A reset in the middle of either is an answer too.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut back).await;
    };
    tokio::time::timeout(DEADLINE, exchange).await.expect("the connection is closed in time");
    back
}

/// The bytes of a good hello.
pub fn hello() -> Vec<u8> {
    let name = ServerName::try_from("payments-api").unwrap();
    let mut connection = rustls::ClientConnection::new(client(None, &[], &[]), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// Somebody who sits where a workload should be, and does whatever he is told to.
pub struct Impostor {
    pub address: SocketAddr,
    manner: parking::Shared<Option<Manner>>,
    heard: Arc<Heard>,
    alerts: Mutex<mpsc::UnboundedReceiver<Option<AlertDescription>>>,
}

/// What he does with a connection.
#[derive(Clone)]
pub enum Manner {
    /// TLS, and one answer.
    Tls(Arc<ServerConfig>),
    /// These bytes at once, and no TLS.
    Bytes(&'static [u8]),
}

/// What came to him.
#[derive(Default)]
struct Heard {
    /// Bytes inside of TLS.
    inside: AtomicUsize,
    /// Everything that came where he spoke no TLS.
    raw: parking::Shared<Vec<u8>>,
    /// How each handshake went.
    kinds: parking::Shared<Vec<HandshakeKind>>,
}

mod parking {
    use std::sync::{Arc, Mutex};

    /// Of the moment.
    pub type Shared<T> = Arc<Mutex<T>>;
}

impl Impostor {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (manner, heard) = (parking::Shared::<Option<Manner>>::default(), Arc::<Heard>::default());
        let (tell, alerts) = mpsc::unbounded_channel();
        let (now, noted) = (manner.clone(), heard.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(manner) = now.lock().unwrap().clone() else {
                    continue;
                };
                let (tell, noted) = (tell.clone(), noted.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, manner, &noted).await {
                        let alert = match Outcome::of(&error) {
                            Outcome::Alert(alert) => Some(alert),
                            _ => None,
                        };
                        let _ = tell.send(alert);
                    }
                });
            }
        });
        Self { address, manner, heard, alerts: Mutex::new(alerts) }
    }

    /// The certificate for the connections to come.
    pub fn show(&self, key: Arc<CertifiedKey>) {
        self.behave(Manner::Tls(server(key, &[&rustls::version::TLS13])));
    }

    /// What the connections to come are met with.
    pub fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = Some(manner);
    }

    /// How many bytes inside of TLS have come so far.
    pub fn bytes(&self) -> usize {
        self.heard.inside.load(Ordering::SeqCst)
    }

    /// Everything that came so far where he spoke no TLS.
    pub fn raw(&self) -> Vec<u8> {
        self.heard.raw.lock().unwrap().clone()
    }

    /// How the handshakes went so far.
    pub fn kinds(&self) -> Vec<HandshakeKind> {
        self.heard.kinds.lock().unwrap().clone()
    }

    /// How the next failed connection failed: the alert, if it was one.
    pub async fn next_alert(&self) -> Option<AlertDescription> {
        self.alerts.lock().await.recv().await.unwrap()
    }
}

/// A server that asks for no certificate in particular, and hands out tickets to those who take them.
pub fn server(key: Arc<CertifiedKey>, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(postern_identity::tls::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Answers every connection once with a status that nobody else has, and closes it.
async fn serve(mut stream: TcpStream, manner: Manner, heard: &Heard) -> io::Result<()> {
    let config = match manner {
        Manner::Tls(config) => config,
        Manner::Bytes(bytes) => {
            stream.write_all(bytes).await?;
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    n => heard.raw.lock().unwrap().extend_from_slice(&buffer[..n]),
                }
            }
        }
    };
    let mut stream = TlsAcceptor::from(config).accept(stream).await?;
    heard.kinds.lock().unwrap().extend(stream.get_ref().1.handshake_kind());
    let mut buffer = [0; 4096];
    let n = stream.read(&mut buffer).await?;
    heard.inside.fetch_add(n, Ordering::SeqCst);
    stream.write_all(b"HTTP/1.1 299 twin\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?;
    stream.shutdown().await
}
