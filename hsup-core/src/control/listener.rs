//! Binding the control socket, so that exactly one hsup serves it and only who may
//! reach it does.
//!
//! A lock file beside the socket (`X.sock.lock`) decides who serves. It is held as long
//! as the server lives, whatever kills it, so a socket whose lock is free is stale and
//! may be replaced, unless it still answers: then somebody else, who knows of no lock,
//! serves it. Nothing but a socket is ever removed.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::{fs::OpenOptionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use hsup_driver_kit::{
    listen::handed::{self, Handed, NotNamed},
    locked,
    socket::{self, InTheWay, Served},
};
use nix::sys::socket::UnixAddr;
use thiserror::Error;

use super::Again;
use crate::{errors::chain, paths::SUN_PATH_MAX};

/// The mode of the socket, as the original's: its user and its group.
const SOCKET_MODE: u32 = 0o770;

/// The name of the control socket among several that are handed down.
const NAME: &str = "control";

/// A listening control socket, ours as long as this lives.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    guard: Option<SocketGuard>,
    path: Option<PathBuf>,
}

/// The control socket could not be bound.
#[derive(Debug, Error)]
pub enum BindError {
    #[error(
        "the control socket `{}` is served by {}",
        .path.display(),
        .owner.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse { path: PathBuf, owner: Option<u32> },

    #[error("`{}` exists and is not a socket, so it is not replaced", .path.display())]
    NotASocket { path: PathBuf },

    #[error("the path of the control socket `{}` is too long: a socket's has at most {SUN_PATH_MAX} bytes", .path.display())]
    TooLong { path: PathBuf },

    #[error("failed to lock `{}`, which guards the control socket", .path.display())]
    Lock { path: PathBuf, source: io::Error },

    #[error("failed to replace the control socket `{}`", .path.display())]
    Replace { path: PathBuf, source: io::Error },

    #[error("failed to bind the control socket `{}`", .path.display())]
    Bind { path: PathBuf, source: io::Error },

    #[error(transparent)]
    NotNamed(#[from] NotNamed),

    #[error("failed to take over the control socket that was handed down (LISTEN_FDS)")]
    Inherit { source: io::Error },
}

impl ControlListener {
    /// Binds the socket at `path`, in a directory that exists.
    ///
    /// # Errors
    /// When another process serves it, when something other than a socket is in its
    /// place, or when the system refuses.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        UnixAddr::new(path).map_err(|_| BindError::TooLong {
            path: path.to_owned(),
        })?;
        let lock = Arc::new(SocketLock::take(path)?);
        let path = path.to_owned();
        Place { path, lock }.listen()
    }

    /// Takes over the socket that was handed down; of several, the one named `control`. Who
    /// made it will remove it, and decided who may reach it.
    ///
    /// # Errors
    /// When there is no such socket, or it does not listen.
    pub fn inherit(handed: &Handed) -> Result<Self, BindError> {
        let descriptor = handed.which(NAME)?;
        handed::adopt(descriptor)
            .and_then(Self::taken_over)
            .map_err(|source| BindError::Inherit { source })
    }

    /// A socket that somebody else has bound and will remove, as systemd does.
    pub(super) fn taken_over(listener: UnixListener) -> io::Result<Self> {
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
        Ok(Self {
            listener,
            guard: None,
            path,
        })
    }

    /// Where it listens; `None` for one that has no name in the file system.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Where it is, for who makes it again; `None` for one that somebody else has bound.
    pub(super) fn place(&self) -> Option<Place> {
        self.guard.as_ref().map(|guard| guard.0.clone())
    }

    /// Whether connections that come when hsup has ended wait for the next one.
    pub(crate) const fn outlives_hsup(&self) -> bool {
        self.guard.is_none()
    }

    /// What removes the socket when it is dropped, and the socket for tokio.
    pub(super) fn into_parts(self) -> io::Result<(Option<SocketGuard>, tokio::net::UnixListener)> {
        self.listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(self.listener)?;
        Ok((self.guard, listener))
    }
}

/// The place of a socket, held by its lock.
#[derive(Clone, Debug)]
pub(super) struct Place {
    path: PathBuf,
    lock: Arc<SocketLock>,
}

impl Place {
    /// Whether nothing at all is there: what else is there instead is somebody's.
    pub(super) fn is_empty(&self) -> bool {
        fs::symlink_metadata(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Makes the socket again that somebody has removed: under its lock, or by `again` where that
    /// is gone too, for then the place is whoever's comes first. An error says why not.
    pub(super) fn listen_again(&self, again: &Again) -> Result<ControlListener, String> {
        if self.lock.is_there() {
            self.clone().listen().map_err(|error| chain(&error))
        } else {
            again()
        }
    }

    /// Binds a socket there.
    ///
    /// # Errors
    /// As [`ControlListener::bind`].
    fn listen(self) -> Result<ControlListener, BindError> {
        make_way(&self.path)?;
        let bound = |source| BindError::Bind {
            path: self.path.clone(),
            source,
        };
        let listener = socket::listen_at(&self.path, SOCKET_MODE).map_err(bound)?;
        Ok(ControlListener {
            listener,
            path: Some(self.path.clone()),
            guard: Some(SocketGuard(self)),
        })
    }
}

/// Removes the socket, and then the lock, for the next one to find the way free.
#[derive(Debug)]
pub(super) struct SocketGuard(Place);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        if self.0.lock.is_there() {
            remove(&self.0.path);
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "file not removed");
    }
}

