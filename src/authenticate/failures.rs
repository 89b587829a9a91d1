//! Failed logins, limited by address: past the limit a credential that fails is answered 429, a good one never is.
//!
//! Not governor: its keyed store takes in every key it is asked about and is only pruned, never capped, so a stranger
//! with a /32 of IPv6 could fill it between two prunings. This is the same algorithm (GCRA) over a map with a cap.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::unit::Rate;

/// The most addresses that are remembered. Past it the one with the least debt is forgotten, which gives a
/// stranger with that many addresses nothing: each of them has a burst of its own anyway.
pub const MAX_ADDRESSES: usize = SHARDS * PER_SHARD;
const SHARDS: usize = 64;
const PER_SHARD: usize = 1_024;

/// Who failed lately, and how often.
pub struct Failures {
    /// The time that one failure costs.
    each: Duration,
    /// How far ahead of now an address may have spent.
    tolerance: Duration,
    hasher: RandomState,
    /// By network, when its debt is paid. Locked for one lookup, or one scan of a full shard, and only by failures.
    shards: [Mutex<HashMap<Network, Instant>>; SHARDS],
}

/// An IPv4 address, or the first 64 bits of an IPv6 one: a /64 is one customer, or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Network {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl std::fmt::Debug for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Failures(…)")
    }
}

impl Failures {
    /// At most `burst` failures at once (at least 1) and `rate` over time, for each address.
    #[must_use]
    pub fn new(rate: Rate, burst: u32) -> Self {
        let each = rate.per / rate.count.max(1);
        Self {
            each,
            tolerance: each * burst.saturating_sub(1),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
        }
    }

    /// Charges one failure to `address`.
    ///
    /// # Errors
    /// When it failed too often: how long until a failure is answered as one again. That failure is not charged.
    pub fn charge(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let network = Network::from(address);
        let shard = self.hasher.hash_one(network) as usize % SHARDS;
        let mut paid = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let due = paid.get(&network).copied().unwrap_or(now).max(now);
        let ahead = due - now;
        if ahead > self.tolerance {
            return Err(ahead - self.tolerance);
        }
        if paid.len() >= PER_SHARD && !paid.contains_key(&network) {
            paid.retain(|_, due| *due > now);
            if paid.len() >= PER_SHARD
                && let Some(least) = paid.iter().min_by_key(|(_, due)| **due).map(|(network, _)| *network)
            {
                paid.remove(&least);
            }
        }
        paid.insert(network, due + self.each);
        Ok(())
    }

    /// How many addresses are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn limit(count: u32, burst: u32) -> Failures {
        Failures::new(Rate { count, per: Duration::from_secs(1) }, burst)
    }

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn the_burst_passes_and_one_past_it_does_not() {
        let failures = limit(20, 200);
        let now = Instant::now();
        (0..200).for_each(|_| assert_eq!(failures.charge(HOME, now), Ok(())));
        assert_eq!(failures.charge(HOME, now), Err(Duration::from_millis(50)));
        assert_eq!(failures.charge("127.0.0.2".parse().unwrap(), now), Ok(()));
    }

    #[test]
    fn it_is_paid_back_at_the_rate() {
        let failures = limit(20, 1);
        let now = Instant::now();
        assert_eq!(failures.charge(HOME, now), Ok(()));
        assert_eq!(failures.charge(HOME, now + Duration::from_millis(49)), Err(Duration::from_millis(1)));
        assert_eq!(failures.charge(HOME, now + Duration::from_millis(50)), Ok(()));
    }

    #[test]
    fn a_v6_neighbour_in_the_same_64_is_the_same_and_a_mapped_v4_is_itself() {
        let failures = limit(1, 1);
        let now = Instant::now();
        assert_eq!(failures.charge("2001:db8::1".parse().unwrap(), now), Ok(()));
        assert!(failures.charge("2001:db8::ffff:1".parse().unwrap(), now).is_err());
        assert_eq!(failures.charge("2001:db8:0:1::1".parse().unwrap(), now), Ok(()));
        assert_eq!(failures.charge(HOME, now), Ok(()));
        assert!(failures.charge("::ffff:127.0.0.1".parse().unwrap(), now).is_err());
    }

    #[test]
    fn strangers_cannot_grow_it_and_the_worst_offender_is_remembered() {
        let failures = limit(1, 5);
        let now = Instant::now();
        (0..5).for_each(|_| assert_eq!(failures.charge(HOME, now), Ok(())));
        for n in 0..(2 * MAX_ADDRESSES as u128) {
            let _ = failures.charge(IpAddr::V6(Ipv6Addr::from_bits(n << 64)), now);
        }
        assert!(failures.len() <= MAX_ADDRESSES);
        assert!(failures.charge(HOME, now).is_err());
    }

    #[test]
    fn a_clock_that_stands_or_an_absurd_rate_does_not_panic() {
        let failures = Failures::new(Rate { count: u32::MAX, per: Duration::from_secs(86_400) }, u32::MAX);
        let now = Instant::now();
        (0..1_000).for_each(|_| assert_eq!(failures.charge(HOME, now), Ok(())));
        let slow = Failures::new(Rate { count: 1, per: Duration::from_secs(86_400) }, 10_000);
        (0..10_000).for_each(|_| assert_eq!(slow.charge(HOME, now), Ok(())));
        assert!(slow.charge(HOME, now).is_err());
    }
}
