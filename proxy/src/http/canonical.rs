//! One safe reading of a request, or none: after this room, policy and app see the same bytes.
//!
//! HTTP allows much that two parsers could read differently. Whatever has more
//! than one reading is refused here; RFC 9110, 9112 and 9113 are the judges.

use crate::error::ProxyError;
use http::{
    HeaderMap, HeaderValue, Method, Version,
    header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST},
    request::Parts,
    uri::PathAndQuery,
};
use postern_config::path::{Normalization, normalize};
use std::{
    borrow::Cow,
    net::{Ipv6Addr, SocketAddr},
};

/// The longest path with query, in bytes.
pub const MAX_TARGET: usize = 8 * 1024;
/// The most header lines.
pub const MAX_HEADERS: usize = 100;
/// The most bytes of the method, header names and values together.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// The most lines that a sidecar sends beside those that it has judged. Seven today: a request ID, three of a trace, two of an upgrade
/// (or one of a transfer coding), and a Host for HTTP/1.0.
pub const OWN_HEADERS: usize = 8;
/// The most bytes of their names and values. 600 today, of which 259 are a Host.
pub const OWN_HEADER_BYTES: usize = 1024;

/// How much of a head is admitted, at most. The two sides differ, so that what the caller's sidecar admits is never too much for the app's.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// [`MAX_HEADERS`] and [`MAX_HEADER_BYTES`]: behind us is the app.
    Whole,
    /// Less [`OWN_HEADERS`] and [`OWN_HEADER_BYTES`]: behind us is a sidecar, which gets ours as well.
    WithOurs,
}

/// What a request asks for, in its one reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host in lower case without a trailing dot, with the port when one was given.
    pub authority: HeaderValue,
    /// Normalized path and the query as it came.
    pub path_and_query: PathAndQuery,
}

impl Target {
    /// The authority as text.
    pub fn host(&self) -> &str {
        // Made from checked ASCII in this file.
        self.authority.to_str().unwrap_or_default()
    }
    /// The path without its query.
    pub fn path(&self) -> &str {
        self.path_and_query.path()
    }

    /// Whether a connection that was opened for the server name `sni` may ask for this host (RFC 9110 section 7.4). Between
    /// sidecars the server name is a label of the destination (`outbound_.80_._.host`) and stands for any host there.
    pub fn is_within(&self, sni: &str) -> bool {
        if sni.starts_with("outbound_") {
            return true;
        }
        let name = self.host().split_once(':').map_or(self.host(), |(name, _)| name);
        name.eq_ignore_ascii_case(sni.strip_suffix('.').unwrap_or(sni))
    }
}

/// Judges the head of a request. Afterwards `Host` is gone from the headers: the target has it. `fallback` stands in for the
/// Host that HTTP/1.0 may leave out.
pub fn canonical(
    parts: &mut Parts,
    mode: Normalization,
    size: Size,
    fallback: SocketAddr,
) -> Result<Target, ProxyError> {
    if parts.method == Method::CONNECT {
        return Err(ProxyError::MethodNotAllowed("CONNECT"));
    }
    let cookies = screen(&parts.method, &parts.headers, size)?;
    let authority = authority(parts, fallback)?;
    let path_and_query = path_and_query(parts, mode)?;
    parts.headers.remove(HOST);
    if cookies > 1 {
        join_cookies(&mut parts.headers);
    }
    Ok(Target { authority, path_and_query })
}

/// Limits, and values that different parsers read differently. One look at each line instead of one search for each name; how many of
/// them are cookies is told.
fn screen(method: &Method, headers: &HeaderMap, size: Size) -> Result<usize, ProxyError> {
    let (most_lines, most_bytes) = match size {
        Size::Whole => (MAX_HEADERS, MAX_HEADER_BYTES),
        Size::WithOurs => (MAX_HEADERS - OWN_HEADERS, MAX_HEADER_BYTES - OWN_HEADER_BYTES),
    };
    let too_many = |most| Err(ProxyError::HeadersTooLarge(format!("more than {most} header lines")));
    if headers.len() > MAX_HEADERS {
        return too_many(MAX_HEADERS);
    }
    // A method has no limit of its own, and is in the same head.
    let (mut bytes, mut lengths, mut cookies) = (method.as_str().len(), 0, 0);
    for (name, value) in headers {
        let value = value.as_bytes();
        bytes += name.as_str().len() + value.len();
        // RFC 9113 section 8.2.1: HTTP/2 must not carry them, and HTTP/1 would lose them on the way.
        let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if is_blank(value.first()) || is_blank(value.last()) {
            return Err(ProxyError::BadRequest("header value with leading or trailing blanks"));
        }
        if name == CONTENT_LENGTH {
            lengths += 1;
            let plain = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            if lengths > 1 || !plain || (value.len() > 1 && value.first() == Some(&b'0')) {
                return Err(ProxyError::BadRequest("Content-Length is not exactly one plain number"));
            }
        } else if name == EXPECT && !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(ProxyError::ExpectationFailed("Expect other than 100-continue"));
        }
        cookies += usize::from(name == COOKIE);
    }
    // Cookies travel as one line.
    if headers.len() - cookies.saturating_sub(1) > most_lines {
        return too_many(most_lines);
    }
    if bytes > most_bytes {
        return Err(ProxyError::HeadersTooLarge(format!("more than {} KiB of headers", most_bytes >> 10)));
    }
    Ok(cookies)
}

