//! A client as a workload's app would be: plaintext to its own sidecar. One request, one connection.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{error::Error, io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// No exchange in these tests takes longer.
const DEADLINE: Duration = Duration::from_secs(10);

/// An HTTP answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }
    /// One header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// No answer: the connection broke, in the kernel's word where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl Broken {
    /// Whether it was a TCP reset.
    pub fn is_reset(&self) -> bool {
        self.0.contains("reset")
    }
    fn from(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        let mut deepest = String::new();
        while let Some(e) = next {
            deepest = e.to_string();
            if let Some(io) = e.downcast_ref::<io::Error>()
                && io.kind() == io::ErrorKind::ConnectionReset
            {
                return Self("connection reset".into());
            }
            next = e.source();
        }
        Self(deepest)
    }
}

/// A request in the making.
#[derive(Clone, Debug)]
pub struct Request {
    pub address: SocketAddr,
    pub authority: String,
    method: Method,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    http2: bool,
    from: Option<SocketAddr>,
}

impl Request {
    /// `GET /` over a connection to `address`.
    pub fn new(address: SocketAddr, authority: impl Into<String>) -> Self {
        Self {
            address,
            authority: authority.into(),
            method: Method::GET,
            path: "/".into(),
            headers: vec![],
            body: Bytes::new(),
            http2: false,
            from: None,
        }
    }
    pub fn method(mut self, method: &str) -> Self {
        self.method = method.parse().unwrap();
        self
    }
    pub fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }
    pub fn host(mut self, authority: &str) -> Self {
        self.authority = authority.into();
        self
    }
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.parse().unwrap(), value.parse().unwrap()));
        self
    }
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }
    /// Connects from this loopback address instead of any.
    pub fn from_address(mut self, ip: &str) -> Self {
        self.from = Some(SocketAddr::new(ip.parse().unwrap(), 0));
        self
    }

    /// Sends it and reads the whole answer.
    pub async fn send(self) -> Result<Answer, Broken> {
        within("the answer", async { self.exchange(connect(self.address, self.from).await?).await }).await
    }

    /// Sends it over a connection that is open already (a TLS one, for example).
    pub async fn send_over(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Answer, Broken> {
        within("the answer", self.exchange(stream)).await
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Answer, Broken> {
        let mut request = http::Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        let io = TokioIo::new(stream);
        let response = if self.http2 {
            *request.uri_mut() = format!("http://{}{}", self.authority, self.path).parse().unwrap();
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(|e| Broken::from(&e))?;
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            *request.uri_mut() = self.path.parse::<Uri>().unwrap();
            request.headers_mut().insert(http::header::HOST, self.authority.parse().unwrap());
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(io).await.map_err(|e| Broken::from(&e))?;
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        let (head, body) = response.map_err(|e| Broken::from(&e))?.into_parts();
        let body = body.collect().await.map_err(|e| Broken::from(&e))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes(), trailers })
    }
}

async fn connect(to: SocketAddr, from: Option<SocketAddr>) -> Result<TcpStream, Broken> {
    let socket = if to.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
    let socket = socket.map_err(|e| Broken::from(&e))?;
    if let Some(from) = from {
        socket.bind(from).map_err(|e| Broken::from(&e))?;
    }
    socket.connect(to).await.map_err(|e| Broken::from(&e))
}

/// Sends bytes as they are, closes the sending half, and reads to the end.
pub async fn exchange_bytes(to: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, Broken> {
    within("the bytes", async {
        let mut stream = connect(to, None).await?;
        stream.write_all(bytes).await.map_err(|e| Broken::from(&e))?;
        stream.shutdown().await.map_err(|e| Broken::from(&e))?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(|e| Broken::from(&e))?;
        Ok(answer)
    })
    .await
}

/// Sends bytes, keeps the sending half open, and reads until `end` is seen or the other side closes.
pub async fn exchange_until(stream: &mut TcpStream, bytes: &[u8], end: &[u8]) -> Result<Vec<u8>, Broken> {
    within("the bytes", async {
        stream.write_all(bytes).await.map_err(|e| Broken::from(&e))?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(end) {
            match stream.read(&mut byte).await.map_err(|e| Broken::from(&e))? {
                0 => break,
                _ => answer.push(byte[0]),
            }
        }
        Ok(answer)
    })
    .await
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come within {DEADLINE:?}"))
}
