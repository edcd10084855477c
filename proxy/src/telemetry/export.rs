//! To an OTLP collector, over gRPC or HTTP, in the clear or over TLS. What it answers is taken with suspicion and within a time.
//!
//! Source: OpenTelemetry Protocol specification, "OTLP/gRPC" and "OTLP/HTTP". What fails is not sent again: a collector that is
//! overloaded is not helped by it, and who calls counts what was lost.

use crate::bootstrap::otel::{Exporter, Protocol, Signal};
use anyhow::Context;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header, uri, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::{ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use std::{io, io::Write as _, path::Path, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{either::Either, task::AbortOnDropHandle};
use tonic::{
    client::Grpc,
    codec::CompressionEncoding,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// The largest answer, in bytes, and the largest head of one.
const LARGEST_ANSWER: usize = 64 * 1024;
const USER_AGENT: &str = concat!("postern/", env!("CARGO_PKG_VERSION"));

/// The way to one collector, of one signal.
pub struct Collector {
    exporter: Exporter,
    road: Road,
    transport: Transport,
}

enum Transport {
    Grpc(Box<Grpc<Channel>>),
    /// The connection of the last call, when it can be used again.
    Http(Option<Connection>),
}

/// Where it listens and how it proves itself.
#[derive(Clone)]
struct Road {
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

/// In the clear or not.
type Stream = Either<TcpStream, TlsStream<TcpStream>>;

impl Collector {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// The files for TLS cannot be used.
    pub fn open(exporter: Exporter) -> anyhow::Result<Self> {
        let alpn: &[u8] = if exporter.protocol == Protocol::Grpc { b"h2" } else { b"http/1.1" };
        let is_tls = exporter.endpoint.scheme() == Some(&uri::Scheme::HTTPS);
        let road = Road {
            host: exporter.endpoint.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: exporter.endpoint.port_u16().unwrap_or_default(),
            tls: if is_tls { Some(tls(&exporter, alpn)?) } else { None },
        };
        let transport = match exporter.protocol {
            Protocol::Http => Transport::Http(None),
            Protocol::Grpc => {
                let to = road.clone();
                let connector = tower::service_fn(move |_: Uri| {
                    let to = to.clone();
                    async move { to.connect().await.map(TokioIo::new) }
                });
                // TLS is the connector's business: for the channel it is a stream like any other.
                let plain = Endpoint::from_shared(format!(
                    "http://{}:{}",
                    exporter.endpoint.host().unwrap_or_default(),
                    road.port
                ))?;
                let channel = plain
                    .origin(exporter.endpoint.clone())
                    .user_agent(USER_AGENT)?
                    .connect_timeout(CONNECT_DEADLINE)
                    .timeout(exporter.timeout)
                    .connect_with_connector_lazy(connector);
                let mut client = Grpc::new(channel).max_decoding_message_size(LARGEST_ANSWER);
                if exporter.is_compressed {
                    client = client.send_compressed(CompressionEncoding::Gzip);
                }
                Transport::Grpc(Box::new(client))
            }
        };
        Ok(Self { exporter, road, transport })
    }

    /// What the collector answers, which may be that it has not taken all of it.
    ///
    /// # Errors
    /// Nothing of it has arrived for certain; why.
    pub async fn send<Q, A>(&mut self, request: Q) -> Result<A, String>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let timeout = self.exporter.timeout;
        let late = || format!("no answer within {timeout:?}");
        match &mut self.transport {
            Transport::Grpc(client) => {
                let mut request = tonic::Request::new(request);
                *request.metadata_mut() = MetadataMap::from_headers(headers(&self.exporter));
                let path = PathAndQuery::from_static(method(self.exporter.signal));
                let sent = async {
                    client.ready().await.map_err(|cause| format!("it cannot be reached: {cause}"))?;
                    let answer = client.unary(request, path, ProstCodec::<Q, A>::default()).await;
                    answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))
                };
                Ok(tokio::time::timeout(timeout, sent).await.map_err(|_| late())??.into_inner())
            }
            Transport::Http(connection) => {
                let kept = connection.take();
                let sent = post(&self.exporter, &self.road, kept, request.encode_to_vec());
                let (answer, connection) =
                    tokio::time::timeout(timeout, sent).await.map_err(|_| late())??;
                self.transport = Transport::Http(connection);
                A::decode(answer).map_err(|cause| format!("its answer is none of OTLP: {cause}"))
            }
        }
    }
}

/// The method of gRPC that takes a signal.
fn method(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    }
}

