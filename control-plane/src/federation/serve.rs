//! Our own bundle endpoint: one document for whoever asks, over TLS, without a client certificate (SPIFFE Federation 5.1.2).

use crate::authority::Authority;
use anyhow::{Context as _, bail};
use arc_swap::ArcSwapOption;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use postern_identity::tls;
use rustls::{
    ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A connection from accept to its end; one answer takes milliseconds.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(15);
/// Connections at one time; more wait in the kernel.
const CONNECTIONS: usize = 128;
/// The largest head of a request, in bytes (hyper's smallest limit).
const MAX_HEAD: usize = 8 * 1024;
/// How often certificate files are read again.
const REREAD: Duration = Duration::from_secs(60);
/// After a failed accept (usually no more file descriptors) others get time to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The certificate that our endpoint shows: the control plane's SVID, or one from files.
#[derive(Debug)]
pub(super) struct Presented {
    current: ArcSwapOption<CertifiedKey>,
    files: Option<(PathBuf, PathBuf)>,
}

impl Presented {
    /// # Errors
    /// The files cannot be used.
    pub(super) fn new(files: Option<(PathBuf, PathBuf)>) -> anyhow::Result<Self> {
        let current = files.as_ref().map(read_files).transpose()?;
        Ok(Self { current: ArcSwapOption::new(current), files })
    }

    /// The SVID from now on; of no effect when the certificate comes from files.
    pub(super) fn replace(&self, svid: Arc<CertifiedKey>) {
        if self.files.is_none() {
            self.current.store(Some(svid));
        }
    }

    /// Certificates for the web are short and somebody else's business: files that changed are read while we run.
    async fn reread(&self) {
        loop {
            tokio::time::sleep(REREAD).await;
            let Some(files) = &self.files else { continue };
            match read_files(files) {
                Ok(key) => self.current.store(Some(key)),
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "the certificate of the bundle endpoint cannot be read again; the last good one stays"
                ),
            }
        }
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

fn read_files((chain, key): &(PathBuf, PathBuf)) -> anyhow::Result<Arc<CertifiedKey>> {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(chain).and_then(Iterator::collect).with_context(|| {
            format!("the certificate of the bundle endpoint {} cannot be read", chain.display())
        })?;
    let private = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("the key of the bundle endpoint {} cannot be read", key.display()))?;
    tls::certified_key(certificates, private)
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("{} and {} do not fit", chain.display(), key.display()))
}

/// # Errors
/// The address cannot be listened on.
pub(super) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(cause) => bail!(
            "the bundle endpoint cannot listen on {address}: {cause}; choose another address with --federation-listen"
        ),
    }
}

/// Serves the bundle of `authority` until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    presented: Arc<Presented>,
    authority: Arc<Authority>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let acceptor = match server_config(Arc::clone(&presented)) {
        Ok(config) => TlsAcceptor::from(Arc::new(config)),
        Err(reason) => return tracing::error!(reason, "the bundle endpoint cannot be served"),
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = presented.reread() => {}
        () = accept(&listener, &acceptor, &authority, &stop, &tasks) => {}
    }
}

/// TLS as Mozilla's intermediate profile has it (SPIFFE Federation 5.1.2), and nothing that a client could resume.
fn server_config(presented: Arc<Presented>) -> Result<ServerConfig, String> {
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|cause| format!("TLS is not available: {cause}"))?
        .with_no_client_auth()
        .with_cert_resolver(presented);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

async fn accept(
    listener: &TcpListener,
    acceptor: &TlsAcceptor,
    authority: &Arc<Authority>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(turn) = Arc::clone(&connections).acquire_owned().await else { return };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the bundle endpoint cannot accept connections; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, authority, stop) = (acceptor.clone(), Arc::clone(authority), stop.clone());
        tasks.spawn(async move {
            let _turn = turn;
            let served = tokio::time::timeout(CONNECTION_DEADLINE, answer(stream, &acceptor, &authority));
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = served => outcome,
            };
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => {
                    tracing::debug!(%address, reason, "a client of the bundle endpoint failed")
                }
                Err(_) => tracing::debug!(%address, "a client of the bundle endpoint was too slow"),
            }
        });
    }
}

async fn answer(stream: TcpStream, acceptor: &TlsAcceptor, authority: &Authority) -> Result<(), String> {
    let stream = acceptor.accept(stream).await.map_err(|cause| cause.to_string())?;
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), authority);
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|cause| cause.to_string())
}

fn respond(method: &Method, path: &str, authority: &Authority) -> Response<Full<bytes::Bytes>> {
    let is_bundle = matches!(path, "/" | "/bundle");
    let (status, kind, body) = match method {
        &Method::GET if is_bundle => (StatusCode::OK, "application/json", authority.bundle().to_document()),
        _ if is_bundle => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET the bundle\n".into()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "the bundle is at /bundle\n".into()),
    };
    let mut response = Response::new(Full::new(bytes::Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    }
    response
}
