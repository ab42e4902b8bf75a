//! Which addresses dynos may have, and which of them a uid gets.
//!
//! A dyno has a /30 of its own: +1 is its gateway, the host's end; +2 is the dyno; +3 is the
//! broadcast address. The pool is as many /30s as there are uids, from the address that the
//! block was given with, or as many as the block has room for.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::UidRange;

/// The variable with the block of addresses.
pub const SUBNET_VARIABLE: &str = "LIBCONTAINER_DYNO_SUBNET";
const DEFAULT_BLOCK: &str = "172.16.0.28/12";
const SUBNET_SIZE: u32 = 4;

/// Four addresses, one dyno's: a /30.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet(u32);

impl Subnet {
    /// How many bits of its addresses are the same.
    pub const PREFIX: u8 = 30;

    /// The /30 that begins with this address, if one does.
    pub fn at(network: Ipv4Addr) -> Option<Self> {
        let network = u32::from(network);
        network.is_multiple_of(SUBNET_SIZE).then_some(Self(network))
    }

    /// Its first address, which is nobody's.
    pub fn network(self) -> Ipv4Addr {
        self.0.into()
    }

    /// The host's address in it.
    pub fn gateway(self) -> Ipv4Addr {
        (self.0 + 1).into()
    }

    /// The dyno's address.
    pub fn host(self) -> Ipv4Addr {
        (self.0 + 2).into()
    }

    /// Its last address.
    pub fn broadcast(self) -> Ipv4Addr {
        (self.0 + 3).into()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), Self::PREFIX)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

/// A text that names no /30.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not the subnet of a dyno, such as 172.16.0.28/30")]
pub struct NotSubnet(String);

impl FromStr for Subnet {
    type Err = NotSubnet;

    fn from_str(text: &str) -> Result<Self, NotSubnet> {
        text.strip_suffix("/30")
            .and_then(|network| network.parse().ok())
            .and_then(Self::at)
            .ok_or_else(|| NotSubnet(text.to_owned()))
    }
}

impl TryFrom<String> for Subnet {
    type Error = NotSubnet;

    fn try_from(text: String) -> Result<Self, NotSubnet> {
        text.parse()
    }
}

/// Subnets in a row, the first and the last among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The lowest.
    pub first: Subnet,
    /// The highest.
    pub last: Subnet,
}

impl Span {
    /// Whether it holds this subnet.
    pub fn contains(self, subnet: Subnet) -> bool {
        (self.first..=self.last).contains(&subnet)
    }
}

/// The subnets that dynos may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// As it was given.
    block: String,
    first: Subnet,
    count: u32,
    min_uid: u32,
}

/// Why a block of addresses can't be used for dynos.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PoolError {
    /// Not an address with a prefix length.
    #[error(
        "{SUBNET_VARIABLE} is `{0}`: write an IPv4 address and a prefix length, such as {DEFAULT_BLOCK}"
    )]
    Malformed(String),
    /// Too small for one dyno.
    #[error(
        "{SUBNET_VARIABLE} is `{0}`, in which no /30 fits from that address on: each dyno needs one, so write a block of /30 or larger by its first address, such as 192.168.200.0/30"
    )]
    TooSmall(String),
    /// Addresses that no host routes.
    #[error(
        "{SUBNET_VARIABLE} is `{block}`: dynos would get {subnet}, which is {what}; write a private block, such as {DEFAULT_BLOCK}"
    )]
    Reserved {
        /// As it was given.
        block: String,
        /// The first subnet that can't be used.
        subnet: Subnet,
        /// What its addresses are for.
        what: &'static str,
    },
}

