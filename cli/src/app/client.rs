//! A small HTTP client: one connection, one exchange, and the name of what went wrong.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{error::Error, io, net::SocketAddr};
use tokio::net::TcpStream;

/// The most of an answer that is kept.
const BODY_LIMIT: usize = 16 << 20;

/// What to send, as the command line said it.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub uri: Uri,
    pub authority: String,
    pub method: Method,
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    pub body: Bytes,
    pub http2: bool,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub version: http::Version,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

/// Why nothing came back, in the kernel's words when they are the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoAnswer(pub String);

impl NoAnswer {
    /// Finds the errno behind an error, however deep; else the deepest sentence.
    pub(super) fn from_error(error: &(dyn Error + 'static)) -> Self {
        let mut deepest = error.to_string();
        let mut next = Some(error);
        while let Some(current) = next {
            if let Some(found) = current.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
                return Self(nix::errno::Errno::from_raw(found).desc().to_lowercase());
            }
            if let Some(http2) = current.downcast_ref::<hyper::Error>()
                && http2.is_incomplete_message()
            {
                return Self("connection closed before an answer".into());
            }
            deepest = current.to_string();
            next = current.source();
        }
        Self(deepest)
    }
}

impl Call {
    /// `host`, `port` of the URL, for the dialer.
    pub(super) fn host_port(&self) -> (String, u16) {
        let host = self.uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        (host.to_owned(), self.uri.port_u16().unwrap_or(80))
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, NoAnswer> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        if self.http2 {
            *request.uri_mut() = self.uri.clone();
            *request.version_mut() = http::Version::HTTP_2;
        } else {
            let path = self.uri.path_and_query().map_or("/", |p| p.as_str());
            *request.uri_mut() = path.parse().map_err(|e: http::uri::InvalidUri| NoAnswer(e.to_string()))?;
            let host =
                self.authority.parse().map_err(|_| NoAnswer("the host cannot stand in a header".into()))?;
            request.headers_mut().insert(http::header::HOST, host);
        }
        for (name, value) in &self.headers {
            if name == http::header::HOST && !self.http2 {
                request.headers_mut().insert(name, value.clone());
            } else {
                request.headers_mut().append(name, value.clone());
            }
        }
        Ok(request)
    }
}

/// Where pods have no names of their own, `postern up` tells them: `name:port=ip:port,…`.
fn told(hosts: &str, host: &str, port: u16) -> Option<SocketAddr> {
    let wanted = format!("{host}:{port}");
    hosts
        .split(',')
        .find_map(|entry| entry.split_once('=').filter(|(name, _)| *name == wanted)?.1.parse().ok())
}

/// Connects by name, trying each address in turn.
pub(super) async fn dial(host: &str, port: u16) -> Result<TcpStream, NoAnswer> {
    let addresses: Vec<SocketAddr> =
        match told(&std::env::var("POSTERN_HOSTS").unwrap_or_default(), host, port) {
            Some(address) => vec![address],
            None => tokio::net::lookup_host((host, port))
                .await
                .map_err(|e| NoAnswer(format!("the name {host} does not resolve: {e}")))?
                .collect(),
        };
    let mut last = NoAnswer(format!("the name {host} has no address"));
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Latency is measured here; a full segment is not worth waiting for.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(cause) => last = NoAnswer::from_error(&cause),
        }
    }
    Err(last)
}

/// An open HTTP connection, used for one exchange after the other.
pub(super) enum Connection {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// Dials and shakes hands.
    pub(super) async fn open(call: &Call) -> Result<Self, NoAnswer> {
        let (host, port) = call.host_port();
        let io = TokioIo::new(dial(&host, port).await?);
        if call.http2 {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.map_err(|e| NoAnswer::from_error(&e))?;
            tokio::spawn(connection);
            Ok(Self::Two(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(|e| NoAnswer::from_error(&e))?;
            tokio::spawn(connection);
            Ok(Self::One(sender))
        }
    }

    /// Whether the other side has closed since the last exchange.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Two(sender) => sender.is_closed(),
        }
    }

    /// One exchange. `Ok(None)`: the connection was closed before the request left, so another one may carry it.
    pub(super) async fn exchange(&mut self, call: &Call) -> Result<Option<Answer>, NoAnswer> {
        let request = call.request()?;
        let sent = match self {
            Self::One(sender) => {
                if sender.ready().await.is_err() {
                    return Ok(None);
                }
                sender.try_send_request(request).await
            }
            Self::Two(sender) => {
                if sender.ready().await.is_err() {
                    return Ok(None);
                }
                sender.try_send_request(request).await
            }
        };
        let response = match sent {
            Ok(response) => response,
            Err(mut refused) => {
                // The request handed back means that none of it was sent.
                return match refused.take_message() {
                    Some(_) => Ok(None),
                    None => Err(NoAnswer::from_error(refused.error())),
                };
            }
        };
        read(response).await.map(Some)
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Answer, NoAnswer> {
    let (head, body) = response.into_parts();
    let body =
        Limited::new(body, BODY_LIMIT).collect().await.map_err(|e| NoAnswer::from_error(e.as_ref()))?;
    Ok(Answer { status: head.status, version: head.version, headers: head.headers, body: body.to_bytes() })
}

/// Dials, asks once, and reads the whole answer.
pub(super) async fn ask(call: &Call) -> Result<Answer, NoAnswer> {
    let mut connection = Connection::open(call).await?;
    match connection.exchange(call).await? {
        Some(answer) => Ok(answer),
        None => Err(NoAnswer("connection closed before an answer".into())),
    }
}
