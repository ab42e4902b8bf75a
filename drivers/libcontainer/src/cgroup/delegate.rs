//! Having the controllers of version 2 in the groups below a container's root.

use std::{fs, io, path::Path};

use nix::errno::Errno;

use super::{CgroupError, Hierarchies, WANTED, is_busy, write};

/// Where the processes of a container go that are in its root: the name that others give it, too.
const LEAF: &str = "init";
/// How often that is begun anew: somebody may come while others are moved.
const EVACUATIONS: usize = 10;

impl Hierarchies {
    /// Has the controllers in the groups below the root, where that is a container's; how many
    /// processes had to leave it for that.
    pub(crate) fn enable_controllers(&self) -> Result<usize, CgroupError> {
        match self.mounts.first() {
            // The host's root alone has no type.
            Some(mount) if self.unified && mount.at.join("cgroup.type").exists() => {
                enable_controllers(&mount.at, &WANTED)
            }
            _ => Ok(0),
        }
    }
}

/// Hands controllers of version 2 down to the groups below `root`. Any group but the host's root
/// either does that or has processes in it, and a container's begin in its root: they go to a group
/// of their own, in which they are no less the container's. ("No Internal Process Constraint" in
/// the kernel's Documentation/admin-guide/cgroup-v2.rst)
fn enable_controllers(root: &Path, controllers: &[&str]) -> Result<usize, CgroupError> {
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

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

        let moved = enable_controllers(&root, &[controller]);
        // What is not there fails below, once all is cleared away.
        let words = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let in_root = words(root.join("cgroup.procs"));
        let in_leaf = words(root.join(LEAF).join("cgroup.procs"));
        let handed = words(root.join("cgroup.subtree_control"));
        // Who has the controllers already moves nobody.
        let again = enable_controllers(&root, &[controller]);

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
}
