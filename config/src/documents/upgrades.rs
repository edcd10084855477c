//! The pod annotation `postern.dev/upgrades`: protocols beside `websocket` that HTTP/1.1 may be left for.

use http::HeaderValue;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Name of the annotation. Its value is a list such as `spdy/3.1, tcp`: tokens of `Upgrade` (RFC 9110 section 7.8).
pub const UPGRADES: &str = "postern.dev/upgrades";
/// The most protocols of a list.
const MOST: usize = 16;
/// The longest name of one, in bytes.
const LONGEST: usize = 64;
/// HTTP by other names: behind such an upgrade are requests that no policy would see.
const NEVER: [&str; 4] = ["h2c", "h2", "h3", "http"];
static WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// To which protocols a connection of HTTP/1.1 may be upgraded on its way into a workload, and out of it; `websocket` always.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Upgrades(Arc<[HeaderValue]>);

impl Upgrades {
    /// Reads the value of the annotation. Blanks around the names are allowed; an empty value is an empty list.
    ///
    /// # Errors
    /// One sentence that quotes the name that is wrong and says why.
    pub fn parse(value: &str) -> Result<Self, String> {
        let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect::<Vec<String>>().try_into()
    }

    /// Whether nothing but `websocket` is allowed.
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }

    /// The protocol that `asked`, one token of `Upgrade`, names, in the spelling of the list; case does not count. `None`: not allowed.
    pub fn find(&self, asked: &[u8]) -> Option<&HeaderValue> {
        std::iter::once(&WEBSOCKET).chain(&*self.0).find(|name| name.as_bytes().eq_ignore_ascii_case(asked))
    }
}

impl TryFrom<Vec<String>> for Upgrades {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        if names.len() > MOST {
            return Err(format!("{} protocols are more than {MOST}", names.len()));
        }
        names.iter().map(|name| protocol(name)).collect::<Result<_, _>>().map(Self)
    }
}

impl From<Upgrades> for Vec<String> {
    fn from(upgrades: Upgrades) -> Self {
        upgrades.0.iter().filter_map(|name| name.to_str().ok().map(str::to_owned)).collect()
    }
}

/// `protocol-name["/"protocol-version]`, both tokens.
fn protocol(text: &str) -> Result<HeaderValue, String> {
    let quoted: String = text.chars().take(LONGEST).collect();
    let is_token = |part: &str| {
        let special = |byte: &u8| b"!#$%&'+-.^_`|~".contains(byte);
        !part.is_empty() && part.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || special(byte))
    };
    let (name, version) = text.split_once('/').map_or((text, None), |(name, version)| (name, Some(version)));
    if text.contains('*') {
        return Err(format!("`{quoted}` has a `*`: each protocol is named by itself"));
    }
    if !is_token(name) || !version.is_none_or(is_token) {
        return Err(format!("`{quoted}` is no name of a protocol, which is NAME or NAME/VERSION"));
    }
    if text.len() > LONGEST {
        return Err(format!("`{quoted}…` is longer than {LONGEST} bytes"));
    }
    if NEVER.iter().any(|never| never.eq_ignore_ascii_case(name)) {
        return Err(format!("`{quoted}` is HTTP again: no policy would see the requests behind it"));
    }
    HeaderValue::from_str(text).map_err(|_| format!("`{quoted}` is no name of a protocol"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_list_allows_what_it_names_and_websocket_and_nothing_else() {
        let upgrades = Upgrades::parse(" SPDY/3.1 ,tcp,").unwrap();
        for (asked, found) in [
            ("websocket", Some("websocket")),
            ("WebSocket", Some("websocket")),
            ("spdy/3.1", Some("SPDY/3.1")),
            ("TCP", Some("tcp")),
            ("spdy", None),
            ("spdy/3", None),
            ("tcp/1", None),
            ("h2c", None),
            ("tcp, h2c", None),
            ("", None),
        ] {
            assert_eq!(upgrades.find(asked.as_bytes()).map(|name| name.to_str().unwrap()), found, "{asked}");
        }
        let written = serde_json::to_string(&upgrades).unwrap();
        assert_eq!(written, r#"["SPDY/3.1","tcp"]"#);
        assert_eq!(serde_json::from_str::<Upgrades>(&written).unwrap(), upgrades);
        for empty in ["", " , "] {
            let none = Upgrades::parse(empty).unwrap();
            assert!(none.is_default() && none.find(b"tcp").is_none() && none.find(b"websocket").is_some());
        }
    }

    #[test]
    fn what_is_no_protocol_or_http_again_is_refused_wherever_it_comes_from() {
        let long = "x".repeat(LONGEST + 1);
        let many = vec!["tcp"; MOST + 1].join(",");
        for (value, why) in [
            ("h2c", "HTTP again"),
            ("tcp, H2C", "`H2C`"),
            ("HTTP/2.0", "HTTP again"),
            ("h2", "HTTP again"),
            ("*", "by itself"),
            ("tcp*", "by itself"),
            ("spdy/", "NAME/VERSION"),
            ("/3.1", "NAME/VERSION"),
            ("spdy/3/1", "NAME/VERSION"),
            ("spdy 3.1", "NAME/VERSION"),
            ("t\u{e4}p", "NAME/VERSION"),
            ("a\r\nb", "NAME/VERSION"),
            (&*long, "longer than 64"),
            (&*many, "more than 16"),
        ] {
            let reason = Upgrades::parse(value).unwrap_err();
            assert!(reason.contains(why), "{value}: {reason}");
            // The same on the wire.
            let names: Vec<&str> = value.split(',').map(str::trim).collect();
            assert!(serde_json::from_value::<Upgrades>(names.into()).is_err(), "{value}");
        }
    }
}
