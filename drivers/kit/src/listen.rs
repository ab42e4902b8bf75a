//! The socket a driver serves on: made by the driver, or handed down to it.
//!
//! Decided here: what may be at the path beforehand (nothing, or the stale socket of a
//! process that is gone), and that the socket is never reachable by more than its mode
//! allows, not even between `bind` and a later `chmod` (docs/driver-rules.md §7).

mod access;
pub mod handed;

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tokio::net::UnixListener;

pub(crate) use self::access::group;
pub use self::access::{Access, AccessError};
use self::handed::Handed;
use crate::socket::{self, InTheWay, SOCKET_PATH_MAX};

/// How often, and after which pause, the lock of a folder is tried, which others hold for as long
/// as it takes to make a socket.
const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why a driver cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Neither a path nor a descriptor was given.
    #[error("no socket to serve on: give --socket PATH or set HSUP_DRIVER_SOCKET")]
    Nowhere,
    /// The path is longer than the driver protocol has it.
    #[error(
        "the socket path `{}` has {} bytes, and {SOCKET_PATH_MAX} is the most",
        path.display(),
        path.as_os_str().len()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket is in the way; it is left alone.
    #[error("`{}` exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process serves the socket.
    #[error(
        "the socket `{}` is in use by {}",
        path.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The path.
        path: PathBuf,
        /// Who serves it, unless that does not answer.
        pid: Option<u32>,
    },
    /// Another process of a user we may not connect to has it.
    #[error("failed to find out whether the socket `{}` is in use", path.display())]
    Probe {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket of a process that is gone could not be unlinked.
    #[error("failed to remove the stale socket `{}`", path.display())]
    Unlink {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not clear who may reach it, or its folder does not keep others out.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The socket could not be made.
    #[error("failed to listen on `{}`", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The descriptor handed down is not a listening unix socket.
    #[error("failed to listen on the descriptor handed down (LISTEN_FDS)")]
    Inherit {
        /// Why.
        source: io::Error,
    },
}

/// A listening socket; unlinked when dropped, if it was made here.
#[derive(Debug)]
pub struct Listener {
    /// Only if it was made here. Before the socket, so that its name goes while it still is ours.
    _bound: Option<Bound>,
    socket: UnixListener,
    /// None if it has no name in the file system.
    path: Option<PathBuf>,
}

/// A socket file that is ours, by path and inode: another process may have replaced it.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    inode: u64,
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _lock = lock_folder(&self.path);
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "failed to unlink the socket");
        }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A socket made at this path.
    Path(PathBuf),
    /// Descriptor 3, which already listens.
    Descriptor,
}

impl Place {
    /// What the command line and the environment say: `--socket` first, then a descriptor
    /// handed down (`LISTEN_FDS`, with `LISTEN_PID` absent or ours), then `HSUP_DRIVER_SOCKET`.
    ///
    /// # Errors
    /// When none of the three says where.
    pub fn choose(
        flag: Option<PathBuf>,
        env: impl Fn(&str) -> Option<OsString>,
        own_pid: u32,
    ) -> Result<Self, ListenError> {
        if let Some(path) = flag {
            return Ok(Self::Path(path));
        }
        if Handed::find(&env, own_pid).is_some() {
            return Ok(Self::Descriptor);
        }
        match env("HSUP_DRIVER_SOCKET") {
            Some(path) if !path.is_empty() => Ok(Self::Path(path.into())),
            _ => Err(ListenError::Nowhere),
        }
    }
}

impl Listener {
    /// Listens at `place`; must run inside a tokio runtime. A socket that is made is for `access`;
    /// who can reach one that was handed down was its maker's to decide.
    ///
    /// # Errors
    /// As [`Listener::bind`], and when root's socket for others would be in a folder that is not
    /// root's alone; of a descriptor, when it is no unix socket that listens.
    pub fn open(place: &Place, access: Access) -> Result<Self, ListenError> {
        match place {
            Place::Path(path) => Self::bind_for(path, access),
            Place::Descriptor => Self::inherit(),
        }
    }

