//! The FIFOs of a dyno (docs/driver-rules.md §11), and the descriptors they cost.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit},
        stat::{FchmodatFlags, Mode, fchmodat},
    },
    unistd::mkfifo,
};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The FIFOs could not be made or opened.
#[derive(Debug, Error)]
pub enum IoDirError {
    /// See the path.
    #[error("failed to make the FIFO `{}`", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// See the path.
    #[error("failed to open the FIFO `{}`", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two more descriptors would be too many.
    #[error(
        "the open-file limit of {limit} leaves no room for another dyno's output: \
         raise it with `ulimit -n` (or LimitNOFILE= in the unit) and start hsup again"
    )]
    TooManyOpenFiles {
        /// The soft limit.
        limit: u64,
    },
}

impl IoDirError {
    /// Whether the folder that it was to be made in is not there.
    pub fn is_homeless(&self) -> bool {
        matches!(self, Self::Make { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The folder that holds one dyno's FIFOs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoDir(PathBuf);

/// hsup's ends of a dyno's output.
#[derive(Debug)]
pub struct Output {
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

impl IoDir {
    /// The folder `path`, made or yet to be made.
    pub const fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the dyno's standard input is, if it has one.
    pub fn stdin(&self) -> PathBuf {
        self.0.join("stdin")
    }

    /// Makes the folder and its FIFOs.
    ///
    /// # Errors
    /// When the folder is there already, or the system refuses.
    pub fn make(&self, with_stdin: bool) -> Result<(), IoDirError> {
        let failed = |path: &Path, source| IoDirError::Make {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .mode(0o700)
            .create(&self.0)
            .map_err(|source| failed(&self.0, source))?;
        let names: &[&str] = if with_stdin {
            &["stdout", "stderr", "stdin"]
        } else {
            &["stdout", "stderr"]
        };
        for name in names {
            let path = self.0.join(name);
            // A dyno of another uid may reopen /dev/stdout; the folder keeps strangers out.
            let mode = Mode::from_bits_truncate(0o622);
            mkfifo(&path, mode).map_err(|source| failed(&path, source.into()))?;
            fchmodat(
                nix::fcntl::AT_FDCWD,
                &path,
                mode,
                FchmodatFlags::FollowSymlink,
            )
            .map_err(|source| failed(&path, source.into()))?;
        }
        Ok(())
    }

    /// Opens hsup's ends for reading. `O_RDWR`, so that neither opening blocks nor the last
    /// writer's end looks like the dyno's.
    ///
    /// # Errors
    /// When a FIFO is not there, or is no file of ours.
    pub fn open_output(&self) -> Result<Output, IoDirError> {
        Ok(Output {
            stdout: self.open("stdout")?.into(),
            stderr: self.open("stderr")?.into(),
        })
    }

    /// Holds the dyno's standard input open until the driver has opened it.
    ///
    /// # Errors
    /// As [`IoDir::open_output`].
    pub fn hold_stdin(&self) -> Result<File, IoDirError> {
        self.open("stdin")
    }

    /// hsup's end for writing; closing it is the end of the dyno's input.
    ///
    /// # Errors
    /// `ENXIO` when nobody reads it any more.
    pub fn write_stdin(&self) -> Result<File, IoDirError> {
        let path = self.stdin();
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .map_err(|source| IoDirError::Open { path, source })
    }

    fn open(&self, name: &str) -> Result<File, IoDirError> {
        let path = self.0.join(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|source| IoDirError::Open { path, source })
    }

    /// Removes the folder with what is in it. What is gone already is fine.
    pub fn remove(&self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.0.display(), "failed to remove a FIFO folder");
            }
            _ => {}
        }
    }
}

/// Removes the FIFO folders below `io_root` whose dyno `is_wanted` does not know.
pub fn clear(io_root: &Path, is_wanted: impl Fn(&str) -> bool) {
    let folders = match fs::read_dir(io_root) {
        Ok(folders) => folders,
        Err(error) => {
            tracing::debug!(%error, path = %io_root.display(), "no FIFO folders to clear up");
            return;
        }
    };
    for folder in folders.flatten() {
        if folder.file_name().to_str().is_none_or(|id| !is_wanted(id)) {
            IoDir::at(folder.path()).remove();
        }
    }
}

/// Descriptors kept free for everything else: sockets, files, the driver.
const RESERVE: u64 = 64;
/// Descriptors that one dyno costs hsup: its two output FIFOs, and the claim on its port.
const PER_DYNO: u64 = 3;

/// Keeps dynos from using up the descriptors that hsup needs to go on. Who gets none waits for
/// another dyno to end.
#[derive(Clone, Debug)]
pub struct FdBudget {
    limit: u64,
    shares: Arc<Semaphore>,
    /// That there are too few was said, and holds still.
    told: Arc<AtomicBool>,
}

/// A dyno's share of the budget; gives it back when dropped.
#[derive(Debug)]
pub struct FdShare {
    _permit: OwnedSemaphorePermit,
}

impl FdBudget {
    /// Takes the limit from the process's own soft limit.
    ///
    /// # Errors
    /// When the kernel does not tell the limit.
    pub fn of_this_process() -> Result<Self, Errno> {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(Self::new(soft))
    }

    /// A budget below `limit`.
    pub fn new(limit: u64) -> Self {
        let dynos = limit.saturating_sub(RESERVE) / PER_DYNO;
        let permits = usize::try_from(dynos).unwrap_or(usize::MAX);
        Self {
            limit,
            shares: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            told: Arc::default(),
        }
    }

    /// One dyno's share, if there is one.
    pub fn try_take(&self) -> Option<FdShare> {
        let permit = Arc::clone(&self.shares).try_acquire_owned().ok()?;
        self.told.store(false, Ordering::Relaxed);
        Some(FdShare { _permit: permit })
    }

    /// One dyno's share, once there is one.
    pub async fn take(&self) -> FdShare {
        let permit = Arc::clone(&self.shares).acquire_owned().await;
        FdShare {
            _permit: permit.expect("nobody closes the semaphore"),
        }
    }

    /// Why there is no share to be had.
    pub const fn why_not(&self) -> IoDirError {
        IoDirError::TooManyOpenFiles { limit: self.limit }
    }

    /// The same for people, but for those who were told before: many dynos find out at once.
    pub fn why_not_once(&self) -> Option<IoDirError> {
        (!self.told.swap(true, Ordering::Relaxed)).then(|| self.why_not())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn fifos_are_made_as_the_protocol_wants_them() {
        let root = tempfile::tempdir().unwrap();
        let io = IoDir::at(root.path().join("web-1-x"));
        io.make(true).unwrap();
        for name in ["stdout", "stderr", "stdin"] {
            let metadata = io.path().join(name).metadata().unwrap();
            assert!(metadata.file_type().is_fifo());
            assert_eq!(metadata.permissions().mode() & 0o777, 0o622, "{name}");
        }
        let folder = io.path().metadata().unwrap();
        assert_eq!(folder.permissions().mode() & 0o777, 0o700);
        let _output = io.open_output().unwrap();
        io.remove();
        assert!(!io.path().exists());
        io.remove();
    }

    #[test]
    fn nobody_reads_a_stdin_that_the_driver_never_opened() {
        let root = tempfile::tempdir().unwrap();
        let io = IoDir::at(root.path().join("x"));
        io.make(true).unwrap();
        assert!(matches!(
            io.write_stdin(),
            Err(IoDirError::Open { source, .. }) if source.raw_os_error() == Some(libc::ENXIO)
        ));
    }

    #[tokio::test]
    async fn the_budget_runs_out_is_told_once_and_comes_back() {
        let budget = FdBudget::new(RESERVE + 2 * PER_DYNO);
        let first = budget.try_take().unwrap();
        let _second = budget.try_take().unwrap();
        assert!(budget.try_take().is_none());
        let why = budget.why_not_once().unwrap();
        assert!(why.to_string().contains("ulimit -n"), "{why}");
        assert!(budget.why_not_once().is_none());

        let waiting = budget.take();
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("there is no share"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        let third = waiting.await;
        assert!(budget.try_take().is_none(), "who waits comes first");
        drop(third);
        assert!(budget.try_take().is_some());
        assert!(budget.why_not_once().is_some(), "it is news again");
    }

    #[test]
    fn folders_of_nobody_are_cleared_up() {
        let root = tempfile::tempdir().unwrap();
        for name in ["web-1-a", "web-2-b"] {
            IoDir::at(root.path().join(name)).make(true).unwrap();
        }
        clear(root.path(), |id| id == "web-2-b");
        let left: Vec<_> = fs::read_dir(root.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "web-2-b");
        clear(&root.path().join("none"), |_| false);
    }
}
