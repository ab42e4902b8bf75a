//! Files that another process reads or writes.
//!
//! A reader of what [`write_atomic`] wrote sees the old file or the new one, also after
//! a loss of power. [`read_regular`] never hangs: a FIFO under the name of a file, or a
//! file without an end, is an error.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, Read, Write as _},
    os::fd::AsRawFd as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    sys::signal::{SigHandler, Signal, signal},
};
use tempfile::NamedTempFile;
use thiserror::Error;

/// What the names of files begin with that are to take the place of others: what nobody else would
/// call a file.
const TEMPORARY: &str = ".hsup-unfinished-";

/// A file could not be written.
#[derive(Debug, Error)]
#[error("failed to write `{}`", .path.display())]
pub struct WriteFileError {
    path: PathBuf,
    source: io::Error,
}

/// Replaces `path` with `contents`, so that a reader sees the old file or the new one and
/// nothing between, and so that the new one outlives a power cut once this has returned.
///
/// The file is its owner's alone (0600).
///
/// # Errors
/// When any step fails; the old file is then still there, whole.
pub fn write_atomic(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace(path, contents, 0o600)
}

/// As [`write_atomic`], with exactly the permissions `mode`.
///
/// # Errors
/// When any step fails; the old file is then still there, whole.
pub fn write_with_mode(path: &Path, contents: &[u8], mode: u32) -> Result<(), WriteFileError> {
    replace(path, contents, mode).map_err(|source| WriteFileError {
        path: path.to_owned(),
        source,
    })
}

fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let dir = directory_of(path);
    let mut file = temporary_in(dir)?;
    file.write_all(contents)?;
    // The umask has no say in it.
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_directory(dir)
}

/// A new file in `dir`, its owner's alone, that is to take the place of another.
pub(crate) fn temporary_in(dir: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir)
}

/// Removes from `dir` what an hsup that was killed was about to put in place there: releases among
/// it, with all their config vars. Only whoever alone writes there may do so.
pub(crate) fn clear_temporaries(dir: &Path) {
    let us = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_named = entry.file_name().to_str().is_some_and(is_temporary);
        // Of a link, the link's own.
        let is_ours = |file: &Metadata| file.is_file() && file.uid() == us;
        if is_named
            && entry.metadata().is_ok_and(|file| is_ours(&file))
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "unfinished file not removed");
        }
    }
}

/// Whether this is a name that [`temporary_in`] gives.
fn is_temporary(name: &str) -> bool {
    let random = name.strip_prefix(TEMPORARY);
    random.is_some_and(|random| {
        random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Syncs a directory, so that the names in it survive a loss of power.
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether anybody has `file` open for writing, which the kernel tells whoever asks it for a
/// read lease; `None` where it does not, as of another user's file and over a network. See
/// [fcntl(2)], "Leases".
///
/// [fcntl(2)]: https://man7.org/linux/man-pages/man2/fcntl.2.html
#[expect(unsafe_code, reason = "fcntls without a wrapper")]
pub(crate) fn is_open_for_writing(file: &File) -> Option<bool> {
    // As <linux/fcntl.h> has it; the libc crate lacks it.
    const F_SETSIG: libc::c_int = 10;
    // Of a writer that opens it meanwhile the lease's holder is told by a signal: by one that
    // does nothing, instead of SIGIO, which would end the process.
    // SAFETY: these commands take an integer and touch no memory of this process.
    let call = |command, value: i32| unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
    if call(F_SETSIG, libc::SIGURG) < 0 {
        return None;
    }
    if call(libc::F_SETLEASE, libc::F_RDLCK) == 0 {
        call(libc::F_SETLEASE, libc::F_UNLCK);
        return Some(false);
    }
    let refused = io::Error::last_os_error().raw_os_error();
    (refused == Some(libc::EAGAIN)).then_some(true)
}

fn directory_of(path: &Path) -> &Path {
    path.parent()
        .filter(|dir| *dir != OsStr::new(""))
        .unwrap_or(Path::new("."))
}

/// Whether a symbolic link is as good as the file that it points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// It is.
    Follow,
    /// It is refused.
    Refuse,
}

/// A file could not be read.
#[derive(Debug, Error)]
pub enum ReadFileError {
    /// It could not be opened or read.
    #[error("failed to read `{}`", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else than a file.
    #[error("`{}` is {kind}, not a regular file", .path.display())]
    NotRegular {
        /// The thing.
        path: PathBuf,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// It is too large.
    #[error("`{}` is larger than {limit} bytes", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What would still do.
        limit: u64,
    },
}

impl ReadFileError {
    /// Whether there is nothing at that path.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Opens the regular file at `path` for reading; returns what it was when it was opened.
///
/// # Errors
/// When there is none, or it is no regular file.
pub fn open_regular(path: &Path, links: Links) -> Result<(File, Metadata), ReadFileError> {
    let not_regular = |kind| ReadFileError::NotRegular {
        path: path.to_owned(),
        kind,
    };
    let read = |source| ReadFileError::Read {
        path: path.to_owned(),
        source,
    };
    // Without O_NONBLOCK, opening a FIFO would wait for its writer.
    let mut flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    if links == Links::Refuse {
        flags |= OFlag::O_NOFOLLOW;
    }
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if links == Links::Refuse && error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(not_regular("a symbolic link"));
        }
        // Of a socket.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Err(not_regular("a socket"));
        }
        Err(error) => return Err(read(error)),
    };
    let metadata = file.metadata().map_err(read)?;
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok((file, metadata))
    } else if kind.is_dir() {
        Err(not_regular("a directory"))
    } else if kind.is_fifo() {
        Err(not_regular("a FIFO"))
    } else {
        Err(not_regular("a device"))
    }
}

