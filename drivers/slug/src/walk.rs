//! A tree as its owner sees it, in an order that is always the same.
//!
//! Every step is taken relative to a descriptor of the directory it is in, and no link is
//! followed: who renames directories meanwhile sends nobody elsewhere.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{FileStat, Mode, SFlag, fstatat},
};

use crate::error::SlugError;

/// A deeper tree would need more open descriptors than a process has.
const DEEPEST: usize = 512;

/// Something in the tree.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    /// The directory that it is in.
    pub(crate) parent: BorrowedFd<'a>,
    /// Its name there.
    pub(crate) name: &'a CStr,
    /// Its name from the root of the tree on.
    pub(crate) path: &'a [u8],
    /// What it was when it was looked at.
    pub(crate) stat: FileStat,
}

impl Found<'_> {
    /// What it is.
    pub(crate) fn kind(&self) -> SFlag {
        kind(&self.stat)
    }
}

/// What something is.
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Opens what a `file://` URL names. Neither a FIFO nor a device makes it hang, and a link
/// like `/proc/self/fd/3` leads nowhere.
pub(crate) fn open(path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    loop {
        // EAGAIN: something on the way was renamed just then.
        match openat2(nix::fcntl::AT_FDCWD, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Why a walk ended early.
#[derive(Debug)]
pub(crate) enum WalkError {
    /// This cannot be looked at.
    At(PathBuf, io::Error),
    /// Whoever visits has enough.
    Visit(SlugError),
}

impl From<SlugError> for WalkError {
    fn from(error: SlugError) -> Self {
        Self::Visit(error)
    }
}

/// Shows everything in the tree to `visit`, a directory before what is in it, names in the
/// order of their bytes. What vanishes between two looks is told to `vanished`.
pub(crate) fn walk(
    root: OwnedFd,
    visit: &mut dyn FnMut(&Found<'_>) -> Result<(), SlugError>,
    vanished: &mut dyn FnMut(&[u8]),
) -> Result<(), WalkError> {
    let mut path = Vec::new();
    directory(root, &mut path, 0, visit, vanished)
}

fn directory(
    fd: OwnedFd,
    path: &mut Vec<u8>,
    depth: usize,
    visit: &mut dyn FnMut(&Found<'_>) -> Result<(), SlugError>,
    vanished: &mut dyn FnMut(&[u8]),
) -> Result<(), WalkError> {
    if depth > DEEPEST {
        return Err(at(path)(Errno::ENAMETOOLONG));
    }
    let mut directory = Dir::from_fd(fd).map_err(at(path))?;
    for name in names(&mut directory).map_err(at(path))? {
        let before = path.len();
        if before > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let parent = directory.as_fd();
        match fstatat(parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => vanished(path),
            Err(error) => return Err(at(path)(error)),
            Ok(stat) => {
                visit(&Found {
                    parent,
                    name: &name,
                    path,
                    stat,
                })?;
                if kind(&stat) == SFlag::S_IFDIR {
                    let flags =
                        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    match openat(parent, name.as_c_str(), flags, Mode::empty()) {
                        Ok(child) => self::directory(child, path, depth + 1, visit, vanished)?,
                        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => vanished(path),
                        Err(error) => return Err(at(path)(error)),
                    }
                }
            }
        }
        path.truncate(before);
    }
    Ok(())
}

fn names(directory: &mut Dir) -> nix::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in directory.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn at(path: &[u8]) -> impl Fn(Errno) -> WalkError {
    use std::os::unix::ffi::OsStrExt as _;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
    move |error| WalkError::At(path.clone(), error.into())
}
