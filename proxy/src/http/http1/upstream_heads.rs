//! What is sent to an upstream and what it answers: the head of a request as it is written, that of an answer as it is read.

use super::{
    Lost,
    body::{Coding, Left, announced},
    lines,
};
use crate::http::{
    body::Upload,
    canonical::{MAX_HEADERS, OWN_HEADERS},
};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
    response::Parts,
};
use hyper::{body::Body as _, ext::ReasonPhrase};
use std::mem::MaybeUninit;

/// Writes the head of `request` to `out`. Framing is said here and nowhere else, by what `request`'s body is: a length or a coding
/// among its headers is not passed on. `None`: there is no body.
pub fn write(request: &Request<Upload>, out: &mut Vec<u8>) -> Option<Coding> {
    let body = request.body();
    let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let mut had_length = false;
    for (name, value) in request.headers() {
        if *name == CONTENT_LENGTH {
            had_length = true;
        } else if *name != TRANSFER_ENCODING {
            lines::write(name, value, out);
        }
    }
    match length {
        None => lines::write_chunked(out),
        // Who sends nothing need not say so.
        Some(0) if !had_length => {}
        Some(length) => lines::write_length(length, out),
    }
    out.extend_from_slice(b"\r\n");
    match length {
        Some(0) => None,
        Some(length) => Some(Coding::Length(length)),
        None => Some(Coding::Chunked(announced(request.headers()))),
    }
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    /// The answer without its body.
    pub parts: Parts,
    /// What frames the body.
    pub left: Left,
    /// Whether the connection may carry another request after this answer.
    pub persists: bool,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// An app, which has [`MAX_HEADERS`] lines.
    App,
    /// A sidecar, which has those of its app and [`OWN_HEADERS`] of its own, so that what it admits is never too much for us.
    Sidecar,
}

/// Takes the head at the beginning of `octets`; `None` while it is not complete, of which `seen` octets are no news. Its lines go into
/// `room`, in place of what is there.
///
/// # Errors
/// [`Lost::Malformed`], for what is no head, has more lines than `answerer` may say, or frames its body in a way that two readers could
/// understand differently (RFC 9112 section 6.3).
pub fn read(
    octets: &mut BytesMut,
    seen: usize,
    answerer: Answerer,
    is_head: bool,
    room: &mut HeaderMap,
) -> Result<Option<Head>, Lost> {
    let Some(end) = lines::end(octets, seen) else { return Ok(None) };
    let octets = octets.split_to(end).freeze();
    let mut places = [const { MaybeUninit::uninit() }; MAX_HEADERS + OWN_HEADERS];
    let most = if answerer == Answerer::App { MAX_HEADERS } else { places.len() };
    let places = places.get_mut(..most).unwrap_or_default();
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut response, &octets, places) {
        Ok(httparse::Status::Complete(length)) if length == end => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Lost::Malformed("a head of too many lines")),
        _ => return Err(Lost::Malformed("no head of HTTP/1.1")),
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Lost::Malformed("a status that is none"))?;
    let version = if response.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut headers = std::mem::take(room);
    let mut framing = Framing::new(version);
    lines::take(&octets, response.headers, &mut headers, |name, value| framing.note(name, value))?;
    let left = framing.of(status, is_head);
    let persists = framing.persists && !matches!(left, Left::UntilClose);
    let (mut parts, ()) = http::Response::new(()).into_parts();
    let phrase = response.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    if let Some(phrase) =
        phrase.and_then(|phrase| ReasonPhrase::try_from(Bytes::copy_from_slice(phrase.as_bytes())).ok())
    {
        parts.extensions.insert(phrase);
    }
    (parts.status, parts.version, parts.headers) = (status, version, headers);
    Ok(Some(Head { parts, left, persists }))
}

/// What the lines of a head say of its body and its connection.
struct Framing {
    version: Version,
    length: Option<u64>,
    codings: u32,
    persists: bool,
    closes: bool,
}

impl Framing {
    fn new(version: Version) -> Self {
        let persists = version == Version::HTTP_11;
        Self { version, length: None, codings: 0, persists, closes: false }
    }

    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), Lost> {
        if *name == CONTENT_LENGTH {
            let length = digits(value.as_bytes()).ok_or(Lost::Malformed("a length that is no number"))?;
            if self.length.is_some_and(|known| known != length) {
                return Err(Lost::Malformed("two lengths"));
            }
            self.length = Some(length);
        } else if *name == TRANSFER_ENCODING {
            self.codings += 1;
            if self.version == Version::HTTP_10 {
                return Err(Lost::Malformed("a transfer coding in HTTP/1.0"));
            }
            // What it is, nobody downstream could know.
            if self.codings > 1 || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(Lost::Malformed("a transfer coding other than chunked"));
            }
        } else if *name == CONNECTION {
            self.closes |= lines::says(value, b"close");
            self.persists = !self.closes && (self.persists || lines::says(value, b"keep-alive"));
        }
        Ok(())
    }

    fn of(&self, status: StatusCode, is_head: bool) -> Left {
        match status.as_u16() {
            100..=199 | 204 | 304 => Left::Nothing,
            _ if is_head => Left::Nothing,
            _ if self.codings > 0 => Left::chunks(),
            _ => self.length.map_or(Left::UntilClose, |length| match length {
                0 => Left::Nothing,
                length => Left::Length(length),
            }),
        }
    }
}

fn digits(value: &[u8]) -> Option<u64> {
    let is_number = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}
