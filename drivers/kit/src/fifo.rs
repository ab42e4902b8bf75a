//! Opening the FIFOs that a supervisor made for a dyno (docs/driver-rules.md §11 and §12, R5).
//!
//! `stdout` and `stderr` are opened for reading *and* writing: the open never blocks, and a
//! dyno gets no SIGPIPE while its supervisor restarts. `stdin` is opened for reading only,
//! or its end would never come. The driver itself keeps a reading end of both outputs, so that
//! what a dyno wrote before its end outlives it (see [`Kept`]).
//!
//! The directory is named by the caller, who may be somebody else than we are. So a FIFO is
//! looked at before it is opened, and it is what was looked at that is opened: a name that
//! leads to a device, to a file of a third party or through a link is refused.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{self, AT_FDCWD, FcntlArg, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{FileStat, Mode, SFlag, fstat},
    unistd::Uid,
};
use thiserror::Error;

use crate::processes::{Kept, Stdio};

/// The FIFOs of a dyno could not be opened, or must not be trusted.
#[derive(Debug, Error)]
pub enum FifoError {
    /// The directory or a FIFO in it could not be opened.
    #[error("failed to open `{}`", path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else stands where a FIFO should.
    #[error("`{}` is not a FIFO", path.display())]
    NotFifo {
        /// What it was.
        path: PathBuf,
    },
    /// The directory or a FIFO does not belong to the caller.
    #[error("`{}` belongs to uid {owner}, and the caller is uid {caller}", path.display())]
    Stranger {
        /// What belongs to somebody else.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who asked for it.
        caller: u32,
    },
    /// Others may write to the directory of a caller who is not us.
    #[error("others than its owner may write to the directory `{}`", path.display())]
    Shared {
        /// The directory.
        path: PathBuf,
    },
}

/// What was opened: for a driver that hands the descriptors to another process itself. Each is
/// closed on exec.
#[derive(Debug)]
pub struct Fifos {
    /// What the dyno reads: `/dev/null` if there is no FIFO for it.
    pub stdin: OwnedFd,
    /// What it writes to.
    pub stdout: OwnedFd,
    /// What it writes to.
    pub stderr: OwnedFd,
    /// A reading end, for whoever is to see to it that what the dyno wrote outlives the dyno. It
    /// does not block.
    pub kept_stdout: OwnedFd,
    /// The same of `stderr`.
    pub kept_stderr: OwnedFd,
}

/// Opens `stdin`, `stdout` and `stderr` in `io_dir` for a dyno of the user `peer`, whose output
/// this process keeps. Without a `stdin` there the dyno reads `/dev/null`.
///
/// # Errors
///
/// When `stdout` or `stderr` is missing, or anything is not what it should be.
pub fn open(io_dir: &Path, peer: u32) -> Result<Stdio, FifoError> {
    let Fifos {
        stdin,
        stdout,
        stderr,
        kept_stdout,
        kept_stderr,
    } = open_all(io_dir, peer)?;
    Ok(Stdio::Fds {
        stdin,
        stdout,
        stderr,
        kept: Some(Kept::new(kept_stdout, kept_stderr)),
    })
}

/// The same, with every descriptor for the caller to do with as it likes.
///
/// # Errors
///
/// As [`open`].
pub fn open_all(io_dir: &Path, peer: u32) -> Result<Fifos, FifoError> {
    let folder = Folder::open(io_dir, Uid::from_raw(peer))?;
    let stdin = match folder.fifo("stdin", OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Ok(fifo) => {
            // Non-blocking only so that the open did not wait for a writer.
            let result = fcntl::fcntl(&fifo, FcntlArg::F_SETFL(OFlag::O_RDONLY));
            result.map_err(|errno| failed(&io_dir.join("stdin"), errno))?;
            fifo
        }
        Err(FifoError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let path = Path::new("/dev/null");
            let null = File::open(path).map_err(|source| FifoError::Open {
                path: path.to_owned(),
                source,
            })?;
            null.into()
        }
        Err(error) => return Err(error),
    };
    let (stdout, kept_stdout) = folder.output("stdout")?;
    let (stderr, kept_stderr) = folder.output("stderr")?;
    Ok(Fifos {
        stdin,
        stdout,
        stderr,
        kept_stdout,
        kept_stderr,
    })
}

struct Folder<'a> {
    path: &'a Path,
    fd: OwnedFd,
    owner: Uid,
}

