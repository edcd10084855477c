//! IP addresses and CIDR ranges, IPv4 and IPv6; an IPv4 address in IPv6 clothes counts as IPv4.

use ipnet::{IpNet, Ipv4Net};
use std::net::IpAddr;

/// One value of `ipBlocks`: a single address or a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressBlock(IpNet);

impl AddressBlock {
    /// Reads `10.1.2.3`, `10.0.0.0/8`, `fd00::1`, `fd00::/8`. Bits behind the prefix are ignored, as in Istio.
    ///
    /// # Errors
    /// Istio's words for a bad address or range.
    pub fn parse(value: &str) -> Result<Self, String> {
        let net = if value.contains('/') {
            value.parse::<IpNet>().map_err(|error| format!("bad CIDR range ({value}): {error}"))?
        } else {
            IpNet::from(value.parse::<IpAddr>().map_err(|_| format!("bad IP address ({value})"))?)
        };
        Ok(Self(unmapped(net).trunc()))
    }

    /// The range.
    pub(crate) fn net(&self) -> IpNet {
        self.0
    }

    /// The address, when the range holds only one.
    pub fn single(&self) -> Option<IpAddr> {
        (self.0.prefix_len() == self.0.max_prefix_len()).then(|| self.0.addr())
    }

    /// Whether the range holds `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl std::fmt::Display for AddressBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// `::ffff:10.0.0.0/104` is `10.0.0.0/8`.
fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(six) = net else { return net };
    let four = six.addr().to_ipv4_mapped().zip(six.prefix_len().checked_sub(96));
    four.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(net, IpNet::V4)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check((block, address): (&str, &str), expected: bool) {
        let block = AddressBlock::parse(block).unwrap();
        assert_eq!(block.contains(address.parse().unwrap()), expected, "{block:?} on {address}");
    }

    #[test]
    fn ranges_hold_their_addresses_in_both_families() {
        for (input, expected) in [
            (("10.1.2.3", "10.1.2.3"), true),
            (("10.1.2.3", "10.1.2.4"), false),
            (("10.0.0.0/8", "10.255.0.1"), true),
            (("10.0.0.0/8", "11.0.0.1"), false),
            (("10.9.9.9/8", "10.0.0.1"), true),
            (("0.0.0.0/0", "1.2.3.4"), true),
            (("0.0.0.0/0", "fd00::1"), false),
            (("::/0", "fd00::1"), true),
            (("::/0", "1.2.3.4"), false),
            (("fd00::/8", "fdff::1"), true),
            (("fd00::/8", "fe80::1"), false),
            (("fd00::1", "fd00::1"), true),
            (("10.0.0.0/8", "::ffff:10.1.2.3"), true),
            (("::ffff:10.1.2.3", "10.1.2.3"), true),
            (("::ffff:10.0.0.0/104", "10.1.2.3"), true),
            (("::ffff:10.0.0.0/104", "11.1.2.3"), false),
        ] {
            check(input, expected);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "a.b.c.d",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.1/",
            "fd00::/129",
            "fe80::1%eth0",
            "1.2.3.4:80",
        ] {
            assert!(AddressBlock::parse(bad).is_err(), "{bad:?}");
        }
    }
}
