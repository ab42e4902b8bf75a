//! The tree that is made: nothing is ever written but beneath its root, and through no link.
//!
//! Directories are neither removed nor replaced. So a directory that was found once is the
//! same ever after, and one descriptor can be kept for all the entries that follow in it.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2},
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{LinkatFlags, UnlinkatFlags, linkat, symlinkat, unlinkat},
};

use super::{
    Sink, UnpackError,
    archive::{Data, Entry},
    name::Place,
    rules::{
        NO_WAY, NOT_A_DIRECTORY, NOT_BEFORE, NOT_IN_APP, REPLACES, THROUGH_LINK, TO_DIRECTORY,
        check_symlink, no_app, refused, target_of_link,
    },
    too_much,
};
use crate::walk::kind;

/// So many bytes of names of directories are remembered for their times.
const REMEMBERED: usize = 64 << 20;

/// A tree in the making.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The directory that the last entry was in.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories with their modes and times: whatever is put into one changes its time.
    directories: Vec<(Vec<u8>, i64)>,
    remembered: usize,
    has_app: bool,
    buffer: Vec<u8>,
}

impl Tree {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "what it begins with may fail one day"
    )]
    pub(super) fn new(root: OwnedFd) -> Result<Self, UnpackError> {
        Ok(Self {
            root,
            parent: None,
            directories: Vec::new(),
            remembered: 0,
            has_app: false,
            buffer: vec![0; 256 * 1024],
        })
    }
}

impl Sink for Tree {
    fn directory(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        let fd = self.reach(place.path(), entry)?;
        // Its owner, who removes it one day, can always enter it.
        let mode = Mode::from_bits_truncate(entry.mode | 0o700);
        fchmod(&fd, mode).map_err(write(entry))?;
        self.remembered += place.path().len();
        if self.remembered > REMEMBERED {
            return Err(too_much(REMEMBERED as u64, "bytes of names").into());
        }
        self.directories.push((place.path().to_vec(), entry.mtime));
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        place: &Place,
        entry: &Entry,
        mut data: Data<'_, R>,
    ) -> Result<(), UnpackError> {
        self.make_room(place, entry)?;
        let (_, name) = place.split();
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = self
            .open(self.parent_fd(), name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(write(entry))?;
        let mut file = File::from(fd);
        loop {
            let read = match data.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(UnpackError::Read(error)),
            };
            file.write_all(&self.buffer[..read])
                .map_err(|error| UnpackError::Write(entry.name.clone(), error))?;
        }
        fchmod(&file, Mode::from_bits_truncate(entry.mode)).map_err(write(entry))?;
        let time = TimeSpec::new(entry.mtime, 0);
        futimens(&file, &time, &time).map_err(write(entry))
    }

    /// A link may say whatever it likes: it is followed in the dyno, whose root is another.
    fn symlink(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        check_symlink(entry)?;
        self.make_room(place, entry)?;
        let (_, name) = place.split();
        let parent = self.parent_fd();
        symlinkat(os(&entry.target), parent, os(name)).map_err(write(entry))?;
        let time = TimeSpec::new(entry.mtime, 0);
        utimensat(
            parent,
            os(name),
            &time,
            &time,
            UtimensatFlags::NoFollowSymlink,
        )
        .map_err(write(entry))
    }

    fn hard_link(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        let target = target_of_link(place, entry)?;
        let (directory, name) = target.split();
        let missing = || refused(entry, NOT_BEFORE);
        let from = match self.beneath(directory) {
            Ok(from) => from,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(missing()),
            Err(Errno::ELOOP) => return Err(refused(entry, NOT_IN_APP)),
            Err(error) => return Err(write(entry)(error)),
        };
        match fstatat(&from, os(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if matches!(kind(&stat), SFlag::S_IFREG | SFlag::S_IFLNK) => {}
            Ok(_) => return Err(refused(entry, TO_DIRECTORY)),
            Err(Errno::ENOENT) => return Err(missing()),
            Err(error) => return Err(write(entry)(error)),
        }
        self.make_room(place, entry)?;
        let (_, new) = place.split();
        linkat(
            &from,
            os(name),
            self.parent_fd(),
            os(new),
            LinkatFlags::empty(),
        )
        .map_err(write(entry))
    }
}

impl Tree {
    /// Sets the times of the directories, and gives back the root.
    pub(super) fn finish(mut self) -> Result<OwnedFd, UnpackError> {
        if !self.has_app {
            return Err(no_app());
        }
        self.parent = None;
        for (path, mtime) in &self.directories {
            let fail = |errno: Errno| UnpackError::Write(path.clone(), errno.into());
            let time = TimeSpec::new(*mtime, 0);
            let fd = self.beneath(path).map_err(fail)?;
            futimens(&fd, &time, &time).map_err(fail)?;
        }
        Ok(self.root)
    }

