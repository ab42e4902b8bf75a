//! Where hsup's files are when nobody says: state, sockets and FIFOs.
//!
//! | what | where, the first that will do |
//! |---|---|
//! | state | `$XDG_STATE_HOME/hsup/KEY`; for root `/var/lib/hsup/KEY`; `~/.local/state/hsup/KEY` |
//! | runtime | `$XDG_RUNTIME_DIR/hsup` (or `/run/user/UID/hsup`); `/run/hsup` for root or who may write there; `/tmp/hsup-UID` |
//! | control socket | `RUNTIME/KEY.sock` |
//! | FIFOs, driver's socket | `RUNTIME/run/SUPERVISOR-ID/`; with a lock file those of `run` and `build` |
//!
//! The path of a unix socket has at most [`SUN_PATH_MAX`] bytes; every one made here has at most
//! [`SOCKET_PATH_MAX`]. `/tmp` is everybody's, so what is there is used only when it is
//! a directory, ours, and writable by nobody else.

mod find;
mod key;

use std::{
    env,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, User, access, geteuid};
use thiserror::Error;

pub use hsup_driver_kit::socket::{SOCKET_PATH_MAX, SUN_PATH_MAX};

pub use self::key::AppKey;
use self::key::{HASH_LEN, shorten};
use crate::state::SupervisorId;

/// A runtime directory must leave room for the hash of a key and for `.sock`.
const SOCKET_NAME_MIN: usize = HASH_LEN + 8;

const RUNS: &str = "run";
const DRIVER_SOCKET: &str = "driver.sock";

/// What the default paths depend on.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The effective user.
    pub uid: u32,
    pub home: Option<PathBuf>,
    pub xdg_state_home: Option<PathBuf>,
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `/run`
    pub run: PathBuf,
    /// `/var/lib`
    pub var_lib: PathBuf,
    /// `/tmp`
    pub tmp: PathBuf,
}

/// There is no place for a file.
#[derive(Debug, Error)]
pub enum PathsError {
    #[error(
        "there is no directory for hsup's state: neither XDG_STATE_HOME nor HOME is set; pass --state-dir"
    )]
    NoState,

    #[error("failed to create the directory `{}`", .path.display())]
    Create { path: PathBuf, source: io::Error },

    #[error("`{}` is not a directory that only its owner, user {uid}, can write", .path.display())]
    Untrusted { path: PathBuf, uid: u32 },
}

/// The directories that may be the one for sockets, the best first.
struct Candidates {
    /// Below a directory of the user's own: used when that one exists and is ours.
    user: PathBuf,
    /// `/run/hsup`: for root, and for whom somebody has made it.
    system: PathBuf,
    /// Below `/tmp`: always there, and to be distrusted.
    temporary: PathBuf,
}

/// The directory that a variable of the environment names. A relative path is ignored, as the
/// [XDG Base Directory Specification](https://specifications.freedesktop.org/basedir/latest/) asks.
pub fn directory_in(variable: &str) -> Option<PathBuf> {
    let path = env::var_os(variable).map(PathBuf::from);
    path.filter(|path| path.is_absolute())
}

/// What `/run/hsup` must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SystemDir {
    /// Ours alone.
    Private,
    /// One that a group may share: people who run each other's apps.
    Shared,
}

impl Paths {
    /// The paths of this process.
    pub fn from_env() -> Self {
        let uid = geteuid();
        let home = directory_in("HOME").or_else(|| Some(User::from_uid(uid).ok()??.dir));
        Self {
            uid: uid.as_raw(),
            home,
            xdg_state_home: directory_in("XDG_STATE_HOME"),
            xdg_runtime_dir: directory_in("XDG_RUNTIME_DIR"),
            run: "/run".into(),
            var_lib: "/var/lib".into(),
            tmp: "/tmp".into(),
        }
    }

    /// Where the state of an app is kept. Nothing is made.
    ///
    /// # Errors
    /// When the user has no home.
    pub fn state_dir(&self, key: &AppKey) -> Result<PathBuf, PathsError> {
        let base = match (&self.xdg_state_home, &self.home) {
            (Some(state), _) => state.clone(),
            (None, _) if self.uid == 0 => self.var_lib.clone(),
            (None, Some(home)) => home.join(".local/state"),
            (None, None) => return Err(PathsError::NoState),
        };
        Ok(base.join("hsup").join(key.as_str()))
    }

