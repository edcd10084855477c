//! What a client asks and what it is answered: the head of a request as it is read, that of an answer as it is written.

use super::{
    body::{Coding, Left, announced},
    lines,
};
use crate::{
    error::ProxyError,
    http::canonical::{MAX_HEADERS, MAX_TARGET},
};
use bytes::BytesMut;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, DATE, EXPECT, TE, TRAILER, TRANSFER_ENCODING},
    request, response,
};
use hyper::{body::Body, ext::ReasonPhrase};
use std::{
    cell::{Cell, RefCell},
    mem::MaybeUninit,
    time::{SystemTime, UNIX_EPOCH},
};

/// The longest target that is read at all, in octets; what is too long for the canonical reading is for that to refuse.
const MOST_TARGET: usize = 64 * 1024 - 2;
const MALFORMED: ProxyError = ProxyError::BadRequest("not a well-formed HTTP/1.1 request");

thread_local! {
    // The lines of the last answer's head make room for those of the next request.
    static ROOM: Cell<Option<HeaderMap>> = const { Cell::new(None) };
    // The last second in which an answer was written, as such a line.
    static NOW: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// The head of a request.
#[derive(Debug)]
pub struct Head {
    /// The request without its body.
    pub parts: request::Parts,
    /// What frames the body.
    pub left: Left,
    /// What matters for the answer.
    pub asked: Asked,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects: bool,
}

/// What of a request matters for how its answer is written.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// HTTP/1.0: no chunks, and the connection ends unless the client asked for more.
    pub is_http_1_0: bool,
    /// The answer has no body.
    pub is_head: bool,
    /// The client reads trailers.
    pub takes_trailers: bool,
    /// The client means to send another request.
    pub persists: bool,
}

/// Takes the head at the beginning of `octets`; `None` while it is not complete, of which `seen` octets are no news. Its framing was
/// judged before ([`Strict`](crate::http::framing::Strict)).
///
/// # Errors
/// [`ProxyError::BadRequest`], [`ProxyError::TargetTooLong`], [`ProxyError::HeadersTooLarge`].
pub fn read(octets: &mut BytesMut, seen: usize) -> Result<Option<Head>, ProxyError> {
    let Some(end) = lines::end(octets, seen) else { return Ok(None) };
    let octets = octets.split_to(end).freeze();
    let mut room_for_lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(&octets, &mut room_for_lines) {
        Ok(httparse::Status::Complete(length)) if length == end => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(ProxyError::HeadersTooLarge("more than 100 header lines".into()));
        }
        _ => return Err(MALFORMED),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(MALFORMED);
    };
    if target.len() > MOST_TARGET {
        return Err(ProxyError::TargetTooLong(MAX_TARGET));
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| MALFORMED)?;
    let target = octets.slice_ref(target.as_bytes());
    parts.uri = Uri::from_maybe_shared(target).map_err(|_| MALFORMED)?;
    parts.version = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut told = Told { persists: version == 1, ..Told::default() };
    let mut headers = ROOM.take().unwrap_or_default();
    lines::take(&octets, request.headers, &mut headers, |name, value| {
        told.note(name, value);
        Ok(())
    })
    .map_err(|_| MALFORMED)?;
    parts.headers = headers;
    let left = match told.length {
        _ if told.is_chunked => Left::chunks(),
        0 => Left::Nothing,
        length => Left::Length(length),
    };
    let asked = Asked {
        is_http_1_0: version == 0,
        is_head: parts.method == Method::HEAD,
        takes_trailers: told.takes_trailers,
        persists: told.persists,
    };
    Ok(Some(Head { parts, left, asked, expects: told.expects }))
}

/// What the lines of a head say of its body and its connection.
#[derive(Default)]
struct Told {
    length: u64,
    is_chunked: bool,
    expects: bool,
    takes_trailers: bool,
    persists: bool,
    closes: bool,
}

