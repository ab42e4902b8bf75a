//! A host of our own for a test, with a world outside that knows no way back to dynos.

use std::{
    cell::Cell,
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns, unshare};

use super::{super::*, HOST, WORLD};
use crate::lease::{Pool, UidRange};

/// One dyno's network, without the dyno.
pub(super) struct Dyno {
    pub(super) lease: Lease,
    pub(super) owner: PathBuf,
    pub(super) net: DynoNet,
}

/// A host with a way to the world.
pub(super) struct Scene {
    pub(super) dir: tempfile::TempDir,
    pub(super) leases: Leases,
    pub(super) network: Network,
    pub(super) world: OwnedFd,
    pub(super) runtime: tokio::runtime::Runtime,
    owners: Cell<u32>,
}

impl Scene {
    /// Runs a test in a namespace that plays the host, and looks afterwards whether all is
    /// gone that dynos had there.
    pub(super) fn play(block: &str, variables: &[(&str, &str)], test: impl FnOnce(&Self) + Send) {
        on_new_host(|| {
            let before = traces();
            let scene = Self::set(block, variables);
            test(&scene);
            let dynos = scene.dir.path().join("subnets");
            for entry in std::fs::read_dir(&dynos).unwrap() {
                let owner = std::fs::read_to_string(entry.unwrap().path()).unwrap();
                let lease = std::fs::read(Path::new(&owner).join("lease.json")).unwrap();
                let lease: Lease = serde_json::from_slice(&lease).unwrap();
                scene.end(&lease, Path::new(&owner));
            }
            assert_eq!(traces(), before, "something was left behind");
        });
    }

    fn set(block: &str, variables: &[(&str, &str)]) -> Self {
        let world = world();
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), block, variables);
        let pool = settings.pool.clone();
        let leases = Leases::open(dir.path(), UidRange::default(), pool).unwrap();
        let runtime = runtime();
        let network = runtime.block_on(Network::open(settings)).unwrap();
        Self {
            dir,
            leases,
            network,
            world,
            runtime,
            owners: Cell::new(0),
        }
    }

    pub(super) fn take(&self) -> (Lease, PathBuf) {
        self.owners.set(self.owners.get() + 1);
        let owner = self.dir.path().join(format!("dyno.{}", self.owners.get()));
        std::fs::create_dir(&owner).unwrap();
        let lease = self
            .leases
            .take(&owner, |subnet| self.network.is_free(subnet))
            .unwrap();
        let mut file = File::create(owner.join("lease.json")).unwrap();
        serde_json::to_writer(&mut file, &lease).unwrap();
        (lease, owner)
    }

    pub(super) fn dyno(&self) -> Dyno {
        let (lease, owner) = self.take();
        let net = self.runtime.block_on(self.network.create(&lease)).unwrap();
        Dyno { lease, owner, net }
    }

    /// What a sweep does.
    pub(super) fn end(&self, lease: &Lease, owner: &Path) {
        let table = self.network.table();
        tear_down(lease, table).unwrap();
        let removed = Leases::free_and(self.dir.path(), lease, owner, || remove_table(table));
        removed.unwrap().transpose().unwrap();
    }

    pub(super) fn world_learns_the_way(&self) {
        on(&self.world, || {
            let mut world = Rtnl::open().unwrap();
            let inside = world.index_of("in0").unwrap();
            let dynos = Block {
                address: Ipv4Addr::new(172, 16, 0, 0),
                length: 12,
            };
            world.add_route(Some(dynos), HOST, inside, false).unwrap();
        });
    }
}

/// Its threads are where the one is that makes it.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

/// Connects the host to a world outside.
pub(super) fn world() -> OwnedFd {
    let world = new_namespace();
    let mut host = Rtnl::open().unwrap();
    let address = |address| Block {
        address,
        length: 24,
    };
    host.add_pair("out0", 0, "in0", world.as_fd(), 1500)
        .unwrap();
    let out = host.index_of("out0").unwrap();
    host.add_address(out, address(HOST)).unwrap();
    host.set_up(out).unwrap();
    let lo = host.index_of("lo").unwrap();
    host.set_up(lo).unwrap();
    on(&world, || {
        let mut world = Rtnl::open().unwrap();
        let inside = world.index_of("in0").unwrap();
        world.add_address(inside, address(WORLD)).unwrap();
        world.set_up(inside).unwrap();
    });
    world
}

pub(super) fn settings(dir: &Path, block: &str, variables: &[(&str, &str)]) -> Settings {
    let pool = Pool::new(Some(block), UidRange::default()).unwrap();
    let variable = |name: &str| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    Settings::parse(dir, pool, variable).unwrap()
}

/// What dynos could leave behind on the host.
pub(super) fn traces() -> (Vec<String>, Vec<String>, Vec<String>) {
    let mut host = Rtnl::open().unwrap();
    let group = |link: &link::Link| link.group == GROUP;
    let links = host.links().unwrap();
    let indexes: Vec<_> = links
        .iter()
        .filter(|link| group(link))
        .map(|link| link.index)
        .collect();
    let routes = host.routes().unwrap();
    (
        links
            .into_iter()
            .filter(group)
            .map(|link| link.name)
            .collect(),
        routes
            .into_iter()
            .filter(|route| {
                route
                    .interface
                    .is_some_and(|index| indexes.contains(&index))
            })
            .map(|route| route.to.to_string())
            .collect(),
        nft::base_chains()
            .unwrap()
            .into_iter()
            .map(|chain| format!("{} {}", chain.table, chain.name))
            .collect(),
    )
}

/// Runs `work` in a thread of its own with a network of its own.
pub(super) fn on_new_host<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let namespace = new_namespace();
    on(&namespace, work)
}

/// Runs `work` in a network namespace.
pub(super) fn on<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

pub(super) fn new_namespace() -> OwnedFd {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        File::open("/proc/thread-self/ns/net").unwrap().into()
    });
    made.join().unwrap()
}
