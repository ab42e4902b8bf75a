//! What the operator says about the network of dynos, read from variables.

use std::{
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::lease::Pool;

/// Whom dynos may talk to besides the world outside: words with commas between them.
///
/// - `dynos`: each other, and those of other work directories that allow it too
/// - `host`: every address of this host
/// - a block such as `192.0.2.0/24`: the addresses of this host in it
/// - `inbound`: whoever has a route to a dyno through this host may open connections to it
pub const ALLOW_VARIABLE: &str = "LIBCONTAINER_DYNO_ALLOW";
/// `IF:IP/LENGTH`: an interface of the host that each dyno gets an `eth1` on, and the address
/// of that.
pub const EXTRA_INTERFACE_VARIABLE: &str = "LIBCONTAINER_DYNO_EXTRA_INTERFACE";
/// `BLOCK:GATEWAY:IF`, with commas between them: more routes in each dyno. `default` is the
/// gateway that the dyno has anyway, and the interface is `eth0` or `eth1`.
pub const EXTRA_ROUTES_VARIABLE: &str = "LIBCONTAINER_DYNO_EXTRA_ROUTES";

const ALLOW_WORDS: &str = "`dynos`, `host`, `inbound` or a block of addresses such as 192.0.2.0/24";
/// What the kernel allows, without the NUL.
const LONGEST_INTERFACE: usize = 15;

/// Everything that the network of dynos depends on.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) work_dir: PathBuf,
    pub(super) pool: Pool,
    pub(super) allow: Allow,
    pub(super) extra_interface: Option<ExtraInterface>,
    pub(super) extra_routes: Vec<ExtraRoute>,
}

/// Whom dynos may talk to besides the world outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Allow {
    pub(super) dynos: bool,
    pub(super) host: bool,
    pub(super) inbound: bool,
    pub(super) blocks: Vec<Block>,
}

/// An address and how many of its bits name a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) address: Ipv4Addr,
    pub(super) length: u8,
}

/// The interface that each dyno has besides its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtraInterface {
    /// Of the host.
    pub(super) parent: String,
    /// Of `eth1` in the dyno.
    pub(super) address: Block,
}

/// A route in each dyno.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtraRoute {
    pub(super) to: Block,
    /// The dyno's own gateway, if none.
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) interface: Interface,
}

/// An interface in the dyno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interface {
    Eth0,
    Eth1,
}

/// What is wrong with a variable.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingsError {
    /// A word that allows nothing.
    #[error("{ALLOW_VARIABLE}: entry {entry} is `{value}`: write {ALLOW_WORDS}")]
    Allow {
        /// Which, from 1.
        entry: usize,
        /// As it is written.
        value: String,
    },
    /// The extra interface is not one.
    #[error(
        "{EXTRA_INTERFACE_VARIABLE} is `{value}`: {problem}; write IF:IP/LENGTH, such as eth1:10.0.0.5/24"
    )]
    ExtraInterface {
        /// As it is written.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A route is not one.
    #[error(
        "{EXTRA_ROUTES_VARIABLE}: entry {entry} is `{value}`: {problem}; write BLOCK:GATEWAY:IF, such as 10.0.0.0/8:default:eth0"
    )]
    ExtraRoute {
        /// Which, from 1.
        entry: usize,
        /// As it is written.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Settings {
    /// Reads the variables of the network of the dynos of `work_dir`.
    pub fn parse(
        work_dir: &Path,
        pool: Pool,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let value = |name| variable(name).unwrap_or_default().trim().to_owned();
        let extra_interface = extra_interface(&value(EXTRA_INTERFACE_VARIABLE))?;
        let gateways = Gateways {
            eth0: (pool.count() == 1).then(|| pool.span().first.gateway()),
            eth1: extra_interface.as_ref().map(|extra| extra.address.address),
        };
        Ok(Self {
            work_dir: work_dir.to_owned(),
            allow: allow(&value(ALLOW_VARIABLE))?,
            extra_routes: extra_routes(&value(EXTRA_ROUTES_VARIABLE), gateways)?,
            extra_interface,
            pool,
        })
    }
}

impl Block {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        let length = digits.then(|| length.parse().ok()).flatten()?;
        Some(Self {
            address: address.parse().ok()?,
            length,
        })
        .filter(|block| block.length <= 32)
    }

    pub(super) fn first(self) -> Ipv4Addr {
        (u32::from(self.address) & self.mask()).into()
    }

    pub(super) fn last(self) -> Ipv4Addr {
        (u32::from(self.address) | !self.mask()).into()
    }

    pub(super) fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.first())
    }

    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.length))
            .unwrap_or(0)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Interface {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eth0 => "eth0",
            Self::Eth1 => "eth1",
        }
    }
}

fn entries(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.split(','))
        .map(|(entry, value)| (entry, value.trim()))
        .filter(move |_| !text.is_empty())
}

fn allow(text: &str) -> Result<Allow, SettingsError> {
    let mut allow = Allow::default();
    for (entry, value) in entries(text) {
        match value {
            "dynos" => allow.dynos = true,
            "host" => allow.host = true,
            "inbound" => allow.inbound = true,
            block => {
                let block = Block::parse(block).ok_or_else(|| SettingsError::Allow {
                    entry,
                    value: value.to_owned(),
                })?;
                allow.blocks.push(block);
            }
        }
    }
    Ok(allow)
}

