//! The network of one dyno: a namespace, and a pair of links into it.
//!
//! All of it is made by one thread that lives no longer than that. It opens a socket to the
//! host's links, moves into a new namespace, opens another one there, and asks the kernel for
//! one thing after the other. The namespace has no name and no mount: whoever holds its
//! descriptor, or lives in it, keeps it, and with the last of them it goes, the links too.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};

use super::{
    error::{NetError, failed},
    link::Link,
    names::{GROUP, Names},
    netlink::Rtnl,
    settings::{Block, EXTRA_ROUTES_VARIABLE, ExtraInterface, ExtraRoute, Interface},
    sysctl::{HostSettings, OwnSettings},
};
use crate::lease::{Lease, Subnet};

const MTU: u32 = 1500;
/// For one second, a dyno that has gone may still have the address of the extra interface:
/// the kernel takes its time to clean up a namespace, and tells nobody when it has.
const ADDRESS_TRIES: u32 = 50;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);
const LOOPBACK: &str = "lo";

/// The network of a dyno that is about to start.
#[derive(Debug)]
pub struct DynoNet {
    /// The namespace. It goes when this is closed, unless the dyno lives in it.
    pub netns: OwnedFd,
    /// The name of the host's end of the link.
    pub interface: String,
}

/// What to make.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) names: &'a Names,
    pub(super) host: &'a HostSettings,
    pub(super) own: &'a OwnSettings,
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
        self.own.prepare()?;
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
            let operation = || {
                format!(
                    "add the route to {} in the dyno ({EXTRA_ROUTES_VARIABLE})",
                    route.to
                )
            };
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
