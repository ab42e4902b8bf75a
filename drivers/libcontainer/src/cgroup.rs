//! The cgroups of dynos: where they are, what they say, and how they go.
//!
//! libcontainer makes them. It knows version 2 and, hierarchy by hierarchy, version 1; what it
//! leaves to others is done here: having the controllers below a container's root, keeping a group
//! from swapping, reading what a dyno uses, killing what is left, and removing a group with its
//! empty parent. (cgroups(7))

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;

/// How long a group is emptied before that is given up: a process in the kernel's hands may take
/// its time to go.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// The controller in whose hierarchy a process is moved to where it is; any would do.
const ENTERED: &str = "pids";
/// The limits on swap: of version 2, and of version 1, where it is one on memory besides.
const SWAP: &str = "memory.swap.max";
const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";
/// What a dyno's container needs of the host.
const WANTED: [&str; 3] = ["memory", ENTERED, "cpu"];
/// Where the processes of a container go that are in its root: the name that others give it, too.
const LEAF: &str = "init";
/// How often that is begun anew: somebody may come while others are moved.
const EVACUATIONS: usize = 10;

/// The hierarchies of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// Version 2 alone.
    pub(crate) unified: bool,
    mounts: Vec<Mount>,
}

/// A hierarchy that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    /// Which of its groups is seen there: in a container, it may be the container's own.
    root: PathBuf,
    controllers: Vec<String>,
}

impl Mount {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// There is no cgroup file system to make groups in.
#[derive(Debug, Error)]
pub(crate) enum CgroupError {
    #[error("failed to read `/proc/self/mountinfo`")]
    Mounts(#[source] io::Error),
    #[error("failed to read `{}`", path.display())]
    Controllers { path: PathBuf, source: io::Error },
    #[error("no cgroup file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")]
    None,
    #[error(
        "no hierarchy has the cgroup controller {controller}: enable it on the kernel's command \
         line, or mount it"
    )]
    Missing { controller: &'static str },
    #[error(
        "failed to hand down the cgroup controllers below `{}`: in a container, that takes one \
         whose cgroups can be written to (--privileged)",
        path.display()
    )]
    HandDown { path: PathBuf, source: io::Error },
    #[error(
        "the cgroup `{}` has processes of another pid namespace, so its controllers cannot be \
         handed down: start the container with a cgroup namespace of its own (--cgroupns=private)",
        .0.display()
    )]
    Strangers(PathBuf),
}

