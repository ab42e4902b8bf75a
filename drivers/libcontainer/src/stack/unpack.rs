//! A root file system out of a tar archive, as root and never outside its directory.
//!
//! Every path is walked from the directory's descriptor, one that is absolute, climbs or leads
//! through a symbolic link is an error: no archive of a root file system needs such. Owners are
//! the archive's numbers. What a dyno could not use, or must not, is left out: devices and pipes
//! (it has a /dev of its own), set-user-id and set-group-id bits of files, extended attributes
//! and with them file capabilities. An archive that ends early is an error.

use std::{
    cell::Cell,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sys::{
        stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat},
};
use tar::{Archive, EntryType};
use thiserror::Error;

/// An archive was not unpacked. What there is of it is the caller's to remove.
#[derive(Debug, Error)]
pub enum UnpackError {
    #[error("the archive is broken, or ends too early")]
    Read(#[source] io::Error),
    #[error("the archive ends too early, after {entries} entries")]
    Short { entries: u64 },
    #[error("the archive's entry `{}` {problem}", .path.display())]
    Entry {
        path: PathBuf,
        problem: &'static str,
    },
    #[error("failed to make `{}`", .path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("failed to open the directory to unpack into")]
    Root(#[source] io::Error),
    #[error("the archive holds no root file system: it has no {0}")]
    NoRoot(&'static str),
}

/// Unpacks the archive into the directory `root`, which is there and empty.
pub(super) fn unpack(archive: impl Read, root: &Path) -> Result<(), UnpackError> {
    let zeros = Rc::new(Cell::new(0));
    let mut archive = Archive::new(CountZeros {
        inner: archive,
        zeros: Rc::clone(&zeros),
    });
    let mut tree = Tree::open(root)?;
    let mut entries = archive.entries().map_err(UnpackError::Read)?;
    let mut count = 0;
    loop {
        zeros.set(0);
        let Some(entry) = entries.next() else { break };
        tree.add(&mut entry.map_err(UnpackError::Read)?)?;
        count += 1;
    }
    // Without a block of zeros it did not end, it stopped. Padding is less than a block.
    if zeros.get() < 512 {
        return Err(UnpackError::Short { entries: count });
    }
    tree.finish()?;
    // Up to the end: a compressed archive has its checksum there, and a pipe its writer.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(UnpackError::Read)?;
    let is_there = |name| nix::sys::stat::lstat(&root.join(name)).is_ok();
    if !is_there("bin") && !is_there("usr") {
        return Err(UnpackError::NoRoot("/bin and no /usr"));
    }
    Ok(())
}

/// Counts the zeros that what was read ends in.
struct CountZeros<R> {
    inner: R,
    zeros: Rc<Cell<u64>>,
}

impl<R: Read> Read for CountZeros<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        let read = &buffer[..length];
        let zeros = read.iter().rev().take_while(|byte| **byte == 0).count();
        let before = if zeros == length { self.zeros.get() } else { 0 };
        self.zeros.set(before + zeros as u64);
        Ok(length)
    }
}

/// The directory that is filled.
struct Tree {
    root: OwnedFd,
    /// The folder of the last entry: the next is mostly in it too.
    last: Option<(PathBuf, OwnedFd)>,
    /// Directories get their times last, since every file in them changes those.
    directories: Vec<(PathBuf, TimeSpec)>,
}

/// Where an entry goes: in the folder, or the root itself if it has no name.
struct Place<'a> {
    folder: &'a Path,
    name: Option<&'a OsStr>,
}

