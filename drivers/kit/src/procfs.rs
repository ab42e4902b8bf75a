//! `/proc`, also for a process that has no descriptor left.
//!
//! What is read here decides whether somebody is left of a dyno and who gets a signal, so a
//! driver whose clients hold all its descriptors must still be able to look. One descriptor
//! is held in reserve for that. What cannot be read all the same is an error: not to know is
//! never "nobody".

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

use crate::stat::Stat;

/// `/proc`, kept open.
#[derive(Debug)]
pub(crate) struct Procfs {
    root: OwnedFd,
    /// Closed for as long as another one is needed.
    reserve: Mutex<Option<OwnedFd>>,
}

impl Procfs {
    /// Opens it, and takes the reserve.
    pub(crate) fn open() -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open("/proc", flags, Mode::empty())?;
        let reserve = Mutex::new(Some(to_spare(&root)?));
        Ok(Self { root, reserve })
    }

    /// Every process there is.
    pub(crate) fn pids(&self) -> nix::Result<Vec<i32>> {
        self.numbers(".")
    }

    /// What a process is doing; `None` if there is none.
    pub(crate) fn stat(&self, pid: i32) -> nix::Result<Option<Stat>> {
        let line = self.read(&format!("{pid}/stat"))?;
        Ok(line.and_then(|line| Stat::parse(&line)))
    }

    /// The children of all our threads: the kernel gives orphans to one that lives. `None`
    /// where the kernel does not list them (`CONFIG_PROC_CHILDREN`).
    pub(crate) fn own_children(&self) -> nix::Result<Option<Vec<i32>>> {
        self.children("self")
    }

    /// The children of a process, as [`Procfs::own_children`].
    pub(crate) fn children_of(&self, pid: i32) -> nix::Result<Option<Vec<i32>>> {
        self.children(&pid.to_string())
    }

    fn children(&self, whose: &str) -> nix::Result<Option<Vec<i32>>> {
        let mut children = Vec::new();
        for thread in self.numbers(&format!("{whose}/task"))? {
            match self.read(&format!("{whose}/task/{thread}/children"))? {
                Some(list) => {
                    let pids = list.split_ascii_whitespace();
                    children.extend(pids.filter_map(|pid| pid.parse::<i32>().ok()));
                }
                // A thread that has just ended has none; where there is no such file, nobody has.
                None if self.read("thread-self/children")?.is_none() => return Ok(None),
                None => {}
            }
        }
        Ok(Some(children))
    }

    /// What is in a file; `None` if it is not there, or not for us.
    pub(crate) fn read(&self, name: &str) -> nix::Result<Option<String>> {
        self.with(name, OFlag::O_RDONLY, |fd| {
            // One call for most of what there is to read.
            let mut bytes = Vec::with_capacity(4096);
            File::from(fd).read_to_end(&mut bytes)?;
            // A process names itself as it likes.
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        })
    }

    /// The names in a folder that are numbers; none if it is not there.
    fn numbers(&self, folder: &str) -> nix::Result<Vec<i32>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let found = self.with(folder, flags, |fd| {
            let mut numbers = Vec::new();
            for entry in Dir::from_fd(fd)?.iter() {
                let entry = entry?;
                let name = entry.file_name().to_str().ok();
                numbers.extend(name.and_then(|name| name.parse::<i32>().ok()));
            }
            Ok(numbers)
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Opens a file and reads it, with the reserve where that has to be.
    fn with<T>(
        &self,
        name: &str,
        flags: OFlag,
        read: impl FnOnce(OwnedFd) -> io::Result<T>,
    ) -> nix::Result<Option<T>> {
        let mut reserve = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || openat(&self.root, name, flags | OFlag::O_CLOEXEC, Mode::empty());
        let opened = match open() {
            Err(Errno::EMFILE | Errno::ENFILE) if reserve.is_some() => {
                *reserve = None;
                open()
            }
            opened => opened,
        };
        let result = opened.and_then(|fd| read(fd).map_err(errno));
        if reserve.is_none() {
            // Somebody may have taken it: then the next one tries.
            *reserve = to_spare(&self.root).ok();
        }
        match result {
            Ok(found) => Ok(Some(found)),
            // It ended, before it was opened or after, or is somebody else's.
            Err(Errno::ENOENT | Errno::ESRCH | Errno::EACCES | Errno::EPERM) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Something to hold a descriptor with.
fn to_spare(root: &OwnedFd) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    openat(root, ".", flags, Mode::empty())
}

fn errno(error: io::Error) -> Errno {
    Errno::try_from(error).unwrap_or(Errno::EIO)
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn we_see_ourselves_and_nobody_where_nobody_is() {
        let procfs = Procfs::open().unwrap();
        let own = Pid::this().as_raw();
        assert!(procfs.pids().unwrap().contains(&own));
        let parent = Pid::parent().as_raw();
        assert_eq!(procfs.stat(own).unwrap().unwrap().parent, parent);
        assert_eq!(procfs.stat(i32::MAX).unwrap(), None);
    }

    #[test]
    fn children_are_seen_where_the_kernel_lists_them() {
        let procfs = Procfs::open().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a child like any other")]
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let children = procfs.own_children().unwrap();
        let grandchildren = procfs.children_of(child.id().cast_signed()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let listed = std::fs::exists("/proc/thread-self/children").unwrap();
        assert_eq!(children.is_some(), listed);
        if let Some(children) = children {
            assert!(children.contains(&child.id().cast_signed()), "{children:?}");
            assert_eq!(grandchildren, Some(Vec::new()));
        }
    }
}
