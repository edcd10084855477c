//! `postern app serve`: a workload that tells what reached it, so that a test can see what the sidecar let through.
//!
//! HTTP (1.1, and 2 with prior knowledge) is answered with JSON of what was received, gRPC with an empty message; TCP is echoed.
//! Each request, and each TCP connection, is one line on standard output.

use super::{Outcome, call::headers_json, complain, say};
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

/// Longest wait for a request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Port, or address:port; may be given many times. A bare port means every address, IPv4 and IPv6
    #[arg(long, required = true)]
    listen: Vec<String>,
    /// Speak HTTP (the default)
    #[arg(long, group = "protocol")]
    http: bool,
    /// Echo bytes
    #[arg(long, group = "protocol")]
    tcp: bool,
    /// Greet first, then echo bytes, as mail and database servers do
    #[arg(long, group = "protocol")]
    tcp_server_first: bool,
    /// Name in answers and lines
    #[arg(long, env = "POSTERN_APP_NAME", default_value = "app")]
    name: String,
    /// Address for bare ports, set by `postern up` where pods have no network of their own
    #[arg(long, env = "POSTERN_BIND_IP", hide = true)]
    bind_ip: Option<IpAddr>,
}

#[derive(Clone, Copy)]
enum Speech {
    Http,
    Echo,
    GreetAndEcho,
}

/// Serves until told to stop.
pub(super) async fn serve(args: ServeArgs) -> Outcome {
    let speech = match (args.tcp, args.tcp_server_first) {
        (true, _) => Speech::Echo,
        (_, true) => Speech::GreetAndEcho,
        _ => Speech::Http,
    };
    let name: Arc<str> = args.name.into();
    let mut listeners = Vec::new();
    for text in &args.listen {
        let addresses = match addresses(text, args.bind_ip) {
            Ok(addresses) => addresses,
            Err(cause) => {
                complain(&cause, "write --listen 8080, --listen 127.0.0.1:8080 or --listen [::1]:8080");
                return Outcome::Usage;
            }
        };
        match bind_first(&addresses) {
            Ok(listener) => listeners.push(listener),
            Err(cause) => {
                complain(
                    &format!("cannot listen on {text}: {cause}"),
                    "choose a free port, or stop the process that holds this one (ss -ltnp shows it)",
                );
                return Outcome::NoAnswer;
            }
        }
    }
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        if let Ok(address) = listener.local_addr() {
            let spoken = if matches!(speech, Speech::Http) { "http" } else { "tcp" };
            say(&format!("{name} listens on {address} ({spoken})"));
        }
        accepting.spawn(accept(listener, speech, name.clone()));
    }
    while accepting.join_next().await.is_some() {}
    Outcome::NoAnswer
}

async fn accept(listener: TcpListener, speech: Speech, name: Arc<str>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                // An IPv4 caller of a listener for both families is still an IPv4 caller.
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                let name = name.clone();
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    match speech {
                        Speech::Http => answer_connection(stream, from, name).await,
                        Speech::Echo => echo(stream, from, &name, None).await,
                        Speech::GreetAndEcho => {
                            echo(stream, from, &name, Some(&format!("220 {name} ready\r\n"))).await
                        }
                    }
                });
            }
            Err(cause) => {
                // Out of descriptors, usually: the others must end before the next can be taken.
                complain(&format!("cannot accept: {cause}"), "");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn answer_connection(stream: TcpStream, from: SocketAddr, name: Arc<str>) {
    let Ok(http2) = starts_with_http2_preface(&stream).await else { return };
    let service = service_fn(move |request| tell(request, from, name.clone()));
    let io = TokioIo::new(stream);
    // A peer that breaks off or misspeaks ends its own connection; the line of each whole request is already out.
    let _ = if http2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .serve_connection(io, service)
            .await
    } else {
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .serve_connection(io, service)
            .await
    };
}

