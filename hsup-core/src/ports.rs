//! Which port each dyno listens on, where the driver lets them share the host's network.
//!
//! The first choice is a matter of arithmetic, so that people can know it: the base (the
//! config var `PORT`, or 5000), plus 100 for each process type before this one, plus the
//! dyno's number less one. `web` always comes first, the others in the order in which
//! they were first seen, which is kept across releases; the release command, which needs none,
//! takes no place. A port that another dyno of hsup
//! has, or that the caller finds in use, is passed over. Beyond 65535 it goes on at the base.
//!
//! [`Ports`] is that arithmetic, and [`HostPorts`] looks at the host besides: what somebody
//! listens on is in use, and what another hsup has given to a dyno, whether it listens yet or not.

mod claim;
mod host;

use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::AsRawFd as _,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, setsockopt,
        socket, sockopt,
    },
};
use thiserror::Error;

use self::claim::is_claimed;
pub use self::host::HostPorts;
use crate::{
    name::{DynoName, ProcessType},
    release::ConfigVars,
};

/// The base where the config does not say.
pub const DEFAULT_BASE: u16 = 5000;

/// How many ports lie between the first dynos of two process types.
const STRIDE: u64 = 100;

/// The config var `PORT` is not a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the config var PORT is not a port number from 1 to 65535")]
pub struct BasePortError;

/// Every port from the base up, and below it, is in use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no port is left for {dyno}")]
pub struct NoPortError {
    dyno: DynoName,
}

/// Reads a port number, from 1 to 65535.
pub fn parse(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port > 0)
}

/// The port that the first `web` dyno gets: the config var `PORT`, or 5000.
///
/// Where every dyno has its own network all dynos get this one, and so does `run`.
///
/// # Errors
/// When the config var is no port.
pub fn base(config: &ConfigVars) -> Result<u16, BasePortError> {
    config
        .get("PORT")
        .map_or(Ok(DEFAULT_BASE), |text| parse(text).ok_or(BasePortError))
}

/// The ports of all dynos that share the host's network.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    /// All process types but `web` and `release`, in first-seen order.
    types: Vec<ProcessType>,
    /// Two dynos of one name may run beside each other while one takes the other's place.
    held: HashMap<u16, DynoName>,
}

/// What a dyno got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allotted {
    /// Its port.
    pub port: u16,
    /// The port that it would have, were it free; when it is another one, say so.
    pub first_choice: u16,
}

impl Ports {
    /// Nothing is allotted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives each process type that is new its place, after those that are known.
    pub fn learn<'a>(&mut self, types: impl IntoIterator<Item = &'a ProcessType>) {
        for process_type in types {
            let has_place = !process_type.is_web() && !process_type.is_release();
            if has_place && !self.types.contains(process_type) {
                self.types.push(process_type.clone());
            }
        }
    }

    /// The port that `dyno` gets when nobody has it.
    pub fn first_choice(&self, dyno: &DynoName, base: u16) -> u16 {
        let index = if dyno.process_type.is_web() {
            0
        } else {
            let place = self
                .types
                .iter()
                .position(|known| *known == dyno.process_type);
            place.unwrap_or(self.types.len()) as u64 + 1
        };
        let offset = STRIDE * index + u64::from(dyno.number.get()) - 1;
        let room = u64::from(u16::MAX - base) + 1;
        let within = u16::try_from(offset % room).unwrap_or_default();
        base + within
    }

    /// Allots a port to `dyno`, which keeps it until [`Self::free`].
    ///
    /// `in_use` is asked of each candidate that no dyno of hsup has; the last one of which it
    /// says no is the port.
    ///
    /// # Errors
    /// When there is none left.
    pub fn allot(
        &mut self,
        dyno: &DynoName,
        base: u16,
        mut in_use: impl FnMut(u16) -> bool,
    ) -> Result<Allotted, NoPortError> {
        self.learn([&dyno.process_type]);
        let first_choice = self.first_choice(dyno, base);
        let above = (first_choice..=u16::MAX).chain(base..first_choice);
        // Ports below 1024 are not for everybody, unless the base is one.
        let below = 1024.min(base)..base;
        let port = above
            .chain(below)
            .find(|port| !self.held.contains_key(port) && !in_use(*port))
            .ok_or_else(|| NoPortError { dyno: dyno.clone() })?;
        self.held.insert(port, dyno.clone());
        Ok(Allotted { port, first_choice })
    }

    /// Notes that `dyno`, found running, has `port`.
    pub fn adopt(&mut self, dyno: &DynoName, port: u16) {
        self.learn([&dyno.process_type]);
        self.held.insert(port, dyno.clone());
    }

    /// Takes `port` back, if it is `dyno`'s; whether it was.
    pub fn free(&mut self, dyno: &DynoName, port: u16) -> bool {
        let is_its = self.held.get(&port) == Some(dyno);
        if is_its {
            self.held.remove(&port);
        }
        is_its
    }
}

