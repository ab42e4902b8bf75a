//! Links, addresses and routes: what is asked of the kernel, one thing at a time.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use rtnetlink::{
    AddressMessageBuilder, LinkIpVlan, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{InfoData, InfoVeth, IpVlanMode, LinkAttribute, LinkExtentMask, LinkMessage},
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope,
            RouteType,
        },
    },
};

use super::{netlink::Rtnl, settings::Block};

const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) group: u32,
    pub(super) alias: Option<String>,
}

/// Where the kernel sends packets for a block of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Block,
    pub(super) interface: Option<u32>,
    /// An address of this host, in its local table.
    pub(super) is_local: bool,
    /// Packets go on from here; it is not just a note that there is no way.
    pub(super) leads_on: bool,
}

impl Rtnl {
    /// The link of this name.
    pub(super) fn find(&mut self, name: &str) -> io::Result<Option<Link>> {
        let wanted = LinkUnspec::new_with_name(name)
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        match self.ask(RouteNetlinkMessage::GetLink(wanted), 0) {
            Ok(answers) => Ok(answers.iter().find_map(link)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link of this name, which there must be.
    pub(super) fn index_of(&mut self, name: &str) -> io::Result<u32> {
        let found = self.find(name)?;
        found
            .map(|link| link.index)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// All links.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let wanted = LinkMessageBuilder::<LinkUnspec>::new()
            .append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
            .build();
        let answers = self.dump(RouteNetlinkMessage::GetLink(wanted))?;
        Ok(answers.iter().filter_map(link).collect())
    }

    /// A pair of links: one here, and `peer`, which is in the namespace from the start, so
    /// that its name is free for certain.
    pub(super) fn add_pair(
        &mut self,
        name: &str,
        group: u32,
        peer: &str,
        namespace: BorrowedFd<'_>,
        mtu: u32,
    ) -> io::Result<()> {
        // One queue each: by default there are as many as CPUs, and each costs time.
        let queues = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        let [send, receive] = queues.clone();
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .append_extra_attribute(send)
            .append_extra_attribute(receive)
            .name(peer)
            .mtu(mtu)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        // The peer's name here is replaced by the whole message of the peer.
        let [send, receive] = queues;
        let pair = LinkMessageBuilder::<LinkVeth>::new(name, "")
            .append_extra_attribute(send)
            .append_extra_attribute(receive)
            .mtu(mtu)
            .link_group(group)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.ask(RouteNetlinkMessage::NewLink(pair), NEW).map(drop)
    }

    /// A link in the namespace that shares the hardware of `parent` here, for routed packets
    /// only.
    pub(super) fn add_ipvlan(
        &mut self,
        name: &str,
        parent: u32,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let link = LinkIpVlan::new(name, parent, IpVlanMode::L3)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        self.ask(RouteNetlinkMessage::NewLink(link), NEW).map(drop)
    }

    /// Asks for an ipvlan link without a parent, which no kernel makes. One that knows no such
    /// links says `EOPNOTSUPP`.
    pub(super) fn add_ipvlan_of_nothing(&mut self) -> io::Result<()> {
        let link = LinkMessageBuilder::<LinkIpVlan>::new("hs-probe").build();
        self.ask(RouteNetlinkMessage::NewLink(link), NEW).map(drop)
    }

    pub(super) fn set_up(&mut self, index: u32) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(index).up().build();
        self.ask(RouteNetlinkMessage::SetLink(link), 0).map(drop)
    }

    pub(super) fn set_up_with_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(index).alias(alias).up().build();
        self.ask(RouteNetlinkMessage::SetLink(link), 0).map(drop)
    }

    pub(super) fn delete(&mut self, index: u32) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(index).build();
        match self.ask(RouteNetlinkMessage::DelLink(link), 0) {
            // The kernel was faster: the other end's namespace went.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            done => done.map(drop),
        }
    }

    pub(super) fn add_address(&mut self, index: u32, address: Block) -> io::Result<()> {
        let address = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address.address, address.length)
            .build();
        self.ask(RouteNetlinkMessage::NewAddress(address), NEW)
            .map(drop)
    }

    /// A route by a gateway, which need not be in a network of the interface if `onlink`.
    pub(super) fn add_route(
        &mut self,
        to: Option<Block>,
        gateway: Ipv4Addr,
        interface: u32,
        onlink: bool,
    ) -> io::Result<()> {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(interface);
        if let Some(to) = to {
            route = route.destination_prefix(to.address, to.length);
        }
        if onlink {
            route = route.onlink();
        }
        self.ask(RouteNetlinkMessage::NewRoute(route.build()), NEW)
            .map(drop)
    }

    /// The route that packets to this address would take, if they have one.
    pub(super) fn route_to(&mut self, address: Ipv4Addr) -> io::Result<Option<Route>> {
        let mut wanted = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .scope(RouteScope::Universe)
            .build();
        wanted.header.table = RouteHeader::RT_TABLE_UNSPEC;
        wanted.header.flags |= RouteFlags::FibMatch;
        match self.ask(RouteNetlinkMessage::GetRoute(wanted), 0) {
            Ok(answers) => Ok(answers.iter().find_map(route)),
            // No route at all, or one that says so.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// All routes.
    pub(super) fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut wanted = RouteMessageBuilder::<Ipv4Addr>::new().build();
        wanted.header.table = RouteHeader::RT_TABLE_UNSPEC;
        let answers = self.dump(RouteNetlinkMessage::GetRoute(wanted))?;
        Ok(answers.iter().filter_map(route).collect())
    }
}

fn link(answer: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(LinkMessage {
        header, attributes, ..
    }) = answer
    else {
        return None;
    };
    let mut link = Link {
        index: header.index,
        name: String::new(),
        group: 0,
        alias: None,
    };
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            _ => {}
        }
    }
    Some(link)
}

fn route(answer: &RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(RouteMessage {
        header, attributes, ..
    }) = answer
    else {
        return None;
    };
    if header.address_family != AddressFamily::Inet {
        return None;
    }
    let mut route = Route {
        to: Block {
            address: Ipv4Addr::UNSPECIFIED,
            length: header.destination_prefix_length,
        },
        interface: None,
        is_local: header.kind == RouteType::Local,
        leads_on: !matches!(
            header.kind,
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw
        ),
    };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                route.to.address = *address;
            }
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            _ => {}
        }
    }
    Some(route)
}
