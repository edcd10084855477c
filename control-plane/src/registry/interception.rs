//! The pod annotation `postern.dev/inbound`: where a sidecar without redirect rules listens for each workload port.

use std::{collections::BTreeMap, net::SocketAddr};

/// Name of the annotation. Its value is `8080=127.0.0.1:34567,9090=[::1]:34568`: workload port = address of the
/// sidecar's own listener for that port.
pub const ANNOTATION: &str = "postern.dev/inbound";

/// Reads the annotation's value. Blanks around the parts are allowed; an empty value is an empty table.
///
/// # Errors
/// One sentence that names the entry that is wrong and the form that is expected.
pub fn listeners(value: &str) -> Result<BTreeMap<u16, SocketAddr>, String> {
    let mut table = BTreeMap::new();
    for entry in value.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let parsed = entry.split_once('=').and_then(|(port, address)| {
            Some((port.trim().parse::<u16>().ok()?, address.trim().parse().ok()?))
        });
        let Some((port, address)) = parsed.filter(|(port, _)| *port != 0) else {
            return Err(format!("`{entry}` in the annotation {ANNOTATION} is not of the form PORT=IP:PORT"));
        };
        if table.insert(port, address).is_some() {
            return Err(format!("port {port} stands twice in the annotation {ANNOTATION}"));
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(value: &str, expected: Result<&[(u16, &str)], &str>) {
        match (listeners(value), expected) {
            (Ok(table), Ok(expected)) => {
                let expected: BTreeMap<u16, SocketAddr> =
                    expected.iter().map(|(port, address)| (*port, address.parse().unwrap())).collect();
                assert_eq!(table, expected, "{value}");
            }
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{value}: {reason}"),
            (got, expected) => panic!("{value}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn the_annotation_names_one_listener_for_each_port() {
        check("", Ok(&[]));
        check("8080=127.0.0.1:34567", Ok(&[(8080, "127.0.0.1:34567")]));
        check(" 8080 = 127.0.0.1:1 , 9090=[::1]:2,", Ok(&[(8080, "127.0.0.1:1"), (9090, "[::1]:2")]));
        check("8080", Err("`8080`"));
        check("8080=localhost:1", Err("PORT=IP:PORT"));
        check("0=127.0.0.1:1", Err("`0=127.0.0.1:1`"));
        check("70000=127.0.0.1:1", Err("70000"));
        check("80=127.0.0.1:1,80=127.0.0.1:2", Err("twice"));
    }
}
