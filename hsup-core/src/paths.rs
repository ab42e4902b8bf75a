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

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, User, access, geteuid};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

pub use hsup_driver_kit::socket::{SOCKET_PATH_MAX, SUN_PATH_MAX};

use crate::state::SupervisorId;

/// The longest key, in bytes.
const KEY_MAX: usize = 100;
/// `~` and the first 16 hexadecimal digits of the SHA-256 of the whole key.
const HASH_LEN: usize = 17;
/// A runtime directory must leave room for the hash of a key and for `.sock`.
const SOCKET_NAME_MIN: usize = HASH_LEN + 8;

const RUNS: &str = "run";
const DRIVER_SOCKET: &str = "driver.sock";

/// What names an app in file names: its name, or its directory.
///
/// Two apps never share a key: `/` becomes `+`, which an app's name never holds
/// unescaped, and all but ASCII letters, digits, `.`, `_` and `-` is escaped as `%XX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppKey(String);

impl AppKey {
    /// The key of an app that has a name.
    pub fn app(name: &str) -> Self {
        let mut key = String::new();
        for byte in name.bytes() {
            push_escaped(&mut key, byte);
        }
        Self::shortened(key)
    }

    /// The key of an app that is a directory. The path must be canonical.
    pub fn directory(path: &Path) -> Self {
        let mut key = String::new();
        for &byte in path.as_os_str().as_bytes() {
            if byte == b'/' {
                key.push('+');
            } else {
                push_escaped(&mut key, byte);
            }
        }
        Self::shortened(key)
    }

    /// The key as a file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn shortened(key: String) -> Self {
        Self(shorten(key, KEY_MAX))
    }
}

/// A key must not be `.`, `..` or hidden, so a leading dot is escaped too.
fn push_escaped(key: &mut String, byte: u8) {
    let plain = byte.is_ascii_alphanumeric()
        || matches!(byte, b'_' | b'-')
        || (byte == b'.' && !key.is_empty());
    if plain {
        key.push(char::from(byte));
    } else {
        write!(key, "%{byte:02X}").expect("writing to a string cannot fail");
    }
}

/// Keeps a name within `max` bytes: its beginning, `~`, and a hash of the whole.
fn shorten(name: String, max: usize) -> String {
    if name.len() <= max {
        return name;
    }
    let digest = Sha256::digest(name.as_bytes());
    let mut short = name;
    let whole = std::mem::take(&mut short);
    short.push_str(&whole[..max.saturating_sub(HASH_LEN)]);
    short.push('~');
    for byte in digest.iter().take(8) {
        write!(short, "{byte:02x}").expect("writing to a string cannot fail");
    }
    short
}

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

/// How a directory for sockets becomes ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    /// Below a directory of the user's own: used when that one exists and is ours.
    UserRuntime,
    /// `/run/hsup`: for root, and for whom somebody has made it.
    System,
    /// Below `/tmp`: always there, and to be distrusted.
    Temporary,
}

/// The directory that a variable of the environment names. A relative path is ignored, as the
/// [XDG Base Directory Specification](https://specifications.freedesktop.org/basedir/latest/) asks.
pub fn directory_in(variable: &str) -> Option<PathBuf> {
    let path = env::var_os(variable).map(PathBuf::from);
    path.filter(|path| path.is_absolute())
}

