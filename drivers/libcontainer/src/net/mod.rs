//! The network of dynos: a namespace each, a link to the host, and what their packets may do.
//!
//! ```text
//!  dyno                        host
//!  eth0 172.16.0.30/30 ─────── hs1a2b-ac10001c 172.16.0.29/30 ── (nf_tables) ── eth0 ── world
//!  default via 172.16.0.29                       table inet hsup-1a2b3c4d
//! ```
//!
//! What is one dyno's, its namespace and its links, is made by `dyno.rs` and taken down by
//! [`tear_down`]. What all dynos of one work directory and one pool of addresses share, the
//! table with the rules, is made with the first and taken down with the last of them, by
//! [`remove_table`], which nobody may call but with a lock on the leases: a dyno that holds a
//! lease can then rely on the table that it found.

mod dyno;
mod error;
mod forward;
mod legacy;
mod link;
mod names;
mod netlink;
mod nft;
mod resolver;
mod room;
mod rules;
mod settings;
mod sysctl;

use std::{
    fs, io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

pub use self::{
    dyno::DynoNet,
    error::{Fault, NetError},
    resolver::{ResolvConf, hosts},
    settings::{
        ALLOW_VARIABLE, EXTRA_INTERFACE_VARIABLE, EXTRA_ROUTES_VARIABLE, Settings, SettingsError,
    },
};
use self::{
    dyno::Plan,
    error::{failed, no_rules},
    forward::Way,
    link::Link,
    names::{GROUP, Names},
    netlink::Rtnl,
    rules::Table,
    settings::Block,
    sysctl::{HostSettings, OwnSettings},
};
use crate::lease::{Lease, Leases, Subnet};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// The network that dynos are connected to.
#[derive(Debug, Clone)]
pub struct Network(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Settings,
    names: Names,
    table: Table,
    host: HostSettings,
    own: OwnSettings,
    routes: Mutex<Routes>,
}

/// For the question whether a subnet is free, which is asked for one after the other.
#[derive(Debug)]
struct Routes {
    kernel: Rtnl,
    /// A block that was the host's when it was last asked for.
    claimed: Option<(Block, Instant)>,
}

/// Long enough to pass over a whole block, too short for anybody to notice.
const CLAIMED: Duration = Duration::from_secs(1);

impl Network {
    /// The network with these settings. Fails for what only other settings can mend; the rest,
    /// which the host may mend at any time, is for [`ready`](Self::ready) to tell.
    pub async fn open(mut settings: Settings) -> Result<Self, NetError> {
        blocking(move || {
            // One work directory is one, however it is written.
            settings.work_dir = settings
                .work_dir
                .canonicalize()
                .map_err(failed(format!("find `{}`", settings.work_dir.display())))?;
            let names = Names::new(&settings.work_dir, settings.pool.span());
            let table = Table::new(names.clone(), settings.pool.span(), settings.allow.clone());
            let mut kernel = Rtnl::open().map_err(failed("open a netlink socket"))?;
            if let Some(extra) = &settings.extra_interface {
                dyno::check_extra_interface(&mut kernel, extra)?;
            }
            table.try_out().map_err(no_rules)?;
            let shared = Shared {
                settings,
                names,
                table,
                host: HostSettings::open(),
                own: OwnSettings::default(),
                routes: Mutex::new(Routes {
                    kernel,
                    claimed: None,
                }),
            };
            Ok(Self(Arc::new(shared)))
        })
        .await
    }

    /// The name of the table, for [`tear_down`] and [`remove_table`].
    pub fn table(&self) -> &str {
        self.0.names.table()
    }

    /// The text of a dyno's `/etc/resolv.conf`, from what the host asks now.
    pub fn resolv_conf(&self) -> ResolvConf {
        ResolvConf::read(|server| self.0.is_open(server))
    }

    /// Whether a dyno could have a network now; if not, what is wrong and what mends it.
    ///
    /// To be called before the first dyno is made, and every now and then: it also mends what
    /// it may: forwarding of packets, our own rules if somebody flushed all there were, and
    /// those that Docker leaves to others.
    pub async fn ready(&self) -> Result<(), NetError> {
        let shared = Arc::clone(&self.0);
        blocking(move || {
            turn_on_forwarding()?;
            shared.has_room()?;
            shared.has_its_rules()?;
            shared.has_a_way()
        })
        .await
    }

    /// Whether the host does not use the addresses of this subnet for anything else.
    pub fn is_free(&self, subnet: Subnet) -> bool {
        self.0.is_free(subnet).unwrap_or_else(|error| {
            tracing::warn!(%subnet, %error, "could not see whether the host uses a subnet");
            false
        })
    }

    /// Removes what a crash left behind: links whose subnets nobody has leased, and the table
    /// if there are no dynos. Returns the names of the links.
    ///
    /// What [`Leases::free_stale`] frees shows only here that nobody uses it.
    pub async fn collect(&self) -> Result<Vec<String>, NetError> {
        let shared = Arc::clone(&self.0);
        blocking(move || shared.collect()).await
    }

    /// Makes the network of a dyno that holds `lease`. That begins at once; what is given back
    /// waits for it.
    pub fn create(
        &self,
        lease: &Lease,
    ) -> impl Future<Output = Result<DynoNet, NetError>> + Send + use<> {
        let (done, made) = oneshot::channel();
        let shared = Arc::clone(&self.0);
        let lease = *lease;
        let begun = thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || {
                // Nobody waits any more: the namespace, and the links with it, go at once.
                let _abandoned = done.send(shared.create(&lease));
            });
        async move {
            begun.map_err(failed("start a thread"))?;
            made.await
                .map_err(|_| failed("make the network")(io::Error::other("its thread ended")))?
        }
    }
}

