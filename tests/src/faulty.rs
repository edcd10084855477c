//! An app that fails on command and counts what it saw, HTTP/1.1 and HTTP/2, down to single frames. gRPC is answered with the
//! messages that it sends, a WebSocket with its own bytes.
//!
//! It reads requests itself: no server library can be told to break a connection at an exact point.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

/// What the app does with the next requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers 200.
    None,
    /// Nobody listens.
    Refuse,
    /// Answers with this status.
    Status(u16),
    /// Reads the whole request and resets the connection.
    ResetAfterRequest,
    /// The same of every so many-th request only, and of no id twice.
    ResetSome(usize),
    /// Resets the connection in the middle of the answer's body.
    ResetInAnswer,
    /// Answers as if the connection stayed, and closes it.
    CloseAfterAnswer,
    /// Closes a connection on which nothing has come for so long since its last answer, as servers with a short keep-alive do
    /// (HTTP/1.1).
    CloseWhenIdle(Duration),
    /// Answers with a body of so many bytes, which [`is_whole`] knows again (HTTP/1.1), and steady calls as ever.
    Large(usize),
    /// Answers after a while.
    Slow(Duration),
    /// Reads no body but those of steady calls, and does not answer (HTTP/1.1), until it is told to.
    Unread,
    /// Answers when it is told to.
    Hold,
    /// HTTP/2: RST_STREAM with REFUSED_STREAM.
    RefuseStream,
    /// HTTP/2: a GOAWAY whose last stream is below the request, then the end of the connection.
    GoAwayUnprocessed,
    /// HTTP/2: a GOAWAY that covers the request, then the end of the connection.
    GoAwayProcessed,
}

#[derive(Default)]
struct Seen {
    ids: Vec<String>,
    posts: Vec<String>,
    versions: Vec<String>,
    connections: usize,
    closed: usize,
    over: usize,
    refused: usize,
}

struct State {
    fault: Mutex<Fault>,
    seen: Mutex<Seen>,
    released: Notify,
    accepting: Mutex<Option<JoinHandle<()>>>,
    open: Mutex<Vec<JoinHandle<()>>>,
}

/// A running app.
#[derive(Clone)]
pub struct Faulty {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl Faulty {
    /// Listens on `port` of a loopback address of its own.
    pub async fn start(port: u16) -> Self {
        Self::on(listen(port).await)
    }

