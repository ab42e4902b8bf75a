//! The cgroups of drivers that ended without removing them.

use std::{fs, io::ErrorKind, os::unix::fs::MetadataExt as _, path::Path, process, time::Duration};

use nix::{errno::Errno, unistd::Pid};
use tokio::time::sleep;
use tracing::info;

use super::{Own, folders, kill, remove};
use crate::procfs::Procfs;

const PREFIX: &str = "hsup-";

/// Kills and removes what drivers of our cgroup left that ended without doing so.
pub(crate) async fn bury(procfs: &Procfs) {
    let (Some(own), Some(us)) = (Own::find(procfs), Driver::ourselves(procfs)) else {
        return;
    };
    for path in folders(&own.path) {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(driver) = name.and_then(Driver::named) else {
            continue;
        };
        if driver.namespace == us.namespace && driver.is_dead(procfs) {
            let killed = match kill(&path) {
                // Another user's: a driver of that user's buries it.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => continue,
                killed => killed.is_ok(),
            };
            let removed = remove_soon(&path).await;
            info!(path = %path.display(), killed, removed, "buried a dead driver's cgroups");
        }
    }
}

/// Removes a folder in which everybody was killed: they may still be leaving.
async fn remove_soon(path: &Path) -> bool {
    for _ in 0..20 {
        if remove(path) {
            return true;
        }
        sleep(Duration::from_millis(1)).await;
    }
    false
}

/// A driver's process, told apart from every other one since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Driver {
    /// The inode of its pid namespace.
    namespace: u64,
    pid: u32,
    /// In ticks since boot.
    started: u64,
}

impl Driver {
    pub(super) fn ourselves(procfs: &Procfs) -> Option<Self> {
        Some(Self {
            namespace: fs::metadata("/proc/self/ns/pid").ok()?.ino(),
            pid: process::id(),
            started: procfs.stat(process::id().cast_signed()).ok()??.started,
        })
    }

    /// Whether such a process of our namespace is known to be gone.
    fn is_dead(self, procfs: &Procfs) -> bool {
        let pid = self.pid.cast_signed();
        if nix::sys::signal::kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
            return true;
        }
        // Its number may have been given to another one.
        let stat = procfs.stat(pid).ok().flatten();
        stat.is_some_and(|stat| stat.started != self.started)
    }

    /// The driver that a folder's name tells of.
    fn named(folder: &str) -> Option<Self> {
        let mut numbers = folder.strip_prefix(PREFIX)?.split('-');
        let driver = Self {
            namespace: numbers.next()?.parse().ok()?,
            pid: numbers.next()?.parse().ok()?,
            started: numbers.next()?.parse().ok()?,
        };
        numbers.next().is_none().then_some(driver)
    }

    pub(super) fn folder(self) -> String {
        let Self {
            namespace,
            pid,
            started,
        } = self;
        format!("{PREFIX}{namespace}-{pid}-{started}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_drivers_are_known() {
        let driver = Driver {
            namespace: 7,
            pid: 12,
            started: 345,
        };
        assert_eq!(driver.folder(), "hsup-7-12-345");
        assert_eq!(Driver::named("hsup-7-12-345"), Some(driver));
        assert_eq!(Driver::named("hsup-12-345"), None);
        assert_eq!(Driver::named("hsup-7-12-345-6"), None);
        assert_eq!(Driver::named("user.slice"), None);

        let procfs = Procfs::open().unwrap();
        let us = Driver::ourselves(&procfs).unwrap();
        assert!(!us.is_dead(&procfs));
        let before = Driver {
            started: us.started - 1,
            ..us
        };
        assert!(before.is_dead(&procfs));
        assert!(Driver { pid: 1 << 30, ..us }.is_dead(&procfs));
    }
}
