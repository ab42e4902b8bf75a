//! A dyno's ends of the FIFOs that its supervisor made (driver protocol §11).
//!
//! stdout and stderr are opened for reading and writing: no open blocks, and a supervisor
//! that restarts closes nobody's last reading end. stdin is not, or its end never came.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use thiserror::Error;

use crate::processes::Stdio;

/// A FIFO that a dyno cannot be given.
#[derive(Debug, Error)]
pub enum FifoError {
    /// It could not be opened.
    #[error("failed to open `{}`", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("`{}` is not a FIFO", path.display())]
    NotFifo {
        /// Which.
        path: PathBuf,
    },
    /// It is somebody else's.
    #[error("`{}` belongs to uid {owner}, not to the caller", path.display())]
    Stranger {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
}

/// Opens `stdin`, `stdout` and `stderr` in `io_dir`, which must be of `peer` or of root.
/// Without a `stdin` there the dyno reads `/dev/null`.
///
/// # Errors
/// When one of them is missing, is no FIFO, or is somebody else's.
pub fn open(io_dir: &Path, peer: u32) -> Result<Stdio, FifoError> {
    let both = |name: &str| {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        open_one(&io_dir.join(name), &mut options, peer)
    };
    let stdin = io_dir.join("stdin");
    let stdin = if stdin.symlink_metadata().is_ok() {
        let mut options = OpenOptions::new();
        let file = open_one(&stdin, options.read(true), peer)?;
        // Only the open must not wait; the dyno's reads must.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_RDONLY)).map_err(|errno| FifoError::Open {
            path: stdin.clone(),
            source: errno.into(),
        })?;
        file
    } else {
        File::open("/dev/null").map_err(|source| FifoError::Open {
            path: "/dev/null".into(),
            source,
        })?
    };
    let blocking = |file: File| {
        // A dyno that finds its output non-blocking would lose some of it.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_RDWR)).map(|_| OwnedFd::from(file))
    };
    let output = |name: &str| {
        blocking(both(name)?).map_err(|errno| FifoError::Open {
            path: io_dir.join(name),
            source: errno.into(),
        })
    };
    Ok(Stdio::Fds {
        stdin: stdin.into(),
        stdout: output("stdout")?,
        stderr: output("stderr")?,
    })
}

fn open_one(path: &Path, options: &mut OpenOptions, peer: u32) -> Result<File, FifoError> {
    let failed = |source| FifoError::Open {
        path: path.to_owned(),
        source,
    };
    let file = options
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.file_type().is_fifo() {
        return Err(FifoError::NotFifo {
            path: path.to_owned(),
        });
    }
    let owner = metadata.uid();
    if owner != peer && owner != 0 {
        return Err(FifoError::Stranger {
            path: path.to_owned(),
            owner,
        });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use nix::{
        sys::stat::Mode,
        unistd::{geteuid, mkfifo},
    };

    use super::*;

    #[test]
    fn a_file_in_place_of_a_fifo_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        mkfifo(&dir.path().join("stdout"), Mode::S_IRWXU).unwrap();
        File::create(dir.path().join("stderr")).unwrap();
        let result = open(dir.path(), geteuid().as_raw());
        assert!(
            matches!(result, Err(FifoError::NotFifo { .. })),
            "{result:?}"
        );
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        mkfifo(&dir.path().join("real"), Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("stdout")).unwrap();
        let result = open(dir.path(), geteuid().as_raw());
        assert!(matches!(result, Err(FifoError::Open { .. })), "{result:?}");
    }
}
