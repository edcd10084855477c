//! Real apps that remember what reached them, so that a test can prove what did not.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// One HTTP request as the app saw it.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    /// Path and query, byte for byte.
    pub path: String,
    pub authority: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub version: http::Version,
    pub from: SocketAddr,
}

impl Received {
    /// The values of one header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|v| v.to_str().unwrap_or("(not text)")).collect()
    }
}

#[derive(Default)]
struct Seen {
    connections: usize,
    requests: Vec<Received>,
    bytes: Vec<u8>,
    listening: Vec<tokio::task::JoinHandle<()>>,
}

/// What one workload's app, on all its ports, has received.
#[derive(Clone, Default)]
pub struct App(Arc<Mutex<Seen>>);

/// What an app does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// HTTP/1.1 and HTTP/2, upgrades echoed.
    Http,
    /// Bytes echoed.
    Echo,
    /// A greeting, then bytes echoed.
    GreetAndEcho,
}

impl App {
    /// All requests so far, in order.
    pub fn received(&self) -> Vec<Received> {
        self.0.lock().unwrap().requests.clone()
    }

    /// The last request.
    pub fn last(&self) -> Received {
        self.0.lock().unwrap().requests.last().cloned().expect("the app has received a request")
    }

    /// How many connections were opened to the app.
    pub fn connections(&self) -> usize {
        self.0.lock().unwrap().connections
    }

    /// All bytes on TCP ports, in order of arrival.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    /// Closes all listeners; connections stay.
    pub async fn stop_listening(&self) {
        let listening = std::mem::take(&mut self.0.lock().unwrap().listening);
        for accepting in listening {
            accepting.abort();
            let _ = accepting.await;
        }
    }

    /// Serves on a listener until it is told to stop, or the runtime ends.
    pub fn serve(&self, listener: TcpListener, speech: Speech) {
        let app = self.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                app.0.lock().unwrap().connections += 1;
                let app = app.clone();
                tokio::spawn(async move {
                    let _ = match speech {
                        Speech::Http => app.http(stream, from).await,
                        Speech::Echo => app.echo(stream, b"").await,
                        Speech::GreetAndEcho => app.echo(stream, b"220 ready\r\n").await,
                    };
                });
            }
        });
        self.0.lock().unwrap().listening.push(accepting);
    }

    async fn http(&self, stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        let mut start = [0; 3];
        // PRI is no method of HTTP/1.1, so three bytes tell. Waiting for all of them consumes nothing.
        while stream.peek(&mut start).await? < start.len() {
            tokio::task::yield_now().await;
        }
        let service = hyper::service::service_fn(|request| {
            let app = self.clone();
            async move { app.answer(request, from).await }
        });
        let io = TokioIo::new(stream);
        let served = if &start == b"PRI" {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
        } else {
            hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await
        };
        served.map_err(io::Error::other)
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        from: SocketAddr,
    ) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
        let upgrade = request.headers().get(header::UPGRADE).cloned();
        let upgraded = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let host = head.headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
        let is_grpc = head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
        let path = head.uri.path_and_query().map_or_else(|| head.uri.path().to_owned(), ToString::to_string);
        self.0.lock().unwrap().requests.push(Received {
            method: head.method.to_string(),
            authority: head.uri.authority().map_or_else(|| host.to_owned(), ToString::to_string),
            headers: head.headers.clone(),
            body: body.clone(),
            version: head.version,
            path: path.clone(),
            from,
        });
        let mut response = if is_grpc { grpc(body) } else { Response::new(Full::new(body).boxed()) };
        if let Some(status) = path.strip_prefix("/status/").and_then(|s| s.parse().ok()) {
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT);
        }
        if let (Some(upgraded), Some(protocol)) = (upgraded, upgrade) {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(header::UPGRADE, protocol);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            tokio::spawn(async move {
                if let Ok(io) = upgraded.await {
                    let (mut read, mut write) = tokio::io::split(TokioIo::new(io));
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                }
            });
        }
        Ok(response)
    }

    async fn echo(&self, mut stream: TcpStream, greeting: &[u8]) -> io::Result<()> {
        stream.write_all(greeting).await?;
        let mut buffer = vec![0; 16 << 10];
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                return stream.shutdown().await;
            }
            self.0.lock().unwrap().bytes.extend_from_slice(&buffer[..n]);
            stream.write_all(&buffer[..n]).await?;
        }
    }
}

/// The body back, and status 0 in the trailers, as gRPC ends.
fn grpc(body: Bytes) -> Response<BoxBody<Bytes, Infallible>> {
    let trailers =
        HeaderMap::from_iter([(header::HeaderName::from_static("grpc-status"), HeaderValue::from(0))]);
    let frames = [Ok(Frame::data(body)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}
