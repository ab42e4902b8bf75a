//! The cgroups of dynos: where they are, what they say, and how they go.
//!
//! libcontainer makes them. It knows version 2 and, hierarchy by hierarchy, version 1; what it
//! leaves to others is done here: having the controllers below a container's root (delegate.rs),
//! keeping a group from swapping, reading what a dyno uses, entering a group without a wait
//! (enter.rs), killing what is left, and removing a group with its empty parent (remove.rs).
//! (cgroups(7))

mod delegate;
mod enter;
mod remove;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::enter::ENTERED;
pub(crate) use self::remove::{members, remove};

/// The limits on swap: of version 2, and of version 1, where it is one on memory besides.
const SWAP: &str = "memory.swap.max";
const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";
/// What a dyno's container needs of the host.
const WANTED: [&str; 3] = ["memory", ENTERED, "cpu"];
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
        let mount = self.mount_of(controller)?;
        Some(mount.at.join(group.trim_start_matches('/')).join(name))
    }

    fn mount_of(&self, controller: &str) -> Option<&Mount> {
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

/// What a dyno uses; `None` is not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_ns: Option<u64>,
    pub(crate) memory: Option<u64>,
    pub(crate) memory_peak: Option<u64>,
    pub(crate) pids: Option<u64>,
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
}