impl Hierarchies {
    /// Those that are mounted here.
    pub(crate) fn detect() -> Result<Self, CgroupError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        let mut found = Self::parse(&mounts)?;
        if found.unified {
            for mount in &mut found.mounts {
                let file = mount.at.join("cgroup.controllers");
                let text = fs::read_to_string(&file)
                    .map_err(|source| CgroupError::Controllers { path: file, source })?;
                mount.controllers = text.split_ascii_whitespace().map(str::to_owned).collect();
            }
        }
        found.complete()
    }

    /// Themselves, if they have what a dyno needs.
    fn complete(self) -> Result<Self, CgroupError> {
        match WANTED.iter().find(|wanted| !self.has(wanted)) {
            None => Ok(self),
            Some(controller) => Err(CgroupError::Missing { controller }),
        }
    }

    /// Of the text of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`). On a host with both,
    /// the controllers are version 1's, and so are we.
    fn parse(mountinfo: &str) -> Result<Self, CgroupError> {
        let mut first = Vec::new();
        let mut second = Vec::new();
        for line in mountinfo.lines() {
            let Some((mount, kind)) = line.split_once(" - ") else {
                continue;
            };
            let mut mount = mount.split(' ').skip(3);
            let (Some(root), Some(at)) = (mount.next(), mount.next()) else {
                continue;
            };
            let mount = |controllers| Mount {
                at: at.into(),
                root: root.into(),
                controllers,
            };
            let mut kind = kind.split(' ');
            match (kind.next(), kind.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    let controllers = options.split(',').map(str::to_owned).collect();
                    first.push(mount(controllers));
                }
                (Some("cgroup2"), _) => second.push(mount(Vec::new())),
                _ => {}
            }
        }
        let unified = first.is_empty();
        let mounts = if unified { second } else { first };
        if mounts.is_empty() {
            return Err(CgroupError::None);
        }
        Ok(Self { unified, mounts })
    }

    fn has(&self, controller: &str) -> bool {
        self.mounts.iter().any(|mount| mount.has(controller))
    }

    /// Has the controllers in the groups below the root, where that is a container's; how many
    /// processes had to leave it for that.
    pub(crate) fn hand_down(&self) -> Result<usize, CgroupError> {
        match self.mounts.first() {
            // The host's root alone has no type.
            Some(mount) if self.unified && mount.at.join("cgroup.type").exists() => {
                hand_down(&mount.at, &WANTED)
            }
            _ => Ok(0),
        }
    }

    /// The folder of `group` in each hierarchy. Not all of them need be there.
    pub(crate) fn folders(&self, group: &str) -> Vec<PathBuf> {
        let group = group.trim_start_matches('/');
        let mut folders: Vec<_> = self
            .mounts
            .iter()
            .map(|mount| mount.at.join(group))
            .collect();
        folders.sort();
        folders.dedup();
        folders
    }

    /// A file of `group`, in the hierarchy of `controller`.
    pub(crate) fn file(&self, group: &str, controller: &str, name: &str) -> Option<PathBuf> {
        let mount = self.of(controller)?;
        Some(mount.at.join(group.trim_start_matches('/')).join(name))
    }

    fn of(&self, controller: &str) -> Option<&Mount> {
        self.mounts
            .iter()
            .find(|mount| self.unified || mount.has(controller))
    }

    /// The file that counts how often the kernel killed something of `group` for its memory.
    pub(crate) fn oom_file(&self, group: &str) -> Option<PathBuf> {
        let name = if self.unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        self.file(group, "memory", name)
    }

    /// What keeps `group` from having more in swap than it may have in memory: nothing.
    pub(crate) fn swap_limit(&self, group: &str, memory: u64) -> Option<SwapLimit> {
        if memory == 0 {
            return None;
        }
        // Version 1 limits memory and swap together.
        let (name, value) = if self.unified {
            (SWAP, 0)
        } else {
            (MEMORY_AND_SWAP, memory.min(i64::MAX.cast_unsigned()))
        };
        let file = self.file(group, "memory", name)?;
        Some(SwapLimit { file, value })
    }

    /// Whether the kernel counts what a group has in swap, as far as groups that are there tell:
    /// the root of version 2 has no such file.
    pub(crate) fn counts_swap(&self) -> bool {
        let Some(root) = self.file("", "memory", "") else {
            return false;
        };
        if !self.unified {
            return root.join(MEMORY_AND_SWAP).exists();
        }
        let groups = fs::read_dir(root).into_iter().flatten().flatten();
        let mut limited = groups.filter(|group| group.path().join("memory.max").exists());
        limited
            .next()
            .is_none_or(|group| group.path().join(SWAP).exists())
    }

    /// What `group` uses.
    pub(crate) fn usage(&self, group: &str) -> Usage {
        let read = |controller, name| fs::read_to_string(self.file(group, controller, name)?).ok();
        let number = |controller, name| read(controller, name)?.trim().parse::<u64>().ok();
        if self.unified {
            let cpu = read("cpu", "cpu.stat");
            let micros = cpu.and_then(|text| {
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix("usage_usec "));
                line?.parse::<u64>().ok()
            });
            return Usage {
                cpu_ns: micros.map(|micros| micros.saturating_mul(1000)),
                memory: number("memory", "memory.current"),
                memory_peak: number("memory", "memory.peak"),
                pids: number("pids", "pids.current"),
            };
        }
        Usage {
            cpu_ns: number("cpuacct", "cpuacct.usage"),
            memory: number("memory", "memory.usage_in_bytes"),
            memory_peak: number("memory", "memory.max_usage_in_bytes"),
            pids: number("pids", "pids.current"),
        }
    }

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
        let mount = self.of(ENTERED)?;
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

/// Whether the host swaps at all.
pub(crate) fn host_swaps() -> bool {
    // The first line is a heading.
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// A limit on what a group has in swap. libcontainer takes a limit of nothing for none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SwapLimit {
    file: PathBuf,
    value: u64,
}

impl SwapLimit {
    /// Sets it on a group that has its limit of memory. A kernel that does not count swap has no
    /// such file, which is said when the driver begins.
    pub(crate) fn set(&self) -> io::Result<()> {
        match write(&self.file, &self.value.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }
}

/// Says a word to a file of a cgroup, in one write.
fn write(file: &Path, word: &str) -> io::Result<()> {
    let mut file = fs::File::options().write(true).open(file)?;
    file.write_all(word.as_bytes())
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EBUSY as i32)
}