    /// The directory for sockets and FIFOs; it is made where there is none.
    ///
    /// # Errors
    /// When even the one below `/tmp` cannot be made, or is somebody else's.
    pub fn runtime_dir(&self) -> Result<PathBuf, PathsError> {
        self.runtime_dir_for(SOCKET_NAME_MIN, SystemDir::Shared)
    }

    /// The control socket of an app; its directory is made where there is none.
    ///
    /// # Errors
    /// As [`Paths::runtime_dir`].
    pub fn control_socket(&self, key: &AppKey) -> Result<PathBuf, PathsError> {
        let dir = self.runtime_dir()?;
        let room = SOCKET_PATH_MAX - dir.as_os_str().len() - "/.sock".len();
        let name = shorten(key.as_str().to_owned(), room);
        Ok(dir.join(format!("{name}.sock")))
    }

    /// The directory of one supervisor, 0700: for its FIFOs and its driver's socket.
    ///
    /// # Errors
    /// As [`Paths::runtime_dir`].
    pub fn run_dir(&self, id: &SupervisorId) -> Result<PathBuf, PathsError> {
        let path = self.runs_dir(id)?.join(id.as_str());
        private_dir(&path, self.uid)?;
        Ok(path)
    }

    /// The directory of the [`Paths::run_dir`]s of all supervisors whose ids are as long as
    /// this one, 0700; it is made where there is none.
    ///
    /// # Errors
    /// As [`Paths::runtime_dir`].
    pub fn runs_dir(&self, id: &SupervisorId) -> Result<PathBuf, PathsError> {
        let below = Path::new(RUNS).join(id.as_str()).join(DRIVER_SOCKET);
        let dir = self.runtime_dir_for(below.as_os_str().len(), SystemDir::Private)?;
        let runs = dir.join(RUNS);
        private_dir(&runs, self.uid)?;
        Ok(runs)
    }

    /// The directory for a supervisor's FIFOs, in its [`Paths::run_dir`].
    ///
    /// # Errors
    /// As [`Paths::runtime_dir`].
    pub fn io_dir(&self, id: &SupervisorId) -> Result<PathBuf, PathsError> {
        let path = self.run_dir(id)?.join("io");
        private_dir(&path, self.uid)?;
        Ok(path)
    }

    /// The socket of a supervisor's own driver, in its [`Paths::run_dir`].
    pub fn driver_socket(run_dir: &Path) -> PathBuf {
        run_dir.join(DRIVER_SOCKET)
    }

    /// The link to a supervisor's control socket, in its [`Paths::run_dir`], where that socket
    /// is somewhere else than [`Paths::control_socket`].
    pub fn control_link(run_dir: &Path) -> PathBuf {
        run_dir.join("control")
    }

    /// The directories that [`Paths::find_sockets`] looks into, whether or not they exist.
    pub fn socket_dirs(&self) -> Vec<PathBuf> {
        let Candidates {
            user,
            system,
            temporary,
        } = self.candidates();
        vec![user, system, temporary]
    }

    /// The first runtime directory below which a path of `room` bytes still fits a socket.
    fn runtime_dir_for(&self, room: usize, system: SystemDir) -> Result<PathBuf, PathsError> {
        let fits = |path: &Path| path.as_os_str().len() + 1 + room <= SOCKET_PATH_MAX;
        let is_below_ours = |path: &Path| {
            path.parent()
                .is_some_and(|parent| is_private(parent, self.uid))
        };
        let candidates = self.candidates();
        let user = candidates.user;
        if fits(&user) && is_below_ours(&user) && private_dir(&user, self.uid).is_ok() {
            return Ok(user);
        }
        if fits(&candidates.system) && self.system_dir(&candidates.system, system) {
            return Ok(candidates.system);
        }
        // It is short enough for whatever hsup has there.
        private_dir(&candidates.temporary, self.uid)?;
        Ok(candidates.temporary)
    }