    /// Serves a listener of the caller's, such as one in the network of a pod.
    pub fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            fault: Mutex::new(Fault::None),
            seen: Mutex::default(),
            released: Notify::new(),
            accepting: Mutex::default(),
            open: Mutex::default(),
        });
        let app = Self { address, state };
        app.accept(listener);
        app
    }

    /// From now on. `Refuse` closes the listener and every connection.
    pub fn set(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = fault;
        if fault == Fault::Refuse {
            self.state.accepting.lock().unwrap().take().expect("it listens").abort();
            self.state.open.lock().unwrap().drain(..).for_each(|connection| connection.abort());
        }
    }

    /// Listens again, after `Refuse`.
    pub fn listen_again(&self, listener: TcpListener) {
        *self.state.fault.lock().unwrap() = Fault::None;
        self.accept(listener);
    }

    /// Lets go of all that is held, and answers from now on.
    pub fn release(&self) {
        *self.state.fault.lock().unwrap() = Fault::None;
        self.state.released.notify_waiters();
    }

    /// The ids of all requests that were processed, in order.
    pub fn ids(&self) -> Vec<String> {
        self.state.seen.lock().unwrap().ids.clone()
    }
    /// Those of POST requests.
    pub fn posts(&self) -> Vec<String> {
        self.state.seen.lock().unwrap().posts.clone()
    }
    /// The version of each request.
    pub fn versions(&self) -> Vec<String> {
        self.state.seen.lock().unwrap().versions.clone()
    }
    /// Connections accepted.
    pub fn connections(&self) -> usize {
        self.state.seen.lock().unwrap().connections
    }
    /// Connections that are over, whoever ended them.
    pub fn over(&self) -> usize {
        self.state.seen.lock().unwrap().over
    }
    /// Connections that it closed after an answer.
    pub fn closed(&self) -> usize {
        self.state.seen.lock().unwrap().closed
    }
    /// Requests that it said not to have processed.
    pub fn refused(&self) -> usize {
        self.state.seen.lock().unwrap().refused
    }
    /// Nothing was seen.
    pub fn forget(&self) {
        *self.state.seen.lock().unwrap() = Seen::default();
    }

    fn accept(&self, listener: TcpListener) {
        let app = self.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                app.state.seen.lock().unwrap().connections += 1;
                let serving = app.clone();
                let connection = tokio::spawn(async move {
                    let _ = serving.connection(stream).await;
                    serving.state.seen.lock().unwrap().over += 1;
                });
                app.state.open.lock().unwrap().push(connection);
            }
        });
        *self.state.accepting.lock().unwrap() = Some(accepting);
    }

    async fn connection(&self, stream: TcpStream) -> io::Result<()> {
        let mut start = [0; 3];
        while stream.peek(&mut start).await? < start.len() {
            tokio::task::yield_now().await;
        }
        if &start == b"PRI" { self.http2(stream).await } else { self.http1(stream).await }
    }

    fn saw(&self, method: &str, id: &str, version: &str) {
        let mut seen = self.state.seen.lock().unwrap();
        seen.ids.push(id.to_owned());
        seen.versions.push(version.to_owned());
        if method == "POST" {
            seen.posts.push(id.to_owned());
        }
    }

    fn refuse(&self) {
        self.state.seen.lock().unwrap().refused += 1;
    }

    fn is_first_of(&self, id: &str, each: usize) -> bool {
        let seen = self.state.seen.lock().unwrap();
        seen.ids.len().is_multiple_of(each) && seen.ids.iter().filter(|seen| *seen == id).count() == 1
    }

    /// Waits as the fault says; the status to answer with, or nothing: the connection ends with a reset.
    async fn status(&self, id: &str) -> Option<u16> {
        let released = self.state.released.notified();
        let fault = *self.state.fault.lock().unwrap();
        match fault {
            Fault::Status(status) => Some(status),
            Fault::ResetAfterRequest => None,
            Fault::ResetSome(each) if self.is_first_of(id, each) => None,
            Fault::Slow(time) => {
                tokio::time::sleep(time).await;
                Some(200)
            }
            Fault::Hold => {
                released.await;
                Some(200)
            }
            _ => Some(200),
        }
    }

    async fn http1(&self, mut stream: TcpStream) -> io::Result<()> {
        let (mut read, mut is_new) = (Vec::new(), true);
        loop {
            let end = loop {
                if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                    break end + 4;
                }
                let patience = match *self.state.fault.lock().unwrap() {
                    // Whoever has just connected has other deadlines.
                    Fault::CloseWhenIdle(patience) if !is_new => patience,
                    _ => Duration::MAX,
                };
                match tokio::time::timeout(patience, stream.read_buf(&mut read)).await {
                    Ok(Ok(length)) if length > 0 => {}
                    _ => return Ok(()),
                }
            };
            is_new = false;
            let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
            let field = |name: &str| {
                head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or_default()
            };
            let length: usize = field("content-length").parse().unwrap_or(0);
            let released = self.state.released.notified();
            let is_unread = *self.state.fault.lock().unwrap() == Fault::Unread;
            if is_unread && !field("x-id").starts_with(crate::calls::STEADY) {
                released.await;
                return Ok(());
            }
            while read.len() < end + length {
                if stream.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
            }
            let method = head.split(' ').next().unwrap_or_default().to_uppercase();
            let id = field("x-id").to_owned();
            self.saw(&method, &id, "HTTP/1.1");
            read.drain(..end + length);
            if field("upgrade") == "websocket" {
                stream
                    .write_all(b"HTTP/1.1 101 Said\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                    .await?;
                let (mut from, mut to) = stream.split();
                return tokio::io::copy(&mut from, &mut to).await.map(|_| ());
            }
            let Some(status) = self.status(&id).await else {
                return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            };
            if *self.state.fault.lock().unwrap() == Fault::ResetInAnswer {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await?;
                // Read by the other side before the reset, which would take it away.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            let length = match *self.state.fault.lock().unwrap() {
                Fault::Large(length) if !id.starts_with(crate::calls::STEADY) => Some(length),
                _ => None,
            };
            let answer = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n", length.unwrap_or(2));
            match length {
                None => stream.write_all(&[answer.as_bytes(), b"ok"].concat()).await?,
                Some(length) => {
                    stream.write_all(answer.as_bytes()).await?;
                    for from in (0..length).step_by(PART) {
                        stream.write_all(&LARGE[from..length.min(from + PART)]).await?;
                    }
                }
            }
            if *self.state.fault.lock().unwrap() == Fault::CloseAfterAnswer {
                drop(stream);
                self.state.seen.lock().unwrap().closed += 1;
                return Ok(());
            }
        }
    }

    /// Frames by hand where the fault is one of frames; a server library otherwise.
    async fn http2(&self, mut stream: TcpStream) -> io::Result<()> {
        let now = || *self.state.fault.lock().unwrap();
        if !matches!(now(), Fault::RefuseStream | Fault::GoAwayUnprocessed | Fault::GoAwayProcessed) {
            return self.http2_whole(stream).await;
        }
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await?;
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await?;
            let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match head[3] {
                SETTINGS if head[4] == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[])).await?,
                PING if head[4] == 0 => stream.write_all(&frame(PING, 1, 0, &payload)).await?,
                HEADERS => match now() {
                    Fault::RefuseStream => {
                        self.refuse();
                        stream.write_all(&frame(RST_STREAM, 0, number, &7_u32.to_be_bytes())).await?;
                    }
                    Fault::GoAwayUnprocessed => {
                        self.refuse();
                        let last = number.saturating_sub(2).to_be_bytes();
                        stream.write_all(&frame(GOAWAY, 0, 0, &[last, [0; 4]].concat())).await?;
                        return end(&mut stream).await;
                    }
                    _ => {
                        // Nothing is decoded: a connection has one such request, and its address tells it apart.
                        let id = format!("{}-{number}", stream.peer_addr()?);
                        self.saw("POST", &id, "HTTP/2.0");
                        stream
                            .write_all(&frame(GOAWAY, 0, 0, &[number.to_be_bytes(), [0; 4]].concat()))
                            .await?;
                        return end(&mut stream).await;
                    }
                },
                _ => {}
            }
        }
    }

    async fn http2_whole(&self, stream: TcpStream) -> io::Result<()> {
        let service = hyper::service::service_fn(|request: http::Request<Incoming>| {
            let app = self.clone();
            async move { app.answer(request).await }
        });
        let io = hyper_util::rt::TokioIo::new(stream);
        hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .serve_connection(io, service)
            .await
            .map_err(io::Error::other)
    }

    async fn answer(
        &self,
        request: http::Request<Incoming>,
    ) -> io::Result<http::Response<UnsyncBoxBody<Bytes, hyper::Error>>> {
        let id = request.headers().get("x-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
        self.saw(request.method().as_str(), id, &format!("{:?}", request.version()));
        let Some(status) = self.status(id).await else { return Err(io::Error::other("told to fail")) };
        let is_grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
        let whole = Full::new(Bytes::from_static(b"ok")).map_err(|never| match never {});
        let body = if is_grpc { echo(request.into_body()) } else { whole.boxed_unsync() };
        let mut answer = http::Response::new(body);
        *answer.status_mut() = http::StatusCode::from_u16(status).expect("a status");
        if is_grpc {
            answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        }
        Ok(answer)
    }
}