impl Shared {
    fn create(&self, lease: &Lease) -> Result<DynoNet, NetError> {
        if !self.host.forward() {
            turn_on_forwarding()?;
        }
        self.make_rules()?;
        let plan = Plan {
            names: &self.names,
            host: &self.host,
            own: &self.own,
            extra_interface: self.settings.extra_interface.as_ref(),
            extra_routes: &self.settings.extra_routes,
        };
        plan.carry_out(lease)
    }

    fn collect(&self) -> Result<Vec<String>, NetError> {
        let work_dir = &self.settings.work_dir;
        let mut host = Rtnl::open().map_err(failed("open a netlink socket"))?;
        let mut collected = Vec::new();
        for link in host.links().map_err(failed("list the links of the host"))? {
            let Some(subnet) = self.names.subnet_of(&link.name) else {
                continue;
            };
            let alias = self.names.alias(subnet);
            if link.group != GROUP || link.alias.is_some_and(|is| is != alias) {
                continue;
            }
            let index = link.index;
            let deleted = Leases::unless_leased(work_dir, subnet, || host.delete(index))?;
            if let Some(deleted) = deleted {
                deleted.map_err(failed(format!("delete the link {}", link.name)))?;
                collected.push(link.name);
            }
        }
        let span = self.settings.pool.span();
        Leases::if_none(work_dir, span, || remove_shared(&self.names))?.unwrap_or(Ok(()))?;
        Ok(collected)
    }

    fn has_room(&self) -> Result<(), NetError> {
        let operation = "list the routes of the host";
        let mut kernel = Rtnl::open().map_err(failed(operation))?;
        let links = kernel.links().map_err(failed(operation))?;
        let ours = |index| {
            links
                .iter()
                .any(|link| link.index == index && link.group == GROUP)
        };
        let mut routes = kernel.routes().map_err(failed(operation))?;
        routes.retain(|route| !route.interface.is_some_and(ours));
        let Some(obstacle) = room::obstacle(self.settings.pool.span(), &routes) else {
            return Ok(());
        };
        let interface = routes
            .iter()
            .find(|route| route.to == obstacle)
            .and_then(|route| {
                links
                    .iter()
                    .find(|link| Some(link.index) == route.interface)
            })
            .map_or_else(String::new, |link| format!(" by {}", link.name));
        Err(NetError::NoRoom {
            block: self.settings.pool.block().to_owned(),
            route: format!("a route to {obstacle}{interface}"),
        })
    }

    /// Makes the table, unless it is there. To be called with a lease.
    fn make_rules(&self) -> Result<(), NetError> {
        let there = self.table.is_there();
        if there.map_err(failed("look for the rules of nf_tables"))? {
            return Ok(());
        }
        self.table.make().map_err(no_rules)?;
        self.open_the_way()
    }

    /// Sees to it that dynos are not without rules for longer than until the next look, when
    /// the host's administrator has all rules replaced.
    fn has_its_rules(&self) -> Result<(), NetError> {
        let there = self.table.is_there();
        if there.map_err(failed("look for the rules of nf_tables"))? {
            return Ok(());
        }
        let span = self.settings.pool.span();
        let made = Leases::if_any(&self.settings.work_dir, span, || self.make_rules());
        made?.unwrap_or(Ok(()))
    }

    /// Whether no other firewall is in the way. One that opens while dynos are there has to
    /// be opened for them now: who makes the next one finds the table, and looks no further.
    fn has_a_way(&self) -> Result<(), NetError> {
        let (way, legacy) = self.ways()?;
        match (way, legacy) {
            (Way::Open, Way::Open) => Ok(()),
            (Way::Closed { by, command }, _) | (_, Way::Closed { by, command }) => {
                Err(NetError::Closed { by, command })
            }
            _ => {
                let span = self.settings.pool.span();
                let opened = Leases::if_any(&self.settings.work_dir, span, || self.open_the_way());
                opened?.unwrap_or(Ok(()))
            }
        }
    }

