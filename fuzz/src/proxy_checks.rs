//! What the fuzz targets of `proxy` demand of any input. Also compiled into `proxy/tests/corpora.rs`, which runs the corpora.
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, request::Parts};
use http_body_util::BodyExt;
use postern_config::{documents::Upgrades, path::Normalization};
use postern_proxy::{
    http::{
        Body,
        body::Upload,
        canonical::{Size, canonical},
        framing::{Patience, Strict},
        headers::{clean_request, clean_response, clean_trailers},
        http1::{
            body::{Left, Part},
            client::Connection,
            server,
            upstream_heads::{self, Answerer},
        },
        message::Incoming,
    },
    net::{
        Prefixed,
        sniff::{self, Application, Transport},
    },
    tls::{Stream, open::Watch},
};
use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Longer inputs say nothing new, and are split at every position.
const LONGEST: usize = 4096;

/// Streams of memory are always ready.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a stream of memory made somebody wait"),
    }
}

/// At most 64 positions, evenly spread.
fn splits(length: usize) -> impl Iterator<Item = usize> {
    (1..length).step_by((length / 64).max(1))
}

/// The bytes in two reads.
fn halves(bytes: &[u8], at: usize) -> impl AsyncRead + Unpin + '_ {
    let (one, two) = bytes.split_at(at);
    one.chain(two)
}

/// Whatever a connection begins with: what it is does not depend on how it is cut, and every byte is given back.
pub fn sniff(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let application = |at| {
        let (decided, stream) = now(sniff::application(halves(bytes, at), None)).unwrap();
        (decided, whole(stream))
    };
    let transport = |at| {
        let (decided, stream) = now(sniff::transport(halves(bytes, at), None)).unwrap();
        (decided, whole(stream))
    };
    let version = |at| {
        let (decided, stream) = now(sniff::http_version(halves(bytes, at))).unwrap();
        (decided, whole(stream))
    };
    let (first, given) = application(bytes.len());
    assert_eq!(given, bytes);
    assert_eq!(first == Application::Http2, bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    let (second, given) = transport(bytes.len());
    assert_eq!(given, bytes);
    assert!(!matches!(second, Transport::Tls(_)) || bytes.first() == Some(&22));
    let third = version(bytes.len());
    assert_eq!(third.1, bytes);
    for at in splits(bytes.len()) {
        assert_eq!(application(at), (first, bytes.to_vec()), "split at {at}: {bytes:?}");
        assert_eq!(version(at), third, "split at {at}: {bytes:?}");
        let (decided, given) = transport(at);
        assert_eq!((&decided, &given[..]), (&second, bytes), "split at {at}");
    }
}

fn whole(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut read = Vec::new();
    now(stream.read_to_end(&mut read)).unwrap();
    read
}

/// First line `METHOD TARGET VERSION`, then header lines `name: value`.
fn request(text: &str) -> Option<Parts> {
    let mut lines = text.split('\n');
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let version = match words.next() {
        Some("2") => Version::HTTP_2,
        Some("1.0") => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let request = Request::builder().method(method).uri(target).version(version).body(()).ok()?;
    let mut parts = request.into_parts().0;
    parts.headers = headers(lines);
    Some(parts)
}

fn headers<'t>(lines: impl Iterator<Item = &'t str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.take(200) {
        let Some((name, value)) = line.split_once(": ") else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes()))
        {
            headers.append(name, value);
        }
    }
    headers
}

