//! Values of a line, escaped: whatever is in them, the line stays one line and no value ends before its end.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

/// A JSON string, quotes and all.
pub fn json(value: &str, text: &mut Vec<u8>) {
    if is_plain(value) {
        text.push(b'"');
        text.extend_from_slice(value.as_bytes());
        text.push(b'"');
    } else {
        // Serializing a text has no way to fail.
        let json = serde_json::to_string(value).unwrap_or_default();
        text.extend_from_slice(printable(&json).as_bytes());
    }
}

/// A value between quotes in a line of text: what is neither printable ASCII nor can stand there is written `\xHH`, octet by octet, as
/// nginx does. A `-` that a caller sent is escaped too, since it would say that there was nothing.
pub fn quoted(value: &str, text: &mut Vec<u8>) {
    escaped(value, text, |octet| matches!(octet, b' '..=b'~') && !matches!(octet, b'"' | b'\\'));
}

/// A value between spaces in a line of text: the same, and spaces are escaped too.
pub fn bare(value: &str, text: &mut Vec<u8>) {
    escaped(value, text, |octet| matches!(octet, b'!'..=b'~') && !matches!(octet, b'"' | b'\\'));
}

fn escaped(value: &str, text: &mut Vec<u8>, stays: impl Fn(u8) -> bool) {
    if value == "-" {
        return text.extend_from_slice(b"\\x2d");
    }
    for octet in value.bytes() {
        if stays(octet) {
            text.push(octet);
        } else {
            text.extend_from_slice(b"\\x");
            text.extend([octet >> 4, octet & 15].map(|digit| match digit {
                0..=9 => b'0' + digit,
                _ => b'a' + digit - 10,
            }));
        }
    }
}

/// Whether JSON takes it as it is. All octets are looked at, since that goes sixteen at a time; nearly every text is plain.
pub fn is_plain(value: &str) -> bool {
    let stays = |octet: u8| matches!(octet, b' '..=b'~') & (octet != b'"') & (octet != b'\\');
    value.bytes().fold(true, |all, octet| all & stays(octet))
}

/// JSON escapes what is below U+0020; terminals and line readers act on more than that, and marks of direction show a line other than
/// it is. All of these can stand only inside strings, so escaping them keeps the JSON what it is.
fn printable(json: &str) -> String {
    let acts = |c: char| {
        matches!(c, '\u{7f}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if acts(c) {
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A number.
pub fn decimal(value: u64, text: &mut Vec<u8>) {
    text.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// `ip:port`.
pub fn address(value: SocketAddr, text: &mut Vec<u8>) {
    match value {
        SocketAddr::V4(address) => {
            ip(IpAddr::V4(*address.ip()), text);
            text.push(b':');
            decimal(u64::from(address.port()), text);
        }
        SocketAddr::V6(address) => text.extend_from_slice(address.to_string().as_bytes()),
    }
}

/// Appends an address without port.
pub fn ip(value: IpAddr, text: &mut Vec<u8>) {
    match value {
        IpAddr::V4(address) => {
            for (place, octet) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    text.push(b'.');
                }
                if octet >= 100 {
                    text.push(b'0' + octet / 100);
                }
                if octet >= 10 {
                    text.push(b'0' + octet / 10 % 10);
                }
                text.push(b'0' + octet % 10);
            }
        }
        IpAddr::V6(address) => text.extend_from_slice(address.to_string().as_bytes()),
    }
}