/// What `/run/hsup` must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Ours alone.
    Ours,
    /// A group may share it: people who run each other's apps.
    Writable,
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
        self.runtime_dir_for(SOCKET_NAME_MIN, Whose::Writable)
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
        let dir = self.runtime_dir_for(below.as_os_str().len(), Whose::Ours)?;
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
        let candidates = self.candidates().into_iter();
        candidates.map(|(dir, _)| dir).collect()
    }

    /// The control sockets that this user may find, whether or not anybody still serves
    /// them, sorted within each directory. Those of the user's own supervisors are found
    /// wherever they are.
    pub fn find_sockets(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for (dir, candidate) in self.candidates() {
            if candidate == Candidate::Temporary && !is_private(&dir, self.uid) {
                continue;
            }
            let Ok(entries) = fs::read_dir(&dir) else {
                continue;
            };
            let mut sockets: Vec<PathBuf> = entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
                .map(|entry| entry.path())
                .filter(|path| {
                    path.extension()
                        .is_some_and(|extension| extension == "sock")
                })
                .collect();
            sockets.extend(self.linked_sockets(&dir));
            sockets.sort();
            // One socket has many paths: by links in them, or another mount.
            sockets.retain(|socket| seen.insert(Socket::at(socket)));
            found.extend(sockets);
        }
        found
    }

    /// Where the links of our supervisors in this runtime directory lead.
    fn linked_sockets(&self, dir: &Path) -> Vec<PathBuf> {
        let runs = dir.join("run");
        if !is_private(&runs, self.uid) {
            return Vec::new();
        }
        let runs = fs::read_dir(&runs).into_iter().flatten().flatten();
        let links = runs.map(|run| Self::control_link(&run.path()));
        let leads = links.filter_map(|link| {
            let socket = fs::read_link(&link).ok()?;
            // It was bound by the path that somebody typed: `/srv/app/../hsup.sock`.
            let socket = fs::canonicalize(&socket).unwrap_or(socket);
            // What was bound by a relative path may have an absolute one that is too long.
            let fits = socket.as_os_str().len() <= SOCKET_PATH_MAX;
            Some(if fits { socket } else { link })
        });
        leads.collect()
    }

    /// The first runtime directory below which a path of `room` bytes still fits a socket.
    fn runtime_dir_for(&self, room: usize, whose: Whose) -> Result<PathBuf, PathsError> {
        for (path, candidate) in self.candidates() {
            let fits = path.as_os_str().len() + 1 + room <= SOCKET_PATH_MAX;
            match candidate {
                Candidate::UserRuntime => {
                    let ours = path
                        .parent()
                        .is_some_and(|parent| is_private(parent, self.uid));
                    if fits && ours && private_dir(&path, self.uid).is_ok() {
                        return Ok(path);
                    }
                }
                Candidate::System => {
                    if fits && self.system_dir(&path, whose) {
                        return Ok(path);
                    }
                }
                Candidate::Temporary => {
                    private_dir(&path, self.uid)?;
                    return Ok(path);
                }
            }
        }
        Err(PathsError::Create {
            path: self.tmp.clone(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    fn candidates(&self) -> Vec<(PathBuf, Candidate)> {
        let user = self
            .xdg_runtime_dir
            .clone()
            .unwrap_or_else(|| self.run.join("user").join(self.uid.to_string()));
        vec![
            (user.join("hsup"), Candidate::UserRuntime),
            (self.run.join("hsup"), Candidate::System),
            (
                self.tmp.join(format!("hsup-{}", self.uid)),
                Candidate::Temporary,
            ),
        ]
    }

    /// Whether `/run/hsup` will do; root makes sure that it is there.
    fn system_dir(&self, path: &Path, whose: Whose) -> bool {
        if self.uid == 0 {
            // Whatever the umask, others must be able to reach the sockets that let them.
            let made = DirBuilder::new()
                .create(path)
                .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)));
            if made.is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
                return false;
            }
        }
        let trusted = match whose {
            Whose::Ours => is_private(path, self.uid),
            Whose::Writable => fs::symlink_metadata(path)
                .is_ok_and(|metadata| metadata.is_dir() && metadata.mode() & 0o002 == 0),
        };
        trusted && access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
    }
}

/// Which socket it is, whatever its path.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Socket {
    File {
        device: u64,
        inode: u64,
    },
    /// There is none any more.
    Nowhere(PathBuf),
}

