//! Real namespaces: one plays the host, others are dynos and the world outside.

mod firewalls;
mod host;
mod scene;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};

use self::scene::{Scene, on, traces};
use super::*;

/// Far beyond what any packet here takes, so that a lost one is told from a refused one.
const PATIENCE: Duration = Duration::from_secs(20);
const WORLD: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);

fn connect(to: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddrV4::new(to, port).into(), PATIENCE)
}

/// That the packet was refused, not lost and not answered by a closed port.
fn assert_refused(connected: io::Result<TcpStream>) {
    let error = connected.expect_err("a connection was made");
    assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{error}");
}

/// One ICMP echo. What is said against it comes as the error of the socket.
fn ping(to: Ipv4Addr) -> io::Result<()> {
    let socket: UdpSocket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )?
    .into();
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((to, 0))?;
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    socket.send(&[8, 0, 0, 0, 0, 0, 0, 1])?;
    socket.recv(&mut [0; 64]).map(drop)
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_dyno_gets_out_as_the_host_and_nobody_else_gets_in() {
    Scene::play("172.16.0.28/12", &[], |scene| {
        let one = scene.dyno();
        let two = scene.dyno();
        let (at_host, host_port) = listen();
        let (at_world, world_port) = on(&scene.world, listen);
        let (_at_two, two_port) = on(&two.net.netns, listen);
        let (at_one, one_port) = on(&one.net.netns, listen);

        on(&one.net.netns, || {
            let mut out = connect(WORLD, world_port).unwrap();
            out.write_all(b"x").unwrap();
            assert_refused(connect(two.lease.subnet.host(), two_port));
            assert_refused(connect(two.lease.subnet.gateway(), host_port));
            assert_refused(connect(HOST, host_port));
            connect(one.lease.subnet.gateway(), host_port).unwrap();
            connect(Ipv4Addr::LOCALHOST, one_port).unwrap();
            ping(WORLD).unwrap();
            ping(one.lease.subnet.gateway()).unwrap();
            for to in [two.lease.subnet.host(), two.lease.subnet.gateway(), HOST] {
                let refused = ping(to).unwrap_err();
                assert_eq!(
                    refused.raw_os_error(),
                    Some(libc::EHOSTUNREACH),
                    "{to}: {refused}"
                );
            }
        });
        let (mut came, from) = at_world.accept().unwrap();
        came.read_exact(&mut [0]).unwrap();
        assert_eq!(from.ip(), HOST, "not masqueraded");
        let (_, from) = at_host.accept().unwrap();
        assert_eq!(from.ip(), one.lease.subnet.host());

        // The host itself may, and its answers come; whoever is beyond may not.
        let mut asked = connect(one.lease.subnet.host(), one_port).unwrap();
        at_one.accept().unwrap();
        let (mut inside, _) = at_one.accept().unwrap();
        inside.write_all(b"y").unwrap();
        asked.read_exact(&mut [0]).unwrap();
        scene.world_learns_the_way();
        on(&scene.world, || {
            assert_refused(connect(one.lease.subnet.host(), one_port));
        });
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn what_a_crash_left_behind_is_collected_and_nothing_else() {
    Scene::play("172.16.0.28/12", &[], |scene| {
        let collect = || scene.runtime.block_on(scene.network.collect()).unwrap();
        let (lives, crashed) = (scene.dyno(), scene.dyno());
        assert!(collect().is_empty());

        std::fs::remove_dir_all(&crashed.owner).unwrap();
        scene.leases.free_stale().unwrap();
        assert_eq!(collect(), [crashed.net.interface]);
        assert_eq!(traces().0, std::slice::from_ref(&lives.net.interface));
        assert!(scene.network.0.table.is_there().unwrap());

        std::fs::remove_dir_all(&lives.owner).unwrap();
        scene.leases.free_stale().unwrap();
        assert_eq!(collect(), [lives.net.interface]);
        assert!(!scene.network.0.table.is_there().unwrap());
    });
}

#[test]
#[ignore = "needs root: makes network namespaces"]
fn a_link_of_a_crash_is_replaced_and_a_strangers_is_not() {
    Scene::play("192.168.200.0/30", &[], |scene| {
        let (lease, owner) = scene.take();
        // Its driver crashes, and the work directory is cleaned, but the dyno's network is there.
        let left = scene
            .runtime
            .block_on(scene.network.create(&lease))
            .unwrap();
        Leases::free(scene.dir.path(), &lease, &owner).unwrap();
        let again = scene.dyno();
        assert_eq!(again.lease.subnet, lease.subnet);
        on(&again.net.netns, || {
            Rtnl::open().unwrap().index_of("eth0").unwrap()
        });
        on(&left.netns, || {
            let eth0 = Rtnl::open().unwrap().find("eth0").unwrap();
            assert_eq!(eth0, None, "the other end of the old link is still there");
        });

        tear_down(&lease, scene.network.table()).unwrap();
        let mut host = Rtnl::open().unwrap();
        host.add_pair(
            &again.net.interface,
            0,
            "eth0",
            again.net.netns.as_fd(),
            1500,
        )
        .unwrap();
        let error = scene
            .runtime
            .block_on(scene.network.create(&lease))
            .unwrap_err();
        assert!(matches!(error, NetError::Taken { .. }), "{error}");
        tear_down(&lease, scene.network.table()).unwrap();
        let strangers = host
            .find(&again.net.interface)
            .unwrap()
            .expect("a stranger's was deleted");
        host.delete(strangers.index).unwrap();
    });
}