    /// Lets the packets of dynos through where we may. To be called with a lease.
    fn open_the_way(&self) -> Result<(), NetError> {
        let (way, legacy) = self.ways()?;
        // Closed is for `ready` to tell: the dyno itself may need no network.
        if way == Way::Docker {
            tracing::info!("opening DOCKER-USER for dynos");
            forward::open_docker(&self.names).map_err(failed("add rules to DOCKER-USER"))?;
        }
        if legacy == Way::Docker {
            tracing::info!("opening DOCKER-USER of iptables-legacy for dynos");
            legacy::open_docker(&self.names)?;
        }
        Ok(())
    }

    /// What other firewalls do: those of `nf_tables`, and the older ones.
    fn ways(&self) -> Result<(Way, Way), NetError> {
        let way = forward::way(&self.names).map_err(failed("list the chains of nf_tables"))?;
        let legacy = legacy::way(&self.names)?;
        Ok((way, legacy))
    }

    /// Whether a dyno may talk to this address, which may be the host's own.
    fn is_open(&self, address: Ipv4Addr) -> bool {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let route = routes.kernel.route_to(address);
        let is_hosts = route.is_ok_and(|route| route.is_some_and(|route| route.is_local));
        let allow = &self.settings.allow;
        !is_hosts || allow.host || allow.blocks.iter().any(|block| block.contains(address))
    }

    fn is_free(&self, subnet: Subnet) -> io::Result<bool> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let Routes { kernel, claimed } = &mut *routes;
        let holds =
            |block: &Block| block.contains(subnet.network()) && block.contains(subnet.broadcast());
        if claimed.is_some_and(|(block, at)| holds(&block) && at.elapsed() < CLAIMED) {
            return Ok(false);
        }
        for address in room::addresses(subnet) {
            let Some(route) = kernel.route_to(address)?.filter(room::claims) else {
                continue;
            };
            // Our own link, left behind by a crash, is no claim of the host's.
            let left = kernel.find(&self.names.interface(subnet))?;
            let is_ours = |link: Link| Some(link.index) == route.interface && link.group == GROUP;
            if !left.is_some_and(is_ours) {
                *claimed = Some((route.to, Instant::now()));
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Deletes the link of a dyno that is gone, and returns when its name and its addresses are
/// free. Does nothing if there is none any more.
///
/// Blocking, and in need of no runtime. The kernel takes a while for it, about one RCU grace
/// period.
pub fn tear_down(lease: &Lease, table: &str) -> Result<(), NetError> {
    let names = Names::of_table(table).ok_or_else(|| NetError::NotOurs(table.to_owned()))?;
    let interface = names.interface(lease.subnet);
    let operation = || format!("delete the link {interface}");
    let mut host = Rtnl::open().map_err(failed(operation()))?;
    match host.find(&interface).map_err(failed(operation()))? {
        Some(link) if link.group == GROUP => host.delete(link.index).map_err(failed(operation())),
        _ => Ok(()),
    }
}

/// Removes the rules that all dynos of a pool shared, if they are there.
///
/// To be called within [`Leases::free_and`](crate::lease::Leases::free_and) or
/// [`Leases::if_none`](crate::lease::Leases::if_none), so that no dyno comes meanwhile.
pub fn remove_table(table: &str) -> Result<(), NetError> {
    let names = Names::of_table(table).ok_or_else(|| NetError::NotOurs(table.to_owned()))?;
    remove_shared(&names)
}

fn remove_shared(names: &Names) -> Result<(), NetError> {
    let closed = forward::close_docker(names).map_err(failed("remove rules from DOCKER-USER"));
    let legacy = legacy::close_docker(names).map_err(NetError::from);
    let removed = rules::remove(names).map_err(failed("remove the rules of nf_tables"));
    closed.and(legacy).and(removed)
}

/// Has the host forward packets.
fn turn_on_forwarding() -> Result<(), NetError> {
    let now = fs::read_to_string(IP_FORWARD).map_err(NetError::NoForwarding)?;
    if now.trim() == "1" {
        return Ok(());
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a setting of the kernel, not a file"
    )]
    fs::write(IP_FORWARD, "1").map_err(NetError::NoForwarding)?;
    tracing::info!("turned on net.ipv4.ip_forward, which dynos need");
    Ok(())
}

/// Runs what asks the kernel where it does not hold up others.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| failed("ask the kernel")(io::Error::other(error)))?
}

#[cfg(test)]
mod tests;