/// Reads the regular file at `path`, at most `limit` bytes of it.
///
/// # Errors
/// When it cannot be read, is no regular file, or is larger.
pub fn read_regular(path: &Path, links: Links, limit: u64) -> Result<Vec<u8>, ReadFileError> {
    let (file, _) = open_regular(path, links)?;
    read_limited(file, path, limit)
}

/// Reads what is left of `file`, which is at `path`, at most `limit` bytes.
///
/// # Errors
/// When it cannot be read or is larger.
pub fn read_limited(file: File, path: &Path, limit: u64) -> Result<Vec<u8>, ReadFileError> {
    let path = || path.to_owned();
    let contents = read_at_most(file, limit).map_err(|source| ReadFileError::Read {
        path: path(),
        source,
    })?;
    contents.ok_or_else(|| ReadFileError::TooLarge {
        path: path(),
        limit,
    })
}

/// Reads what is left of `source`; `None` where that is more than `limit` bytes.
///
/// # Errors
/// When it cannot be read.
pub fn read_at_most(source: impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut contents = Vec::new();
    source.take(limit + 1).read_to_end(&mut contents)?;
    Ok((contents.len() as u64 <= limit).then_some(contents))
}

/// Makes a write beyond the file-size limit of this process fail with `EFBIG`, as on a full disk;
/// else it is killed. Dynos are as ever: who is spawned has the default action for every signal.
///
/// # Errors
/// As `signal(2)`.
#[expect(unsafe_code, reason = "signal dispositions have no safe form")]
pub fn survive_size_limit() -> nix::Result<()> {
    // SAFETY: SIG_IGN installs no handler, so there is no code that could be unsafe to run.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write_with_mode(&path, b"one and longer", 0o400).unwrap();
        write_with_mode(&path, b"two", 0o400).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o400);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_never_put_in_place_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (_, left) = temporary_in(dir.path()).unwrap().keep().unwrap();
        let named = |ending: &str| dir.path().join(format!("{TEMPORARY}{ending}"));
        for name in [".hsup-abcde1", ".hsup-notes", "state"] {
            write_atomic(&dir.path().join(name), b"").unwrap();
        }
        for ending in ["", "abcde1.txt", "abcdefg"] {
            write_atomic(&named(ending), b"").unwrap();
        }
        fs::create_dir(named("folder")).unwrap();
        symlink(dir.path().join("state"), named("a1link")).unwrap();
        clear_temporaries(dir.path());
        assert!(!left.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 8);
    }

    #[test]
    fn what_another_user_wrote_under_such_a_name_is_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let (_, theirs) = temporary_in(dir.path()).unwrap().keep().unwrap();
        // Only root can give a file away.
        if std::os::unix::fs::chown(&theirs, Some(3000), None).is_ok() {
            clear_temporaries(dir.path());
            assert!(theirs.exists());
        }
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(write_atomic(&path, b"new").is_err());
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_error_says_which_file() {
        let error = write_with_mode(Path::new("/nonexistent/state"), b"", 0o600).unwrap_err();
        assert_eq!(error.to_string(), "failed to write `/nonexistent/state`");
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write_atomic(&at("file"), b"12345").unwrap();
        symlink(at("file"), at("link")).unwrap();
        mkfifo(&at("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();

        let read = |name: &str, links| {
            read_regular(&at(name), links, 5).map_err(|error| {
                let text = error.to_string();
                text.replace(&format!("{}/", dir.path().display()), "")
            })
        };
        assert_eq!(read("file", Links::Refuse).unwrap(), b"12345");
        assert_eq!(read("link", Links::Follow).unwrap(), b"12345");
        let refused = |name| read(name, Links::Refuse).unwrap_err();
        assert_eq!(
            refused("link"),
            "`link` is a symbolic link, not a regular file"
        );
        assert_eq!(refused("fifo"), "`fifo` is a FIFO, not a regular file");
        assert_eq!(
            refused("socket"),
            "`socket` is a socket, not a regular file"
        );
        assert_eq!(refused("."), "`.` is a directory, not a regular file");
        assert_eq!(refused("none"), "failed to read `none`");

        write_atomic(&at("file"), b"123456").unwrap();
        assert_eq!(refused("file"), "`file` is larger than 5 bytes");
    }
}
