//! The app behind every pair: answers on connections that stay open, one thread, no library between it and the socket.

use crate::grpc;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, net::SocketAddr, rc::Rc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinSet, LocalSet},
};

/// Path of the large answer.
pub const LARGE: &str = "/large";
/// Bytes of the usual answer's body.
pub const USUAL_BYTES: usize = 1024;
/// Bytes of the large answer's body.
pub const LARGE_BYTES: usize = 1 << 20;

/// Serves HTTP/1.1 at these addresses, of which the first takes what is sent by OTLP, and gRPC at the last two, until the process ends.
pub fn run(addresses: &[SocketAddr]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answers = Rc::new([USUAL_BYTES, LARGE_BYTES].map(answer));
    LocalSet::new().block_on(&runtime, async {
        let mut listening = JoinSet::new();
        let (http, grpc) = addresses.split_at(addresses.len() - 2);
        let (otlp, http) = http.split_first().unwrap();
        listening.spawn_local(collect(TcpListener::bind(otlp).await.unwrap()));
        for address in http {
            let listener = TcpListener::bind(address).await.unwrap();
            listening.spawn_local(accept(listener, answers.clone()));
        }
        for address in grpc {
            listening.spawn_local(grpc::accept(TcpListener::bind(address).await.unwrap()));
        }
        listening.join_all().await;
    });
}

fn answer(bytes: usize) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {bytes}\r\n\r\n")
        .into_bytes();
    text.resize(text.len() + bytes, b'x');
    text
}

async fn accept(listener: TcpListener, answers: Rc<[Vec<u8>; 2]>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true).unwrap();
        tokio::task::spawn_local(serve(stream, answers.clone()));
    }
}

/// Reads what comes, and says that it was taken: an answer without a body is an empty message.
async fn collect(listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let service = service_fn(|request: Request<Incoming>| async {
            let _ = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        tokio::task::spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// One request at a time and without a body, as the generator sends them.
async fn serve(mut stream: TcpStream, answers: Rc<[Vec<u8>; 2]>) {
    let large = format!("GET {LARGE} ");
    let mut head = Vec::with_capacity(4096);
    while let Ok(1..) = stream.read_buf(&mut head).await {
        if head.ends_with(b"\r\n\r\n") {
            let [usual, big] = &*answers;
            let text = if head.starts_with(large.as_bytes()) { big } else { usual };
            head.clear();
            if stream.write_all(text).await.is_err() {
                return;
            }
        }
    }
}
