//! Of which cohorts a caller is: its tenant, the family of its key, the block of its address.
//!
//! All three are read off what the gateway verified or saw itself, so that nobody is of a cohort by his own word. Of language models callers are joined by
//! [what and when they ask](super::language::cohorts) too, which has no name that one caller could be looked up by.

use std::net::{IpAddr, Ipv6Addr};

use serde::Deserialize;

use super::watch::KINDS;
use crate::trail::Who;

/// What joins the callers of a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// They are of one tenant.
    Tenant,
    /// They are of one tenant, and the ids of their API keys are the same up to a number: see [`family`].
    Family,
    /// They ask from one block of addresses: see [`block`].
    Address,
    /// They ask a language model for the same at the same times: see [`cohorts`](super::language::cohorts).
    Alike,
}

/// The kinds in force, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Vec<Kind>")]
pub struct Kinds(u8);

impl From<Vec<Kind>> for Kinds {
    fn from(kinds: Vec<Kind>) -> Self {
        Self(kinds.into_iter().fold(0, |bits, kind| bits | 1 << kind as u8))
    }
}

impl Default for Kinds {
    /// All but tenants: a tenant has many users by trade, and is one by choice.
    fn default() -> Self {
        vec![Kind::Family, Kind::Address, Kind::Alike].into()
    }
}

/// Of a sequence in hexadecimal, the fewest digits: shorter ones are words (`cafe` is caught by the digit that is asked for too).
const FEWEST_HEX: usize = 4;

const _: () = assert!(Kind::Address as usize + 1 == KINDS);

impl Kinds {
    /// Whether callers are joined by nothing.
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether they are joined by this.
    pub(super) fn contains(self, kind: Kind) -> bool {
        self.0 >> kind as u8 & 1 == 1
    }

    /// The cohorts of a caller by their names, none of which is a caller's: always in the same order.
    pub(super) fn of(self, who: &Who, address: IpAddr) -> Vec<(Kind, String)> {
        let mut cohorts = Vec::new();
        if self.contains(Kind::Tenant) && !who.tenant.is_empty() {
            cohorts.push((Kind::Tenant, format!("tenant:{}", who.tenant)));
        }
        if let Some(family) = self.contains(Kind::Family).then(|| family(&who.caller)).flatten() {
            // Of one tenant: nobody throttles another tenant's callers by a key that is named like theirs.
            cohorts.push((Kind::Family, format!("family:{}/{family}", who.tenant)));
        }
        if let Some(block) = self.contains(Kind::Address).then(|| block(address)).flatten() {
            cohorts.push((Kind::Address, format!("address:{block}")));
        }
        cohorts
    }
}

/// The family of an API key: its id up to the last `-`, `.` or `_`, where digits follow and nothing else, or four or more
/// hexadecimal digits of which one at least is a decimal. `acme-batch-07` and `acme-batch-1f3c` are of the family `acme-batch`; `acme-batch` and
/// `acme-cafe` are of none.
#[must_use]
pub fn family(caller: &str) -> Option<&str> {
    let id = caller.strip_prefix("api_key:")?;
    let at = id.rfind(['-', '.', '_']).filter(|at| *at > 0)?;
    let number = &id[at + 1..];
    let decimal = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let hexadecimal = number.len() >= FEWEST_HEX
        && number.bytes().all(|byte| byte.is_ascii_hexdigit())
        && number.bytes().any(|byte| byte.is_ascii_digit());
    (decimal || hexadecimal).then(|| &id[..at])
}

/// The block of an address that is one holder's as a rule: a /24 of IPv4, a /48 of IPv6. None for addresses behind which anybody may be:
/// loopback, private, link-local, and what carriers share (RFC 1122, 1918, 3927, 4193, 4291, 6598).
#[must_use]
pub fn block(address: IpAddr) -> Option<String> {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            let shared = a == 100 && b & 0xc0 == 64;
            let anybody = shared || address.is_loopback() || address.is_private() || address.is_link_local() || address.is_unspecified();
            (!anybody).then(|| format!("{a}.{b}.{c}.0/24"))
        }
        IpAddr::V6(address) => {
            let anybody = address.is_loopback() || address.is_unspecified() || address.is_unique_local() || address.is_unicast_link_local();
            let [a, b, c, ..] = address.segments();
            (!anybody).then(|| format!("{}/48", Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(caller: &str, tenant: &str) -> Who {
        Who { caller: caller.into(), tenant: tenant.into(), tier: "".into(), method: "api_key" }
    }

    #[test]
    fn keys_that_differ_in_a_number_are_of_one_family() {
        assert_eq!(family("api_key:acme-batch-07"), Some("acme-batch"));
        assert_eq!(family("api_key:acme.batch.1f3c"), Some("acme.batch"));
        assert_eq!(family("api_key:acme_2"), Some("acme"));
        for none in
            ["api_key:acme", "api_key:acme-cafe", "api_key:acme-1f3", "api_key:-7", "api_key:acme-", "api_key:acme-7x", "jwt:issuer#a-7"]
        {
            assert_eq!(family(none), None, "{none}");
        }
    }

    #[test]
    fn keys_of_two_tenants_are_of_no_one_family() {
        let names = |tenant: &str| Kinds::from(vec![Kind::Family]).of(&who("api_key:user-1", tenant), "::1".parse().unwrap());
        assert_eq!(names("acme"), names("acme"));
        assert_ne!(names("acme"), names("other"));
    }

    #[test]
    fn a_block_is_a_24_or_a_48_and_none_where_anybody_may_be() {
        let of = |address: &str| block(address.parse().unwrap());
        assert_eq!(of("203.0.113.77").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(of("::ffff:203.0.113.77").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(of("2001:db8:7:8::1").as_deref(), Some("2001:db8:7::/48"));
        assert_eq!((of("100.63.0.1").as_deref(), of("100.64.0.1")), (Some("100.63.0.0/24"), None));
        assert_eq!((of("172.32.0.1").as_deref(), of("172.31.0.1")), (Some("172.32.0.0/24"), None));
        for none in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.1.1", "0.0.0.0", "::1", "::", "fd00::1", "fe80::1", "::ffff:10.0.0.1"]
        {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn a_tenant_is_a_cohort_where_the_policy_says_so() {
        let (who, address) = (who("api_key:a-1", "acme"), "203.0.113.1".parse().unwrap());
        let names = |kinds: Kinds| kinds.of(&who, address).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        assert_eq!(names(Kinds::default()), ["family:acme/a", "address:203.0.113.0/24"]);
        let all = Kinds::from(vec![Kind::Alike, Kind::Address, Kind::Tenant, Kind::Family]);
        assert_eq!(names(all), ["tenant:acme", "family:acme/a", "address:203.0.113.0/24"], "in one order, whatever the policy's");
        assert!(Kinds::from(Vec::new()).of(&who, address).is_empty());
        assert!(Kinds::from(vec![Kind::Tenant]).of(&self::who("api_key:a", ""), address).is_empty());
    }
}