/// What becomes of a server that is to listen on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Free,
    /// Somebody listens there, or hsup has given it to a dyno that will.
    Taken,
    /// Only who has more rights may (`CAP_NET_BIND_SERVICE`, capabilities(7)).
    Forbidden,
}

/// What becomes of a server that is to listen on `port`.
pub fn state(port: u16) -> State {
    if is_claimed(port) {
        State::Taken
    } else {
        state_of_socket(port)
    }
}

/// Whether a server could listen on `port`; what is forbidden is for it to tell.
fn is_free(port: u16) -> bool {
    state_of_socket(port) != State::Taken
}

/// Whether a server could listen on `port`, on all addresses, IPv4 and IPv6.
///
/// Binds with `SO_REUSEADDR`, as servers do, so that connections that linger from an
/// earlier dyno do not count; and does not listen, so that nobody ever connects to us.
/// Whoever asks and then starts a server has a race with all that is no hsup, which the server's
/// own error ends. What cannot be checked, such as IPv6 on a machine without it, counts as free.
fn state_of_socket(port: u16) -> State {
    let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
    let bound = try_bind(AddressFamily::Inet, &SockaddrIn::new(0, 0, 0, 0, port))
        .and_then(|()| try_bind(AddressFamily::Inet6, &SockaddrIn6::from(any)));
    match bound {
        Err(Errno::EADDRINUSE) => State::Taken,
        Err(Errno::EACCES) => State::Forbidden,
        Ok(()) | Err(_) => State::Free,
    }
}