/// Hands controllers of version 2 down to the groups below `root`. Any group but the host's root
/// either does that or has processes in it, and a container's begin in its root: they go to a group
/// of their own, in which they are no less the container's. ("No Internal Process Constraint" in
/// the kernel's Documentation/admin-guide/cgroup-v2.rst)
fn hand_down(root: &Path, controllers: &[&str]) -> Result<usize, CgroupError> {
    let failed = |source| CgroupError::HandDown {
        path: root.to_owned(),
        source,
    };
    let file = root.join("cgroup.subtree_control");
    let handed = fs::read_to_string(&file).map_err(failed)?;
    let is_handed = |wanted: &&str| handed.split_ascii_whitespace().any(|one| one == *wanted);
    if controllers.iter().all(is_handed) {
        return Ok(0);
    }
    let wanted: Vec<_> = controllers.iter().map(|name| format!("+{name}")).collect();
    let wanted = wanted.join(" ");
    let mut moved = 0;
    for _ in 0..EVACUATIONS {
        match write(&file, &wanted) {
            Err(error) if is_busy(&error) => moved += evacuate(root)?,
            written => return written.map(|()| moved).map_err(failed),
        }
    }
    write(&file, &wanted).map(|()| moved).map_err(failed)
}

/// Moves the processes in the root of a container's groups to a group of their own; how many.
fn evacuate(root: &Path) -> Result<usize, CgroupError> {
    let failed = |source| CgroupError::HandDown {
        path: root.to_owned(),
        source,
    };
    let leaf = root.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let text = fs::read_to_string(root.join("cgroup.procs")).map_err(failed)?;
    let mut moved = 0;
    for pid in text.lines() {
        if pid == "0" {
            return Err(CgroupError::Strangers(root.to_owned()));
        }
        match write(&leaf.join("cgroup.procs"), pid) {
            Ok(()) => moved += 1,
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(moved)
}

/// What a dyno uses; `None` is not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_ns: Option<u64>,
    pub(crate) memory: Option<u64>,
    pub(crate) memory_peak: Option<u64>,
    pub(crate) pids: Option<u64>,
}

/// The processes in any of these groups.
pub(crate) fn members(folders: &[PathBuf]) -> Vec<i32> {
    // A process is in all of them, but for one that is being made.
    let mut pids: Vec<i32> = folders
        .iter()
        .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
        .flat_map(|text| {
            text.lines()
                // 0 is somebody in a pid namespace that we do not see.
                .filter_map(|line| line.parse().ok().filter(|pid| *pid > 0))
                .collect::<Vec<i32>>()
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Kills what is in these groups, waits until they are empty, and removes them, and their parent
/// where that is empty. What is not there is no error.
///
/// # Errors
/// When something does not die, or a group cannot be removed.
pub(crate) fn remove(folders: &[PathBuf]) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    for folder in folders {
        loop {
            for pid in members(std::slice::from_ref(folder)) {
                // It is a member of a dyno's own group; it may be gone by now.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            match remove_tree(folder) {
                Ok(()) => break,
                Err(error) if is_busy(&error) && Instant::now() < end => {
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(parent) = folder.parent() {
            // Only if nobody else is in it.
            drop(fs::remove_dir(parent));
        }
    }
    Ok(())
}

/// Removes a group and those below it, which a dyno's own programs may have made.
fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if is_busy(&error) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => return other,
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            for pid in members(&[entry.path()]) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 18 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
26 24 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
27 24 0:25 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
28 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn a_host_with_both_versions_is_one_of_version_1() {
        let host = Hierarchies::parse(HYBRID).unwrap();
        assert!(!host.unified);
        assert!(host.has("pids"));
        assert_eq!(
            host.oom_file("/hsup/x").unwrap(),
            Path::new("/sys/fs/cgroup/memory/hsup/x/memory.oom_control")
        );
        assert_eq!(host.folders("/hsup/x").len(), 3);
    }

    #[test]
    fn one_with_version_2_alone_is_unified() {
        let host =
            Hierarchies::parse("30 18 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 none rw\n")
                .unwrap();
        assert!(host.unified);
        assert_eq!(
            host.oom_file("/hsup/x").unwrap(),
            Path::new("/sys/fs/cgroup/hsup/x/memory.events")
        );
    }

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
    fn a_group_with_a_limit_of_memory_has_nothing_in_swap() {
        let limit = |file: &str, value| SwapLimit {
            file: file.into(),
            value,
        };
        let host = Hierarchies::parse(HYBRID).unwrap();
        let memsw = "/sys/fs/cgroup/memory/hsup/x/memory.memsw.limit_in_bytes";
        let same = Some(limit(memsw, 4096));
        assert_eq!(host.swap_limit("/hsup/x", 4096), same);
        assert_eq!(host.swap_limit("/hsup/x", 0), None);
        let unified = "30 18 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 none rw\n";
        let host = Hierarchies::parse(unified).unwrap();
        let none = Some(limit("/sys/fs/cgroup/hsup/x/memory.swap.max", 0));
        assert_eq!(host.swap_limit("/hsup/x", 4096), none);
    }

    #[test]
    fn a_kernel_that_does_not_count_swap_is_no_reason_to_fail() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(SWAP);
        let limit = SwapLimit {
            file: file.clone(),
            value: 0,
        };
        limit.set().unwrap();
        assert!(!file.exists());
        fs::File::create(&file).unwrap();
        limit.set().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "0");
    }

    #[test]
    fn a_host_without_any_is_told_what_to_mount() {
        let error = Hierarchies::parse("24 18 0:22 / / rw - ext4 /dev/vda rw\n").unwrap_err();
        assert!(error.to_string().contains("mount -t cgroup2"), "{error}");
    }

    #[test]
    fn a_controller_that_is_missing_is_named() {
        Hierarchies::parse(HYBRID).unwrap().complete().unwrap();
        let without = HYBRID.replace("rw,memory", "rw,blkio");
        let error = Hierarchies::parse(&without).unwrap().complete();
        let text = error.unwrap_err().to_string();
        assert!(text.contains("the cgroup controller memory"), "{text}");
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

    /// Whichever controller of version 2 this host has: what is told of it holds of each that is
    /// no matter of threads.
    #[test]
    #[ignore = "needs root: it makes cgroups"]
    fn who_is_in_the_root_of_a_container_makes_way_for_dynos() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut fields = mounts.lines().filter(|line| line.contains(" - cgroup2 "));
        let mount = fields.next().expect("a mount of cgroup version 2");
        let mount = mount.split(' ').nth(4).unwrap();
        let words = |file: PathBuf| fs::read_to_string(file).unwrap();
        let all = words(Path::new(mount).join("cgroup.controllers"));
        let controller = all
            .split_ascii_whitespace()
            .find(|name| ["memory", "hugetlb", "io"].contains(name));
        let controller = controller.expect("a controller in version 2");
        // The host's own root may have processes in it and hand down what it likes.
        let of_host = Path::new(mount).join("cgroup.subtree_control");
        let was_handed = words(of_host.clone()).contains(controller);
        write(&of_host, &format!("+{controller}")).unwrap();
        let root = Path::new(mount).join(format!("hsup-root-{}", std::process::id()));
        fs::create_dir(&root).unwrap();
        #[expect(clippy::disallowed_methods, reason = "it is nobody's dyno")]
        let mut first = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pid = first.id().to_string();
        write(&root.join("cgroup.procs"), &pid).unwrap();

        let moved = hand_down(&root, &[controller]);
        // What is not there fails below, once all is cleared away.
        let words = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let in_root = words(root.join("cgroup.procs"));
        let in_leaf = words(root.join(LEAF).join("cgroup.procs"));
        let handed = words(root.join("cgroup.subtree_control"));
        // Who has the controllers already moves nobody.
        let again = hand_down(&root, &[controller]);

        first.kill().unwrap();
        first.wait().unwrap();
        let cleared = [
            fs::remove_dir(root.join(LEAF)),
            fs::remove_dir(&root),
            if was_handed {
                Ok(())
            } else {
                write(&of_host, &format!("-{controller}"))
            },
        ];
        assert_eq!(moved.unwrap(), 1);
        assert_eq!((in_root.as_str(), in_leaf.trim()), ("", pid.as_str()));
        assert_eq!(handed.trim(), controller);
        assert_eq!(again.unwrap(), 0);
        for cleared in cleared {
            cleared.unwrap();
        }
    }

    #[test]
    fn what_is_not_there_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        remove(&[folder.path().join("hsup/none")]).unwrap();
    }
}
