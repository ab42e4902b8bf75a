//! Ports that one app has to itself, whatever else runs on this machine.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

/// The lots lie below the ephemeral ports, which anybody may be given.
const FIRST: u16 = 10_000;
const LOTS: u16 = 70;
/// Three process types with a hundred dynos each: the types are a hundred apart.
const PORTS: u16 = 300;

/// A range of ports, held until dropped.
#[derive(Debug)]
pub struct Lot {
    pub base: u16,
    /// Where the next look for a free port begins.
    next: AtomicU16,
    /// Bound for as long as the lot is held; its last port says that it is taken, to every
    /// test of this run and of any other.
    _guard: TcpListener,
}

impl Lot {
    /// The first free lot, beginning somewhere else in each run.
    pub fn take() -> Self {
        let start = u16::try_from(std::process::id() % u32::from(LOTS)).unwrap();
        (0..LOTS)
            .find_map(|n| Self::at(FIRST + (start + n) % LOTS * PORTS))
            .expect("a lot of ports that nobody has")
    }

    /// The lot at `base`, unless it is held or a port of it is in use.
    fn at(base: u16) -> Option<Self> {
        let guard = bind(base + PORTS - 1)?;
        // What knows nothing of lots has ports of its own.
        free(base).then_some(Self {
            base,
            next: AtomicU16::new(0),
            _guard: guard,
        })
    }

    /// A port of the lot that nobody listens on now; the others come first before it comes again.
    pub fn free_port(&self) -> Option<u16> {
        let ports = PORTS - 1;
        let mut candidates = (0..ports).map(|_| {
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            self.base + next % ports
        });
        candidates.find(|port| bind(*port).is_some())
    }
}

fn bind(port: u16) -> Option<TcpListener> {
    TcpListener::bind(("0.0.0.0", port)).ok()
}

/// Whether nobody uses a port of the lot at `base`, its guard aside.
fn free(base: u16) -> bool {
    (base..base + PORTS - 1).all(|port| bind(port).is_some())
}

#[test]
fn a_lot_is_had_once_and_a_port_in_use_spoils_it() {
    use std::collections::HashSet;

    let lot = Lot::take();
    assert!(Lot::at(lot.base).is_none());
    assert!(Lot::take().base.abs_diff(lot.base) >= PORTS);
    // A process that another test spawns may have what was bound here, until its `exec`.
    crate::deadline::poll(|| free(lot.base).then_some(())).expect("a free lot");
    let _taken = TcpListener::bind(("127.0.0.1", lot.base + 100)).unwrap();
    assert!(!free(lot.base));
    let given: Vec<_> = (0..2 * PORTS).filter_map(|_| lot.free_port()).collect();
    assert!(!given.contains(&(lot.base + 100)));
    let others: HashSet<_> = given.iter().collect();
    assert_eq!(others.len(), usize::from(PORTS - 2));
    // Until all had their turn, but for those that somebody else had bound when it came.
    let first: HashSet<_> = given[..100].iter().collect();
    assert_eq!(first.len(), 100);
}
