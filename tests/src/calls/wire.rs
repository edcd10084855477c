//! One call, as it goes over the wire: HTTP/1.1, HTTP/2, gRPC, a WebSocket's beginning, bytes.

use super::{Lane, Places};
use crate::pods::PodNetwork;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A connection that is kept between two calls of a lane.
pub enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
    Bytes(TcpStream),
}

impl Connection {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
            Self::Bytes(_) => false,
        }
    }

    async fn open(lane: Lane, places: &Places) -> Result<Self, String> {
        let to = if lane == Lane::Bytes { places.echo } else { places.service };
        let stream = places.client.connect(to).await.map_err(|e| format!("connect: {e}"))?;
        match lane {
            Lane::Bytes => Ok(Self::Bytes(stream)),
            Lane::Http2(_) | Lane::Grpc => open_http2(stream).await.map(Self::Http2),
            Lane::Kept(_) | Lane::Fresh(_) => open_http1(stream).await.map(Self::Http1),
        }
    }
}

async fn open_http1(stream: TcpStream) -> Result<http1::SendRequest<Full<Bytes>>, String> {
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("handshake: {e}"))?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// HTTP/2, with any body.
pub async fn open_http2<B>(stream: TcpStream) -> Result<http2::SendRequest<B>, String>
where
    B: hyper::body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|e| format!("preface: {e}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One call of a lane.
pub async fn one(
    lane: Lane,
    places: &Places,
    kept: &mut Option<Connection>,
    id: &str,
) -> Result<(u16, String), String> {
    // A connection that was closed in between, as HTTP allows, is opened again.
    if kept.as_ref().is_none_or(Connection::is_closed) {
        *kept = Some(Connection::open(lane, places).await?);
    }
    match kept.as_mut().unwrap() {
        Connection::Http1(sender) => {
            sender.ready().await.map_err(|e| format!("connection: {e}"))?;
            let request = request(lane.method().expect("requests"), "/ok", id);
            answer(sender.send_request(request).await).await.map(told)
        }
        Connection::Http2(sender) => {
            let (request, read): (_, fn(Whole) -> _) = match lane {
                Lane::Grpc => (grpc_request("/shop.Echo/Say", id), Whole::grpc),
                _ => {
                    let method = lane.method().expect("requests");
                    let mut request = request(method, "http://server.shop/ok", id);
                    request.headers_mut().remove("host");
                    (request, |whole| Ok(told((whole.status, whole.body))))
                }
            };
            sender.ready().await.map_err(|e| format!("connection: {e}"))?;
            match sender.send_request(request.clone()).await {
                // Sent while the other end said that it takes no more: by RFC 9113 section 6.8 nobody has seen it, and any client may
                // send it again.
                Err(left) if format!("{left:?}").contains("NO_ERROR, Remote") => {
                    let opened = Connection::open(lane, places).await?;
                    let Connection::Http2(sender) = kept.insert(opened) else {
                        unreachable!("a connection of this lane")
                    };
                    read(Whole::of(sender.send_request(request).await).await?)
                }
                first => read(Whole::of(first).await?),
            }
        }
        Connection::Bytes(stream) => {
            let told = |e: std::io::Error| format!("bytes: {e}");
            stream.write_all(b"12345678").await.map_err(told)?;
            let mut echoed = [0; 8];
            stream.read_exact(&mut echoed).await.map_err(told)?;
            assert_eq!(&echoed, b"12345678");
            Ok((200, String::new()))
        }
    }
}

fn request(method: &str, target: &str, id: &str) -> http::Request<Full<Bytes>> {
    // Every other POST has no body: that is the kind that could be sent twice by mistake.
    let body = if method == "POST" && !id.ends_with(['0', '2', '4', '6', '8']) {
        Bytes::from_static(b"body")
    } else {
        Bytes::new()
    };
    let request = http::Request::builder().method(method).uri(format!("{target}?id={id}"));
    request.header("host", "server.shop").header("x-id", id).body(Full::new(body)).unwrap()
}

/// A message without fields, as gRPC frames it: not compressed, no bytes.
pub const MESSAGE: [u8; 5] = [0; 5];

fn grpc_request(path: &str, id: &str) -> http::Request<Full<Bytes>> {
    grpc_head(path, id).body(Full::new(Bytes::from_static(&MESSAGE))).unwrap()
}

/// The head of a call of gRPC.
pub fn grpc_head(path: &str, id: &str) -> http::request::Builder {
    http::Request::post(format!("http://server.shop{path}?id={id}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-id", id)
}

/// An answer that has come whole.
struct Whole {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Whole {
    async fn of(answer: Result<http::Response<Incoming>, hyper::Error>) -> Result<Self, String> {
        let (head, body) = answer.map_err(|e| format!("request: {e:?}"))?.into_parts();
        let read = body.collect().await.map_err(|e| format!("body: {e:?}"))?;
        let trailers = read.trailers().cloned().unwrap_or_default();
        Ok(Self { status: head.status.as_u16(), headers: head.headers, body: read.to_bytes(), trailers })
    }

    /// As a client of gRPC has it: the status is in the trailers, or there is nothing but headers.
    fn grpc(self) -> Result<(u16, String), String> {
        let at = if self.trailers.contains_key("grpc-status") { &self.trailers } else { &self.headers };
        let end = grpc_end(at)?;
        if end.0 == 200 && self.body[..] != MESSAGE {
            return Err(format!("a status of OK without its message: {:?}", self.body));
        }
        Ok(end)
    }
}

/// The HTTP status that means the same as a status of gRPC, and its message.
pub fn grpc_end(told: &HeaderMap) -> Result<(u16, String), String> {
    let field = |name: &str| told.get(name).and_then(|value| value.to_str().ok());
    let status = match field("grpc-status") {
        Some("0") => 200,
        Some("7") => 403,
        Some("14") => 503,
        Some("4") => 504,
        other => return Err(format!("grpc-status {other:?}: {told:?}")),
    };
    Ok((status, field("grpc-message").unwrap_or_default().to_owned()))
}

async fn answer(answer: Result<http::Response<Incoming>, hyper::Error>) -> Result<(u16, Bytes), String> {
    Whole::of(answer).await.map(|whole| (whole.status, whole.body))
}

/// With the code that an answer of ours has.
pub fn told((status, body): (u16, Bytes)) -> (u16, String) {
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    (status, problem["code"].as_str().unwrap_or_default().to_owned())
}

/// A client that keeps its connection of HTTP/1.1 from one call to the next.
pub struct Client {
    from: PodNetwork,
    to: SocketAddr,
    kept: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Has no connection so far.
    pub fn new(from: &PodNetwork, to: SocketAddr) -> Self {
        Self { from: from.clone(), to, kept: None }
    }

    /// One call: status and body, or why there is no whole answer.
    pub async fn ask(&mut self, method: &str, path: &str, id: &str) -> Result<(u16, Bytes), String> {
        let mut sender = match self.kept.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => {
                let stream = self.from.connect(self.to).await.map_err(|e| format!("connect: {e}"))?;
                open_http1(stream).await?
            }
        };
        sender.ready().await.map_err(|e| format!("connection: {e}"))?;
        let answer = answer(sender.send_request(request(method, path, id)).await).await?;
        self.kept = Some(sender);
        Ok(answer)
    }
}

/// One call on a connection of its own: status and body, or why there is no whole answer.
pub async fn ask(
    from: &PodNetwork,
    to: SocketAddr,
    method: &str,
    path: &str,
    id: &str,
) -> Result<(u16, Bytes), String> {
    Client::new(from, to).ask(method, path, id).await
}

/// One call of gRPC on a connection of its own.
pub async fn ask_grpc(
    from: &PodNetwork,
    to: SocketAddr,
    path: &str,
    id: &str,
) -> Result<(u16, String), String> {
    let mut sender = open_http2(from.connect(to).await.map_err(|e| format!("connect: {e}"))?).await?;
    Whole::of(sender.send_request(grpc_request(path, id)).await).await?.grpc()
}

/// Asks for a WebSocket: the connection behind the 101, or the answer instead.
pub async fn upgraded(
    from: &PodNetwork,
    to: SocketAddr,
    path: &str,
    id: &str,
) -> Result<Result<TokioIo<Upgraded>, (u16, Bytes)>, String> {
    let mut sender = open_http1(from.connect(to).await.map_err(|e| format!("connect: {e}"))?).await?;
    let mut request = request("GET", path, id);
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ] {
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    let response = sender.send_request(request).await.map_err(|e| format!("request: {e:?}"))?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return answer(Ok(response)).await.map(Err);
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| format!("upgrade: {e:?}"))?;
    Ok(Ok(TokioIo::new(upgraded)))
}

/// Bytes on a connection of their own, and what comes back.
pub async fn ask_bytes(from: &PodNetwork, to: SocketAddr, id: &str) -> Result<(u16, String), String> {
    let mut stream = from.connect(to).await.map_err(|e| format!("connect: {e}"))?;
    stream.write_all(id.as_bytes()).await.map_err(|e| format!("request: {:?}", e.kind()))?;
    let mut answer = vec![0; 64];
    match stream.read(&mut answer).await {
        Ok(0) => Err("request: closed without a word".into()),
        Ok(_) => Ok((200, String::from_utf8_lossy(&answer).into_owned())),
        Err(error) => Err(format!("request: {:?}", error.kind())),
    }
}
