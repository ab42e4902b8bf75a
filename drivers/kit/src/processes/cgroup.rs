//! A cgroup for each dyno, where we may make one: the kernel then knows who is of the dyno,
//! whatever they change about themselves, and kills all of them in one go.
//!
//! See the kernel's Documentation/admin-guide/cgroup-v2.rst. Our own cgroup must be one that
//! we may write to: root's, or one that a service manager delegated. On a hybrid machine the
//! v2 tree has no controllers, and serves for this all the same.
//!
//! ```text
//!   <our own cgroup>/hsup-<pid namespace>-<pid>-<start time>/<name>.<number>
//! ```
//!
//! The middle folder names the driver's process, so that a later driver knows a dead one's
//! folders for what they are: it kills what is in them and removes them. A pid is one in its
//! namespace only, and a driver in another may share the cgroup.
//!
//! A start makes a folder and opens it, with nothing read; folders are removed when their
//! dynos' ends have long been told.

pub(crate) mod dead;

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};
use tracing::{debug, info};

use self::dead::Driver;
use super::lock;
use crate::procfs::Procfs;

/// The folder of this driver's dynos.
#[derive(Debug)]
pub(super) struct Root {
    /// In the file system.
    path: PathBuf,
    /// As the kernel shows it to our processes: `/hsup-…/`.
    shown: String,
    folder: Mutex<OwnedFd>,
    /// Processes may not enter what we may make.
    closed: AtomicBool,
}

impl Root {
    /// Makes the folder, if this machine lets us.
    pub(super) fn make(procfs: &Procfs) -> Option<Self> {
        let own = Own::find(procfs)?;
        let name = Driver::ourselves(procfs)?.folder();
        let path = own.path.join(&name);
        match make_folder(&path) {
            Ok(folder) => Some(Self {
                shown: format!("{}/{name}/", own.shown.trim_end_matches('/')),
                folder: Mutex::new(folder),
                closed: AtomicBool::new(false),
                path,
            }),
            Err(error) => {
                debug!(%error, path = %path.display(), "no cgroups here");
                None
            }
        }
    }

    /// Makes the cgroup of one dyno, and opens it for the process that is to enter. Without
    /// one it is known by other things.
    pub(super) fn child(&self, name: &str, number: u32) -> Option<(Cgroup, OwnedFd)> {
        if self.is_closed() {
            return None;
        }
        let cgroup = Cgroup {
            name: format!("{name}.{number}"),
        };
        let made = match self.make_child(&cgroup.name) {
            // Somebody tidied up while no dyno ran.
            Err(Errno::ENOENT) => self
                .make_again()
                .and_then(|()| self.make_child(&cgroup.name)),
            made => made,
        };
        match made {
            Ok(folder) => Some((cgroup, folder)),
            Err(error) => {
                debug!(%error, name, "no cgroup");
                None
            }
        }
    }