impl<'a> Folder<'a> {
    fn open(path: &'a Path, owner: Uid) -> Result<Self, FifoError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // A caller who is us can reach nothing through us that he could not reach himself;
        // of any other we take no links, and no directory where a third party may meddle.
        let is_us = owner == Uid::effective();
        let fd = if is_us {
            fcntl::open(path, flags, Mode::empty())
        } else {
            let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
            openat2(AT_FDCWD, path, OpenHow::new().flags(flags).resolve(resolve))
        };
        let fd = fd.map_err(|errno| failed(path, errno))?;
        let stat = fstat(&fd).map_err(|errno| failed(path, errno))?;
        check_owner(path, &stat, owner)?;
        let mode = Mode::from_bits_truncate(stat.st_mode);
        if !is_us && mode.intersects(Mode::S_IWGRP | Mode::S_IWOTH) {
            return Err(FifoError::Shared {
                path: path.to_owned(),
            });
        }
        Ok(Self { path, fd, owner })
    }

    /// The FIFO of an output for the dyno, and its reading end for us: see [`Kept`].
    fn output(&self, name: &str) -> Result<(OwnedFd, OwnedFd), FifoError> {
        let fifo = self.fifo(name, OFlag::O_RDWR)?;
        let kept = reopen(fifo.as_fd(), OFlag::O_RDONLY | OFlag::O_NONBLOCK);
        let kept = kept.map_err(|errno| failed(&self.path.join(name), errno))?;
        Ok((fifo, kept))
    }

    /// Looks at `name`, then opens just what it looked at.
    fn fifo(&self, name: &str, flags: OFlag) -> Result<OwnedFd, FifoError> {
        let path = self.path.join(name);
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let seen =
            openat(&self.fd, name, look, Mode::empty()).map_err(|errno| failed(&path, errno))?;
        let stat = fstat(&seen).map_err(|errno| failed(&path, errno))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFIFO {
            return Err(FifoError::NotFifo { path });
        }
        check_owner(&path, &stat, self.owner)?;
        reopen(seen.as_fd(), flags).map_err(|errno| failed(&path, errno))
    }
}

/// Opens anew what a descriptor, which may be an `O_PATH` one, stands for (see open(2)).
fn reopen(seen: BorrowedFd<'_>, flags: OFlag) -> Result<OwnedFd, Errno> {
    let link = format!("/proc/self/fd/{}", seen.as_raw_fd());
    let flags = flags | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    fcntl::open(link.as_str(), flags, Mode::empty())
}

/// Of another caller than us it must be exactly theirs: not even root's, whose FIFOs they may
/// not be able to open themselves. We ourselves take what is root's, which no third party made.
fn check_owner(path: &Path, stat: &FileStat, caller: Uid) -> Result<(), FifoError> {
    let owner = Uid::from_raw(stat.st_uid);
    if owner == caller || (owner.is_root() && caller == Uid::effective()) {
        return Ok(());
    }
    Err(FifoError::Stranger {
        path: path.to_owned(),
        owner: owner.as_raw(),
        caller: caller.as_raw(),
    })
}