    fn candidates(&self) -> Candidates {
        let user = self
            .xdg_runtime_dir
            .clone()
            .unwrap_or_else(|| self.run.join("user").join(self.uid.to_string()));
        Candidates {
            user: user.join("hsup"),
            system: self.run.join("hsup"),
            temporary: self.tmp.join(format!("hsup-{}", self.uid)),
        }
    }

    /// Whether `/run/hsup` will do; root makes sure that it is there.
    fn system_dir(&self, path: &Path, system: SystemDir) -> bool {
        if self.uid == 0 {
            // Whatever the umask, others must be able to reach the sockets that let them.
            let made = DirBuilder::new()
                .create(path)
                .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)));
            if made.is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
                return false;
            }
        }
        let trusted = match system {
            SystemDir::Private => is_private(path, self.uid),
            SystemDir::Shared => fs::symlink_metadata(path)
                .is_ok_and(|metadata| metadata.is_dir() && metadata.mode() & 0o002 == 0),
        };
        trusted && access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
    }
}

/// Makes a directory 0700 unless it is there, and makes sure that it is ours.
fn private_dir(path: &Path, uid: u32) -> Result<(), PathsError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(PathsError::Create {
                path: path.to_owned(),
                source,
            });
        }
    }
    if is_private(path, uid) {
        Ok(())
    } else {
        Err(PathsError::Untrusted {
            path: path.to_owned(),
            uid,
        })
    }
}

