//! The ports that the tests' YAML speaks of, and the ones that are used for them.
//!
//! A machine may have something on 8080 for all its addresses, so every process chooses four free ports once, and its
//! YAML is read with those in place of 8080, 8081, 9000 and 9001.

use std::{
    net::{Ipv6Addr, TcpListener},
    sync::LazyLock,
};

const WRITTEN: [u16; 4] = [8080, 8081, 9000, 9001];

// Below the range from which the kernel takes ports for outgoing connections.
static USED: LazyLock<[u16; 4]> = LazyLock::new(|| {
    let first = 20_000 + u16::try_from(std::process::id() % 2_000).unwrap() * 5;
    let mut free = (first..32_000).chain(10_000..first).filter(|port| {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).is_ok()
            && TcpListener::bind(("0.0.0.0", *port)).is_ok()
    });
    WRITTEN.map(|_| free.next().expect("four free ports"))
});

/// The port that is used for the one that is written.
pub fn real(written: u16) -> u16 {
    WRITTEN.iter().position(|port| *port == written).map_or(written, |at| USED[at])
}

/// The YAML with the ports that are used.
pub fn substitute(yaml: &str) -> String {
    let mut text = String::with_capacity(yaml.len());
    let mut rest = yaml;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(start);
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        let (digits, after) = number.split_at(end);
        let is_word = before.ends_with(|c: char| c.is_alphanumeric() || c == '.');
        // As it is written: a number that begins with a zero is none, but a piece of base64.
        let port = digits.parse().ok().filter(|_| !is_word && !digits.starts_with('0')).map(real);
        text.push_str(before);
        text.push_str(&port.map_or_else(|| digits.to_owned(), |port| port.to_string()));
        rest = after;
    }
    text + rest
}

#[test]
fn only_whole_numbers_that_are_ports_are_replaced() {
    let [http, _, tcp, _] = *USED;
    let yaml = "p: 8080, q: '9000', x: v8080 18080 10.8080 8080a +07/08080";
    assert_eq!(substitute(yaml), format!("p: {http}, q: '{tcp}', x: v8080 18080 10.8080 {http}a +07/08080"));
}