impl Tree {
    fn open(root: &Path) -> Result<Self, UnpackError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let root = open(root, flags, Mode::empty());
        Ok(Self {
            root: root.map_err(|error| UnpackError::Root(error.into()))?,
            last: None,
            directories: Vec::new(),
        })
    }

    fn add<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let made = |result: nix::Result<()>| {
            result.map_err(|error| UnpackError::Make {
                path: path.clone(),
                source: error.into(),
            })
        };
        let clean = clean(&path).map_err(|problem| UnpackError::Entry {
            path: path.clone(),
            problem,
        })?;
        let place = place(&clean);
        let is_left_out = matches!(
            kind,
            EntryType::Char | EntryType::Block | EntryType::Fifo | EntryType::XGlobalHeader
        );
        // By this file, which an engine's export has, programs would think that they are there.
        if is_left_out || clean == Path::new(".dockerenv") {
            return Ok(());
        }
        let attributes = Attributes::of(entry.header()).map_err(UnpackError::Read)?;
        let Some(name) = place.name else {
            // The root itself.
            if kind != EntryType::Directory {
                return Err(UnpackError::Entry {
                    path,
                    problem: "is the root, and no directory",
                });
            }
            made(attributes.set(self.root.as_fd(), Bits::Directory))?;
            self.directories.push((PathBuf::new(), attributes.modified));
            return Ok(());
        };
        let source = if kind == EntryType::Link || kind == EntryType::Symlink {
            let target = entry.link_name_bytes().unwrap_or_default();
            Some(PathBuf::from(OsStr::from_bytes(&target)))
        } else {
            None
        };
        let size = entry.size();
        // A hard link's other name is opened first: `last` then is the folder of this one.
        let linked = match (&source, kind) {
            (Some(source), EntryType::Link) => Some(self.linked(&path, source)?),
            _ => None,
        };
        let folder = made_in(self.folder(place.folder), &path)?;
        match (kind, source) {
            (EntryType::Directory, _) => {
                let opened = made_in(directory(folder, name), &path)?;
                made(attributes.set(opened.as_fd(), Bits::Directory))?;
                self.directories.push((clean, attributes.modified));
            }
            (EntryType::Symlink, Some(target)) => {
                made(replacing(folder, name, || {
                    symlinkat(target.as_path(), folder, name)
                }))?;
                made(attributes.set_link(folder, name))?;
            }
            (EntryType::Link, _) => {
                if let Some((other, other_name)) = linked {
                    made(replacing(folder, name, || {
                        linkat(
                            &other,
                            other_name.as_os_str(),
                            folder,
                            name,
                            AtFlags::empty(),
                        )
                    }))?;
                }
            }
            (EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse, _) => {
                let flags = OFlag::O_WRONLY
                    | OFlag::O_CREAT
                    | OFlag::O_EXCL
                    | OFlag::O_NOFOLLOW
                    | OFlag::O_CLOEXEC;
                let mode = Mode::from_bits_truncate(0o600);
                let opened = replacing(folder, name, || openat(folder, name, flags, mode));
                let mut file = File::from(made_in(opened, &path)?);
                copy(entry, &mut file, size, &path)?;
                made(attributes.set(file.as_fd(), Bits::File))?;
                made(futimens(&file, &attributes.modified, &attributes.modified))?;
            }
            _ => {
                let problem = "is of a kind that no root file system holds";
                return Err(UnpackError::Entry { path, problem });
            }
        }
        Ok(())
    }

    /// The folder and name of what a hard link links to.
    fn linked(&mut self, path: &Path, target: &Path) -> Result<(OwnedFd, PathBuf), UnpackError> {
        let wrong = |problem| UnpackError::Entry {
            path: path.to_owned(),
            problem,
        };
        let target = clean(target).map_err(|_| wrong("links to a path outside the archive"))?;
        let place = place(&target);
        let name = place.name.ok_or_else(|| wrong("links to the root"))?;
        let folder = open_beneath(self.root.as_fd(), place.folder);
        let folder = folder.map_err(|_| wrong("links to what is not there"))?;
        Ok((folder, PathBuf::from(name)))
    }

    /// The folder, which is made if the archive forgot it.
    fn folder(&mut self, path: &Path) -> nix::Result<BorrowedFd<'_>> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.as_fd());
        }
        let is_last = self.last.as_ref().is_some_and(|(last, _)| last == path);
        if !is_last {
            let opened = match open_beneath(self.root.as_fd(), path) {
                Err(Errno::ENOENT) => self.make_folders(path)?,
                opened => opened?,
            };
            self.last = Some((path.to_owned(), opened));
        }
        let (_, opened) = self.last.as_ref().ok_or(Errno::ENOENT)?;
        Ok(opened.as_fd())
    }

    fn make_folders(&self, path: &Path) -> nix::Result<OwnedFd> {
        let mut so_far = PathBuf::new();
        for name in path {
            so_far.push(name);
            let parent = so_far.parent().unwrap_or_else(|| Path::new(""));
            let parent = open_beneath(self.root.as_fd(), parent)?;
            match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                Err(Errno::EEXIST) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        open_beneath(self.root.as_fd(), path)
    }

    fn finish(mut self) -> Result<(), UnpackError> {
        for (path, modified) in self.directories.drain(..).rev() {
            // One that a later entry replaced has no time to get.
            if let Ok(folder) = open_beneath(self.root.as_fd(), &path) {
                futimens(&folder, &modified, &modified).map_err(|error| UnpackError::Make {
                    path,
                    source: error.into(),
                })?;
            }
        }
        Ok(())
    }
}

