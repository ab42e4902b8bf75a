//! A directory as a slug: the archive that it makes, the same bytes for the same tree.
//!
//! Owners are left out, and times are whole seconds, as in most archives. Sockets, FIFOs and
//! devices are no part of an app and are left out with a note. A tree may change while it is
//! read: what vanishes is left out, what shrinks is filled up with zeros, and both are told.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat},
};
use tar::{Builder, EntryType, Header};

use crate::{
    error::SlugError,
    unpack::escaped,
    walk::{Found, WalkError, walk},
    wire::Report,
};

/// Where an app is in its slug.
const APP: &str = "app";
/// So many notes tell enough.
const NOTES: usize = 10;

/// Why a directory could not be packed.
#[derive(Debug)]
pub(crate) enum PackError {
    /// This, in the directory, cannot be read.
    Read(PathBuf, io::Error),
    /// Nobody takes the archive.
    Write(io::Error),
}

/// Writes the archive of the directory.
pub(crate) fn pack(root: OwnedFd, out: impl Write, report: &Report) -> Result<(), PackError> {
    let whole = fstat(&root).map_err(|errno| PackError::Read(PathBuf::new(), errno.into()))?;
    let mut notes = Notes { report, count: 0 };
    let mut archive = Archive {
        builder: Builder::new(out),
        linked: HashMap::new(),
    };
    let mut header = header(&whole, EntryType::Directory, 0);
    (archive.builder)
        .append_data(&mut header, format!("./{APP}/"), io::empty())
        .map_err(PackError::Write)?;
    let mut failure = None;
    let mut vanished = Vec::new();
    let result = walk(
        root,
        &mut |found| {
            archive.add(found, &mut notes).map_err(|error| {
                failure = Some(error);
                SlugError::Url // Only says that it is over: `failure` says why.
            })
        },
        &mut |path| {
            if vanished.len() <= NOTES {
                vanished.push(escaped(path));
            }
        },
    );
    for name in vanished {
        notes.tell(&format!("`{name}` vanished while the slug was packed"));
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    match result {
        Err(WalkError::At(path, source)) => return Err(PackError::Read(path, source)),
        Err(WalkError::Visit(_)) | Ok(()) => {}
    }
    notes.finish();
    let mut out = archive.builder.into_inner().map_err(PackError::Write)?;
    out.flush().map_err(PackError::Write)
}

struct Notes<'a> {
    report: &'a Report,
    count: usize,
}

impl Notes<'_> {
    fn tell(&mut self, text: &str) {
        self.count += 1;
        if self.count <= NOTES {
            self.report.note(text.to_owned());
        }
    }

    fn finish(&self) {
        if self.count > NOTES {
            let more = self.count - NOTES;
            self.report.note(format!("{more} more like these"));
        }
    }
}

