//! Which headers may pass: hop-by-hop ones never, ours only from us, in any spelling.

use crate::{
    error::ProxyError,
    telemetry::trace_context::{REQUEST_ID, hex},
};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE},
};
use postern_config::documents::Upgrades;
use postern_identity::{Peer, SpiffeId};
use std::net::IpAddr;

/// `x-forwarded-client-cert`, as Envoy writes it (reference 4.5).
pub static CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Hop-by-hop (RFC 9110 section 7.6.1), and what only makes sense between two neighbours.
static HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Names whose meaning policy, framing or identity rest on. `Connection` cannot remove them, and a name that becomes one of
/// them when `_` is read as `-` (as CGI and its heirs do) does not pass.
const CONTROLLED: [&str; 20] = [
    "host",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
];

/// What a request wants beyond an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Just an answer.
    Answer,
    /// To leave HTTP/1.1 for this one protocol. Boxed, since hardly any request has one.
    Upgrade(Box<HeaderValue>),
}

impl Wish {
    /// The wish as far as it is allowed, in the spelling that is allowed. Another one is as good as none: the request is answered in
    /// HTTP/1.1 (RFC 9110 section 7.8).
    #[must_use]
    pub fn within(self, upgrades: &Upgrades) -> Self {
        match self {
            Self::Answer => Self::Answer,
            Self::Upgrade(asked) => match upgrades.find(asked.as_bytes()) {
                Some(protocol) => Self::Upgrade(Box::new(protocol.clone())),
                None => Self::Answer,
            },
        }
    }