fn made_in<T>(result: nix::Result<T>, path: &Path) -> Result<T, UnpackError> {
    result.map_err(|error| match error {
        // The ways in which the kernel says that a part of the path is no folder of the tree.
        Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV => UnpackError::Entry {
            path: path.to_owned(),
            problem: "leads through a link, or through what is no directory",
        },
        error => UnpackError::Make {
            path: path.to_owned(),
            source: error.into(),
        },
    })
}

/// The path without `.` parts; an error where it leaves the root.
fn clean(path: &Path) -> Result<PathBuf, &'static str> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err("climbs with `..`"),
            Component::RootDir | Component::Prefix(_) => return Err("has an absolute path"),
        }
    }
    Ok(clean)
}

fn place(clean: &Path) -> Place<'_> {
    Place {
        folder: clean.parent().unwrap_or_else(|| Path::new("")),
        name: clean.file_name(),
    }
}

fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root, path, how)
}

/// Makes a thing; what has its name already goes first, as with any tar.
fn replacing<T>(
    folder: BorrowedFd<'_>,
    name: &OsStr,
    make: impl Fn() -> nix::Result<T>,
) -> nix::Result<T> {
    match make() {
        Err(Errno::EEXIST) => {
            unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)?;
            make()
        }
        made => made,
    }
}

/// A directory, made unless it is there.
fn directory(folder: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let open = || openat(folder, name, flags, Mode::empty());
    let mode = Mode::from_bits_truncate(0o700);
    match mkdirat(folder, name, mode) {
        Err(Errno::EEXIST) => match open() {
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)?;
                mkdirat(folder, name, mode)?;
                open()
            }
            opened => opened,
        },
        Err(error) => Err(error),
        Ok(()) => open(),
    }
}

fn copy(entry: &mut impl Read, file: &mut File, size: u64, path: &Path) -> Result<(), UnpackError> {
    // `io::copy` would not tell a full disk from a broken archive.
    let mut buffer = vec![0; 64 * 1024];
    let mut done = 0;
    loop {
        let length = match entry.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(UnpackError::Read(error)),
        };
        io::Write::write_all(file, &buffer[..length]).map_err(|source| UnpackError::Make {
            path: path.to_owned(),
            source,
        })?;
        done += length as u64;
    }
    if done == size {
        Ok(())
    } else {
        Err(UnpackError::Entry {
            path: path.to_owned(),
            problem: "is cut short",
        })
    }
}

/// Which bits of a mode stay.
#[derive(Clone, Copy)]
enum Bits {
    File,
    Directory,
}

struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: u32,
    modified: TimeSpec,
}

impl Attributes {
    fn of(header: &tar::Header) -> io::Result<Self> {
        let number = |number: u64| {
            u32::try_from(number).map_err(|_| io::Error::other("an owner's number is too large"))
        };
        let modified = i64::try_from(header.mtime()?).unwrap_or(0);
        Ok(Self {
            uid: Uid::from_raw(number(header.uid()?)?),
            gid: Gid::from_raw(number(header.gid()?)?),
            mode: header.mode()?,
            modified: TimeSpec::new(modified, 0),
        })
    }

    /// The owner first: changing it takes bits of the mode away.
    fn set(&self, opened: BorrowedFd<'_>, bits: Bits) -> nix::Result<()> {
        let kept = match bits {
            Bits::File => 0o777,
            Bits::Directory => 0o1777,
        };
        fchown(opened, Some(self.uid), Some(self.gid))?;
        fchmod(opened, Mode::from_bits_truncate(self.mode & kept))
    }

    fn set_link(&self, folder: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(folder, name, Some(self.uid), Some(self.gid), flags)?;
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(folder, name, &self.modified, &self.modified, flags)
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