/// Whatever is asked for: what has one reading is read once more to the same, in every mode, and is plain.
pub fn canonical_request(text: &str) {
    let here = SocketAddr::from(([10, 0, 0, 1], 80));
    for mode in [
        Normalization::None,
        Normalization::Base,
        Normalization::MergeSlashes,
        Normalization::DecodeAndMergeSlashes,
    ] {
        let Some(mut parts) = request(text) else { return };
        let Ok(target) = canonical(&mut parts, mode, Size::WithOurs, here) else { continue };
        let (host, path) = (target.host().to_owned(), target.path().to_owned());
        assert!(
            !host.is_empty() && !host.bytes().any(|byte| byte.is_ascii_uppercase()),
            "{text:?} -> {host}"
        );
        assert!(!host.contains(['@', '/', ',', ' ', '%', '\\', '#', '?']), "{text:?} -> {host}");
        assert!(path.starts_with('/') || path == "*", "{text:?} -> {path}");
        assert!(path.bytes().all(|byte| (b'!'..=b'~').contains(&byte) && byte != b'#'), "{text:?} -> {path}");
        assert!(
            mode == Normalization::None || !path.split('/').any(|part| part == ".."),
            "{text:?} -> {path}"
        );
        assert!(!parts.headers.contains_key("host") && parts.headers.len() <= 92, "{text:?}");
        // Read by the next one, as we send it on.
        parts.uri = target.path_and_query.as_str().parse().unwrap();
        parts.version = Version::HTTP_11;
        parts.headers.insert("host", target.authority.clone());
        assert_eq!(canonical(&mut parts, mode, Size::Whole, here).ok().as_ref(), Some(&target), "{text:?}");
    }
}

/// Whatever lines come: cleaning twice is cleaning once, and nothing of ours or of the connection is left.
pub fn header_rules(text: &str) {
    let ours = |name: &str| {
        let name = name.replace('_', "-");
        name == "x-forwarded-client-cert" || name.starts_with("x-postern-")
    };
    let hop =
        ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"];
    let check = |cleaned: &HeaderMap, what: &str| {
        for name in cleaned.keys() {
            let name = name.as_str();
            assert!(!ours(name) && !hop.contains(&name), "{what} left {name}: {text:?}");
        }
    };
    for clean in [
        |headers: &mut HeaderMap| {
            let _ = clean_request(headers);
        },
        |headers: &mut HeaderMap| clean_response(headers, false),
        |headers: &mut HeaderMap| clean_trailers(headers),
    ] {
        let mut once = headers(text.split('\n'));
        clean(&mut once);
        let mut twice = once.clone();
        clean(&mut twice);
        assert_eq!(once, twice, "{text:?}");
        check(&once, "cleaning");
    }
    let mut trailers = headers(text.split('\n'));
    clean_trailers(&mut trailers);
    for name in
        ["host", "content-length", "authorization", "cookie", "set-cookie", "content-type", "te", "trailer"]
    {
        assert!(!trailers.contains_key(name), "{name}: {text:?}");
    }
}

/// A chunked body, and what follows it: whether it is refused does not depend on how it is cut, nothing but a beginning of what came
/// passes, and a body that passes whole is one for a second reading, too.
pub fn chunked(bytes: &[u8]) {
    const HEAD: &[u8] = CHUNKED_HEAD;
    const POISON: &[u8] = b"\0\r\n\r\n";
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let all = [HEAD, bytes].concat();
    let judge = |(passed, is_broken): (Vec<u8>, bool)| {
        let (poisoned, beginning) = match passed.strip_suffix(POISON) {
            Some(beginning) if !all.starts_with(&passed) => (true, beginning),
            _ => (false, &*passed),
        };
        assert!(all.starts_with(beginning), "more than came: {bytes:?} -> {passed:?}");
        assert!(is_broken || poisoned || beginning == all, "not all of it passed: {bytes:?}");
        (is_broken || poisoned, beginning.len())
    };
    // The head has gone on before.
    let (is_refused, passed) = judge(follow(HEAD.chain(bytes)));
    assert!(passed >= HEAD.len(), "the head is good");
    for at in splits(bytes.len()) {
        let split = judge(follow(HEAD.chain(halves(bytes, at))));
        assert_eq!(split.0, is_refused, "split at {at}: {bytes:?}");
    }
    for at in splits(all.len()) {
        assert_eq!(judge(follow(halves(&all, at))).0, is_refused, "split at {at}: {bytes:?}");
    }
    // A plain reading must see what was wrong, or find the body complete.
    match plain(bytes) {
        Plain::Broken(at) => {
            assert!(is_refused && passed <= HEAD.len() + at, "{at}: {bytes:?} -> {passed}");
            assert_eq!(first_read(&all), POISON, "in one read nothing passes: {bytes:?}");
        }
        Plain::Unfinished => assert!(!is_refused, "{bytes:?}"),
        // What follows it has rules of its own.
        Plain::Complete { .. } => {}
    }
}