fn extra_interface(text: &str) -> Result<Option<ExtraInterface>, SettingsError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |problem| SettingsError::ExtraInterface {
        value: text.to_owned(),
        problem,
    };
    // The last colon: the name of an interface may hold one.
    let (parent, address) = text
        .rsplit_once(':')
        .ok_or_else(|| wrong("there is no colon in it"))?;
    let nameable = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if parent.is_empty() || parent.len() > LONGEST_INTERFACE || !parent.bytes().all(nameable) {
        return Err(wrong("what is before the colon is no name of an interface"));
    }
    let address = Block::parse(address)
        .ok_or_else(|| wrong("what is after the colon is no IPv4 address with a prefix length"))?;
    let usable = (1..=32).contains(&address.length)
        && !address.address.is_multicast()
        && !address.address.is_loopback()
        && !address.address.is_unspecified();
    if !usable {
        return Err(wrong("no interface can have that address"));
    }
    Ok(Some(ExtraInterface {
        parent: parent.to_owned(),
        address,
    }))
}

fn extra_routes(text: &str, gateways: Gateways) -> Result<Vec<ExtraRoute>, SettingsError> {
    entries(text)
        .map(|(entry, value)| {
            extra_route(value, gateways).map_err(|problem| SettingsError::ExtraRoute {
                entry,
                value: value.to_owned(),
                problem,
            })
        })
        .collect()
}

/// What decides whether a dyno can reach a gateway.
#[derive(Debug, Clone, Copy)]
struct Gateways {
    /// The gateway of all dynos, where they have one and the same.
    eth0: Option<Ipv4Addr>,
    /// The dyno's own address on `eth1`, if it has that.
    eth1: Option<Ipv4Addr>,
}

impl Gateways {
    fn check(self, gateway: Ipv4Addr, interface: Interface) -> Result<(), &'static str> {
        let is_anybody = !gateway.is_unspecified()
            && !gateway.is_loopback()
            && !gateway.is_multicast()
            && !gateway.is_broadcast();
        match interface {
            _ if !is_anybody => Err("its gateway is an address that no gateway can have"),
            Interface::Eth0 if self.eth0 != Some(gateway) => {
                Err("by eth0 a dyno reaches no gateway but its own: write `default`")
            }
            Interface::Eth1 if self.eth1 == Some(gateway) => {
                Err("its gateway is the dyno's own address on eth1")
            }
            _ => Ok(()),
        }
    }
}

