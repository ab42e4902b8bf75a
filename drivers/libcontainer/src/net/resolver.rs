//! The text of a dyno's `/etc/resolv.conf` and `/etc/hosts`.
//!
//! A dyno asks the name servers that the host asks. One on the host's loopback is out of its
//! reach, and with `systemd-resolved` that is all that `/etc/resolv.conf` names: then those
//! that it asks in turn are meant. There is no IPv6 in a dyno, so those are left out, and so
//! are those at addresses of the host that dynos may not talk to.

use std::{fs, io, net::Ipv4Addr};

use super::settings::ALLOW_VARIABLE;

const HOSTS_OWN: &str = "/etc/resolv.conf";
/// What `systemd-resolved` asks itself.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
/// As many as the C library reads.
const MOST_SERVERS: usize = 3;

/// `/etc/resolv.conf` for a dyno, from the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// What the file holds.
    pub text: String,
    /// Whether it names any server; if not, no name can be looked up in a dyno.
    pub has_servers: bool,
}

impl ResolvConf {
    /// Reads what the host asks now. `is_open` tells whether a dyno may talk to an address.
    pub(super) fn read(is_open: impl Fn(Ipv4Addr) -> bool) -> Self {
        let read = |path| match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path, %error, "could not read the host's name servers");
                }
                String::new()
            }
        };
        let conf = Self::derive(&read(HOSTS_OWN), || read(UPSTREAM), is_open);
        if !conf.has_servers {
            tracing::warn!(
                "{HOSTS_OWN} names no server that dynos can reach, so they can't look up names: name one there, or, if it is this host itself, let dynos talk to it with {ALLOW_VARIABLE}"
            );
        }
        conf
    }

    /// What a dyno gets where the host has `own`, or `upstream` if that names none that a dyno
    /// can reach.
    fn derive(
        own: &str,
        upstream: impl FnOnce() -> String,
        is_open: impl Fn(Ipv4Addr) -> bool,
    ) -> Self {
        if let Some(text) = rewrite(own, &is_open) {
            return Self {
                text,
                has_servers: true,
            };
        }
        let text = rewrite(&upstream(), &is_open);
        Self {
            has_servers: text.is_some(),
            text: text.unwrap_or_else(|| {
                "# The host names no server that a dyno can reach.\n".to_owned()
            }),
        }
    }
}

/// The lines that mean something in a dyno; nothing if no server is left.
fn rewrite(conf: &str, is_open: &impl Fn(Ipv4Addr) -> bool) -> Option<String> {
    let mut servers = 0;
    let mut text = String::new();
    for line in conf.lines() {
        let mut words = line.split_whitespace();
        let keep = match words.next() {
            Some("nameserver") => {
                servers < MOST_SERVERS && words.next().and_then(reachable).is_some_and(is_open) && {
                    servers += 1;
                    true
                }
            }
            Some("search" | "domain" | "options" | "sortlist") => true,
            _ => false,
        };
        if keep {
            text.push_str(line.trim());
            text.push('\n');
        }
    }
    (servers > 0).then_some(text)
}

/// The address of a name server, if it is not out of a dyno's reach in any case.
fn reachable(server: &str) -> Option<Ipv4Addr> {
    // Any other is IPv6, with or without a zone, or nonsense.
    let address: Ipv4Addr = server.parse().ok()?;
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// `/etc/hosts` for a dyno with this name and address.
pub fn hosts(hostname: &str, address: Ipv4Addr) -> String {
    format!("127.0.0.1\tlocalhost\n{address}\t{hostname}\n")
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const STUB: &str =
        "# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.com\n";

    #[test_case("nameserver 10.0.0.2\n", "nameserver 10.0.0.2\n"; "as it is")]
    #[test_case("; c\n# d\n\n nameserver\t10.0.0.2 \nsearch a b\noptions ndots:2", "nameserver\t10.0.0.2\nsearch a b\noptions ndots:2\n"; "comments go, the rest stays")]
    #[test_case("nameserver fd00::1\nnameserver fe80::1%eth0\nnameserver 10.0.0.2\n", "nameserver 10.0.0.2\n"; "no ipv6")]
    #[test_case("nameserver 127.0.0.1\nnameserver 10.0.0.2\n", "nameserver 10.0.0.2\n"; "one beside the loopback")]
    #[test_case("nameserver 1.1.1.1\nnameserver 127.0.0.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4\n", "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n"; "three")]
    fn a_dyno_asks_whom_the_host_asks(own: &str, text: &str) {
        let conf = ResolvConf::derive(own, || unreachable!("the host's own is good"), |_| true);
        assert_eq!(conf.text, text);
        assert!(conf.has_servers);
    }

    #[test_case(STUB; "systemd")]
    #[test_case("nameserver ::1\n"; "loopback of ipv6")]
    #[test_case("nameserver 0.0.0.0\n"; "this host")]
    #[test_case("nameserver\nnameserver x\n"; "no address")]
    #[test_case(""; "empty")]
    fn without_a_reachable_one_it_is_whom_systemd_asks(own: &str) {
        let upstream = || "# x\nnameserver 192.0.2.53\nsearch upstream\n".to_owned();
        let conf = ResolvConf::derive(own, upstream, |_| true);
        assert_eq!(conf.text, "nameserver 192.0.2.53\nsearch upstream\n");
    }

    #[test]
    fn one_at_an_address_that_is_closed_to_dynos_is_none() {
        let own = "nameserver 10.0.0.1\nnameserver 10.0.0.2\n";
        let derive = |closed: u8| {
            let is_open = |address: Ipv4Addr| address.octets()[3] > closed;
            ResolvConf::derive(own, String::new, is_open)
        };
        assert_eq!(derive(1).text, "nameserver 10.0.0.2\n");
        assert!(!derive(2).has_servers);
    }

    #[test]
    fn with_none_at_all_the_file_says_so() {
        let conf = ResolvConf::derive(STUB, || "nameserver ::1\n".to_owned(), |_| true);
        assert!(!conf.has_servers);
        assert!(conf.text.starts_with("# ") && conf.text.lines().count() == 1);
    }

    #[test]
    fn a_dyno_knows_itself_and_no_ipv6() {
        let text = hosts("web.1", Ipv4Addr::new(172, 16, 0, 30));
        assert_eq!(text, "127.0.0.1\tlocalhost\n172.16.0.30\tweb.1\n");
    }
}
