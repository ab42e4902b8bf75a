//! What a process waits for that enters a cgroup, and having it begin before.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::unistd::Pid;

use super::{Hierarchies, write};

/// The controller in whose hierarchy a process is moved to where it is; any would do.
pub(super) const ENTERED: &str = "pids";

impl Hierarchies {
    /// Has the kernel begin now what entering a cgroup waits for, if it has not yet: it lasts from
    /// the first process that does to a while after the last. A process is moved to where it is,
    /// which changes nothing. (`cgroup_attach_lock` and `rcu_sync_enter` in the kernel)
    pub(crate) fn begin_to_enter(&self, pid: Pid) -> io::Result<()> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let group = groups.lines().find_map(|line| {
            let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
            let is_it = if self.unified {
                controllers.is_empty()
            } else {
                controllers.split(',').any(|name| name == ENTERED)
            };
            is_it.then_some(group)
        });
        let file = group.and_then(|group| self.seen(Path::new(group), "cgroup.procs"));
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        write(&file, &pid.to_string())
    }

    /// A file of the group that `/proc/PID/cgroup` tells, in the hierarchy in which processes are
    /// moved: what is mounted of it may begin below its root.
    fn seen(&self, told: &Path, name: &str) -> Option<PathBuf> {
        let mount = self.mount_of(ENTERED)?;
        let group = told.strip_prefix(&mount.root).ok()?;
        Some(mount.at.join(group).join(name))
    }

    /// Whether entering a cgroup takes an RCU grace period, some ten to twenty milliseconds, and
    /// with it every start: the kernel's default since 6.0, and before that always.
    pub(crate) fn enters_slowly() -> bool {
        let expedited =
            fs::read_to_string("/sys/kernel/rcu_expedited").is_ok_and(|text| text.trim() != "0");
        let favoured = fs::read_to_string("/proc/self/mountinfo")
            .is_ok_and(|mounts| mounts.contains("favordynmods"));
        !expedited && !favoured
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a container of Docker's with version 1, what is mounted is the container's own.
    #[test]
    fn a_mount_may_begin_at_the_group_of_a_container() {
        let text = "31 30 0:25 /docker/4f /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let host = Hierarchies::parse(text).unwrap();
        let file = |told| host.seen(Path::new(told), "cgroup.procs");
        let there = Path::new("/sys/fs/cgroup/pids/init/cgroup.procs");
        assert_eq!(file("/docker/4f/init").as_deref(), Some(there));
        let there = Path::new("/sys/fs/cgroup/pids/cgroup.procs");
        assert_eq!(file("/docker/4f").as_deref(), Some(there));
        assert_eq!(file("/docker/5e"), None);
    }

    #[test]
    #[ignore = "needs root: it writes to a cgroup"]
    fn who_is_moved_to_where_it_is_stays_there() {
        let own = || fs::read_to_string("/proc/self/cgroup").unwrap();
        let before = own();
        let hierarchies = Hierarchies::detect().unwrap();
        hierarchies.begin_to_enter(Pid::this()).unwrap();
        assert_eq!(own(), before);
    }
}