fn extra_route(text: &str, gateways: Gateways) -> Result<ExtraRoute, &'static str> {
    let parts: Vec<&str> = text.split(':').collect();
    let [to, gateway, interface] = parts[..] else {
        return Err("it has not three parts with colons between them");
    };
    let to = Block::parse(to)
        .ok_or("its first part is no block of IPv4 addresses with a prefix length")?;
    if to.address != to.first() {
        return Err("its block has bits set beyond the prefix length");
    }
    let gateway = match gateway {
        "default" => None,
        address => Some(
            address
                .parse()
                .map_err(|_| "its second part is neither an IPv4 address nor `default`")?,
        ),
    };
    let interface = match interface {
        "eth0" => Interface::Eth0,
        "eth1" if gateways.eth1.is_some() => Interface::Eth1,
        "eth1" => {
            return Err("dynos have no eth1 unless LIBCONTAINER_DYNO_EXTRA_INTERFACE gives one");
        }
        _ => return Err("its third part is neither `eth0` nor `eth1`"),
    };
    if let Some(gateway) = gateway {
        gateways.check(gateway, interface)?;
    }
    Ok(ExtraRoute {
        to,
        gateway,
        interface,
    })
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::lease::UidRange;

    fn parse(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let pool = Pool::new(None, UidRange::default()).unwrap();
        Settings::parse(Path::new("/var/lib/hsup"), pool, |name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn block(text: &str) -> Block {
        Block::parse(text).unwrap()
    }

    #[test]
    fn without_variables_nothing_is_allowed_or_added() {
        for variables in [
            &[][..],
            &[(ALLOW_VARIABLE, " "), (EXTRA_ROUTES_VARIABLE, "")],
        ] {
            let settings = parse(variables).unwrap();
            assert_eq!(settings.allow, Allow::default());
            assert_eq!(settings.extra_interface, None);
            assert_eq!(settings.extra_routes, []);
        }
    }

    #[test]
    fn the_variables_are_the_originals() {
        let settings = parse(&[
            (ALLOW_VARIABLE, "dynos, 192.0.2.7/24,host"),
            (EXTRA_INTERFACE_VARIABLE, "bond0:1:10.0.0.5/24"),
            (
                EXTRA_ROUTES_VARIABLE,
                "10.0.0.0/8:10.0.0.1:eth1, 192.0.2.0/24:default:eth0",
            ),
        ])
        .unwrap();
        let blocks = vec![block("192.0.2.7/24")];
        let allow = Allow {
            dynos: true,
            host: true,
            inbound: false,
            blocks,
        };
        assert_eq!(settings.allow, allow);
        let extra = settings.extra_interface.unwrap();
        assert_eq!(
            (extra.parent.as_str(), extra.address),
            ("bond0:1", block("10.0.0.5/24"))
        );
        let routes = [
            ExtraRoute {
                to: block("10.0.0.0/8"),
                gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
                interface: Interface::Eth1,
            },
            ExtraRoute {
                to: block("192.0.2.0/24"),
                gateway: None,
                interface: Interface::Eth0,
            },
        ];
        assert_eq!(settings.extra_routes, routes);
    }

    #[test_case(ALLOW_VARIABLE, "host,dyno", "LIBCONTAINER_DYNO_ALLOW: entry 2 is `dyno`: write `dynos`, `host`"; "a word")]
    #[test_case(ALLOW_VARIABLE, "host,", "entry 2 is ``"; "an empty entry")]
    #[test_case(ALLOW_VARIABLE, "10.0.0.0/33", "entry 1 is `10.0.0.0/33`"; "a block")]
    #[test_case(EXTRA_INTERFACE_VARIABLE, "eth1", "LIBCONTAINER_DYNO_EXTRA_INTERFACE is `eth1`: there is no colon"; "no address")]
    #[test_case(EXTRA_INTERFACE_VARIABLE, ":10.0.0.5/24", "no name of an interface"; "no interface")]
    #[test_case(EXTRA_INTERFACE_VARIABLE, "a-name-too-long-for-linux:10.0.0.5/24", "no name of an interface"; "a long one")]
    #[test_case(EXTRA_INTERFACE_VARIABLE, "eth1:10.0.0.5", "no IPv4 address with a prefix length"; "no prefix length")]
    #[test_case(EXTRA_INTERFACE_VARIABLE, "eth1:127.0.0.5/8", "no interface can have that address"; "loopback")]
    #[test_case(EXTRA_ROUTES_VARIABLE, "10.0.0.0/8:default", "LIBCONTAINER_DYNO_EXTRA_ROUTES: entry 1 is `10.0.0.0/8:default`: it has not three parts"; "two parts")]
    #[test_case(EXTRA_ROUTES_VARIABLE, "10.0.0.0/8:default:eth0,x:y:z", "entry 2 is `x:y:z`: its first part"; "no block")]
    #[test_case(EXTRA_ROUTES_VARIABLE, "10.0.0.1/8:default:eth0", "bits set beyond the prefix length"; "a block with a host")]
    #[test_case(EXTRA_ROUTES_VARIABLE, "10.0.0.0/8:gateway:eth0", "neither an IPv4 address nor `default`"; "no gateway")]
    #[test_case(EXTRA_ROUTES_VARIABLE, "10.0.0.0/8:default:eth2", "neither `eth0` nor `eth1`"; "no interface of a dyno")]
    #[test_case(EXTRA_ROUTES_VARIABLE, "10.0.0.0/8:default:eth1", "dynos have no eth1 unless"; "an interface that is not there")]
    fn a_bad_variable_is_refused_with_entry_and_place(variable: &str, value: &str, says: &str) {
        let error = parse(&[(variable, value)]).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }

    #[test_case("10.0.0.0/8:172.16.0.29:eth0", Some("by eth0 a dyno reaches no gateway but its own"); "of one dyno")]
    #[test_case("10.0.0.0/8:0.0.0.0:eth1", Some("no gateway can have"); "none")]
    #[test_case("10.0.0.0/8:127.0.0.1:eth1", Some("no gateway can have"); "itself")]
    #[test_case("10.0.0.0/8:10.0.0.5:eth1", Some("own address on eth1"); "its own address")]
    #[test_case("10.0.0.0/8:10.0.0.1:eth1", None; "a neighbour")]
    #[test_case("10.0.0.0/8:192.0.2.1:eth1", None; "one on the link")]
    fn a_gateway_that_no_dyno_reaches_is_refused(route: &str, says: Option<&str>) {
        let parsed = parse(&[
            (EXTRA_INTERFACE_VARIABLE, "bond0:10.0.0.5/24"),
            (EXTRA_ROUTES_VARIABLE, route),
        ]);
        match says {
            None => drop(parsed.unwrap()),
            Some(says) => {
                let error = parsed.unwrap_err().to_string();
                assert!(
                    error.contains(says) && error.contains(EXTRA_ROUTES_VARIABLE),
                    "{error}"
                );
            }
        }
    }

    #[test_case("10.1.2.3/8", "10.0.0.0", "10.255.255.255")]
    #[test_case("10.1.2.3/32", "10.1.2.3", "10.1.2.3")]
    #[test_case("10.1.2.3/0", "0.0.0.0", "255.255.255.255")]
    fn a_block_has_a_first_and_a_last(text: &str, first: &str, last: &str) {
        let block = block(text);
        assert_eq!(
            (block.first().to_string(), block.last().to_string()),
            (first.to_owned(), last.to_owned())
        );
        assert!(block.contains(block.first()) && block.contains(block.last()));
    }
}
