//! Which subnets the host itself uses, so that no dyno may have them.
//!
//! A dyno's /30 is a route of its own, more specific than nearly any other: the host would
//! lose its way to whoever has those addresses now. Only a route to everywhere is no claim.

use std::net::Ipv4Addr;

use super::{link::Route, settings::Block};
use crate::lease::{Span, Subnet};

/// A route for half of all addresses is the default route of some VPNs.
const LONGEST_DEFAULT: u8 = 1;

/// Whether this route, of the host itself, claims the addresses that it leads to.
pub(super) fn claims(route: &Route) -> bool {
    route.leads_on && route.to.length > LONGEST_DEFAULT
}

/// If these routes of the host leave no subnet of the pool: one that is in the way.
pub(super) fn obstacle(pool: Span, routes: &[Route]) -> Option<Block> {
    let mut claimed: Vec<(u32, u32, Block)> = routes
        .iter()
        .filter(|route| claims(route))
        .map(|route| (route.to.first().into(), route.to.last().into(), route.to))
        .collect();
    claimed.sort_unstable_by_key(|(first, last, _)| (*first, *last));

    let mut next = u32::from(pool.first.network());
    let end = u32::from(pool.last.network());
    let mut in_the_way: Option<Block> = None;
    for (first, last, block) in claimed {
        if last < next {
            continue;
        }
        if first > next.saturating_add(3) || next > end {
            break;
        }
        // The one that takes most is the one to name.
        in_the_way = in_the_way
            .filter(|named| named.length <= block.length)
            .or(Some(block));
        next = last.saturating_add(1).next_multiple_of(4);
    }
    in_the_way.filter(|_| next > end)
}

/// The addresses whose routes tell whether a subnet is free.
pub(super) fn addresses(subnet: Subnet) -> [Ipv4Addr; 4] {
    [
        subnet.network(),
        subnet.gateway(),
        subnet.host(),
        subnet.broadcast(),
    ]
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn block(text: &str) -> Block {
        let (address, length) = text.split_once('/').unwrap();
        Block {
            address: address.parse().unwrap(),
            length: length.parse().unwrap(),
        }
    }

    fn route(text: &str) -> Route {
        Route {
            to: block(text),
            interface: Some(2),
            is_local: false,
            leads_on: true,
        }
    }

    #[test_case(&[] => None; "no routes")]
    #[test_case(&["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"] => None; "default routes")]
    #[test_case(&["10.1.0.0/16"] => Some(block("10.1.0.0/16")); "the whole")]
    #[test_case(&["10.1.0.0/29"] => None; "half of it")]
    #[test_case(&["10.1.0.0/29", "10.1.0.8/29"] => Some(block("10.1.0.0/29")); "two halves")]
    #[test_case(&["10.1.0.1/32", "10.1.0.4/30", "10.1.0.8/29"] => Some(block("10.1.0.8/29")); "one address takes its subnet")]
    #[test_case(&["10.1.0.0/30", "10.1.0.8/29"] => None; "a hole")]
    #[test_case(&["10.1.0.0/30", "10.1.0.4/30", "10.1.0.8/30", "10.2.0.0/16"] => None; "the last is free")]
    #[test_case(&["10.0.0.0/24", "10.2.0.0/16"] => None; "elsewhere")]
    #[test_case(&["8.0.0.0/5", "10.1.0.0/29"] => Some(block("8.0.0.0/5")); "one in another")]
    fn the_host_leaves_room_or_not(routes: &[&str]) -> Option<Block> {
        let pool = Span {
            first: "10.1.0.0/30".parse().unwrap(),
            last: "10.1.0.12/30".parse().unwrap(),
        };
        let routes: Vec<Route> = routes.iter().map(|text| route(text)).collect();
        obstacle(pool, &routes)
    }

    #[test]
    fn a_route_to_nowhere_claims_nothing() {
        let mut blackhole = route("10.0.0.0/8");
        blackhole.leads_on = false;
        assert!(!claims(&blackhole));
    }
}