    /// Makes the socket at `path`, mode 0600, taking the place of a stale one.
    ///
    /// # Errors
    /// When `path` is too long, or something is there that is not the socket of a process that is
    /// gone; and what the system refuses.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        Self::bind_for(path, Access::Owner)
    }

    /// The same for others than the driver's own user.
    fn bind_for(path: &Path, access: Access) -> Result<Self, ListenError> {
        if path.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(ListenError::TooLong {
                path: path.to_owned(),
            });
        }
        let failed = |source| ListenError::Bind {
            path: path.to_owned(),
            source,
        };
        access.check_folder(path)?;
        // A socket that is bound and does not listen yet looks like a stale one.
        let lock = lock_folder(path);
        make_way(path)?;
        let (user, group) = (access.user(), access.group());
        let listener = socket::listen_for(path, access.mode(), user, group).map_err(failed)?;
        drop(lock);
        let bound = Bound {
            inode: fs::symlink_metadata(path).map_err(failed)?.ino(),
            path: path.to_owned(),
        };
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            socket: UnixListener::from_std(listener).map_err(failed)?,
            path: Some(path.to_owned()),
            _bound: Some(bound),
        })
    }

    /// Takes over descriptor 3.
    fn inherit() -> Result<Self, ListenError> {
        let failed = |source| ListenError::Inherit { source };
        let listener = handed::adopt(Handed::first()).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            socket: UnixListener::from_std(listener).map_err(failed)?,
            path: address.as_pathname().map(Path::to_owned),
            _bound: None,
        })
    }

    /// Where it is reached, whoever made it.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        Ok(self.socket.accept().await?.0)
    }
}

/// Keeps other drivers from the sockets in the folder of `path`, as long as it is held; the lock
/// leaves nothing behind, whatever becomes of its holder.
///
/// `None` where the folder may not be read, or somebody sits on its lock (for tmpfiles.d(5),
/// say): that is no reason not to serve.
fn lock_folder(path: &Path) -> Option<Flock<File>> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut folder = File::open(folder).ok()?;
    for _ in 0..LOCK_ATTEMPTS {
        folder = match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((folder, _)) => folder,
        };
        std::thread::sleep(LOCK_PAUSE);
    }
    tracing::warn!(path = %path.display(), "somebody holds a lock on the folder of the socket");
    None
}