    /// Why a tunnel that was begun for it must end, where it is not allowed any more.
    ///
    /// # Errors
    /// [`ProxyError::UpgradeWithdrawn`].
    pub fn still_within(&self, upgrades: &Upgrades) -> Result<(), ProxyError> {
        match self {
            Self::Upgrade(protocol) if upgrades.find(protocol.as_bytes()).is_none() => {
                Err(ProxyError::UpgradeWithdrawn(String::from_utf8_lossy(protocol.as_bytes()).into_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Whether the answer may be a tunnel.
    pub fn is_upgrade(&self) -> bool {
        *self != Self::Answer
    }
}

/// What of the connection's and of ours is among some headers: one look at each name instead of one search for each.
#[derive(Default)]
struct Found {
    connection: bool,
    te: bool,
    length: bool,
    coded: bool,
    upgrade: bool,
    // What does not travel, what only we may say, and what could be taken for a controlled name. Most messages have none.
    foreign: Vec<HeaderName>,
}

impl Found {
    fn among(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            found.connection |= name == CONNECTION;
            found.te |= name == TE;
            found.length |= name == CONTENT_LENGTH;
            found.coded |= name == TRANSFER_ENCODING;
            found.upgrade |= name == UPGRADE;
            if HOP_BY_HOP.contains(name) || is_forged(name.as_str()) {
                found.foreign.push(name.clone());
            }
        }
        found
    }

    fn drop_from(self, headers: &mut HeaderMap) {
        if self.connection {
            drop_named_in_connection(headers);
        }
        for name in self.foreign {
            headers.remove(name);
        }
    }
}

/// Cleans the headers of a request before anyone judges them: hop-by-hop headers, identity headers from outside and aliases
/// of controlled names are gone. Returns what the client wished, allowed or not.
pub fn clean_request(headers: &mut HeaderMap) -> Wish {
    let found = Found::among(headers);
    let wish = if found.connection && found.upgrade { wish(headers) } else { Wish::Answer };
    if found.te {
        let trailers =
            headers.get_all(TE).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    found.drop_from(headers);
    wish
}

/// Cleans the headers of an answer. `tunnel`: it is the 101 that was asked for.
pub fn clean_response(headers: &mut HeaderMap, tunnel: bool) {
    let found = Found::among(headers);
    // A length beside chunked framing is the seed of smuggling; the framing that was read is the chunked one.
    if found.coded {
        headers.remove(CONTENT_LENGTH);
    } else if found.length
        && headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some()
        && let Some(first) = headers.get(CONTENT_LENGTH).cloned()
    {
        // They are equal, or they were refused.
        headers.insert(CONTENT_LENGTH, first);
    }
    let upgrade = if tunnel { headers.get(UPGRADE).cloned() } else { None };
    found.drop_from(headers);
    if let Some(upgrade) = upgrade {
        ask_upgrade(headers, upgrade);
    }
}

/// Sets `Connection: Upgrade` and `Upgrade`.
pub fn ask_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

fn wish(headers: &HeaderMap) -> Wish {
    let asked = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let mut protocols = tokens(headers, &UPGRADE);
    match (protocols.next(), protocols.next()) {
        (Some(protocol), None) if asked => HeaderValue::from_bytes(protocol)
            .map_or(Wish::Answer, |protocol| Wish::Upgrade(Box::new(protocol))),
        _ => Wish::Answer,
    }
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

fn drop_named_in_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !CONTROLLED.contains(&name.as_str()))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn is_forged(name: &str) -> bool {
    if name.contains('_') {
        let alias = name.replace('_', "-");
        return CONTROLLED.contains(&alias.as_str()) || alias.starts_with("x-postern-");
    }
    name == CLIENT_CERT.as_str() || name.starts_with("x-postern-")
}

/// What the app is told of who called ([`CLIENT_CERT`]). Both IDs are canonical SPIFFE IDs, which contain none of `,;="`.
pub fn client_cert(own: &SpiffeId, peer: &Peer) -> Option<HeaderValue> {
    let mut text = format!("By={own};Hash=").into_bytes();
    hex(peer.sha256(), &mut text);
    text.extend_from_slice(format!(";Subject=\"\";URI={}", peer.id()).as_bytes());
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
}

/// Sets a random `x-request-id` (UUID version 4) when there is none, and says which.
pub fn ensure_request_id(headers: &mut HeaderMap) -> Option<HeaderValue> {
    if headers.contains_key(&REQUEST_ID) {
        return None;
    }
    let random = (rand::random::<u128>() & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let mut text = Vec::with_capacity(36);
    let [a, b, c, d, e, f, g, h, i, j, node @ ..] = random.to_be_bytes();
    for group in [&[a, b, c, d][..], &[e, f], &[g, h], &[i, j], &node] {
        if !text.is_empty() {
            text.push(b'-');
        }
        hex(group, &mut text);
    }
    let made = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()?;
    headers.insert(&REQUEST_ID, made.clone());
    Some(made)
}

/// The address that policy calls `remoteIp`: the last entry of X-Forwarded-For when it is an address, else the socket's.
pub fn remote_ip(headers: &HeaderMap, socket: IpAddr) -> IpAddr {
    let Some(last) = headers.get_all(&FORWARDED_FOR).iter().next_back() else { return socket };
    let last = last.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
    std::str::from_utf8(last)
        .ok()
        .and_then(|text| text.parse::<IpAddr>().ok())
        .map_or(socket, |ip| ip.to_canonical())
}

/// What a trailer must never be, beside the controlled names (RFC 9110 section 6.5.1): it would change how a message is routed,
/// who sent it, whether it may be kept, or how its content is read, after all that was decided.
const NO_TRAILERS: [&str; 28] = [
    "age",
    "authentication-info",
    "cache-control",
    "date",
    "expires",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "retry-after",
    "set-cookie",
    "strict-transport-security",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-http-method-override",
];

/// Trailers that may pass: never framing, routing, credentials, content or identity (RFC 9110 section 6.5.1).
pub fn clean_trailers(trailers: &mut HeaderMap) {
    let refused: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            CONTROLLED.contains(&name)
                || NO_TRAILERS.contains(&name)
                || name.starts_with("content-")
                || is_forged(name)
        })
        .cloned()
        .collect();
    for name in refused {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    fn check(lines: &[(&str, &str)], left: &[&str]) {
        let mut headers = map(lines);
        clean_request(&mut headers);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, left, "{lines:?}");
    }

    #[test]
    fn identity_headers_from_outside_never_pass_in_any_spelling() {
        for name in [
            "X-Forwarded-Client-Cert",
            "x-forwarded-client-cert",
            "X_Forwarded_Client_Cert",
            "x-forwarded_client-cert",
            "x-postern-peer",
            "X_Postern_Peer",
            "x-postern-",
        ] {
            check(&[(name, "By=evil"), ("x-mine", "1")], &["x-mine"]);
        }
        check(&[("connection", "x-forwarded-client-cert"), ("x-forwarded-client-cert", "a")], &[]);
        check(&[("connection", "x_forwarded_client_cert"), ("x_forwarded_client_cert", "a")], &[]);
    }

    #[test]
    fn aliases_of_controlled_names_are_dropped_and_other_underscores_pass() {
        check(
            &[
                ("content_length", "5"),
                ("transfer_encoding", "chunked"),
                ("x_request_id", "a"),
                ("x_role", "b"),
            ],
            &["x_role"],
        );
    }

    #[test]
    fn hop_by_hop_headers_do_not_travel() {
        check(
            &[
                ("connection", "close, x-temp, authorization, host, content-length"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("http2-settings", "AAMAAABk"),
                ("upgrade", "h2c"),
                ("te", "gzip"),
                ("x-temp", "1"),
                ("authorization", "kept"),
                ("content-length", "0"),
            ],
            &["authorization", "content-length"],
        );
        check(&[("te", "trailers"), ("trailer", "x")], &["te", "trailer"]);
    }

    #[test]
    fn only_a_single_upgrade_that_is_allowed_is_a_wish() {
        let wish = |list, connection, upgrade| {
            let mut headers =
                map(&[("connection", connection), ("upgrade", upgrade), ("http2-settings", "AAMAAABk")]);
            let wish = clean_request(&mut headers).within(&Upgrades::parse(list).unwrap());
            assert!(headers.is_empty(), "{headers:?}");
            wish
        };
        let to = |protocol| Wish::Upgrade(Box::new(HeaderValue::from_static(protocol)));
        for list in ["", "tcp, SPDY/3.1"] {
            assert_eq!(wish(list, "Upgrade", "WebSocket"), to("websocket"));
            assert_eq!(wish(list, "keep-alive, upgrade", "websocket"), to("websocket"));
            assert_eq!(wish(list, "keep-alive", "websocket"), Wish::Answer);
            assert_eq!(wish(list, "upgrade", "h2c"), Wish::Answer);
            assert_eq!(wish(list, "upgrade", "websocket, h2c"), Wish::Answer);
            assert_eq!(wish(list, "upgrade", "tcp, h2c"), Wish::Answer);
            assert_eq!(wish(list, "upgrade", "spdy"), Wish::Answer);
        }
        assert_eq!(wish("", "upgrade", "tcp"), Wish::Answer);
        assert_eq!(wish("tcp, SPDY/3.1", "upgrade", "TCP"), to("tcp"));
        assert_eq!(wish("tcp, SPDY/3.1", "upgrade", "spdy/3.1"), to("SPDY/3.1"));
        assert_eq!(wish("tcp, SPDY/3.1", "close", "tcp"), Wish::Answer);
    }

    #[test]
    fn an_answer_never_has_a_length_beside_chunked_framing() {
        let mut headers =
            map(&[("content-length", "5"), ("transfer-encoding", "chunked"), ("x-postern-id", "forged")]);
        clean_response(&mut headers, false);
        assert!(headers.is_empty());
        let mut headers = map(&[("content-length", "5"), ("content-length", "5")]);
        clean_response(&mut headers, false);
        assert_eq!(headers.get_all(CONTENT_LENGTH).iter().count(), 1);
    }

    #[test]
    fn a_request_id_is_made_once_and_kept() {
        let mut headers = HeaderMap::new();
        ensure_request_id(&mut headers);
        let made = headers[&REQUEST_ID].to_str().unwrap().to_owned();
        assert_eq!(made.len(), 36);
        assert_eq!(&made[14..15], "4");
        assert!("89ab".contains(&made[19..20]));
        ensure_request_id(&mut headers);
        assert_eq!(headers[&REQUEST_ID].to_str().unwrap(), made);
    }

    #[test]
    fn the_remote_address_is_the_last_one_that_was_forwarded() {
        let socket: IpAddr = "10.0.0.9".parse().unwrap();
        let remote = |value| remote_ip(&map(&[("x-forwarded-for", value)]), socket).to_string();
        assert_eq!(remote("1.1.1.1, 2.2.2.2"), "2.2.2.2");
        assert_eq!(remote("::ffff:3.3.3.3"), "3.3.3.3");
        assert_eq!(remote("1.1.1.1, unknown"), "10.0.0.9");
        assert_eq!(remote_ip(&HeaderMap::new(), socket), socket);
    }

    #[test]
    fn trailers_carry_no_framing_credentials_or_identity() {
        let mut trailers = map(&[
            ("grpc-status", "0"),
            ("x-checksum", "1"),
            ("content-length", "1"),
            ("authorization", "a"),
            ("host", "a"),
            ("x_forwarded_client_cert", "a"),
        ]);
        clean_trailers(&mut trailers);
        let mut names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["grpc-status", "x-checksum"]);
    }
}
