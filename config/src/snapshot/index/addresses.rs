//! Which ranges hold an address: one lookup for each prefix length that occurs.

use super::{
    atoms::{Atom, Found},
    table::{Table, hash_pair},
};
use crate::matchers::AddressBlock;
use ipnet::IpNet;
use std::net::IpAddr;

/// Distinct ranges on one attribute.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    four: Family,
    six: Family,
}

impl Addresses {
    pub fn build(blocks: &[(AddressBlock, Atom)]) -> Self {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for (block, atom) in blocks {
            match block.net() {
                IpNet::V4(net) => {
                    four.push(((net.prefix_len(), u128::from(u32::from(net.network())) << 96), *atom));
                }
                IpNet::V6(net) => six.push(((net.prefix_len(), u128::from(net.network())), *atom)),
            }
        }
        Self { four: Family::build(four), six: Family::build(six) }
    }

    #[inline]
    pub fn find(&self, address: IpAddr, found: &mut Found) {
        match address.to_canonical() {
            IpAddr::V4(address) => self.four.find(u128::from(u32::from(address)) << 96, found),
            IpAddr::V6(address) => self.six.find(u128::from(address), found),
        }
    }
}

/// Addresses stand at the upper end of the number.
#[derive(Debug, Default)]
struct Family {
    lengths: Box<[u8]>,
    table: Table<(u8, u128)>,
}

impl Family {
    fn build(ranges: Vec<((u8, u128), Atom)>) -> Self {
        let mut lengths: Vec<u8> = ranges.iter().map(|((length, _), _)| *length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        Self { lengths: lengths.into(), table: Table::build(ranges, |range| hash(*range)) }
    }

    #[inline]
    fn find(&self, address: u128, found: &mut Found) {
        for length in &self.lengths {
            let mask = u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0);
            let range = (*length, address & mask);
            if let Some(atom) = self.table.find(hash(range), |key| *key == range) {
                found.add(atom);
            }
        }
    }
}

fn hash((length, bits): (u8, u128)) -> u64 {
    hash_pair(u64::from(length) ^ (bits >> 64) as u64, bits as u64)
}