/// Removes a stale socket at `path`, and nothing else.
fn make_way(path: &Path) -> Result<(), ListenError> {
    let path = path.to_owned();
    socket::make_way(&path).map_err(|in_the_way| match in_the_way {
        InTheWay::NotASocket => ListenError::NotASocket { path },
        InTheWay::Served(pid) => ListenError::InUse { path, pid },
        InTheWay::Probe(source) => ListenError::Probe { path, source },
        InTheWay::Remove(source) => ListenError::Unlink { path, source },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener as StdListener, UnixStream as StdStream},
    };

    use super::*;

    /// Leaves the socket of a process that is gone at `path`.
    fn leave_stale(path: &Path) {
        drop(StdListener::bind(path).unwrap());
        // A process that another test spawns meanwhile holds it too, until its `exec`.
        while StdStream::connect(path).is_ok() {}
    }

    fn choose(flag: Option<&str>, env: &[(&str, &str)]) -> Result<Place, ListenError> {
        let find = |name: &str| {
            let found = env.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(found.1))
        };
        Place::choose(flag.map(PathBuf::from), find, 42)
    }

    #[test]
    fn the_flag_wins_then_the_descriptor_then_the_variable() {
        let both = [("LISTEN_FDS", "1"), ("HSUP_DRIVER_SOCKET", "/b.sock")];
        assert_eq!(
            choose(Some("/a.sock"), &both).unwrap(),
            Place::Path("/a.sock".into())
        );
        assert_eq!(choose(None, &both).unwrap(), Place::Descriptor);
        assert_eq!(
            choose(None, &both[1..]).unwrap(),
            Place::Path("/b.sock".into())
        );
        assert!(matches!(choose(None, &[]), Err(ListenError::Nowhere)));
    }

    #[test]
    fn a_descriptor_meant_for_another_process_is_not_taken() {
        let other = [("LISTEN_FDS", "1"), ("LISTEN_PID", "41")];
        assert!(matches!(choose(None, &other), Err(ListenError::Nowhere)));
        let ours = [("LISTEN_FDS", "1"), ("LISTEN_PID", "42")];
        assert_eq!(choose(None, &ours).unwrap(), Place::Descriptor);
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_alone_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drv.sock");
        let listener = Listener::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_group_reaches_a_socket_that_is_made_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drv.sock");
        let own = nix::unistd::getegid();
        let place = Place::Path(path.clone());
        let _listener = Listener::open(&place, Access::Group(own)).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o660);
        assert_eq!(found.gid(), own.as_raw());
    }

    #[tokio::test]
    #[ignore = "needs root: it gives a socket away"]
    async fn root_gives_the_socket_away_in_a_folder_that_nobody_else_can_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drv.sock");
        let place = Place::Path(path.clone());
        let access = Access::User(nix::unistd::Uid::from_raw(4711));
        let listener = Listener::open(&place, access).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert_eq!(found.uid(), 4711);
        drop(listener);
        for (owner, mode) in [(4711, 0o755), (0, 0o777)] {
            std::os::unix::fs::chown(dir.path(), Some(owner), None).unwrap();
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(dir.path(), permissions).unwrap();
            let error = Listener::open(&place, access).unwrap_err();
            assert!(
                matches!(error, ListenError::Access(AccessError::Folder { .. })),
                "{error}"
            );
            assert!(!path.exists());
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drv.sock");
        leave_stale(&path);
        assert!(path.exists(), "a plain listener leaves its socket behind");
        let _listener = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        let own = std::process::id().to_string();
        assert!(error.to_string().contains(&own), "{error}");
        assert!(error.to_string().contains("drv.sock"), "{error}");
    }

    #[tokio::test]
    async fn of_those_who_want_a_stale_socket_one_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drv.sock");
        let handle = tokio::runtime::Handle::current();
        for _ in 0..200 {
            leave_stale(&path);
            let begin = std::sync::Barrier::new(4);
            let results: Vec<_> = std::thread::scope(|scope| {
                let bind = || {
                    let _runtime = handle.enter();
                    begin.wait();
                    Listener::bind(&path)
                };
                let binding: Vec<_> = (0..4).map(|_| scope.spawn(bind)).collect();
                let results = binding.into_iter().map(|thread| thread.join().unwrap());
                results.collect()
            });
            let served = results.iter().flatten().count();
            assert_eq!(served, 1, "{results:?}");
            for error in results.iter().filter_map(|result| result.as_ref().err()) {
                assert!(matches!(error, ListenError::InUse { .. }), "{error}");
            }
            StdStream::connect(&path).unwrap();
            drop(results);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[tokio::test]
    async fn a_folder_that_somebody_has_locked_is_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        let folder = File::open(dir.path()).unwrap();
        let _lock = Flock::lock(folder, FlockArg::LockShared).unwrap();
        Listener::bind(&dir.path().join("drv.sock")).unwrap();
    }

    #[tokio::test]
    async fn another_kind_of_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drv.sock");
        fs::File::create(&path).unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::NotASocket { .. })
        ));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_path_that_is_longer_than_the_protocol_has_it_is_refused() {
        let path = PathBuf::from(format!("/{}", "x".repeat(SOCKET_PATH_MAX)));
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::TooLong { .. }), "{error}");
    }
}