#[derive(Debug)]
struct SocketLock {
    path: PathBuf,
    file: File,
}

impl SocketLock {
    fn take(at: &Path) -> Result<Self, BindError> {
        let mut path = at.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |source| BindError::Lock {
            path: path.clone(),
            source,
        };
        loop {
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path);
            let mut file = opened.map_err(|source| match socket::served_by(at) {
                // Another user's hsup: the lock is its own, the socket its group's.
                Ok(Served::By(owner)) => BindError::InUse {
                    path: at.to_owned(),
                    owner,
                },
                _ => failed(source),
            })?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let said = file.read_to_string(&mut text);
                    return Err(BindError::InUse {
                        path: at.to_owned(),
                        owner: said.ok().and_then(|_| text.trim().parse().ok()),
                    });
                }
            }
            // Its holder removes the file when it ends, maybe between our open and our
            // lock; then what is locked guards nothing.
            if !locked::is_at(&file, &path) {
                continue;
            }
            file.set_len(0)
                .and_then(|()| writeln!(file, "{}", std::process::id()))
                .map_err(failed)?;
            return Ok(Self { path, file });
        }
    }

    /// Whether it still guards the socket: where somebody has removed both, what is there now is
    /// somebody else's.
    fn is_there(&self) -> bool {
        locked::is_at(&self.file, &self.path)
    }
}

impl Drop for SocketLock {
    fn drop(&mut self) {
        // Removed before the descriptor is closed: whoever has it open finds that out.
        if self.is_there() {
            remove(&self.path);
        }
    }
}

/// Removes a stale socket at `path`, and nothing else.
fn make_way(path: &Path) -> Result<(), BindError> {
    let path = path.to_owned();
    socket::make_way(&path).map_err(|in_the_way| match in_the_way {
        InTheWay::NotASocket => BindError::NotASocket { path },
        InTheWay::Served(owner) => BindError::InUse { path, owner },
        InTheWay::Probe(source) | InTheWay::Remove(source) => BindError::Replace { path, source },
    })
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::MetadataExt as _, net::UnixStream},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    fn tempdir() -> tempfile::TempDir {
        tempfile::Builder::new()
            .prefix("hc")
            .tempdir_in("/tmp")
            .unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    fn lock_of(path: &Path) -> PathBuf {
        path.with_extension("sock.lock")
    }

    #[test]
    fn the_socket_is_for_its_user_and_group_alone() {
        let dir = tempdir();
        let path = dir.path().join("hsup.sock");
        let listener = ControlListener::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o770);
        assert_eq!(mode(&lock_of(&path)), 0o600);
        assert_eq!(listener.path(), Some(path.as_path()));
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempdir();
        let path = dir.path().join("hsup.sock");
        drop(UnixListener::bind(&path).unwrap());
        // What another test spawns meanwhile holds it too, until its `exec`.
        while UnixStream::connect(&path).is_ok() {}
        let listener = ControlListener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(listener);
    }

    #[test]
    fn a_socket_that_hsup_serves_names_its_owner() {
        let dir = tempdir();
        let path = dir.path().join("hsup.sock");
        let first = ControlListener::bind(&path).unwrap();
        let error = ControlListener::bind(&path).unwrap_err();
        let pid = std::process::id();
        assert!(
            matches!(error, BindError::InUse { owner: Some(owner), .. } if owner == pid),
            "{error}"
        );
        UnixStream::connect(&path).unwrap();
        drop(first);
        ControlListener::bind(&path).unwrap();
    }

    #[test]
    fn a_socket_that_somebody_serves_without_a_lock_names_its_owner() {
        let dir = tempdir();
        let path = dir.path().join("hsup.sock");
        let other = UnixListener::bind(&path).unwrap();
        let error = ControlListener::bind(&path).unwrap_err();
        let expected = format!(
            "the control socket `{}` is served by process {}",
            path.display(),
            std::process::id()
        );
        assert_eq!(error.to_string(), expected);
        UnixStream::connect(&path).unwrap();
        assert!(!lock_of(&path).exists(), "a lock was left behind");
        drop(other);
    }

    #[test]
    fn two_never_hold_the_lock_however_they_come_and_go() {
        let dir = tempdir();
        let path = dir.path().join("hsup.sock");
        let holders = AtomicUsize::new(0);
        let taken = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while taken.load(Ordering::SeqCst) < 500 {
                        if let Ok(lock) = SocketLock::take(&path) {
                            taken.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            std::thread::yield_now();
                            holders.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let dir = tempdir();
        let path = dir.path().join("hsup.sock");
        crate::files::write_atomic(&path, b"precious").unwrap();
        let error = ControlListener::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");

        fs::remove_file(&path).unwrap();
        let target = dir.path().join("target.sock");
        let served = UnixListener::bind(&target).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let error = ControlListener::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        drop(served);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_said_to_be() {
        let path = Path::new("/tmp").join("x".repeat(120));
        let error = ControlListener::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::TooLong { .. }), "{error}");
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        let dir = tempdir();
        let error = ControlListener::bind(&dir.path().join("missing/x.sock")).unwrap_err();
        assert!(matches!(error, BindError::Lock { .. }), "{error}");
    }
}