/// The same through a pair of sidecars' connections: what reaches the far end as a whole body is what a plain reading makes of it, and
/// what is not whole never looks so there.
pub fn chunked_through_a_pair(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let all = [CHUNKED_HEAD, bytes].concat();
    let got = tokio::task::LocalSet::new().block_on(&runtime, through_a_pair(&all));
    match plain(bytes) {
        // What may follow is another request, and lines behind the last chunk may be no header lines.
        Plain::Complete { data, trailers } => match got.first() {
            Some(Some(body)) => assert_eq!(*body, data, "{bytes:?}"),
            other => assert!(trailers, "a good body is lost: {bytes:?} -> {other:?}"),
        },
        Plain::Unfinished | Plain::Broken(_) => {
            assert!(got.iter().all(Option::is_none), "a part looks whole: {bytes:?} -> {got:?}");
        }
    }
}

/// Two ends of a connection.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("it listens");
    (near, listener.accept().await.expect("it was called").0)
}

/// The bodies of the requests that reached the far end; `None`: one that broke off.
async fn through_a_pair(sent: &[u8]) -> Vec<Option<Vec<u8>>> {
    let ((mut client, near), (between, far)) = (connected().await, connected().await);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let noted = seen.clone();
    let server = tokio::task::spawn_local(serve(far, move |request: Request<Incoming>| {
        let noted = noted.clone();
        async move {
            let body = request.into_body().collect().await.ok().map(|body| body.to_bytes().to_vec());
            noted.borrow_mut().push(body);
            Ok(Response::new(Body::empty()))
        }
    }));
    let upstream = Rc::new(RefCell::new(Some(Connection::new(plain_stream(between), &Watch::default()))));
    let next = upstream.clone();
    let proxy = serve(near, move |request: Request<Incoming>| {
        let upstream = next.clone();
        async move {
            // What breaks off takes its connection with it, as in the pool.
            let connection = upstream.borrow_mut().take().ok_or(())?;
            let mut request = request.map(|incoming| Upload::new(incoming, Rc::default()).0);
            let response = connection.send(&mut request).await.map_err(drop)?;
            response.into_body().collect().await.map_err(drop)?;
            *upstream.borrow_mut() = Some(connection).filter(Connection::persists);
            Ok(Response::new(Body::empty()))
        }
    });
    let talk = async {
        // The other side may have closed already.
        let _ = client.write_all(sent).await;
        let _ = client.shutdown().await;
        let _ = client.read_to_end(&mut Vec::new()).await;
    };
    tokio::join!(proxy, talk);
    drop(upstream);
    server.await.expect("the far end does not panic");
    seen.take()
}

fn plain_stream(stream: TcpStream) -> Stream {
    Stream::Plain(Prefixed::new(stream))
}

/// HTTP/1.1 on one connection, as a sidecar serves it.
async fn serve<F, R>(stream: TcpStream, respond: F)
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Result<Response<Body>, ()>>,
{
    let stream = Strict::new(Prefixed::new(plain_stream(stream)), patience(), Upgrades::default());
    // How it ends says nothing more than what has arrived.
    let _ = server::serve(stream, &Cell::new(false), respond).await;
}

/// Whatever an upstream says: what is read of it does not depend on how it is cut.
pub fn answer(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    for is_head in [false, true] {
        let whole = read_answer(&[bytes], is_head);
        for at in splits(bytes.len()) {
            let (one, two) = bytes.split_at(at);
            assert_eq!(read_answer(&[one, two], is_head), whole, "split at {at}: {bytes:?}");
        }
    }
    let (mut left, mut octets, mut read) = (Left::chunks(), BytesMut::from(bytes), Vec::new());
    let ended = loop {
        match left.take(&mut octets) {
            Ok(Part::Data(data)) => read.extend_from_slice(&data),
            Ok(Part::Trailers(_) | Part::End) => break true,
            Ok(Part::More) | Err(_) => break false,
        }
    };
    match plain(bytes) {
        // Servers may fill a size up with blanks, and only answers may have that.
        Plain::Broken(_) => assert!(!ended || bytes.contains(&b' ') || bytes.contains(&b'\t'), "{bytes:?}"),
        Plain::Unfinished => assert!(!ended, "a part looks whole: {bytes:?}"),
        Plain::Complete { data, trailers } => assert!(ended && data == read || trailers, "{bytes:?}"),
    }
}

