//! What the driver and its helpers take up.

use std::collections::BTreeMap;

use anyhow::Result;

use super::super::{many::pss_kib as pss_of, procfs};

/// In KiB, shared pages by their share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pss {
    driver: u64,
    /// All `hsup-wait`.
    waits: u64,
    /// All `hsup-init`.
    inits: u64,
}

/// The same for each of some dynos.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) driver: f64,
    pub(super) waits: f64,
    pub(super) inits: f64,
    pub(super) total: f64,
}

impl Pss {
    pub(super) fn of_each(self, dynos: usize) -> Share {
        #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
        let share = |kib: u64| kib as f64 / dynos as f64;
        let [driver, waits, inits] = [self.driver, self.waits, self.inits].map(share);
        Share {
            driver,
            waits,
            inits,
            total: driver + waits + inits,
        }
    }
}

/// Of a driver, of those who wait for its dynos, which are its children, and of the dynos'
/// first processes, which are theirs. What the dynos run is their own.
pub(super) fn pss_kib(driver: i32) -> Result<Pss> {
    let children = children()?;
    let of = |parent: i32| children.get(&parent).map_or(&[][..], Vec::as_slice);
    let mut pss = Pss {
        driver: pss_of(driver)?,
        ..Pss::default()
    };
    for wait in of(driver) {
        pss.waits += pss_of(*wait)?;
        for init in of(*wait) {
            pss.inits += pss_of(*init)?;
        }
    }
    Ok(pss)
}

fn children() -> Result<BTreeMap<i32, Vec<i32>>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in procfs::processes()? {
        // One that has ended meanwhile is none.
        if let Some(parent) = procfs::parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    Ok(children)
}
