//! The ports of this host that dynos have, each with the claim that keeps other hsups off it.

use std::collections::HashMap;

use super::{Allotted, NoPortError, Ports, claim::Claim, is_free};
use crate::name::{DynoName, ProcessType};

/// The ports of all dynos that share the host's network, and hsup's claims on them.
#[derive(Debug, Default)]
pub struct HostPorts {
    ports: Ports,
    /// Of ports that a dyno has, and of no others.
    claims: HashMap<u16, Claim>,
}

impl HostPorts {
    /// Nothing is allotted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives each process type that is new its place, after those that are known.
    pub fn learn<'a>(&mut self, types: impl IntoIterator<Item = &'a ProcessType>) {
        self.ports.learn(types);
    }

    /// Allots a port to `dyno` that nobody uses and no other hsup has allotted; it keeps it
    /// until [`Self::free`].
    ///
    /// # Errors
    /// When there is none left.
    pub fn allot(&mut self, dyno: &DynoName, base: u16) -> Result<Allotted, NoPortError> {
        let mut claim = None;
        let in_use = |port| {
            // The claim first: whether a port is free is found by a bind, which may be in the
            // way of another hsup's dyno that is about to listen.
            claim = Claim::of(port).filter(|_| is_free(port));
            claim.is_none()
        };
        let allotted = self.ports.allot(dyno, base, in_use)?;
        self.claims
            .extend(claim.map(|claim| (allotted.port, claim)));
        Ok(allotted)
    }

    /// Notes that `dyno`, found running, has `port`, whoever may have claimed it since.
    pub fn adopt(&mut self, dyno: &DynoName, port: u16) {
        self.ports.adopt(dyno, port);
        self.claims
            .extend(Claim::of(port).map(|claim| (port, claim)));
    }

    /// Takes `port` back, if it is `dyno`'s.
    pub fn free(&mut self, dyno: &DynoName, port: u16) {
        if self.ports.free(dyno, port) {
            self.claims.remove(&port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{State, claim::tests::until_unclaimed, state, tests::own_base};

    fn web(number: u32) -> DynoName {
        format!("web.{number}").parse().unwrap()
    }

    #[test]
    fn two_hsups_that_begin_together_have_two_ports() {
        let [mut one, mut other] = [0; 2].map(|_| HostPorts::new());
        let base = own_base() + 10;
        let first = one.allot(&web(1), base).unwrap();
        let second = other.allot(&web(1), base).unwrap();
        assert_eq!(first.first_choice, second.first_choice);
        assert_eq!([first.port, second.port], [base, base + 1]);
        assert_eq!(state(base), State::Taken, "doctor says the same");

        one.free(&web(2), base);
        assert_eq!(state(base), State::Taken, "it is web.1's");
        one.free(&web(1), base);
        until_unclaimed(base);
        assert_eq!(state(base), State::Free);
        assert_eq!(other.allot(&web(2), base).unwrap().port, base + 2);
        assert_eq!(other.allot(&web(3), base).unwrap().port, base + 3);
        drop(other);
        until_unclaimed(base + 1);
        assert_eq!(one.allot(&web(2), base).unwrap().port, base + 1);
    }

    #[test]
    fn what_a_dyno_of_an_earlier_life_has_is_claimed_again() {
        let base = own_base() + 20;
        let mut earlier = HostPorts::new();
        earlier.allot(&web(1), base).unwrap();
        let mut next = HostPorts::new();
        // The earlier hsup is not quite gone: the dyno has its port all the same.
        next.adopt(&web(1), base);
        drop(earlier);
        until_unclaimed(base);
        next.adopt(&web(1), base);
        assert_eq!(state(base), State::Taken);
        next.free(&web(1), base);
        until_unclaimed(base);
        assert_eq!(next.allot(&web(1), base).unwrap().port, base);
    }
}
