//! What is this connection? Reads until that is decided, and gives every byte back.
//!
//! A decision never rests on a single read: a ClientHello with a post-quantum key share is larger than a segment, and a
//! client may send one byte at a time. The caller puts a deadline around these functions.

use super::Prefixed;
use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use std::{io, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The largest ClientHello we read: TLS allows 2^16 bytes of it, more is an attack.
const MAX_HELLO: usize = 66 * 1024;
/// The longest request line we wait for before we decide without its end.
const MAX_LINE: usize = 16 * 1024;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes say about transport security.
#[derive(Debug, PartialEq, Eq)]
pub enum Transport {
    /// A complete, well-formed ClientHello.
    Tls(Hello),
    /// Begins like TLS, but is not a ClientHello that anyone could answer.
    BrokenTls,
    /// Anything else.
    Raw,
    /// Nothing within the patience for server-first protocols.
    Silent,
    /// Closed before a decision (`true`: without a single byte).
    Closed(bool),
}

/// What a ClientHello offers in clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Server name, lower case.
    pub sni: Option<String>,
    /// Offered protocols, in order.
    pub alpn: Vec<Vec<u8>>,
}

impl Hello {
    fn offers(&self, any_of: &[&[u8]]) -> bool {
        self.alpn.iter().any(|offered| any_of.contains(&offered.as_slice()))
    }
    /// `istio-http/1.0`, `istio-http/1.1` or `istio-h2`: a sidecar that carries HTTP (reference 1.5, mtlsHTTP).
    pub fn is_mesh_http(&self) -> bool {
        self.offers(&[b"istio-http/1.0", b"istio-http/1.1", b"istio-h2"])
    }
    /// `istio-peer-exchange`: a sidecar that carries TCP.
    pub fn is_mesh_tcp(&self) -> bool {
        self.offers(&[b"istio-peer-exchange"]) && !self.is_mesh_http()
    }
    /// Any protocol that only sidecars offer (reference 1.5, allIstio).
    pub fn is_mesh(&self) -> bool {
        self.is_mesh_http() || self.offers(&[b"istio-peer-exchange", b"istio"])
    }
}

/// What the first application bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    /// A request line of HTTP/1.x.
    Http1,
    /// The connection preface of HTTP/2.
    Http2,
    /// Anything else.
    Other,
    /// Nothing within the patience for server-first protocols.
    Silent,
    /// Closed without a single byte.
    Closed,
}

/// Tells TLS from anything else. With `silence`, gives up waiting for the first byte after that time.
pub async fn transport<S: AsyncRead + Unpin>(
    stream: S,
    silence: Option<Duration>,
) -> io::Result<(Transport, Prefixed<S>)> {
    let mut reading = Reading::new(stream);
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        match reading.more(silence).await? {
            More::Silent => return Ok((Transport::Silent, reading.give_back())),
            More::End => {
                let empty = reading.read.is_empty();
                return Ok((Transport::Closed(empty), reading.give_back()));
            }
            More::Bytes => {}
        }
        // Record type 22 (handshake), version major 3, message type 1 (ClientHello): RFC 8446 sections 4 and 5.1.
        let looks_like_tls = reading
            .read
            .iter()
            .zip([Some(22), Some(3), None, None, None, Some(1)])
            .all(|(byte, wanted)| wanted.is_none_or(|wanted: u8| wanted == *byte));
        if !looks_like_tls {
            return Ok((Transport::Raw, reading.give_back()));
        }
        // All that was just looked at: what this is must not depend on how it was cut.
        if reading.read.len() < 6 {
            continue;
        }
        while fed < reading.read.len() {
            let mut rest = reading.read.get(fed..).unwrap_or_default();
            match acceptor.read_tls(&mut rest) {
                Ok(0) | Err(_) => return Ok((Transport::BrokenTls, reading.give_back())),
                Ok(count) => fed += count,
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let sni = hello.server_name().map(str::to_ascii_lowercase);
                    let alpn =
                        hello.alpn().map(|list| list.map(<[u8]>::to_vec).collect()).unwrap_or_default();
                    return Ok((Transport::Tls(Hello { sni, alpn }), reading.give_back()));
                }
                Err(_) => return Ok((Transport::BrokenTls, reading.give_back())),
            }
        }
        if reading.read.len() > MAX_HELLO {
            return Ok((Transport::BrokenTls, reading.give_back()));
        }
    }
}