fn failed(path: &Path, errno: Errno) -> FifoError {
    FifoError::Open {
        path: path.to_owned(),
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        io::{Read as _, Write as _},
        os::unix::fs::{PermissionsExt as _, symlink},
        thread,
    };

    use nix::unistd::mkfifo;
    use tempfile::TempDir;

    use super::*;

    fn folder(names: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            mkfifo(&folder.path().join(name), mode).unwrap();
        }
        folder
    }

    fn open_ours(folder: &TempDir) -> Result<Stdio, FifoError> {
        open(folder.path(), Uid::effective().as_raw())
    }

    /// stdin and stdout.
    fn files(stdio: Stdio) -> (File, File) {
        match stdio {
            Stdio::Fds { stdin, stdout, .. } => (stdin.into(), stdout.into()),
            Stdio::Terminal(_) => panic!("FIFOs are no terminal"),
        }
    }

    #[test]
    fn what_is_written_waits_for_a_reader() {
        let folder = folder(&["stdout", "stderr"]);
        // Nobody has the other end, yet there is no SIGPIPE and no blocking.
        let (_, mut stdout) = files(open_ours(&folder).unwrap());
        stdout.write_all(b"early").unwrap();
        let mut reader = File::open(folder.path().join("stdout")).unwrap();
        drop(stdout);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early");
    }

    #[test]
    fn the_end_of_stdin_comes_and_reading_waits_for_it() {
        let folder = folder(&["stdin", "stdout", "stderr"]);
        let path = folder.path().join("stdin");
        // The supervisor holds it from before the start (docs/driver-rules.md §11).
        let held = File::options().read(true).write(true).open(&path).unwrap();
        let (mut stdin, _) = files(open_ours(&folder).unwrap());
        let mut writer = File::options().write(true).open(&path).unwrap();
        drop(held);
        let reading = thread::spawn(move || {
            let mut text = String::new();
            // Would be `WouldBlock` at once if the descriptor were still non-blocking.
            stdin.read_to_string(&mut text).map(|_| text)
        });
        writer.write_all(b"line\n").unwrap();
        drop(writer);
        assert_eq!(reading.join().unwrap().unwrap(), "line\n");
    }

    #[test]
    fn without_a_fifo_stdin_is_at_its_end() {
        let (mut stdin, _) = files(open_ours(&folder(&["stdout", "stderr"])).unwrap());
        let mut bytes = Vec::new();
        stdin.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"");
    }

    #[test]
    fn a_missing_output_is_named() {
        let folder = folder(&["stdout"]);
        let error = open_ours(&folder).unwrap_err().to_string();
        let missing = folder.path().join("stderr");
        assert_eq!(error, format!("failed to open `{}`", missing.display()));
    }

    #[test]
    fn only_a_fifo_will_do() {
        for make in [
            |path: &Path| drop(File::create(path).unwrap()),
            |path: &Path| symlink("stderr", path).unwrap(),
            |path: &Path| symlink("/dev/null", path).unwrap(),
            |path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        ] {
            for name in ["stdin", "stdout"] {
                let folder = folder(&["stderr"]);
                if name == "stdin" {
                    mkfifo(&folder.path().join("stdout"), Mode::S_IRWXU).unwrap();
                }
                make(&folder.path().join(name));
                let error = open_ours(&folder).unwrap_err();
                assert!(matches!(error, FifoError::NotFifo { .. }), "{error:?}");
            }
        }
    }

    #[test]
    fn what_is_not_exactly_the_callers_is_refused() {
        // A folder of ours, opened for somebody else: root's is not theirs, either.
        let folder = folder(&["stdout", "stderr"]);
        let error = open(folder.path(), Uid::effective().as_raw() + 1).unwrap_err();
        assert!(matches!(error, FifoError::Stranger { .. }), "{error:?}");
    }

    #[test]
    #[ignore = "gives files away: needs root"]
    fn not_even_a_fifo_of_roots_is_taken_in_a_folder_of_the_callers() {
        let caller = 65534;
        let folder = folder(&["stdout", "stderr"]);
        let give = |path: &Path| std::os::unix::fs::chown(path, Some(caller), None).unwrap();
        give(folder.path());
        give(&folder.path().join("stdout"));
        let error = open(folder.path(), caller).unwrap_err();
        assert!(
            matches!(&error, FifoError::Stranger { path, owner: 0, .. } if path.ends_with("stderr")),
            "{error:?}"
        );
        give(&folder.path().join("stderr"));
        open(folder.path(), caller).unwrap();
    }

    #[test]
    fn of_another_caller_we_take_no_links() {
        let folder = folder(&["stdout", "stderr"]);
        let links = tempfile::tempdir().unwrap();
        let link = links.path().join("link");
        symlink(folder.path(), &link).unwrap();
        assert!(open(&link, Uid::effective().as_raw()).is_ok());
        let other = Uid::effective().as_raw() + 1;
        match open(&link, other).unwrap_err() {
            FifoError::Open { source, .. } => {
                assert_eq!(source.raw_os_error(), Some(libc::ELOOP));
            }
            error => panic!("{error:?}"),
        }
    }

    #[test]
    #[ignore = "gives files away: needs root"]
    fn of_another_caller_we_take_no_folder_that_others_may_write() {
        let caller = 65534;
        let folder = folder(&["stdout", "stderr"]);
        std::os::unix::fs::chown(folder.path(), Some(caller), None).unwrap();
        let shared = Permissions::from_mode(0o770);
        std::fs::set_permissions(folder.path(), shared).unwrap();
        let error = open(folder.path(), caller).unwrap_err();
        assert!(matches!(error, FifoError::Shared { .. }), "{error:?}");
    }
}