/// `PRI` is no method of HTTP/1.1 (RFC 9113, section 3.4), so three bytes are enough.
async fn starts_with_http2_preface(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI";
    let mut start = [0_u8; PREFACE.len()];
    let looking = async {
        loop {
            let seen = stream.peek(&mut start).await?;
            let bytes = start.get(..seen).unwrap_or_default();
            if seen == PREFACE.len() || seen == 0 || !PREFACE.starts_with(bytes) {
                return Ok(bytes == PREFACE);
            }
            // Part of the preface: peek would return at once with the same bytes.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HEAD_DEADLINE, looking).await.unwrap_or(Ok(false))
}

async fn tell(
    request: Request<Incoming>,
    from: SocketAddr,
    name: Arc<str>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let mut received = 0_u64;
    let mut whole = true;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => received += frame.data_ref().map_or(0, |data| data.len() as u64),
            Err(_) => {
                whole = false;
                break;
            }
        }
    }
    let path = head.uri.path_and_query().map_or_else(|| head.uri.path(), |p| p.as_str());
    let authority = head.uri.authority().map(|a| a.as_str().to_owned()).or_else(|| {
        head.headers.get(header::HOST).map(|h| String::from_utf8_lossy(h.as_bytes()).into_owned())
    });
    let cut = if whole { "" } else { " (cut off)" };
    say(&format!(
        "{name} received {} {path} {:?} from {from} {received} bytes{cut}",
        head.method, head.version
    ));
    if whole && is_grpc(&head.headers) {
        return Ok(empty_message());
    }
    let told = json!({
        "app": &*name,
        "method": head.method.as_str(),
        "path": path,
        "authority": authority,
        "version": format!("{:?}", head.version),
        "from": from.to_string(),
        "headers": headers_json(&head.headers),
        "body_bytes": received,
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{told}\n"))).boxed_unsync());
    *response.status_mut() = if whole { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The answer of gRPC to a unary call whose method nobody knows: a message without fields, which every type has, and status OK.
fn empty_message() -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let status = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from(0))]);
    let message = Full::new(Bytes::from_static(&[0; 5]));
    let mut response =
        Response::new(message.with_trailers(std::future::ready(Some(Ok(status)))).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

async fn echo(mut stream: TcpStream, from: SocketAddr, name: &str, greeting: Option<&str>) {
    say(&format!("{name} received TCP connection from {from}"));
    if let Some(greeting) = greeting
        && stream.write_all(greeting.as_bytes()).await.is_err()
    {
        return;
    }
    let (mut read, mut write) = stream.split();
    let copied = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
    if let Ok(bytes) = copied {
        say(&format!("{name} echoed {bytes} bytes to {from}"));
    }
}

/// The addresses to try, best first: a bare port listens on both families where the machine has both.
fn addresses(text: &str, bind_ip: Option<IpAddr>) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let port: u16 = text.parse().map_err(|_| format!("`{text}` is neither a port nor address:port"))?;
    Ok(match bind_ip {
        Some(ip) => vec![SocketAddr::new(ip, port)],
        None => vec![
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
        ],
    })
}

fn bind_first(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match bind(*address) {
            Ok(listener) => return Ok(listener),
            // A port in use stays in use: the other family must not hide that.
            Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => return Err(cause),
            Err(cause) => last = cause,
        }
    }
    Err(last)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_bare_port_means_both_families_unless_an_address_is_given() {
        assert_eq!(addresses("8080", None).unwrap().len(), 2);
        let one = addresses("8080", Some(Ipv4Addr::new(127, 0, 0, 9).into())).unwrap();
        assert_eq!(one, ["127.0.0.9:8080".parse().unwrap()]);
        assert_eq!(
            addresses("[::1]:1", Some(Ipv4Addr::LOCALHOST.into())).unwrap(),
            ["[::1]:1".parse().unwrap()]
        );
        assert!(addresses("eighty", None).is_err() && addresses("99999", None).is_err());
    }
}