/// The one authority: of the target and of `Host`, which must agree (RFC 9112 section 3.2, RFC 9113 section 8.3.1).
fn authority(parts: &Parts, fallback: SocketAddr) -> Result<HeaderValue, ProxyError> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(ProxyError::BadRequest("more than one Host"));
    }
    let header = host;
    let host = host.map(|value| canonical_host(value.as_bytes())).transpose()?;
    let target =
        parts.uri.authority().map(|authority| canonical_host(authority.as_str().as_bytes())).transpose()?;
    if target.is_some() {
        match parts.uri.scheme_str() {
            // Only HTTP/1 has another form for it.
            None if parts.version >= Version::HTTP_2 => {}
            None => return Err(ProxyError::BadRequest("target in authority form")),
            Some("http" | "https") => {}
            Some(_) => return Err(ProxyError::BadRequest("target with a foreign scheme")),
        }
    }
    let text = match (target, host) {
        (Some(target), Some(host)) if target != host => {
            return Err(ProxyError::BadRequest("Host and the target's authority differ"));
        }
        // Only HTTP/2 may leave Host out when the target has an authority.
        (Some(_), None) if parts.version == Version::HTTP_11 => {
            return Err(ProxyError::BadRequest("no Host"));
        }
        (Some(text), _) | (None, Some(text)) => text,
        (None, None) if parts.version < Version::HTTP_11 => fallback.to_string().into(),
        (None, None) => return Err(ProxyError::BadRequest("no Host")),
    };
    match (text, header) {
        // What is written as it should be is not written anew.
        (Cow::Borrowed(text), Some(header)) if header == text => Ok(header.clone()),
        (text, _) => HeaderValue::try_from(&*text).map_err(|_| ProxyError::BadRequest("Host is not valid")),
    }
}

/// Lower case, no trailing dot, optional port. Names, IPv4, and IPv6 in brackets without a zone; no userinfo, no list.
fn canonical_host(raw: &[u8]) -> Result<Cow<'_, str>, ProxyError> {
    const BAD: ProxyError = ProxyError::BadRequest("Host is not one host with an optional port");
    let text = std::str::from_utf8(raw).map_err(|_| BAD)?;
    if text.is_empty() || text.len() > 255 {
        return Err(BAD);
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(BAD)?;
            let address: Ipv6Addr = address.parse().map_err(|_| BAD)?;
            (Cow::Owned(format!("[{address}]")), after)
        }
        None => {
            let (name, after) = text.split_at(memchr::memchr(b':', raw).unwrap_or(text.len()));
            let name = name.strip_suffix('.').unwrap_or(name);
            (canonical_name(name).ok_or(BAD)?, after)
        }
    };
    let digits = match port.strip_prefix(':') {
        None if port.is_empty() => "",
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok() => {
            port
        }
        _ => return Err(BAD),
    };
    match host {
        // A dot was cut off between the two when they do not make up the whole.
        Cow::Borrowed(name) if name.len() + digits.len() == text.len() => Ok(Cow::Borrowed(text)),
        host => Ok(Cow::Owned(format!("{host}{digits}"))),
    }
}

/// Letters, digits, `-`, `_`, and labels between single dots, in lower case.
fn canonical_name(name: &str) -> Option<Cow<'_, str>> {
    let (mut before, mut has_capitals) = (b'.', false);
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'A'..=b'Z' => has_capitals = true,
            b'.' if before != b'.' => {}
            _ => return None,
        }
        before = byte;
    }
    match (name, has_capitals) {
        ("", _) => None,
        (name, true) => Some(Cow::Owned(name.to_ascii_lowercase())),
        (name, false) => Some(Cow::Borrowed(name)),
    }
}

fn path_and_query(parts: &Parts, mode: Normalization) -> Result<PathAndQuery, ProxyError> {
    let asked = parts.uri.path_and_query();
    let raw = asked.map_or("/", PathAndQuery::as_str);
    if raw.len() > MAX_TARGET {
        return Err(ProxyError::TargetTooLong(MAX_TARGET));
    }
    let (path, query) = match memchr::memchr(b'?', raw.as_bytes()) {
        Some(at) => (raw.get(..at).unwrap_or_default(), raw.get(at + 1..)),
        None => (raw, None),
    };
    if path == "*" {
        return if parts.method == Method::OPTIONS && query.is_none() {
            Ok(PathAndQuery::from_static("*"))
        } else {
            Err(ProxyError::BadRequest("target * with a method other than OPTIONS"))
        };
    }
    let path = match path {
        "" if parts.uri.scheme().is_some() => "/",
        path if path.starts_with('/') => path,
        _ => return Err(ProxyError::BadRequest("path does not begin with /")),
    };
    if !raw.bytes().fold(true, |all, byte| all & (b'!'..=b'~').contains(&byte)) {
        return Err(ProxyError::BadRequest("raw control, blank or 8-bit byte in the target"));
    }
    check_escapes(path)?;
    let normal = normalize(path, mode).map_err(|error| ProxyError::BadRequest(error.0))?;
    // What is written as it should be is not written anew.
    if let Some(asked) = asked
        && normal.len() == path.len()
        && raw.starts_with(&*normal)
    {
        return Ok(asked.clone());
    }
    let whole = match query {
        Some(query) => format!("{normal}?{query}"),
        None => normal.into_owned(),
    };
    PathAndQuery::try_from(whole).map_err(|_| ProxyError::BadRequest("path is not valid"))
}

/// Every `%` of a path is followed by two hex digits, and none of them is a NUL.
fn check_escapes(path: &str) -> Result<(), ProxyError> {
    let path = path.as_bytes();
    for at in memchr::memchr_iter(b'%', path) {
        match path.get(at + 1..).unwrap_or_default() {
            [b'0', b'0', ..] => return Err(ProxyError::BadRequest("%00 in the path")),
            [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {}
            _ => return Err(ProxyError::BadRequest("% without two hex digits in the path")),
        }
    }
    Ok(())
}

/// One Cookie line, as HTTP/1 wants and policy expects (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let joined: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&joined.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
#[path = "canonical_tests.rs"]
mod tests;
