//! The network of one dyno: a namespace, and a pair of links into it.
//!
//! All of it is made by one thread that lives no longer than that. It opens a socket to the
//! host's links, moves into a new namespace, opens another one there, and asks the kernel for
//! one thing after the other. The namespace has no name and no mount: whoever holds its
//! descriptor, or lives in it, keeps it, and with the last of them it goes, the links too.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{OFlag, open, openat},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
};

use super::{
    error::{NetError, failed},
    link::Link,
    names::{GROUP, Names},
    netlink::Rtnl,
    settings::{Block, ExtraInterface, ExtraRoute, Interface},
};
use crate::lease::{Lease, Subnet};

const MTU: u32 = 1500;
/// For one second, a dyno that has gone may still have the address of the extra interface:
/// the kernel takes its time to clean up a namespace, and tells nobody when it has.
const ADDRESS_TRIES: u32 = 50;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);
const LOOPBACK: &str = "lo";
const IPV4_INTERFACES: &str = "/proc/sys/net/ipv4/conf";
const IPV6_INTERFACES: &str = "/proc/sys/net/ipv6/conf";
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
/// Who may ping without a capability: everybody, as in Docker's containers.
const PING: (&str, &str) = ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");

/// The network of a dyno that is about to start.
#[derive(Debug)]
pub struct DynoNet {
    /// The namespace. It goes when this is closed, unless the dyno lives in it.
    pub netns: OwnedFd,
    /// The name of the host's end of the link.
    pub interface: String,
}

/// The settings of the host's interfaces. As directories, since a path leads to those of the
/// namespace of the thread that walks it.
#[derive(Debug)]
pub(super) struct HostInterfaces {
    ipv4: Option<OwnedFd>,
    ipv6: Option<OwnedFd>,
}

impl HostInterfaces {
    pub(super) fn open() -> Self {
        let directory = |path| {
            let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            open(path, flags, Mode::empty()).ok()
        };
        Self {
            ipv4: directory(IPV4_INTERFACES),
            ipv6: directory(IPV6_INTERFACES),
        }
    }

    /// Whether the host forwards packets, as far as can be seen. A path from the root would be
    /// looked up among those of all namespaces, which a thousand dynos feel.
    pub(super) fn forward(&self) -> bool {
        let Some(directory) = &self.ipv4 else {
            return false;
        };
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut text = String::new();
        let read = openat(directory, "../ip_forward", flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| File::from(file).read_to_string(&mut text));
        read.is_ok() && text.trim() == "1"
    }

    /// No IPv6 and only the dyno's own addresses on this interface. Where it can't be set, the
    /// rules of the table still see to it.
    fn confine(&self, interface: &str) {
        for (directory, name, value) in [
            (&self.ipv6, "disable_ipv6", "1"),
            (&self.ipv4, "rp_filter", "1"),
        ] {
            let Some(directory) = directory else { continue };
            let path = Path::new(interface).join(name);
            let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let done = openat(directory, &path, flags, Mode::empty())
                .map_err(io::Error::from)
                .and_then(|file| File::from(file).write_all(value.as_bytes()));
            if let Err(error) = done {
                tracing::debug!(interface, name, %error, "left an interface as it is");
            }
        }
    }
}

/// What to make.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) names: &'a Names,
    pub(super) host: &'a HostInterfaces,
    pub(super) extra_interface: Option<&'a ExtraInterface>,
    pub(super) extra_routes: &'a [ExtraRoute],
}

