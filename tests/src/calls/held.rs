//! What lasts: WebSockets, streams of gRPC and plain connections, on which something goes there and back all the time.

use super::{
    Places,
    wire::{MESSAGE, grpc_end, grpc_head, open_http2, upgraded},
};
use crate::pods::PodNetwork;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

/// From one exchange to the next.
const EVERY: Duration = Duration::from_millis(100);

/// What kind of connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    WebSocket,
    /// A call of gRPC with messages both ways.
    Stream,
    Bytes,
}

/// How one ended, and when the last exchange was.
#[derive(Clone, Debug)]
pub struct End {
    pub kind: Kind,
    pub last: Instant,
    /// Of gRPC the HTTP status that means the same, and its message; or what broke.
    pub how: Result<(u16, String), String>,
}

/// Connections that last.
pub struct Held {
    tasks: JoinSet<()>,
    ended: Arc<Mutex<Vec<End>>>,
    opened: usize,
}

impl Held {
    /// Opens so many of each kind; they have carried something both ways.
    pub async fn open(places: &Places, each: usize) -> Self {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let (mut tasks, mut opened) = (JoinSet::new(), 0);
        for kind in [Kind::WebSocket, Kind::Stream, Kind::Bytes] {
            for number in 0..each {
                let to = if kind == Kind::Bytes { places.echo } else { places.service };
                let mut one =
                    One::open(kind, &places.client, to, &format!("held-{kind:?}-{number}")).await.unwrap();
                one.exchange().await.unwrap();
                let ended = ended.clone();
                opened += 1;
                tasks.spawn(async move {
                    let (mut last, mut turns) = (Instant::now(), tokio::time::interval(EVERY));
                    let how = loop {
                        turns.tick().await;
                        match one.exchange().await {
                            Ok(()) => last = Instant::now(),
                            Err(broken) => break broken,
                        }
                    };
                    ended.lock().unwrap().push(End { kind, last, how });
                });
            }
        }
        Self { tasks, ended, opened }
    }

    /// Those that have ended so far.
    pub fn ended(&self) -> Vec<End> {
        self.ended.lock().unwrap().clone()
    }

    /// How many go on.
    pub fn left(&self) -> usize {
        self.opened - self.ended.lock().unwrap().len()
    }

    /// Ends the rest.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// What can be read and written.
trait Carries: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carries for T {}

enum One {
    Bytes(Box<dyn Carries>),
    Stream { messages: mpsc::Sender<Result<Frame<Bytes>, Infallible>>, answer: Incoming },
}

impl One {
    async fn open(kind: Kind, from: &PodNetwork, to: SocketAddr, id: &str) -> Result<Self, String> {
        let connect = async || from.connect(to).await.map_err(|e| format!("connect: {e}"));
        match kind {
            Kind::Bytes => Ok(Self::Bytes(Box::new(connect().await?))),
            Kind::WebSocket => match upgraded(from, to, "/ok", id).await? {
                Ok(socket) => Ok(Self::Bytes(Box::new(socket))),
                Err(refused) => Err(format!("{refused:?}")),
            },
            Kind::Stream => {
                let mut sender = open_http2(connect().await?).await?;
                let (messages, body) = mpsc::channel(1);
                let body = StreamBody::new(ReceiverStream::new(body));
                let request = grpc_head("/shop.Echo/Talk", id).body(body).unwrap();
                let answer = sender.send_request(request).await.map_err(|e| format!("request: {e:?}"))?;
                Ok(Self::Stream { messages, answer: answer.into_body() })
            }
        }
    }

    /// Something goes there and comes back; or how it has ended.
    async fn exchange(&mut self) -> Result<(), Result<(u16, String), String>> {
        match self {
            Self::Bytes(stream) => {
                let told = |e: std::io::Error| Err(format!("bytes: {e}"));
                stream.write_all(b"12345678").await.map_err(told)?;
                let mut echoed = [0; 8];
                stream.read_exact(&mut echoed).await.map_err(told)?;
                assert_eq!(&echoed, b"12345678");
                Ok(())
            }
            Self::Stream { messages, answer } => {
                // Who takes no more has an end to tell.
                let _ = messages.send(Ok(Frame::data(Bytes::from_static(&MESSAGE)))).await;
                let mut message = BytesMut::new();
                while message.len() < MESSAGE.len() {
                    match answer.frame().await {
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(data) => message.extend_from_slice(&data),
                            Err(frame) => return Err(grpc_end(frame.trailers_ref().unwrap())),
                        },
                        Some(Err(broken)) => return Err(Err(format!("stream: {broken:?}"))),
                        None => return Err(Err("the stream has ended without a status".into())),
                    }
                }
                assert_eq!(message[..], MESSAGE);
                Ok(())
            }
        }
    }
}