type Connection = (http1::SendRequest<Full<Bytes>>, AbortOnDropHandle<()>);

async fn post(
    exporter: &Exporter,
    road: &Road,
    kept: Option<Connection>,
    mut body: Vec<u8>,
) -> Result<(Bytes, Option<Connection>), String> {
    let mut asked = Request::post(exporter.endpoint.path());
    if let Some(all) = asked.headers_mut() {
        *all = headers(exporter);
        let authority = exporter.endpoint.authority().map_or("", |authority| authority.as_str());
        let host = HeaderValue::try_from(authority).map_err(|cause| cause.to_string())?;
        all.insert(header::HOST, host);
        all.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        all.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if exporter.is_compressed {
            body = gzip(&body).map_err(|cause| cause.to_string())?;
            all.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }
    let asked = asked.body(Full::new(Bytes::from(body))).map_err(|cause| cause.to_string())?;
    let kept = match kept {
        Some((mut sender, driver)) => sender.ready().await.is_ok().then_some((sender, driver)),
        None => None,
    };
    let (mut sender, driver) = match kept {
        Some(kept) => kept,
        None => {
            let stream = tokio::time::timeout(CONNECT_DEADLINE, road.connect())
                .await
                .map_err(|_| format!("no connection within {CONNECT_DEADLINE:?}"))?
                .map_err(|cause| cause.to_string())?;
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(LARGEST_ANSWER)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|cause| cause.to_string())?;
            let driver = tokio::spawn(async move {
                // The call that it serves says how it failed.
                let _ = connection.await;
            });
            (sender, AbortOnDropHandle::new(driver))
        }
    };
    let answer = sender.send_request(asked).await.map_err(|cause| cause.to_string())?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), LARGEST_ANSWER)
        .collect()
        .await
        .map_err(|cause| cause.to_string())?;
    if status != StatusCode::OK {
        return Err(format!("it answered {status}"));
    }
    Ok((body.to_bytes(), Some((sender, driver))))
}

fn headers(exporter: &Exporter) -> HeaderMap {
    exporter.headers.0.iter().cloned().collect()
}

fn gzip(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

impl Road {
    async fn connect(&self) -> io::Result<Stream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Either::Left(stream)) };
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        Ok(Either::Right(tls.connect(name, stream).await?))
    }
}

/// The collector is no part of the mesh: it proves itself by its name, as web servers do.
fn tls(exporter: &Exporter, alpn: &[u8]) -> anyhow::Result<TlsConnector> {
    let mut anchors = RootCertStore::empty();
    match &exporter.authorities {
        Some(file) => {
            for certificate in certificates(file)? {
                anchors.add(certificate).with_context(|| file.display().to_string())?;
            }
        }
        None => {
            anchors.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    anyhow::ensure!(
        !anchors.is_empty(),
        "no authority is known for the OTLP collector's certificate: name a PEM file by OTEL_EXPORTER_OTLP_CERTIFICATE, or install this machine's package of CA certificates"
    );
    let builder = ClientConfig::builder_with_provider(postern_identity::tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(anchors);
    let mut config = match &exporter.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let named = || format!("OTEL_EXPORTER_OTLP_CLIENT_KEY: {}", key.display());
            let private = PrivateKeyDer::from_pem_file(key).with_context(named)?;
            builder.with_client_auth_cert(certificates(certificate)?, private).with_context(named)?
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let unusable = || format!("the certificates in {} cannot be read", file.display());
    let all = CertificateDer::pem_file_iter(file).with_context(unusable)?.collect::<Result<Vec<_>, _>>();
    let all = all.with_context(unusable)?;
    anyhow::ensure!(!all.is_empty(), "{} holds no PEM certificate", file.display());
    Ok(all)
}