/// The head, the octets of the body, and how it went on.
fn read_answer(pieces: &[&[u8]], is_head: bool) -> (String, Vec<u8>, String) {
    let (mut octets, mut seen, mut head, mut body) = (BytesMut::new(), 0, None, Vec::new());
    let mut told = String::new();
    for piece in pieces {
        octets.extend_from_slice(piece);
        if head.is_none() {
            match upstream_heads::read(&mut octets, seen, Answerer::App, is_head, &mut HeaderMap::new()) {
                Ok(Some(read)) => head = Some(read),
                Ok(None) => seen = octets.len(),
                Err(error) => return (told, body, error.to_string()),
            }
        }
        let Some(head) = &mut head else { continue };
        told = format!("{} {:?} {}", head.parts.status, head.parts.headers, head.persists);
        loop {
            match head.left.take(&mut octets) {
                Ok(Part::Data(data)) => body.extend_from_slice(&data),
                Ok(Part::Trailers(trailers)) => told += &format!("{trailers:?}"),
                Ok(Part::End | Part::More) => break,
                Err(error) => return (told, body, error.to_string()),
            }
        }
    }
    (told, body, "no error".into())
}

const CHUNKED_HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

fn patience() -> Patience {
    let long = Duration::from_secs(3600);
    let first_head = tokio::time::Instant::now() + long;
    Patience { first_head, head: long, idle: long, body: long, stalled: long }
}

fn strict<S: AsyncRead + Unpin>(bytes: S) -> Strict<impl AsyncRead + AsyncWrite + Unpin> {
    Strict::new(tokio::io::join(bytes, tokio::io::sink()), patience(), Upgrades::default())
}

/// What passes, and whether it ended with an error.
fn follow(bytes: impl AsyncRead + Unpin) -> (Vec<u8>, bool) {
    let mut read = Vec::new();
    let ended = now(strict(bytes).read_to_end(&mut read));
    (read, ended.is_err())
}

/// What passes of all the bytes at once.
fn first_read(bytes: &[u8]) -> Vec<u8> {
    let mut read = Vec::with_capacity(2 * LONGEST);
    now(strict(bytes).read_buf(&mut read)).unwrap();
    read
}

enum Plain {
    /// These octets, and whether lines followed the last chunk.
    Complete {
        data: Vec<u8>,
        trailers: bool,
    },
    Unfinished,
    /// At most so many octets are good.
    Broken(usize),
}

/// RFC 9112 section 7.1 a second time: by slices, and of the body alone.
fn plain(bytes: &[u8]) -> Plain {
    let (mut rest, mut data) = (bytes, Vec::new());
    let at = |rest: &[u8]| bytes.len() - rest.len();
    let line = |rest: &[u8]| rest.iter().position(|byte| *byte == b'\n');
    loop {
        let Some(end) = line(rest) else { return Plain::Unfinished };
        let (size, after) = rest.split_at(end + 1);
        let good = size.strip_suffix(b"\r\n").and_then(|size| {
            let text = std::str::from_utf8(size.split(|byte| *byte == b';').next()?).ok()?;
            let plain =
                text.bytes().all(|byte| byte.is_ascii_hexdigit()) && text.len() <= 15 && size.len() <= 256;
            let visible = !size.iter().any(u8::is_ascii_control);
            u64::from_str_radix(text, 16).ok().filter(|_| plain && visible)
        });
        let Some(size) = good else { return Plain::Broken(at(rest) + end) };
        rest = after;
        if size == 0 {
            break;
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let Some((chunk, after)) = rest.split_at_checked(size) else { return Plain::Unfinished };
        data.extend_from_slice(chunk);
        match after {
            [b'\r', b'\n', more @ ..] => rest = more,
            [] | [b'\r'] => return Plain::Unfinished,
            _ => return Plain::Broken(at(after) + 1),
        }
    }
    let mut trailers = false;
    loop {
        let Some(end) = line(rest) else { return Plain::Unfinished };
        let (trailer, after) = rest.split_at(end + 1);
        match trailer {
            b"\r\n" => return Plain::Complete { data, trailers },
            [.., b'\r', b'\n'] => (rest, trailers) = (after, true),
            _ => return Plain::Broken(at(rest) + end),
        }
    }
}
