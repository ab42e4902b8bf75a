//! A claim on a port's number, which every hsup heeds, whosever it is.
//!
//! A dyno listens a while after it got its port, or never; until then the port itself does not
//! say that it is somebody's. So hsup holds a datagram socket of the abstract name
//! `hsup/port/5000` (unix(7)): it is there for those who share the network that the port
//! belongs to, and ends with hsup, whatever becomes of hsup. The dynos that outlive it are found
//! by what they listen on; the next hsup of the app, which waits for the lock of the state
//! directory and so for this one's end, claims their ports again.

use std::{
    io::ErrorKind,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

/// The first port that has claims. Anybody may make a claim, and so would keep who has the rights
/// for the ports below from what nobody else can have.
const FIRST: u16 = 1024;

/// Held for as long as a dyno has the port.
#[derive(Debug)]
pub(super) struct Claim {
    _socket: Option<UnixDatagram>,
}

impl Claim {
    /// A claim on `port`; none while another one is held. Where none can be made for another
    /// reason, in a sandbox, it is one that nobody sees.
    pub(super) fn of(port: u16) -> Option<Self> {
        let bound = name(port).map(|name| UnixDatagram::bind_addr(&name));
        match bound {
            Some(Err(error)) if error.kind() == ErrorKind::AddrInUse => None,
            bound => Some(Self {
                _socket: bound.and_then(Result::ok),
            }),
        }
    }
}

/// Whether a claim on `port` is held. Who asks is in nobody's way.
pub(super) fn is_claimed(port: u16) -> bool {
    let (Some(name), Ok(socket)) = (name(port), UnixDatagram::unbound()) else {
        return false;
    };
    socket.connect_addr(&name).is_ok()
}

fn name(port: u16) -> Option<SocketAddr> {
    let name = SocketAddr::from_abstract_name(format!("hsup/port/{port}"));
    name.ok().filter(|_| port >= FIRST)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{thread, time::Duration};

    use tokio::time::Instant;

    use super::*;
    use crate::ports::tests::own_base;

    /// A process that another test spawns has what was held here, until its `exec`.
    pub(in crate::ports) fn until_unclaimed(port: u16) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while is_claimed(port) {
            assert!(Instant::now() < deadline, "port {port} stays claimed");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_claim_is_one_hsups_until_it_goes() {
        let port = own_base();
        let held = Claim::of(port).unwrap();
        assert!(is_claimed(port));
        assert!(Claim::of(port).is_none());
        drop(held);
        until_unclaimed(port);
        assert!(Claim::of(port).is_some());
    }

    #[test]
    fn nobody_claims_what_is_not_for_everybody() {
        let _held = Claim::of(FIRST - 1).unwrap();
        assert!(!is_claimed(FIRST - 1));
        assert!(Claim::of(FIRST - 1).is_some());
    }
}
