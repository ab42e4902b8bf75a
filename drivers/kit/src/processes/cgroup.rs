//! A cgroup for each dyno, where we may make one: the kernel then knows who is of the dyno,
//! and kills all of them in one go.
//!
//! See the kernel's Documentation/admin-guide/cgroup-v2.rst. Our own cgroup must be one that
//! we may write to: root's, or one that a service manager delegated. On a hybrid machine the
//! v2 tree has no controllers, and serves for this all the same.
//!
//! ```text
//!   <our own cgroup>/hsup-<pid>-<start time>/<dyno id>
//! ```
//!
//! The middle folder names the driver's process, so that a later driver knows a dead one's
//! folders for what they are: it kills what is in them and removes them.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::Pid,
};
use tracing::{debug, info};

use crate::stat::Stat;

const PREFIX: &str = "hsup-";

/// The folder of this driver's dynos.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// Makes the folder, if this machine lets us.
    pub(super) fn make() -> Option<Self> {
        let own = own_cgroup()?;
        bury_the_dead(&own);
        let pid = process::id();
        let path = own.join(format!("{PREFIX}{pid}-{}", start_time(pid)?));
        match fs::create_dir(&path) {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                debug!(%error, path = %path.display(), "no cgroups here");
                None
            }
        }
    }

    /// Makes the cgroup of one dyno. Without one it is known by its mark alone.
    pub(super) fn child(&self, name: &str) -> Option<Cgroup> {
        let path = self.0.join(name);
        let made = match fs::create_dir(&path) {
            // Somebody tidied up while no dyno ran.
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&path),
            made => made,
        };
        match made {
            Ok(()) => Some(Cgroup { path }),
            Err(error) => {
                debug!(%error, name, "no cgroup");
                None
            }
        }
    }

    /// Removes the folder; whatever still is in it stays.
    pub(super) fn remove(&self) {
        if !remove(&self.0) {
            debug!(path = %self.0.display(), "cgroup folder not removed");
        }
    }
}

/// The cgroup of one dyno.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The folder, open for the process that is to enter. A dyno that runs keeps none open.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(open(&self.path, flags, Mode::empty())?)
    }

    /// Who is in it, and in those that the dyno made below it.
    pub(super) fn members(&self) -> io::Result<Vec<Pid>> {
        let mut members = Vec::new();
        collect(&self.path, &mut members)?;
        Ok(members)
    }

    /// Kills everybody in it and below it.
    pub(super) fn kill(&self) -> io::Result<()> {
        kill(&self.path)
    }

    /// Removes it if nobody is in it; whether it is gone.
    pub(super) fn remove(&self) -> bool {
        remove(&self.path)
    }
}

fn collect(path: &Path, members: &mut Vec<Pid>) -> io::Result<()> {
    let procs = fs::read_to_string(path.join("cgroup.procs"))?;
    members.extend(
        procs
            .lines()
            .filter_map(|pid| pid.parse().ok())
            .map(Pid::from_raw),
    );
    for below in folders(path) {
        collect(&below, members)?;
    }
    Ok(())
}

/// Removes a folder and those below it; whether it is gone. The kernel refuses while somebody
/// is in one.
fn remove(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(_) => {
            let below = folders(path);
            // Each is tried, whatever becomes of the others.
            let removed = below.iter().filter(|below| remove(below)).count();
            !below.is_empty() && removed == below.len() && fs::remove_dir(path).is_ok()
        }
    }
}

/// The cgroups below one.
fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Before Linux 5.14 there is no such file, and signals must do.
fn kill(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .open(path.join("cgroup.kill"))?;
    file.write_all(b"1")
}

/// The folder of the cgroup that this process is in, in the v2 tree.
fn own_cgroup() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find_map(v2_mount)?;
    Some(mount.join(own.trim_start_matches('/')))
}

/// The mount point in a line of `proc_pid_mountinfo`(5) that is of cgroup v2.
fn v2_mount(line: &str) -> Option<PathBuf> {
    let (mount, filesystem) = line.split_once(" - ")?;
    filesystem.strip_prefix("cgroup2 ")?;
    mount.split(' ').nth(4).map(PathBuf::from)
}

/// Kills and removes what drivers left that ended without doing so.
fn bury_the_dead(own: &Path) {
    let Ok(entries) = fs::read_dir(own) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((pid, started)) = name.to_str().and_then(driver_in) else {
            continue;
        };
        if start_time(pid) == Some(started) {
            continue;
        }
        let path = entry.path();
        let killed = kill(&path).is_ok();
        let removed = remove_soon(&path);
        info!(path = %path.display(), killed, removed, "buried a dead driver's cgroups");
    }
}

/// Removes a folder in which everybody was killed: they may still be leaving.
fn remove_soon(path: &Path) -> bool {
    (0..20).any(|_| {
        remove(path) || {
            std::thread::sleep(Duration::from_millis(1));
            false
        }
    })
}

/// The driver that a folder's name tells of: its pid and start time.
fn driver_in(name: &str) -> Option<(u32, u64)> {
    let (pid, started) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// When a process was started, in ticks since boot: with its pid, who it is.
fn start_time(pid: u32) -> Option<u64> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(Stat::parse(&line)?.started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_apart() {
        let hybrid = "34 25 0:29 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw";
        assert_eq!(
            v2_mount(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let v1 = "35 25 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids";
        assert_eq!(v2_mount(v1), None);
    }

    #[test]
    fn folders_of_drivers_are_known() {
        assert_eq!(driver_in("hsup-12-345"), Some((12, 345)));
        assert_eq!(driver_in("hsup-12"), None);
        assert_eq!(driver_in("user.slice"), None);
    }

    #[test]
    fn our_own_start_time_is_known() {
        assert!(start_time(process::id()).is_some());
    }
}
