//! Settings of the network, below `/proc/sys/net`.
//!
//! Each namespace has its own there, under the same names, and the kernel keeps all that were
//! ever looked up in one place: with a thousand dynos on the host, one path costs a millisecond.
//! So nothing here is looked up from the root of the file system that all share.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::error::NetError;

const IPV4_INTERFACES: &str = "/proc/sys/net/ipv4/conf";
const IPV6_INTERFACES: &str = "/proc/sys/net/ipv6/conf";
/// What must be so in a namespace before there is a link in it: no IPv6, and anybody may ping
/// without a capability, as in Docker's containers.
const PREPARED: [(&str, &str); 2] = [
    ("sys/net/ipv6/conf/all/disable_ipv6", "1"),
    ("sys/net/ipv4/ping_group_range", "0 2147483647"),
];
/// How many namespaces are prepared through one file system.
const TURNS: u32 = 32;

/// The settings of the host and of its interfaces. As directories, since a path leads to those of the
/// namespace of the thread that walks it.
#[derive(Debug)]
pub(super) struct HostSettings {
    ipv4: Option<OwnedFd>,
    ipv6: Option<OwnedFd>,
}

impl HostSettings {
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

    /// Whether the host forwards packets, as far as can be seen.
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
    pub(super) fn confine(&self, interface: &str) {
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

/// The settings of the namespace of the calling thread, in a `proc` that is mounted nowhere and
/// that only so many namespaces have been seen through.
#[derive(Debug, Default)]
pub(super) struct OwnSettings(Mutex<Option<(Arc<OwnedFd>, u32)>>);

impl OwnSettings {
    /// Sets what must be so before there is a link in the namespace.
    pub(super) fn prepare(&self) -> Result<(), NetError> {
        let root = self.root();
        for (name, value) in PREPARED {
            let failed = |source| NetError::Sysctl {
                path: Path::new("/proc").join(name),
                source,
            };
            let root = root.as_ref().map_err(|errno| failed((*errno).into()))?;
            let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let set = openat(root, name, flags, Mode::empty())
                .map_err(io::Error::from)
                .and_then(|file| File::from(file).write_all(value.as_bytes()));
            match set {
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                set => set.map_err(failed)?,
            }
        }
        Ok(())
    }

    fn root(&self) -> Result<Arc<OwnedFd>, rustix::io::Errno> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (root, turns) = match kept.take() {
            Some((root, turns)) if turns > 0 => (root, turns - 1),
            _ => (Arc::new(procfs()?), TURNS - 1),
        };
        *kept = Some((Arc::clone(&root), turns));
        Ok(root)
    }
}

/// A `proc` of its own, or the one that all share where that may not be (in a container whose
/// `/proc` is partly hidden).
fn procfs() -> Result<OwnedFd, rustix::io::Errno> {
    let made = fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|proc| {
        fsconfig_create(&proc)?;
        fsmount(
            &proc,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
    });
    made.or_else(|_| {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(c"/proc", flags, Mode::empty())
    })
}