impl Socket {
    fn at(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(metadata) => Self::File {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            Err(_) => Self::Nowhere(path.to_owned()),
        }
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

    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    /// A machine with nothing but empty `/run`, `/var/lib` and `/tmp`, seen by us.
    fn machine(dir: &Path) -> Paths {
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
    fn tempdir() -> tempfile::TempDir {
        tempfile::Builder::new()
            .prefix("hp")
            .tempdir_in("/tmp")
            .unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test_case("shop" => "shop")]
    #[test_case("my-shop_2.eu" => "my-shop_2.eu")]
    #[test_case(".." => "%2E."; "never a way up")]
    #[test_case("a/b" => "a%2Fb")]
    #[test_case("a+b" => "a%2Bb")]
    #[test_case("" => "")]
    fn key_of_an_app(name: &str) -> String {
        AppKey::app(name).0
    }

    #[test_case("/home/me/shop" => "+home+me+shop")]
    #[test_case("/home/me/my-shop" => "+home+me+my-shop")]
    #[test_case("/a b" => "+a%20b")]
    #[test_case("/" => "+")]
    fn key_of_a_directory(path: &str) -> String {
        AppKey::directory(Path::new(path)).0
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
    fn sockets_are_found_and_nothing_else() {
        let dir = tempdir();
        let paths = machine(dir.path());
        let runtime = paths.runtime_dir().unwrap();
        let sockets = ["a.sock", "b.sock"].map(|name| runtime.join(name));
        let listeners = sockets
            .each_ref()
            .map(|path| UnixListener::bind(path).unwrap());
        let other = UnixListener::bind(runtime.join("c.other")).unwrap();
        crate::files::write_atomic(&runtime.join("a.sock.lock"), b"1").unwrap();
        crate::files::write_atomic(&runtime.join("d.sock"), b"").unwrap();
        assert_eq!(paths.find_sockets(), sockets);
        drop((listeners, other));
    }

    #[test]
    fn sockets_elsewhere_are_found_by_the_links_of_our_supervisors() {
        let dir = tempdir();
        let paths = machine(dir.path());
        let runtime = paths.runtime_dir().unwrap();
        let near = runtime.join("a.sock");
        let _listener = UnixListener::bind(&near).unwrap();
        let long = format!("/{}/b.sock", "x".repeat(SOCKET_PATH_MAX));
        let links: Vec<_> = ["/elsewhere/c.sock", near.to_str().unwrap(), &long]
            .iter()
            .map(|socket| {
                let run = paths.run_dir(&SupervisorId::random().unwrap()).unwrap();
                let link = Paths::control_link(&run);
                symlink(socket, &link).unwrap();
                link
            })
            .collect();
        // A supervisor whose socket is where it is looked for anyway.
        paths.run_dir(&SupervisorId::random().unwrap()).unwrap();
        let mut expected = vec![PathBuf::from("/elsewhere/c.sock"), near, links[2].clone()];
        expected.sort();
        assert_eq!(paths.find_sockets(), expected);

        let runs = runtime.join("run");
        fs::set_permissions(&runs, Permissions::from_mode(0o770)).unwrap();
        assert_eq!(paths.find_sockets(), [runtime.join("a.sock")]);
    }

    #[test]
    fn a_socket_is_found_once_and_by_its_plainest_path() {
        let dir = tempdir();
        let paths = machine(dir.path());
        let runtime = paths.runtime_dir().unwrap();
        let near = runtime.join("a.sock");
        let _near = UnixListener::bind(&near).unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let far = root.join("far.sock");
        let _far = UnixListener::bind(&far).unwrap();
        symlink(&runtime, root.join("x")).unwrap();
        for socket in ["x/a.sock", "run/../far.sock", "lib/../far.sock"] {
            let run = paths.run_dir(&SupervisorId::random().unwrap()).unwrap();
            symlink(root.join(socket), Paths::control_link(&run)).unwrap();
        }
        // A path that no name tells from another socket's.
        fs::hard_link(&near, runtime.join("b.sock")).unwrap();
        let mut expected = [near, far];
        expected.sort();
        assert_eq!(paths.find_sockets(), expected);
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

    proptest! {
        #[test]
        fn two_apps_never_share_a_key(a in "[-a+/.%~]{0,6}", b in "[-a+/.%~]{0,6}") {
            prop_assert_eq!(a == b, AppKey::app(&a) == AppKey::app(&b));
            let dir = |text: &str| AppKey::directory(Path::new(&format!("/{text}")));
            prop_assert_eq!(a == b, dir(&a) == dir(&b));
            prop_assert_ne!(AppKey::app(&a), dir(&b));
        }

        #[test]
        fn a_key_is_a_short_file_name(name in ".{0,300}") {
            for key in [AppKey::app(&name), AppKey::directory(Path::new(&name))] {
                prop_assert!(key.0.len() <= KEY_MAX);
                prop_assert!(!key.0.contains(['/', '\0', '\n']) && !key.0.starts_with('.'));
            }
        }

        #[test]
        fn long_names_that_begin_alike_keep_their_own_keys(a in "x{120}[a-z]{8}", b in "x{120}[a-z]{8}") {
            prop_assert_eq!(a == b, AppKey::app(&a) == AppKey::app(&b));
        }
    }
}
