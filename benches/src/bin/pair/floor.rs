//! The floor: what hyper, hyper-util's pool and rustls cost with nothing in between. No policy, no log, no metrics.

use clap::Parser;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use postern_identity::{Accept, Bundle, TrustBundles, tls};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// One half of a pair.
#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// Where it listens
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where it sends everything
    #[arg(long)]
    pub forward: SocketAddr,
    /// Which end speaks mutual TLS
    #[arg(long)]
    pub half: Half,
    /// Folder with chain.pem, key.pem and roots.pem
    #[arg(long)]
    pub identity: PathBuf,
    /// The SPIFFE ID to expect at the other end
    #[arg(long)]
    pub peer: String,
    /// HTTP/2 between the halves
    #[arg(long)]
    pub http2: bool,
}

/// Which half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Half {
    /// Plain in, TLS out.
    Client,
    /// TLS in, plain out.
    Server,
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Runs until the process ends.
pub fn run(arguments: &Arguments) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(arguments.clone()));
}

fn identity(folder: &Path) -> (Arc<CertifiedKey>, Arc<TrustBundles>) {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let chain = CertificateDer::pem_slice_iter(&read("chain.pem")).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
    let bundle = Bundle::from_pem("cluster.local".parse().unwrap(), &read("roots.pem")).unwrap();
    (tls::certified_key(chain, key).unwrap(), Arc::new(TrustBundles::from_iter([bundle])))
}

async fn serve(arguments: Arguments) {
    let (key, trust) = identity(&arguments.identity);
    let accept = || Accept::only(arguments.peer.parse().unwrap());
    let alpn: &[&[u8]] = if arguments.http2 { &[b"h2"] } else { &[b"http/1.1"] };
    let is_client = arguments.half == Half::Client;
    let connector = is_client.then(|| {
        TlsConnector::from(Arc::new(
            tls::client_config(Some(key.clone()), trust.clone(), accept(), alpn).unwrap(),
        ))
    });
    let acceptor = (!is_client).then(|| {
        let config =
            tls::server_config(key, trust, accept(), tls::ClientCertificate::Required, alpn).unwrap();
        TlsAcceptor::from(Arc::new(config))
    });
    let forward = arguments.forward;
    let connect = tower::service_fn(move |_: http::Uri| {
        let connector = connector.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(forward).await?;
            stream.set_nodelay(true)?;
            let stream: Box<dyn Duplex> = match connector {
                None => Box::new(stream),
                Some(connector) => {
                    let name = ServerName::try_from("app.mesh.svc").unwrap();
                    Box::new(connector.connect(name, stream).await?)
                }
            };
            Ok::<_, std::io::Error>(TokioIo::new(Upstream(stream)))
        })
    });
    let client: Client<_, Incoming> =
        Client::builder(TokioExecutor::new()).http2_only(arguments.http2 && is_client).build(connect);
    let listener = TcpListener::bind(arguments.listen).await.unwrap();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true).unwrap();
        let (acceptor, client, http2) = (acceptor.clone(), client.clone(), arguments.http2);
        tokio::spawn(async move {
            let stream: Box<dyn Duplex> = match acceptor {
                None => Box::new(stream),
                Some(acceptor) => Box::new(acceptor.accept(stream).await?),
            };
            let service = service_fn(move |request| forward_to(client.clone(), request));
            let io = TokioIo::new(stream);
            if http2 && !is_client {
                let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service);
                served.await.map_err(std::io::Error::other)
            } else {
                http1::Builder::new().serve_connection(io, service).await.map_err(std::io::Error::other)
            }
        });
    }
}

async fn forward_to<C>(
    client: Client<C, Incoming>,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, hyper_util::client::legacy::Error>
where
    C: hyper_util::client::legacy::connect::Connect + Clone + Send + Sync + 'static,
{
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = format!("http://app.mesh{path}").parse().unwrap();
    parts.version = http::Version::HTTP_11;
    let mut response = client.request(Request::from_parts(parts, body)).await?;
    *response.version_mut() = http::Version::HTTP_11;
    Ok(response)
}

struct Upstream(Box<dyn Duplex>);

impl Connection for Upstream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