fn try_bind<A: SockaddrLike>(family: AddressFamily, address: &A) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let Ok(fd) = socket(family, SockType::Stream, flags, None) else {
        return Ok(());
    };
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), address)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::TcpListener};

    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    /// Where ports begin that nobody is given by chance, and this run of the tests has to itself.
    pub(super) fn own_base() -> u16 {
        let place = std::process::id() % 100;
        61_000 + u16::try_from(place).unwrap() * 40
    }

    fn name(text: &str) -> DynoName {
        text.parse().unwrap()
    }

    fn types(names: &[&str]) -> Vec<ProcessType> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test_case("web.1" => 5000)]
    #[test_case("web.3" => 5002)]
    #[test_case("worker.1" => 5100)]
    #[test_case("clock.2" => 5201)]
    #[test_case("unheard.1" => 5300)]
    #[test_case("web.60537" => 5000; "beyond the last port")]
    #[test_case("web.4294967295" => 64166; "far beyond")]
    fn the_first_choice_of(dyno: &str) -> u16 {
        let mut ports = Ports::new();
        ports.learn(&types(&["worker", "web", "clock", "worker"]));
        ports.first_choice(&name(dyno), 5000)
    }

    #[test]
    fn an_index_is_kept_when_a_release_names_others() {
        let mut ports = Ports::new();
        ports.learn(&types(&["worker"]));
        ports.learn(&types(&["clock", "web"]));
        assert_eq!(ports.first_choice(&name("worker.1"), 5000), 5100);
        assert_eq!(ports.first_choice(&name("clock.1"), 5000), 5200);
    }

    #[test]
    fn a_release_command_takes_no_place() {
        let mut ports = Ports::new();
        let command = ports.allot(&name("release.1"), 5000, |_| false).unwrap();
        ports.free(&name("release.1"), command.port);
        let worker = ports.allot(&name("worker.1"), 5000, |_| false).unwrap();
        assert_eq!(worker.port, 5100);
    }

    #[test]
    fn what_others_use_is_passed_over() {
        let mut ports = Ports::new();
        let allotted = ports
            .allot(&name("web.1"), 5000, |port| port < 5003)
            .unwrap();
        assert_eq!(
            allotted,
            Allotted {
                port: 5003,
                first_choice: 5000
            }
        );
        ports.free(&name("web.1"), 5003);
        let again = ports.allot(&name("web.1"), 5000, |_| false).unwrap();
        assert_eq!(again.port, 5000);
        let other = ports.allot(&name("web.2"), 4999, |_| false).unwrap();
        assert_eq!(other.port, 5001, "web.1 has the first choice");
        ports.free(&name("web.2"), 5000);
        ports.free(&name("web.1"), 5000);
        let other = ports.allot(&name("web.2"), 4999, |_| false).unwrap();
        assert_eq!(other.port, 5000, "only who has a port can give it back");
    }

    #[test]
    fn one_that_takes_anothers_place_beside_it_has_a_port_of_its_own() {
        let mut ports = Ports::new();
        let worker = name("worker.1");
        let [old, new] = [0; 2].map(|_| ports.allot(&worker, 5000, |_| false).unwrap().port);
        assert_ne!(old, new);
        ports.free(&worker, old);
        let other = ports.allot(&name("worker.2"), new - 1, |_| false);
        assert_ne!(other.unwrap().port, new, "the new one has it");
    }

    #[test]
    fn the_end_of_the_ports_is_an_error() {
        let mut ports = Ports::new();
        ports.adopt(&name("web.9"), 65535);
        let error = ports
            .allot(&name("web.1"), 65535, |port| port < 65535)
            .unwrap_err();
        assert_eq!(error.to_string(), "no port is left for web.1");
    }

    #[test_case("1" => Some(1))]
    #[test_case("65535" => Some(65535))]
    #[test_case("0" => None)]
    #[test_case("65536" => None)]
    #[test_case("+1" => None)]
    #[test_case("" => None; "nothing")]
    #[test_case("$PORT" => None)]
    fn a_port(text: &str) -> Option<u16> {
        let config: ConfigVars = [("PORT", text)].into_iter().collect();
        assert_eq!(base(&config).ok(), parse(text));
        parse(text)
    }

    #[test]
    fn a_port_somebody_listens_on_is_not_free() {
        for address in ["0.0.0.0:0", "127.0.0.1:0", "[::]:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue; // A machine without IPv6.
            };
            let port = listener.local_addr().unwrap().port();
            assert!(!is_free(port), "{address}");
        }
    }

    #[test]
    fn a_port_below_those_for_everybody_is_forbidden_without_rights() {
        let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
        let first: u16 = first.unwrap().trim().parse().unwrap();
        let forbidden = (1..first).rev().find(|port| state(*port) != State::Taken);
        let Some(port) = forbidden else {
            return; // Everybody may have any.
        };
        let expected = if nix::unistd::geteuid().is_root() {
            State::Free
        } else {
            State::Forbidden
        };
        assert_eq!(state(port), expected);
    }

    proptest! {
        #[test]
        fn no_two_dynos_share_a_port(
            base in 1u16..,
            dynos in prop::collection::vec(("web|worker|clock", 1u32..400), 1..120),
            used in prop::collection::hash_set(any::<u16>(), 0..50),
        ) {
            let mut ports = Ports::new();
            let mut given = HashSet::new();
            for (process_type, number) in &dynos {
                let dyno = name(&format!("{process_type}.{number}"));
                let got = ports.allot(&dyno, base, |port| used.contains(&port));
                if let Ok(allotted) = got {
                    prop_assert!(allotted.port > 0 && !used.contains(&allotted.port));
                    prop_assert!(allotted.first_choice >= base);
                    prop_assert!(given.insert(allotted.port), "given twice");
                }
            }
        }
    }
}