/// A directory, not a link to one, that belongs to `uid` and that nobody else can write.
fn is_private(path: &Path, uid: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| {
        metadata.is_dir() && metadata.uid() == uid && metadata.mode() & 0o022 == 0
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    /// A machine with nothing but empty `/run`, `/var/lib` and `/tmp`, seen by us.
    pub(super) fn machine(dir: &Path) -> Paths {
        let make = |name: &str| {
            let path = dir.join(name);
            DirBuilder::new().mode(0o700).create(&path).unwrap();
            path
        };
        Paths {
            uid: geteuid().as_raw(),
            home: Some(dir.join("home")),
            xdg_state_home: None,
            xdg_runtime_dir: None,
            run: make("run"),
            var_lib: make("lib"),
            tmp: make("tmp"),
        }
    }

    /// Short enough for a socket, wherever TMPDIR points.
    pub(super) fn tempdir() -> tempfile::TempDir {
        tempfile::Builder::new()
            .prefix("hp")
            .tempdir_in("/tmp")
            .unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_state_directory_is_where_the_table_says() {
        let key = AppKey::app("shop");
        let paths = Paths {
            uid: 1000,
            home: Some("/home/me".into()),
            xdg_state_home: None,
            xdg_runtime_dir: None,
            run: "/run".into(),
            var_lib: "/var/lib".into(),
            tmp: "/tmp".into(),
        };
        let dir = |paths: &Paths| paths.state_dir(&key).map(|dir| dir.display().to_string());
        assert_eq!(dir(&paths).unwrap(), "/home/me/.local/state/hsup/shop");
        let root = Paths {
            uid: 0,
            ..paths.clone()
        };
        assert_eq!(dir(&root).unwrap(), "/var/lib/hsup/shop");
        let xdg = Paths {
            xdg_state_home: Some("/x".into()),
            ..root
        };
        assert_eq!(dir(&xdg).unwrap(), "/x/hsup/shop");
        let homeless = Paths {
            home: None,
            ..paths
        };
        assert!(matches!(dir(&homeless), Err(PathsError::NoState)));
    }

    #[test]
    fn the_users_runtime_directory_comes_first() {
        let dir = tempdir();
        let mut paths = machine(dir.path());
        let xdg = dir.path().join("xdg");
        DirBuilder::new().mode(0o700).create(&xdg).unwrap();
        paths.xdg_runtime_dir = Some(xdg.clone());
        let socket = paths.control_socket(&AppKey::app("shop")).unwrap();
        assert_eq!(socket, xdg.join("hsup/shop.sock"));
        assert_eq!(mode(&xdg.join("hsup")), 0o700);
    }

    #[test]
    fn a_run_time_directory_that_others_can_write_is_passed_over() {
        let dir = tempdir();
        let mut paths = machine(dir.path());
        paths.uid = paths.uid.max(1);
        let xdg = dir.path().join("xdg");
        DirBuilder::new().create(&xdg).unwrap();
        fs::set_permissions(&xdg, Permissions::from_mode(0o777)).unwrap();
        paths.xdg_runtime_dir = Some(xdg.clone());
        // As root `uid` is now another's, and nothing is ours.
        if geteuid().is_root() {
            assert!(paths.runtime_dir().is_err());
        } else {
            let expected = paths.tmp.join(format!("hsup-{}", paths.uid));
            assert_eq!(paths.runtime_dir().unwrap(), expected);
        }
        assert!(!xdg.join("hsup").exists());
    }

    #[test]
    fn root_makes_run_hsup_and_others_use_it_when_they_may() {
        let dir = tempdir();
        let mut paths = machine(dir.path());
        let expected = paths.run.join("hsup");
        if paths.uid == 0 {
            assert_eq!(paths.runtime_dir().unwrap(), expected);
            assert_eq!(mode(&expected), 0o755);
        } else {
            assert_ne!(paths.runtime_dir().unwrap(), expected);
            DirBuilder::new().mode(0o755).create(&expected).unwrap();
            assert_eq!(paths.runtime_dir().unwrap(), expected);
        }
        paths.xdg_runtime_dir = Some(dir.path().join("missing"));
        assert_eq!(paths.runtime_dir().unwrap(), expected);
    }

    #[test]
    fn what_somebody_put_into_tmp_is_refused() {
        let dir = tempdir();
        let paths = machine(dir.path());
        // Neither a user's runtime directory nor `/run`.
        let paths = Paths {
            run: dir.path().join("none"),
            ..paths
        };
        let ours = paths.tmp.join(format!("hsup-{}", paths.uid));
        symlink(dir.path(), &ours).unwrap();
        let error = paths.runtime_dir().unwrap_err();
        assert!(matches!(error, PathsError::Untrusted { .. }), "{error}");
        assert_eq!(paths.find_sockets(), Vec::<PathBuf>::new());
        fs::remove_file(&ours).unwrap();

        DirBuilder::new().create(&ours).unwrap();
        fs::set_permissions(&ours, Permissions::from_mode(0o770)).unwrap();
        let error = paths.runtime_dir().unwrap_err();
        assert!(matches!(error, PathsError::Untrusted { .. }), "{error}");
        fs::remove_dir(&ours).unwrap();

        assert_eq!(paths.runtime_dir().unwrap(), ours);
        assert_eq!(mode(&ours), 0o700);
    }

    #[test]
    fn a_supervisors_directory_is_private() {
        let dir = tempdir();
        let paths = machine(dir.path());
        let id = SupervisorId::random().unwrap();
        let run = paths.run_dir(&id).unwrap();
        assert_eq!(
            run,
            paths.runtime_dir().unwrap().join("run").join(id.as_str())
        );
        assert_eq!(mode(&run), 0o700);
        assert_eq!(paths.run_dir(&id).unwrap(), run);
    }

    #[test]
    fn a_long_runtime_directory_is_passed_over_for_a_socket_that_fits() {
        let dir = tempdir();
        let mut paths = machine(dir.path());
        let long = dir.path().join("x".repeat(80));
        DirBuilder::new().mode(0o700).create(&long).unwrap();
        paths.xdg_runtime_dir = Some(long.clone());
        let key = AppKey::directory(Path::new(&format!("/{}", "deep/".repeat(50))));
        let socket = paths.control_socket(&key).unwrap();
        assert!(!socket.starts_with(&long), "{}", socket.display());
        assert!(socket.as_os_str().len() <= SOCKET_PATH_MAX);
        drop(UnixListener::bind(&socket).unwrap());

        let id: SupervisorId = "a".repeat(63).parse().unwrap();
        // Only the real `/tmp` is short enough for the longest id.
        let driver = Path::new("/tmp/hsup-4294967295/run")
            .join(id.as_str())
            .join(DRIVER_SOCKET);
        assert!(driver.as_os_str().len() <= SOCKET_PATH_MAX);
    }
}