struct Archive<W: Write> {
    builder: Builder<W>,
    /// Files of several names, by device and inode, and the first name of each.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, found: &Found<'_>, notes: &mut Notes<'_>) -> Result<(), PackError> {
        let path = Path::new(".").join(APP).join(OsStr::from_bytes(found.path));
        let read =
            |error: io::Error| PackError::Read(PathBuf::from(OsStr::from_bytes(found.path)), error);
        match found.kind() {
            SFlag::S_IFDIR => {
                let mut header = header(&found.stat, EntryType::Directory, 0);
                (self.builder)
                    .append_data(&mut header, path, io::empty())
                    .map_err(PackError::Write)
            }
            SFlag::S_IFLNK => {
                let target = match readlinkat(found.parent, found.name) {
                    Ok(target) => target,
                    Err(Errno::ENOENT | Errno::EINVAL) => return vanished(found, notes),
                    Err(error) => return Err(read(error.into())),
                };
                let mut header = header(&found.stat, EntryType::Symlink, 0);
                append_link(&mut self.builder, &mut header, &path, target.as_bytes())
                    .map_err(PackError::Write)
            }
            SFlag::S_IFREG => {
                let flags =
                    OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let file = match openat(found.parent, found.name, flags, Mode::empty()) {
                    Ok(fd) => File::from(fd),
                    Err(Errno::ENOENT | Errno::ELOOP) => return vanished(found, notes),
                    Err(error) => return Err(read(error.into())),
                };
                // What was opened counts: it may be another by now.
                let stat = fstat(&file).map_err(|errno| read(errno.into()))?;
                if crate::walk::kind(&stat) != SFlag::S_IFREG {
                    return vanished(found, notes);
                }
                if stat.st_nlink > 1 {
                    if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                        let first = first.clone();
                        let mut header = header(&stat, EntryType::Link, 0);
                        let first = first.as_os_str().as_bytes();
                        return append_link(&mut self.builder, &mut header, &path, first)
                            .map_err(PackError::Write);
                    }
                    self.linked.insert((stat.st_dev, stat.st_ino), path.clone());
                }
                self.file(file, &stat, &path, found, notes)
            }
            _ => {
                let name = escaped(found.path);
                notes.tell(&format!(
                    "`{name}` is a socket, FIFO or device, and left out of the slug"
                ));
                Ok(())
            }
        }
    }

    fn file(
        &mut self,
        file: File,
        stat: &FileStat,
        path: &Path,
        found: &Found<'_>,
        notes: &mut Notes<'_>,
    ) -> Result<(), PackError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = header(stat, EntryType::Regular, size);
        let mut exact = Exact {
            file,
            left: size,
            short: 0,
            error: None,
        };
        let written = self.builder.append_data(&mut header, path, &mut exact);
        if let Some(error) = exact.error {
            let path = PathBuf::from(OsStr::from_bytes(found.path));
            return Err(PackError::Read(path, error));
        }
        written.map_err(PackError::Write)?;
        if exact.short > 0 {
            let name = escaped(found.path);
            notes.tell(&format!(
                "`{name}` became shorter while the slug was packed: {} zeros in its place",
                exact.short
            ));
        }
        Ok(())
    }
}

/// Adds a link. Its target goes in as it is: `append_link` would tidy it up.
pub(crate) fn append_link<W: Write>(
    builder: &mut Builder<W>,
    header: &mut Header,
    path: &Path,
    target: &[u8],
) -> io::Result<()> {
    if header.set_link_name_literal(target).is_err() {
        let mut long = Header::new_gnu();
        long.set_entry_type(EntryType::GNULongLink);
        let name = b"././@LongLink";
        long.as_old_mut().name[..name.len()].copy_from_slice(name);
        long.set_mode(0o644);
        long.set_uid(0);
        long.set_gid(0);
        long.set_mtime(0);
        long.set_size(target.len() as u64 + 1);
        long.set_cksum();
        builder.append(&long, target.chain(&b"\0"[..]))?;
        // Every reader takes the long one; this field must hold something.
        let first = target.get(..100).unwrap_or(target);
        header.set_link_name_literal(first)?;
    }
    builder.append_data(header, path, io::empty())
}

#[expect(clippy::unnecessary_wraps, reason = "it is what adding it came to")]
fn vanished(found: &Found<'_>, notes: &mut Notes<'_>) -> Result<(), PackError> {
    let name = escaped(found.path);
    notes.tell(&format!("`{name}` vanished while the slug was packed"));
    Ok(())
}

fn header(stat: &FileStat, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    // Who unpacks it tells of the set-user-ID bits that it drops.
    let bits = if kind == EntryType::Regular {
        0o6777
    } else {
        0o777
    };
    header.set_mode(stat.st_mode & bits);
    header.set_uid(0);
    header.set_gid(0);
    // Before 1970 is no time that an archive of this kind knows.
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(size);
    header
}

/// As many bytes as the header has promised, whatever became of the file.
struct Exact {
    file: File,
    left: u64,
    short: u64,
    error: Option<io::Error>,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let mut read = 0;
        if self.short == 0 {
            read = match self.file.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    let kind = error.kind();
                    self.error = Some(error);
                    return Err(kind.into());
                }
                Ok(read) => read,
            };
        }
        if read == 0 {
            buffer[..most].fill(0);
            read = most;
            self.short += read as u64;
        }
        self.left -= read as u64;
        Ok(read)
    }
}