/// What is sent, as long as something is, and then the status of gRPC that says that all went well.
fn echo(sent: Incoming) -> UnsyncBoxBody<Bytes, hyper::Error> {
    let status = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from(0),
    )]);
    let frames = futures_util::stream::unfold((sent, Some(status)), |(mut sent, status)| async move {
        match sent.frame().await {
            Some(frame) => Some((frame, (sent, status))),
            None => status.map(|status| (Ok(Frame::trailers(status)), (sent, None))),
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// What is made and written at a time, of a large body.
const PART: usize = 16 * 1024;

/// Every four bytes say where they stand, so that none can be missing or twice.
static LARGE: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..(8_u32 << 20) / 4).flat_map(u32::to_be_bytes).collect());

/// Whether a body is the one of [`Fault::Large`], byte for byte.
pub fn is_whole(body: &[u8], length: usize) -> bool {
    body == &LARGE[..length]
}

/// A loopback address that nobody else has taken for this port: processes differ by their id, apps by a counter.
async fn listen(port: u16) -> TcpListener {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    for _ in 0..64 {
        let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let block = 16 + u8::try_from(std::process::id() % 48).expect("below 48");
        if let Ok(listener) = TcpListener::bind(SocketAddr::from(([127, block, high, low], port))).await {
            return listener;
        }
    }
    panic!("64 loopback addresses in a row are taken");
}

/// Ends in order: what is unread at the close would make it a reset, which takes unread frames of ours with it.
async fn end(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(stream, &mut tokio::io::sink()).await.map(|_| ())
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

/// RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}