/// Tells HTTP/1, HTTP/2 and anything else apart. With `silence`, gives up waiting for the first byte after that time.
pub async fn application<S: AsyncRead + Unpin>(
    stream: S,
    silence: Option<Duration>,
) -> io::Result<(Application, Prefixed<S>)> {
    let mut reading = Reading::new(stream);
    loop {
        match reading.more(silence).await? {
            More::Silent => return Ok((Application::Silent, reading.give_back())),
            More::End if reading.read.is_empty() => return Ok((Application::Closed, reading.give_back())),
            More::End => return Ok((Application::Other, reading.give_back())),
            More::Bytes => {}
        }
        if let Some(decided) = judge(&reading.read) {
            return Ok((decided, reading.give_back()));
        }
    }
}

/// Only the version of HTTP, for ports that are declared HTTP: HTTP/2 or else HTTP/1, whatever the bytes are.
pub async fn http_version<S: AsyncRead + Unpin>(stream: S) -> io::Result<(Application, Prefixed<S>)> {
    let mut reading = Reading::new(stream);
    loop {
        match reading.more(None).await? {
            More::End if reading.read.is_empty() => return Ok((Application::Closed, reading.give_back())),
            More::Silent | More::End => return Ok((Application::Http1, reading.give_back())),
            More::Bytes => {}
        }
        let read = reading.read.as_ref();
        if read.starts_with(H2_PREFACE) {
            return Ok((Application::Http2, reading.give_back()));
        }
        if !H2_PREFACE.starts_with(read) {
            return Ok((Application::Http1, reading.give_back()));
        }
    }
}

/// `None`: more bytes are needed.
fn judge(read: &[u8]) -> Option<Application> {
    if read.starts_with(H2_PREFACE) {
        return Some(Application::Http2);
    }
    if H2_PREFACE.starts_with(read) {
        return None;
    }
    // One empty line before the request line is tolerated (RFC 9112 section 2.2).
    let read =
        if b"\r\n".starts_with(read) { return None } else { read.strip_prefix(b"\r\n").unwrap_or(read) };
    let method = read.iter().take_while(|byte| is_token(**byte)).count();
    if method > 32 {
        return Some(Application::Other);
    }
    match read.get(method) {
        None => return None,
        Some(b' ') if method > 0 => {}
        Some(_) => return Some(Application::Other),
    }
    match read.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let line = read.get(..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
            Some(if version.starts_with(b"HTTP/1.") { Application::Http1 } else { Application::Other })
        }
        None if read.len() > MAX_LINE => Some(if known_method(read.get(..method).unwrap_or_default()) {
            Application::Http1
        } else {
            Application::Other
        }),
        None => None,
    }
}

fn known_method(method: &[u8]) -> bool {
    matches!(
        method,
        b"GET" | b"HEAD" | b"POST" | b"PUT" | b"DELETE" | b"OPTIONS" | b"TRACE" | b"PATCH" | b"CONNECT"
    )
}

/// `tchar` of RFC 9110 section 5.6.2.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// One growing buffer over a stream.
struct Reading<S> {
    stream: S,
    read: BytesMut,
}

enum More {
    Bytes,
    End,
    Silent,
}

impl<S: AsyncRead + Unpin> Reading<S> {
    fn new(stream: S) -> Self {
        Self { stream, read: BytesMut::new() }
    }

    async fn more(&mut self, silence: Option<Duration>) -> io::Result<More> {
        if self.read.is_empty() {
            self.read.reserve(2048);
        }
        let reading = self.stream.read_buf(&mut self.read);
        let count = match silence {
            // Only the first byte may be missing for a server-first protocol.
            Some(patience) => match tokio::time::timeout(patience, reading).await {
                Ok(count) => count?,
                Err(_) if self.read.is_empty() => return Ok(More::Silent),
                Err(_) => self.stream.read_buf(&mut self.read).await?,
            },
            None => reading.await?,
        };
        Ok(if count == 0 { More::End } else { More::Bytes })
    }

    fn give_back(self) -> Prefixed<S> {
        Prefixed::with(Bytes::from(self.read), self.stream)
    }
}

#[cfg(test)]
#[path = "sniff_tests.rs"]
mod tests;
