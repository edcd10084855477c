//! One safe reading of a request, or none: after this room, policy and app see the same bytes.
//!
//! hyper accepts much that two parsers could read differently. Whatever has more
//! than one reading is refused here; RFC 9110, 9112 and 9113 are the judges.

use crate::error::ProxyError;
use http::{
    HeaderMap, HeaderValue, Method, Version,
    header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST},
    request::Parts,
    uri::PathAndQuery,
};
use postern_config::path::{Normalization, normalize};
use std::net::{Ipv6Addr, SocketAddr};

/// The longest path with query, in bytes.
pub const MAX_TARGET: usize = 8 * 1024;
/// The most header lines.
pub const MAX_HEADERS: usize = 100;
/// The most bytes of header names and values together.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

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
pub fn canonical(parts: &mut Parts, mode: Normalization, fallback: SocketAddr) -> Result<Target, ProxyError> {
    if parts.method == Method::CONNECT {
        return Err(ProxyError::MethodNotAllowed("CONNECT"));
    }
    screen(&parts.headers)?;
    let authority = authority(parts, fallback)?;
    let path_and_query = path_and_query(parts, mode)?;
    parts.headers.remove(HOST);
    join_cookies(&mut parts.headers);
    Ok(Target { authority, path_and_query })
}

/// Limits, and values that different parsers read differently.
fn screen(headers: &HeaderMap) -> Result<(), ProxyError> {
    if headers.len() > MAX_HEADERS {
        return Err(ProxyError::HeadersTooLarge("more than 100 header lines"));
    }
    let mut bytes = 0;
    for (name, value) in headers {
        bytes += name.as_str().len() + value.len();
        // RFC 9113 section 8.2.1: HTTP/2 must not carry them, and HTTP/1 would lose them on the way.
        if [value.as_bytes().first(), value.as_bytes().last()]
            .into_iter()
            .flatten()
            .any(|byte| matches!(byte, b' ' | b'\t'))
        {
            return Err(ProxyError::BadRequest("header value with leading or trailing blanks"));
        }
    }
    if bytes > MAX_HEADER_BYTES {
        return Err(ProxyError::HeadersTooLarge("more than 64 KiB of headers"));
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes();
        let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) && digits.len() <= 18;
        if lengths.next().is_some() || !plain || (digits.len() > 1 && digits.first() == Some(&b'0')) {
            return Err(ProxyError::BadRequest("Content-Length is not exactly one plain number"));
        }
    }
    if headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(ProxyError::ExpectationFailed("Expect other than 100-continue"));
    }
    Ok(())
}

/// The one authority: of the target and of `Host`, which must agree (RFC 9112 section 3.2, RFC 9113 section 8.3.1).
fn authority(parts: &Parts, fallback: SocketAddr) -> Result<HeaderValue, ProxyError> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(ProxyError::BadRequest("more than one Host"));
    }
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
        (None, None) if parts.version < Version::HTTP_11 => fallback.to_string(),
        (None, None) => return Err(ProxyError::BadRequest("no Host")),
    };
    HeaderValue::try_from(text).map_err(|_| ProxyError::BadRequest("Host is not valid"))
}

/// Lower case, no trailing dot, optional port. Names, IPv4, and IPv6 in brackets without a zone; no userinfo, no list.
fn canonical_host(raw: &[u8]) -> Result<String, ProxyError> {
    const BAD: ProxyError = ProxyError::BadRequest("Host is not one host with an optional port");
    let text = std::str::from_utf8(raw).map_err(|_| BAD)?;
    if text.is_empty() || text.len() > 255 {
        return Err(BAD);
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(BAD)?;
            let address: Ipv6Addr = address.parse().map_err(|_| BAD)?;
            (format!("[{address}]"), after)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let (name, after) = text.split_at(end);
            let name = name.strip_suffix('.').unwrap_or(name);
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            if name.is_empty() || !name.bytes().all(plain) || name.starts_with('.') || name.contains("..") {
                return Err(BAD);
            }
            (name.to_ascii_lowercase(), after)
        }
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(host),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok() => {
            Ok(format!("{host}:{digits}"))
        }
        _ => Err(BAD),
    }
}

fn path_and_query(parts: &Parts, mode: Normalization) -> Result<PathAndQuery, ProxyError> {
    let raw = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if raw.len() > MAX_TARGET {
        return Err(ProxyError::TargetTooLong(MAX_TARGET));
    }
    let (path, query) = match raw.split_once('?') {
        Some((path, query)) => (path, Some(query)),
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
    if raw.bytes().any(|byte| !(b'!'..=b'~').contains(&byte)) {
        return Err(ProxyError::BadRequest("raw control, blank or 8-bit byte in the target"));
    }
    check_escapes(path)?;
    let path = normalize(path, mode).map_err(|error| ProxyError::BadRequest(error.0))?;
    let whole = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    PathAndQuery::try_from(whole).map_err(|_| ProxyError::BadRequest("path is not valid"))
}

/// Every `%` of a path is followed by two hex digits, and none of them is a NUL.
fn check_escapes(path: &str) -> Result<(), ProxyError> {
    for rest in path.split('%').skip(1) {
        match rest.as_bytes() {
            [b'0', b'0', ..] => return Err(ProxyError::BadRequest("%00 in the path")),
            [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {}
            _ => return Err(ProxyError::BadRequest("% without two hex digits in the path")),
        }
    }
    Ok(())
}

/// One Cookie line, as HTTP/1 wants and policy expects (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let joined: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&joined.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
#[path = "canonical_tests.rs"]
mod tests;