impl Told {
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) {
        if *name == CONTENT_LENGTH {
            self.length = value.to_str().ok().and_then(|value| value.trim().parse().ok()).unwrap_or(u64::MAX);
        } else if *name == TRANSFER_ENCODING {
            self.is_chunked = true;
        } else if *name == CONNECTION {
            self.closes |= lines::says(value, b"close");
            self.persists = !self.closes && (self.persists || lines::says(value, b"keep-alive"));
        } else if *name == EXPECT {
            self.expects = value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        } else if *name == TE {
            self.takes_trailers |= lines::says(value, b"trailers");
        }
    }
}

/// How an answer goes on behind its head.
#[derive(Debug)]
pub struct Written {
    /// What frames the body; `None`: there is none.
    pub coding: Option<Coding>,
    /// Whether another request may follow.
    pub persists: bool,
}

/// Writes the head of an answer with this body to `out`. Framing is said here and nowhere else: a length or a coding among its headers is
/// not passed on, but the length that an answer to HEAD or a 304 tells of a body which it does not have (RFC 9110 section 8.6).
pub fn write(parts: response::Parts, body: &impl Body, asked: Asked, out: &mut Vec<u8>) -> Written {
    let status = parts.status;
    out.extend_from_slice(if asked.is_http_1_0 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    let phrase = parts.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
    out.extend_from_slice(phrase.unwrap_or_else(|| status.canonical_reason().unwrap_or("-").as_bytes()));
    out.extend_from_slice(b"\r\n");
    let has_none = asked.is_head || status == StatusCode::NOT_MODIFIED;
    let is_bare = status.is_informational() || status == StatusCode::NO_CONTENT;
    let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
    let can_chunk = !asked.is_http_1_0 && !has_none && !is_bare && length.is_none();
    let (mut persists, mut is_told, mut is_dated) = (asked.persists, false, false);
    for (name, value) in &parts.headers {
        let is_framing = *name == TRANSFER_ENCODING || (*name == CONTENT_LENGTH && !has_none);
        if is_framing || (*name == TRAILER && !can_chunk) {
            continue;
        } else if *name == CONTENT_LENGTH {
            is_told = true;
        } else if *name == CONNECTION {
            persists &= !lines::says(value, b"close");
            continue;
        } else if *name == DATE {
            is_dated = true;
        }
        lines::write(name, value, out);
    }
    let coding = match length {
        _ if is_bare => None,
        Some(length) if has_none => {
            if !is_told && length > 0 {
                lines::write_length(length, out);
            }
            None
        }
        None if has_none => None,
        Some(length) => {
            lines::write_length(length, out);
            (length > 0).then_some(Coding::Length(length))
        }
        None if can_chunk => {
            lines::write_chunked(out);
            let allowed = if asked.takes_trailers { announced(&parts.headers) } else { Vec::new() };
            Some(Coding::Chunked(allowed))
        }
        None => {
            persists = false;
            Some(Coding::UntilClose)
        }
    };
    if status == StatusCode::SWITCHING_PROTOCOLS {
        persists = false;
        out.extend_from_slice(b"connection: upgrade\r\n");
    } else if !persists {
        out.extend_from_slice(b"connection: close\r\n");
    } else if asked.is_http_1_0 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if !is_dated {
        write_date(out);
    }
    out.extend_from_slice(b"\r\n");
    ROOM.set(Some(parts.headers));
    Written { coding, persists }
}

/// The answer to what is no request.
pub fn refuse(status: StatusCode, out: &mut Vec<u8>) {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status;
    let asked = Asked { is_http_1_0: false, is_head: false, takes_trailers: false, persists: false };
    write(parts, &http_body_util::Empty::<bytes::Bytes>::new(), asked, out);
}

fn write_date(out: &mut Vec<u8>) {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    NOW.with_borrow_mut(|(known, line)| {
        if *known != second {
            (*known, *line) = (second, format!("date: {}\r\n", httpdate::fmt_http_date(now)));
        }
        out.extend_from_slice(line.as_bytes());
    });
}
