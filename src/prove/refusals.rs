//! How many refusals of strangers leave a receipt, so that nobody without a grant can fill the log.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Receipts a second for refusals before a grant, per address (IPv6: per /64).
pub(super) const PER_ADDRESS: u32 = 20;
/// Receipts a second for refusals before a grant, for all addresses together.
pub(super) const PER_NODE: u32 = 200;

/// What was given out this second, and what was not.
///
/// An address is written down only when it is given a receipt, so the map never holds more than [`PER_NODE`] of them.
/// A second is a window of its own: over the edge of two, twice the rate may pass.
#[derive(Default)]
pub(super) struct Refusals {
    second: u64,
    given: u32,
    by_address: HashMap<IpAddr, u32>,
    /// Without a receipt, by code, in all.
    suppressed: BTreeMap<&'static str, u64>,
    /// The same, since [`Refusals::untold`] was last called.
    untold: BTreeMap<&'static str, u64>,
}

impl Refusals {
    /// Whether a refusal with `code` of `address` is given a receipt at `second`; one that is not is counted.
    pub(super) fn allow(&mut self, address: IpAddr, second: u64, code: &'static str) -> bool {
        if second != self.second {
            (self.second, self.given) = (second, 0);
            self.by_address.clear();
        }
        let address = network(address);
        let of_address = self.by_address.get(&address).copied().unwrap_or(0);
        // The address's own allowance first, so that a loud one does not use up everybody's.
        let allowed = of_address < PER_ADDRESS && self.given < PER_NODE;
        if allowed {
            self.given += 1;
            self.by_address.insert(address, of_address + 1);
        } else {
            self.suppress(code, 1);
        }
        allowed
    }

    /// Counts refusals with `code` that are given no receipt.
    pub(super) fn suppress(&mut self, code: &'static str, count: u64) {
        *self.suppressed.entry(code).or_default() += count;
        *self.untold.entry(code).or_default() += count;
    }

    /// What [`Refusals::untold`] gave could not be told.
    pub(super) fn untell(&mut self, untold: Vec<(&'static str, u64)>) {
        untold.into_iter().for_each(|(code, count)| *self.untold.entry(code).or_default() += count);
    }

    /// Those without a receipt since this was last asked.
    pub(super) fn untold(&mut self) -> Vec<(&'static str, u64)> {
        std::mem::take(&mut self.untold).into_iter().collect()
    }

    /// Those without a receipt since the start.
    pub(super) fn suppressed(&self) -> Vec<(&'static str, u64)> {
        self.suppressed.iter().map(|(code, count)| (*code, *count)).collect()
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn an_address_has_its_allowance_and_no_more_until_the_next_second() {
        let mut refusals = Refusals::default();
        assert!((0..PER_ADDRESS).all(|_| refusals.allow(v4(1), 5, "a")));
        assert!(!refusals.allow(v4(1), 5, "a"));
        assert!(!refusals.allow("::ffff:192.0.2.1".parse().unwrap(), 5, "b"), "the same address, written otherwise");
        assert!(refusals.allow(v4(2), 5, "a"));
        assert!(refusals.allow(v4(1), 6, "a"));
        assert_eq!(refusals.untold(), [("a", 1), ("b", 1)]);
        assert_eq!(refusals.untold(), []);
        assert_eq!(refusals.suppressed(), [("a", 1), ("b", 1)]);
        refusals.suppress("a", 2);
        let untold = refusals.untold();
        refusals.suppress("a", 1);
        refusals.untell(untold);
        assert_eq!((refusals.untold(), refusals.suppressed()), (vec![("a", 3)], vec![("a", 4), ("b", 1)]));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_the_node_has_an_end() {
        let mut refusals = Refusals::default();
        let v6 = |network: u128, host: u128| IpAddr::V6((0x2001_0db8 << 96 | network << 64 | host).into());
        assert_eq!((0..100).filter(|host| refusals.allow(v6(0, *host), 5, "a")).count(), PER_ADDRESS as usize);
        assert_eq!((1..10_000).filter(|network| refusals.allow(v6(*network, 0), 5, "a")).count(), (PER_NODE - PER_ADDRESS) as usize);
        assert!(refusals.by_address.len() <= PER_NODE as usize);
    }
}