impl Pool {
    /// The subnets for these uids in `block`, or in the default one when there is none, or
    /// an empty one.
    pub fn new(block: Option<&str>, uids: UidRange) -> Result<Self, PoolError> {
        let block = block
            .map(str::trim)
            .filter(|block| !block.is_empty())
            .unwrap_or(DEFAULT_BLOCK);
        let malformed = || PoolError::Malformed(block.to_owned());
        let too_small = || PoolError::TooSmall(block.to_owned());

        let (address, length) = block.split_once('/').ok_or_else(malformed)?;
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        let length = digits
            .then(|| length.parse::<u32>().ok())
            .flatten()
            .filter(|length| *length <= 32)
            .ok_or_else(malformed)?;

        // In 64 bits: the end of a block may be the end of all addresses.
        let address = u64::from(u32::from(address));
        let size = 1u64 << (32 - length);
        let end = address - address % size + size;
        let first = address.next_multiple_of(u64::from(SUBNET_SIZE));
        let room = end.saturating_sub(first) / u64::from(SUBNET_SIZE);
        let count = u32::try_from(room).unwrap_or(u32::MAX).min(uids.count());
        let first = u32::try_from(first).map_err(|_| too_small())?;
        if count == 0 {
            return Err(too_small());
        }
        let pool = Self {
            block: block.to_owned(),
            first: Subnet(first),
            count,
            min_uid: uids.min(),
        };
        match reserved(pool.span()) {
            Some((subnet, what)) => Err(PoolError::Reserved {
                block: block.to_owned(),
                subnet,
                what,
            }),
            None => Ok(pool),
        }
    }

    /// The block, as it was given.
    pub fn block(&self) -> &str {
        &self.block
    }

    /// How many subnets there are; at least one.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// From the first subnet that can be handed out to the last.
    pub fn span(&self) -> Span {
        Span {
            first: self.first,
            last: self.nth(self.count - 1),
        }
    }

    /// Every subnet once, in the order in which a dyno with this uid may have them.
    pub fn for_uid(&self, uid: u32) -> impl Iterator<Item = Subnet> + '_ {
        let own = uid.wrapping_sub(self.min_uid) % self.count;
        (own..self.count).chain(0..own).map(|n| self.nth(n))
    }

    fn nth(&self, n: u32) -> Subnet {
        Subnet(self.first.0 + n * SUBNET_SIZE)
    }
}