impl Plan<'_> {
    /// Makes it. The calling thread is in another namespace then, and of no other use.
    pub(super) fn carry_out(&self, lease: &Lease) -> Result<DynoNet, NetError> {
        let mut host = Rtnl::open().map_err(failed("open a netlink socket"))?;
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| failed("make a network namespace")(error.into()))?;
        let netns: OwnedFd = File::open("/proc/thread-self/ns/net")
            .map_err(failed("open the network namespace"))?
            .into();
        prepare_namespace()?;
        let mut dyno = Rtnl::open().map_err(failed("open a netlink socket in the namespace"))?;

        let subnet = lease.subnet;
        let interface = self.names.interface(subnet);
        self.add_pair(&mut host, &interface, subnet, &netns)?;
        let connected = self
            .connect_host(&mut host, &interface, subnet)
            .and_then(|()| connect_dyno(&mut dyno, subnet))
            .and_then(|()| self.add_extras(&mut host, &mut dyno, &netns, subnet));
        if let Err(error) = connected {
            // So that the name is free again at once, not when the namespace has gone.
            if let Ok(Some(link)) = host.find(&interface) {
                let _best_effort = host.delete(link.index);
            }
            return Err(error);
        }
        Ok(DynoNet { netns, interface })
    }

    /// Adds the pair of links, in place of one that a crash left behind: the subnet is
    /// leased to us, so nobody else uses it.
    fn add_pair(
        &self,
        host: &mut Rtnl,
        interface: &str,
        subnet: Subnet,
        netns: &OwnedFd,
    ) -> Result<(), NetError> {
        let add = |host: &mut Rtnl| host.add_pair(interface, GROUP, "eth0", netns.as_fd(), MTU);
        let operation = || format!("make the links {interface} and eth0");
        match add(host) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if let Some(link) = host.find(interface).map_err(failed(operation()))? {
                    // A crash between making it and naming it leaves it without an alias.
                    let alias = link.alias.as_deref();
                    let ours = alias.is_none_or(|alias| alias == self.names.alias(subnet));
                    if link.group != GROUP || !ours {
                        let interface = interface.to_owned();
                        return Err(NetError::Taken { interface });
                    }
                    tracing::info!(interface, "replacing a link that a crash left behind");
                    host.delete(link.index).map_err(failed(operation()))?;
                }
                add(host).map_err(failed(operation()))
            }
            done => done.map_err(failed(operation())),
        }
    }

    fn connect_host(
        &self,
        host: &mut Rtnl,
        interface: &str,
        subnet: Subnet,
    ) -> Result<(), NetError> {
        let operation = || format!("set up {interface}");
        // Before it is up, when it would get an address of IPv6 by itself.
        self.host.confine(interface);
        let index = host.index_of(interface).map_err(failed(operation()))?;
        let gateway = Block {
            address: subnet.gateway(),
            length: Subnet::PREFIX,
        };
        host.add_address(index, gateway)
            .and_then(|()| host.set_up_with_alias(index, &self.names.alias(subnet)))
            .map_err(failed(operation()))
    }

    fn add_extras(
        &self,
        host: &mut Rtnl,
        dyno: &mut Rtnl,
        netns: &OwnedFd,
        subnet: Subnet,
    ) -> Result<(), NetError> {
        if let Some(extra) = self.extra_interface {
            add_extra_interface(host, dyno, netns, extra)?;
        }
        for route in self.extra_routes {
            let operation = || format!("add the route to {} in the dyno", route.to);
            let name = route.interface.name();
            let index = dyno.index_of(name).map_err(failed(operation()))?;
            let gateway = route.gateway.unwrap_or_else(|| subnet.gateway());
            // A link without neighbours takes any gateway for what it is: the way out.
            let onlink = match route.interface {
                Interface::Eth0 => false,
                Interface::Eth1 => self
                    .extra_interface
                    .is_some_and(|extra| !extra.address.contains(gateway)),
            };
            dyno.add_route(Some(route.to), gateway, index, onlink)
                .map_err(failed(operation()))?;
        }
        Ok(())
    }
}

/// Whether this host can give dynos their extra interface.
pub(super) fn check_extra_interface(
    host: &mut Rtnl,
    extra: &ExtraInterface,
) -> Result<(), NetError> {
    parent_of(host, extra)?;
    // Made of nothing, so that it is refused in any case: the question is why.
    match host.add_ipvlan_of_nothing() {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Err(NetError::NoIpvlan(error))
        }
        _ => Ok(()),
    }
}

fn parent_of(host: &mut Rtnl, extra: &ExtraInterface) -> Result<Link, NetError> {
    let found = host.find(&extra.parent);
    found
        .map_err(failed(format!("look for the interface {}", extra.parent)))?
        .ok_or_else(|| NetError::NoParent {
            parent: extra.parent.clone(),
        })
}

/// What must be so in a namespace before there is a link in it.
fn prepare_namespace() -> Result<(), NetError> {
    for (path, value) in [(NO_IPV6, "1"), PING] {
        match write(path, value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                let path = PathBuf::from(path);
                return Err(NetError::Sysctl { path, source });
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

fn connect_dyno(dyno: &mut Rtnl, subnet: Subnet) -> Result<(), NetError> {
    let own = Block {
        address: subnet.host(),
        length: Subnet::PREFIX,
    };
    let loopback = dyno.index_of(LOOPBACK);
    loopback
        .and_then(|index| dyno.set_up(index))
        .map_err(failed("set up lo in the dyno"))?;
    let eth0 = dyno.index_of(Interface::Eth0.name());
    eth0.and_then(|index| {
        dyno.add_address(index, own)?;
        dyno.set_up(index)?;
        dyno.add_route(None, subnet.gateway(), index, false)
    })
    .map_err(failed("set up eth0 in the dyno"))
}

fn add_extra_interface(
    host: &mut Rtnl,
    dyno: &mut Rtnl,
    netns: &OwnedFd,
    extra: &ExtraInterface,
) -> Result<(), NetError> {
    let name = Interface::Eth1.name();
    let operation = || format!("make eth1 in the dyno on {}", extra.parent);
    let parent = parent_of(host, extra)?;
    host.add_ipvlan(name, parent.index, netns.as_fd())
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => NetError::NoIpvlan(error),
            _ => failed(operation())(error),
        })?;
    let index = dyno.index_of(name).map_err(failed(operation()))?;
    let mut tries = ADDRESS_TRIES;
    while let Err(error) = dyno.add_address(index, extra.address) {
        if error.raw_os_error() != Some(libc::EADDRINUSE) {
            return Err(failed(operation())(error));
        }
        tries -= 1;
        if tries == 0 {
            let address = extra.address.to_string();
            return Err(NetError::AddressInUse { address });
        }
        thread::sleep(BETWEEN_TRIES);
    }
    dyno.set_up(index).map_err(failed(operation()))
}

fn write(path: &str, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(value.as_bytes())
}
