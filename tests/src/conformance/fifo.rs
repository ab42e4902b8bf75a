//! FIFOs as the supervisor makes them (docs/driver-rules.md §11), and the suite's end of a stdin.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{libc::O_NONBLOCK, sys::stat::Mode, unistd::mkfifo};
use tokio::{io::unix::AsyncFd, time::timeout};

use super::{case::Failure, kernel::waitable};

/// How long a dyno may take to read what it is written.
const PATIENCE: Duration = Duration::from_secs(10);

/// The suite's end of a dyno's stdin.
#[derive(Debug)]
pub struct Stdin {
    path: PathBuf,
    fd: Option<AsyncFd<File>>,
}

/// Makes a FIFO that a dyno of another user may write, in a directory it cannot list.
pub(super) fn make(path: &Path) -> io::Result<()> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // Not as the mode of mkfifo: the umask would take the others' bits away.
    std::fs::set_permissions(path, Permissions::from_mode(0o622))
}

pub(super) fn open(path: &Path, read: bool, write: bool) -> io::Result<AsyncFd<File>> {
    let mut options = OpenOptions::new();
    options.read(read).write(write).custom_flags(O_NONBLOCK);
    waitable(options.open(path)?)
}

impl Stdin {
    /// Makes the FIFO in `dir` and holds both its ends until the dyno has started.
    pub(crate) fn make(dir: &Path) -> io::Result<Self> {
        let path = dir.join("stdin");
        make(&path)?;
        let fd = Some(open(&path, true, true)?);
        Ok(Self { path, fd })
    }

    /// A dyno without one.
    pub(crate) const fn none() -> Self {
        Self {
            path: PathBuf::new(),
            fd: None,
        }
    }

    /// After Start: keeps the writing end only, so that closing it is the end of file.
    pub(crate) fn started(&mut self) -> io::Result<()> {
        if self.fd.is_some() {
            self.fd = Some(open(&self.path, false, true)?);
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let failed = |observed: String| Failure {
            on: "stdin".to_owned(),
            expected: format!("{} bytes taken by the dyno", bytes.len()),
            observed,
        };
        let Some(fd) = &self.fd else {
            return Err(failed("no stdin FIFO".to_owned()));
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            match fd.get_ref().write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let ready = timeout(PATIENCE, fd.writable()).await;
                    match ready {
                        Ok(Ok(mut ready)) => ready.clear_ready(),
                        Ok(Err(error)) => return Err(failed(error.to_string())),
                        Err(_) => return Err(failed("a full FIFO that nobody reads".to_owned())),
                    }
                }
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        Ok(())
    }

    /// Closes the writing end: the dyno's end of file.
    pub fn close(&mut self) {
        self.fd = None;
    }
}
