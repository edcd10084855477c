//! gRPC with nothing but HTTP/2 below it: the app's answers, and the generator's calls.

use bytes::Bytes;
use h2::{RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use std::{io, net::SocketAddr};
use tokio::net::{TcpListener, TcpStream};

/// One message, one message back.
pub const UNARY: &str = "/bench.Echo/Unary";
/// One message, a stream of [`MESSAGES`] back.
pub const STREAM: &str = "/bench.Echo/Stream";
/// Messages of one stream, of 1 KiB each.
pub const MESSAGES: usize = 100;
/// What says which framing the message has (gRPC over HTTP/2, Length-Prefixed-Message): not compressed, 1,024 octets.
const PREFIX: [u8; 5] = [0, 0, 0, 4, 0];
const BYTES: usize = 1024;

fn message() -> Bytes {
    let mut message = PREFIX.to_vec();
    message.resize(PREFIX.len() + BYTES, b'x');
    message.into()
}

/// Answers every connection until the process ends.
pub async fn accept(listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true).unwrap();
        tokio::task::spawn_local(async move {
            let Ok(mut connection) = server::handshake(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::task::spawn_local(answer(request, respond));
            }
        });
    }
}

async fn answer(request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>) {
    let count = if request.uri().path() == STREAM { MESSAGES } else { 1 };
    if read(request.into_body()).await.is_err() {
        return;
    }
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut send) = respond.send_response(head, false) else { return };
    for _ in 0..count {
        if send.send_data(message(), false).is_err() {
            return;
        }
    }
    let _ = send.send_trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]));
}

/// All octets of a body, and its trailers.
async fn read(mut body: RecvStream) -> Result<(usize, Option<HeaderMap>), h2::Error> {
    let mut octets = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        octets += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    Ok((octets, body.trailers().await?))
}

/// A connection that carries calls side by side.
pub type Connection = client::SendRequest<Bytes>;

/// Opens one.
pub async fn connect(target: SocketAddr) -> io::Result<Connection> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = client::handshake(stream).await.map_err(io::Error::other)?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// One call; anything but a whole answer with status 0 is an error.
pub async fn call(connection: &Connection, path: &str) -> io::Result<()> {
    let head = Request::builder()
        .method(Method::POST)
        .uri(format!("http://app.mesh{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "bench/1")
        .body(())
        .unwrap();
    let answered = async {
        let (response, mut send) = connection.clone().ready().await?.send_request(head, false)?;
        send.send_data(message(), true)?;
        read(response.await?.into_body()).await
    };
    let (octets, trailers) = answered.await.map_err(io::Error::other)?;
    let expected = if path == STREAM { MESSAGES } else { 1 } * (PREFIX.len() + BYTES);
    let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    if octets != expected || status.is_none_or(|status| status != "0") {
        return Err(io::Error::other(format!("{octets} octets, {trailers:?}")));
    }
    Ok(())
}