    /// A process could not enter its cgroup: no more are made in vain.
    pub(super) fn close(&self) {
        if !self.closed.swap(true, Ordering::Relaxed) {
            info!("dynos get no cgroups: processes may not enter them here");
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn make_child(&self, name: &str) -> nix::Result<OwnedFd> {
        let root = lock(&self.folder);
        mkdirat(&*root, name, Mode::from_bits_truncate(0o755))?;
        let opened = openat(&*root, name, FOLDER, Mode::empty());
        if opened.is_err() {
            let _ = unlinkat(&*root, name, UnlinkatFlags::RemoveDir);
        }
        opened
    }

    fn make_again(&self) -> nix::Result<()> {
        *lock(&self.folder) = make_folder(&self.path)?;
        Ok(())
    }

    /// The number of the dyno in whose cgroup, or in one below it, a process is.
    ///
    /// # Errors
    /// When nobody could look.
    pub(super) fn dyno_of(&self, procfs: &Procfs, pid: i32) -> nix::Result<Option<u32>> {
        let lines = procfs.read(&format!("{pid}/cgroup"))?;
        Ok(lines.and_then(|lines| dyno_in(&lines, &self.shown)))
    }

    /// Kills everybody in a dyno's cgroup and below it. Before Linux 5.14 that cannot be done.
    pub(super) fn kill(&self, cgroup: &Cgroup) -> nix::Result<()> {
        let root = lock(&self.folder);
        let name = format!("{}/cgroup.kill", cgroup.name);
        let file = openat(
            &*root,
            name.as_str(),
            OFlag::O_WRONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        nix::unistd::write(file, b"1")?;
        Ok(())
    }

    /// Kills everybody in any of our dynos' cgroups.
    pub(super) fn kill_all(&self) {
        if let Err(error) = kill(&self.path) {
            debug!(%error, "cgroups not killed");
        }
    }

    /// Removes a dyno's cgroup if nobody is in it; whether it is gone.
    pub(super) fn remove_child(&self, cgroup: &Cgroup) -> bool {
        let flag = UnlinkatFlags::RemoveDir;
        match unlinkat(&*lock(&self.folder), cgroup.name.as_str(), flag) {
            Ok(()) | Err(Errno::ENOENT) => true,
            Err(_) => remove(&self.path.join(&cgroup.name)),
        }
    }

    /// Removes the folder, which usually has only `children` left in it; whatever somebody is
    /// in stays.
    pub(super) fn remove(&self, children: impl Iterator<Item = Cgroup>) {
        for child in children {
            self.remove_child(&child);
        }
        if !remove(&self.path) {
            debug!(path = %self.path.display(), "cgroup folder not removed");
        }
    }
}

/// The cgroup of one dyno.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    name: String,
}

const FOLDER: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

fn make_folder(path: &Path) -> nix::Result<OwnedFd> {
    match nix::unistd::mkdir(path, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => open(path, FOLDER, Mode::empty()),
        Err(error) => Err(error),
    }
}

/// The number of the dyno in a process's `/proc/PID/cgroup`, `root` being our folder there.
fn dyno_in(lines: &str, root: &str) -> Option<u32> {
    let path = lines.lines().find_map(|line| line.strip_prefix("0::"))?;
    let name = path.strip_prefix(root)?.split('/').next()?;
    name.rsplit_once('.')?.1.parse().ok()
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

/// The cgroup that this process is in, in the v2 tree.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    path: PathBuf,
    shown: String,
}

impl Own {
    fn find(procfs: &Procfs) -> Option<Self> {
        let cgroup = procfs.read("self/cgroup").ok()??;
        let mounts = procfs.read("self/mountinfo").ok()??;
        Self::read(&cgroup, &mounts)
    }

    fn read(cgroup: &str, mounts: &str) -> Option<Self> {
        let shown = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
        let path = mounts.lines().find_map(|line| {
            let (root, mount) = v2_mount(line)?;
            // A container may see a part of the tree only.
            let below = Path::new(shown).strip_prefix(root).ok()?;
            Some(Path::new(mount).join(below))
        })?;
        Some(Self {
            path,
            shown: shown.to_owned(),
        })
    }
}

/// What is mounted, and where, in a line of `proc_pid_mountinfo`(5) that is of cgroup v2.
fn v2_mount(line: &str) -> Option<(&str, &str)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    filesystem.strip_prefix("cgroup2 ")?;
    let mut fields = mount.split(' ').skip(3);
    Some((fields.next()?, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "34 25 0:29 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n";
    const V1: &str = "35 25 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";

    #[test]
    fn our_own_cgroup_is_found_below_the_v2_mount() {
        let own = |cgroup: &str, mounts: &str| Own::read(cgroup, mounts).map(|own| own.path);
        let mounts = format!("{V1}{HYBRID}");
        assert_eq!(
            own("4:memory:/x\n0::/a/b\n", &mounts),
            Some("/sys/fs/cgroup/unified/a/b".into())
        );
        assert_eq!(own("0::/a\n", V1), None);
        assert_eq!(own("4:memory:/x\n", &mounts), None);
        let container = "36 25 0:31 /docker/c /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(
            own("0::/docker/c/d\n", container),
            Some("/sys/fs/cgroup/d".into())
        );
        assert_eq!(own("0::/elsewhere\n", container), None);
    }

    #[test]
    fn a_process_tells_its_dyno_by_its_cgroup() {
        let dyno = |line: &str| dyno_in(line, "/app.slice/hsup-7-12-345/");
        assert_eq!(
            dyno("1:pids:/\n0::/app.slice/hsup-7-12-345/web-1.17\n"),
            Some(17)
        );
        assert_eq!(
            dyno("0::/app.slice/hsup-7-12-345/web-1.17/below\n"),
            Some(17)
        );
        assert_eq!(dyno("0::/app.slice/hsup-7-12-345\n"), None);
        assert_eq!(dyno("0::/app.slice/hsup-7-12-999/web-1.17\n"), None);
        assert_eq!(dyno("0::/\n"), None);
    }
}