    /// Sees to it that the entry can be made: its directory is there, and no other is of its
    /// name. Archives may hold a name twice; the last one counts.
    fn make_room(&mut self, place: &Place, entry: &Entry) -> Result<(), UnpackError> {
        if place.is_app() {
            return Err(refused(entry, NOT_A_DIRECTORY));
        }
        let (directory, name) = place.split();
        if self
            .parent
            .as_ref()
            .is_none_or(|(path, _)| path != directory)
        {
            let fd = self.reach(directory, entry)?;
            self.parent = Some((directory.to_vec(), fd));
        }
        let parent = self.parent_fd();
        match fstatat(parent, os(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(write(entry)(error)),
            Ok(stat) if kind(&stat) == SFlag::S_IFDIR => Err(refused(entry, REPLACES)),
            Ok(_) => unlinkat(parent, os(name), UnlinkatFlags::NoRemoveDir).map_err(write(entry)),
        }
    }

    /// The directory of the last entry, or the root before there was one.
    fn parent_fd(&self) -> &OwnedFd {
        match &self.parent {
            Some((_, fd)) => fd,
            None => &self.root,
        }
    }

    /// Opens a directory, and makes it and those above it where they are missing.
    fn reach(&mut self, path: &[u8], entry: &Entry) -> Result<OwnedFd, UnpackError> {
        self.has_app = true;
        match self.beneath(path) {
            Ok(fd) => return Ok(fd),
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(blocked(entry, error)),
        }
        let mut at = self.beneath(b".").map_err(write(entry))?;
        for component in path.split(|byte| *byte == b'/') {
            match mkdirat(&at, os(component), Mode::from_bits_truncate(0o700)) {
                // Without an entry of its own it is as most directories are.
                Ok(()) => {
                    at = self.directory_in(&at, component).map_err(write(entry))?;
                    fchmod(&at, Mode::from_bits_truncate(0o755)).map_err(write(entry))?;
                }
                Err(Errno::EEXIST) => {
                    at = self
                        .directory_in(&at, component)
                        .map_err(|errno| blocked(entry, errno))?;
                }
                Err(error) => return Err(write(entry)(error)),
            }
        }
        Ok(at)
    }

    fn beneath(&self, path: &[u8]) -> nix::Result<OwnedFd> {
        self.directory_in(&self.root, path)
    }

    fn directory_in(&self, parent: &OwnedFd, path: &[u8]) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        self.open(parent, path, flags, Mode::empty())
    }

    /// The only way that anything here is opened.
    #[expect(clippy::unused_self, reason = "it is the tree's way")]
    fn open(
        &self,
        parent: &OwnedFd,
        path: &[u8],
        flags: OFlag,
        mode: Mode,
    ) -> nix::Result<OwnedFd> {
        let how = OpenHow::new().flags(flags).mode(mode).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
        loop {
            match openat2(parent.as_fd(), os(path), how) {
                // Something was renamed somewhere on this machine while `..` was ruled out.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return result,
            }
        }
    }
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// Something other than a directory is where one should be.
fn blocked(entry: &Entry, error: Errno) -> UnpackError {
    match error {
        Errno::ELOOP => refused(entry, THROUGH_LINK),
        // An open of a link as a directory says this too.
        Errno::ENOTDIR => refused(entry, NO_WAY),
        error => write(entry)(error),
    }
}

fn write(entry: &Entry) -> impl Fn(Errno) -> UnpackError + '_ {
    |errno| UnpackError::Write(entry.name.clone(), errno.into())
}
