//! Frees what a dyno held: cgroups, its network, its files, its user and its address.
//!
//! The process that waited for a dyno becomes this when the dyno has ended, so that nothing is
//! left of it, whether a driver runs or not. What was interrupted is done again by the next
//! driver: every step is one that may have been done.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use nix::unistd::{ForkResult, fork};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    cgroup,
    lease::{Lease, LeaseError, Leases},
    mounts, net, removal,
    shim::Places,
};

/// What the driver's program is called in this role.
pub(crate) const ROLE: &str = "sweep";
/// How long the rules that all dynos share outlive the last of them: whoever starts one dyno
/// after the other does not have them made and removed every time, which takes the kernel longer
/// than a start does.
const RULES_STAY: Duration = Duration::from_secs(1);
/// In a dyno's directory, as long as there is something to free.
const HELD: &str = "held.json";

/// How the name of a folder ends that is being removed.
pub(crate) const ASIDE: &str = "gone";

/// What a dyno holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) lease: Lease,
    pub(crate) work_dir: PathBuf,
    /// The nftables table of its work directory and subnet.
    pub(crate) table: String,
    pub(crate) cgroups: Vec<PathBuf>,
    /// Its folder on the disk.
    pub(crate) own: PathBuf,
}

/// Something of a dyno could not be freed.
#[derive(Debug, Error)]
pub(crate) enum SweepError {
    #[error("failed to read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to remove the cgroup of a dyno")]
    Cgroup(#[source] io::Error),
    #[error("failed to remove the network of a dyno")]
    Net(#[from] net::NetError),
    #[error("failed to remove `{}`", path.display())]
    Files { path: PathBuf, source: io::Error },
    #[error("failed to free a user and an address")]
    Lease(#[from] LeaseError),
    #[error("failed to start the process that removes the network's rules")]
    Fork(#[source] io::Error),
}

impl Held {
    /// Writes it down in the dyno's directory, before anything but the lease is held: all of it or
    /// nothing, however full the disk is and whoever is killed.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("held.json.new");
        fs::File::create(&new)?.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&new, dir.join(HELD))
    }

    /// What was written down. A file that says nothing was cut short while only the lease was
    /// held, and that is known by its owner: as if there were none.
    fn read(path: &Path) -> Result<Option<Self>, SweepError> {
        let failed = |source| SweepError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match serde_json::from_slice(&bytes) {
            Ok(held) => Ok(Some(held)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what a dyno held is not known");
                remove_all(path)?;
                Ok(None)
            }
        }
    }
}

/// Whether anything is held for the dyno of this directory.
pub(crate) fn is_due(dir: &Path) -> bool {
    dir.join(HELD).exists()
}

/// Frees what the dyno of the first argument held.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let Some(dir) = args.first().map(PathBuf::from) else {
        return ExitCode::from(2);
    };
    let swept = sweep(&dir).and_then(|held| match held {
        Some((held, Left::Nothing)) => remove_rules_later(&held),
        _ => Ok(()),
    });
    match swept {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&dir, &error);
            ExitCode::FAILURE
        }
    }
}

fn tell(dir: &Path, error: &SweepError) {
    let error = hsup_driver_kit::errors::chain(error);
    tracing::error!(dir = %dir.display(), error, "something of a dyno is left");
}

/// What other dynos have leased of the same addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Something,
    Nothing,
}

/// Frees everything, and then forgets that it was held; the rules that dynos share go with the
/// last of them.
pub(crate) fn run(dir: &Path) -> Result<(), SweepError> {
    match sweep(dir)? {
        Some((held, Left::Nothing)) => remove_rules(&held),
        _ => Ok(()),
    }
}

fn remove_rules(held: &Held) -> Result<(), SweepError> {
    if !held.work_dir.is_dir() {
        // Without its leases there are no dynos either.
        return Ok(net::remove_table(&held.table)?);
    }
    let removed = Leases::if_none(&held.work_dir, held.lease.pool, || {
        net::remove_table(&held.table)
    });
    Ok(removed?.unwrap_or(Ok(()))?)
}