/// The first subnet of `span` that can't be a dyno's on any host.
fn reserved(span: Span) -> Option<(Subnet, &'static str)> {
    let blocks = [
        (0x0000_0000, 0x00ff_fffc, "\"this network\" (0.0.0.0/8)"),
        (0x7f00_0000, 0x7fff_fffc, "the loopback (127.0.0.0/8)"),
        (0xa9fe_0000, 0xa9fe_fffc, "link-local (169.254.0.0/16)"),
        (
            0xe000_0000,
            0xffff_fffc,
            "multicast or reserved (224.0.0.0/3)",
        ),
    ];
    blocks.into_iter().find_map(|(first, last, what)| {
        let overlaps = span.first.0 <= last && first <= span.last.0;
        overlaps.then(|| (Subnet(span.first.0.max(first)), what))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    fn uids(min: u32, max: u32) -> UidRange {
        UidRange::parse(Some(&min.to_string()), Some(&max.to_string())).unwrap()
    }

    #[test]
    fn the_defaults_are_the_originals() {
        let pool = Pool::new(None, UidRange::default()).unwrap();
        let subnet = pool.for_uid(3000).next().unwrap();
        assert_eq!(subnet.to_string(), "172.16.0.28/30");
        assert_eq!(subnet.gateway(), Ipv4Addr::new(172, 16, 0, 29));
        assert_eq!(subnet.host(), Ipv4Addr::new(172, 16, 0, 30));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(172, 16, 0, 31));
        assert_eq!(
            pool.for_uid(3001).next().unwrap().to_string(),
            "172.16.0.32/30"
        );
        assert_eq!(pool.count(), 8001);
        assert_eq!(pool.span().last.to_string(), "172.16.125.28/30");
    }

    #[test]
    fn a_block_of_one_serves_every_uid_with_that_one() {
        let pool = Pool::new(Some("192.168.200.0/30"), UidRange::default()).unwrap();
        for uid in [3000, 3001, 11000] {
            let all: Vec<_> = pool.for_uid(uid).map(|subnet| subnet.to_string()).collect();
            assert_eq!(all, ["192.168.200.0/30"]);
        }
    }

    #[test_case("", "172.16.0.28/30", 8001; "empty is the default")]
    #[test_case("10.0.0.1/8", "10.0.0.4/30", 8001; "rounded up")]
    #[test_case("10.0.0.0/29", "10.0.0.0/30", 2; "two")]
    #[test_case("10.0.0.3/29", "10.0.0.4/30", 1; "one of two")]
    fn the_pool_begins_at_the_given_address(block: &str, first: &str, count: u32) {
        let pool = Pool::new(Some(block), UidRange::default()).unwrap();
        assert_eq!(pool.span().first.to_string(), first);
        assert_eq!(pool.count(), count);
    }

    #[test_case("10.0.0.0/31", "in which no /30 fits"; "too small")]
    #[test_case("10.0.0.0/32", "in which no /30 fits"; "one address")]
    #[test_case("192.168.200.1/30", "in which no /30 fits from that address on"; "rounded out of its block")]
    #[test_case("255.255.255.253/8", "in which no /30 fits"; "rounded beyond all addresses")]
    #[test_case("10.0.0.0", "`10.0.0.0`: write an IPv4 address and a prefix length"; "no length")]
    #[test_case("10.0.0.0/33", "write an IPv4 address"; "length too large")]
    #[test_case("10.0.0.0/+8", "write an IPv4 address"; "length with a sign")]
    #[test_case("10.0.0.0/", "write an IPv4 address"; "length missing")]
    #[test_case("10.0.0/8", "write an IPv4 address"; "three parts")]
    #[test_case("fd00::/8", "write an IPv4 address"; "ipv6")]
    #[test_case("0.0.0.0/0", "dynos would get 0.0.0.0/30, which is \"this network\""; "everything")]
    #[test_case("127.0.0.0/8", "which is the loopback"; "loopback")]
    #[test_case("223.255.255.248/0", "dynos would get 224.0.0.0/30, which is multicast"; "runs into multicast")]
    fn a_bad_block_is_refused_with_what_to_write(block: &str, says: &str) {
        let error = Pool::new(Some(block), UidRange::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("LIBCONTAINER_DYNO_SUBNET is `"), "{error}");
        assert!(error.contains(says), "{error}");
    }

    #[test]
    fn a_subnet_is_kept_as_text() {
        let subnet: Subnet = serde_json::from_str("\"172.16.0.28/30\"").unwrap();
        assert_eq!(
            serde_json::to_string(&subnet).unwrap(),
            "\"172.16.0.28/30\""
        );
        for bad in ["\"172.16.0.29/30\"", "\"172.16.0.28/29\"", "\"x\""] {
            serde_json::from_str::<Subnet>(bad).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn every_subnet_is_in_the_block_aligned_and_only_once(address: u32, length in 0u32..=32, min in 100u32..40_000, more in 0u32..3000, uid in 0u32..3000) {
            let uids = uids(min, min + more);
            let block = format!("{}/{length}", Ipv4Addr::from(address));
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            let Ok(pool) = Pool::new(Some(&block), uids) else { return Ok(()); };
            let uid = min + uid % (more + 1);
            let all: Vec<Subnet> = pool.for_uid(uid).collect();
            prop_assert_eq!(all.len(), pool.count() as usize);
            prop_assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
            prop_assert!(pool.count() <= uids.count());
            for subnet in &all {
                prop_assert!(pool.span().contains(*subnet));
                prop_assert!(subnet.0.is_multiple_of(4) && subnet.0 >= address);
                prop_assert_eq!(u32::from(subnet.broadcast()) & mask, address & mask);
            }
            prop_assert_eq!(all[0], pool.nth((uid - min) % pool.count()));
            prop_assert_eq!(all[0].to_string().parse::<Subnet>().unwrap(), all[0]);
        }

        #[test]
        fn as_many_dynos_as_uids_have_their_own_first_choice(more in 0u32..500) {
            let uids = uids(3000, 3000 + more);
            let pool = Pool::new(None, uids).unwrap();
            let first: HashSet<_> = (3000..=3000 + more).filter_map(|uid| pool.for_uid(uid).next()).collect();
            prop_assert_eq!(first.len(), more as usize + 1);
        }
    }
}