/// Has a process of its own, for which nobody waits, remove the rules if there is no dyno by
/// then. One that is killed leaves them to the next dyno or the next driver.
///
/// To be called by a process with one thread, which ends then.
#[expect(unsafe_code, reason = "fork(2), without another program")]
fn remove_rules_later(held: &Held) -> Result<(), SweepError> {
    // SAFETY: no other thread holds a lock that the child would wait for.
    let forked = unsafe { fork() }.map_err(|errno| SweepError::Fork(errno.into()))?;
    if matches!(forked, ForkResult::Parent { .. }) {
        return Ok(());
    }
    // What is inherited tells others that we are still at work on the dyno.
    // SAFETY: nothing of ours is read or written after this but the standard error.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    thread::sleep(RULES_STAY);
    remove_rules(held)
}

/// Frees everything but the rules, and then forgets that it was held; what that was, if it was.
fn sweep(dir: &Path) -> Result<Option<(Held, Left)>, SweepError> {
    let path = dir.join(HELD);
    let Some(held) = Held::read(&path)? else {
        return Ok(None);
    };
    cgroup::remove(&held.cgroups).map_err(SweepError::Cgroup)?;
    unmount(dir);
    net::tear_down(&held.lease, &held.table)?;
    // Aside first: it may take long to remove what a dyno has written, and its user is free.
    let aside = aside(&held.own, dir);
    if let Err(error) = fs::rename(&held.own, &aside)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(SweepError::Files {
            path: held.own,
            source: error,
        });
    }
    let left = Leases::free_and(&held.work_dir, &held.lease, dir, || Left::Nothing)?
        .unwrap_or(Left::Something);
    remove_all(&aside)?;
    for name in [
        "state",
        "skeleton",
        "config.json",
        "binds",
        "root",
        "slug",
        "app",
    ] {
        remove_all(&dir.join(name))?;
    }
    remove_all(&path)?;
    Ok(Some((held, left)))
}

/// After a start that failed, for the shim: frees everything, and the directory with it.
pub(crate) fn of_failed(dir: &Path) {
    let result = run(dir).and_then(|()| remove_all(dir));
    if let Err(error) = result {
        tell(dir, &error);
    }
}

/// The shim's mounts, in whose namespace this may run; elsewhere there are none.
fn unmount(dir: &Path) {
    let places = Places::new(dir);
    for place in [&places.app, &places.slug, &places.root] {
        mounts::detach(place);
    }
    let binds = (0..).map(|number| places.bind(number));
    for place in binds.take_while(|place| place.exists()) {
        mounts::detach(&place);
    }
}

/// What the dyno's folder is called while it is removed: nobody else's is called so.
fn aside(own: &Path, dir: &Path) -> PathBuf {
    let dyno = dir.file_name().unwrap_or_default().to_string_lossy();
    let user = own.file_name().unwrap_or_default().to_string_lossy();
    own.with_file_name(format!("{user}.{dyno}.{ASIDE}"))
}

fn remove_all(path: &Path) -> Result<(), SweepError> {
    removal::remove(path).map_err(|source| SweepError::Files {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_short_keeps_no_directory() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "{\"lease\":{"] {
            let dir = folder.path().join("0.a");
            fs::create_dir(&dir).unwrap();
            fs::File::create(dir.join(HELD))
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .unwrap();
            of_failed(&dir);
            assert!(!dir.exists(), "{text:?}");
        }
    }

    #[test]
    fn what_is_held_is_never_seen_half_written() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let subnet = crate::lease::Subnet::at([10, 0, 0, 0].into()).unwrap();
        let (first, last) = (subnet, subnet);
        let held = Held {
            lease: Lease {
                uid: 3000,
                subnet,
                pool: crate::lease::Span { first, last },
            },
            work_dir: folder.path().to_owned(),
            table: "hsup".to_owned(),
            cgroups: Vec::new(),
            own: folder.path().join("own"),
        };
        held.write(folder.path()).unwrap();
        let number = || fs::metadata(folder.path().join(HELD)).unwrap().ino();
        let (before, kept) = (number(), fs::File::open(folder.path().join(HELD)).unwrap());
        held.write(folder.path()).unwrap();
        assert_ne!(number(), before, "another file takes its place");
        drop(kept);
        let found = Held::read(&folder.path().join(HELD)).unwrap().unwrap();
        assert_eq!(found.lease, held.lease);
    }
}
