//! Where things lie: the work directory on the disk, and the run directory in memory.
//!
//! ```text
//! work directory (/var/lib/hsup)      run directory (a tmpfs)
//!   stacks/      stack images           KEY OF WORK DIR/
//!   slugs/       unpacked slugs           HOME/             one for each driver's socket
//!   uids/        one file for each          lock            held by the driver that lives
//!                user that is taken         socket          its path
//!   subnets/     the same of addresses      d/UID.ID/       a dyno
//!   containers/  what dynos write to /app
//! ```
//!
//! A driver takes over what lies in the home of its own socket, and nothing of another's: that
//! one's driver may come back, and its users would look for their dynos there. What is overdue in
//! a home whose lock is free, any driver ends (`forsaken.rs`). The home of a socket whose folder
//! is gone can have no driver any more; whoever starts next takes its dynos over.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::Uid,
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::time::Instant;

use crate::mounts;

/// How long the lock of a home may be somebody's who only looks whether it is free, and how often
/// it is tried meanwhile.
const LOOKED_AT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// What the run directory is called.
const NAME: &str = "hsup-libcontainer";
/// The folders in which it may be: the first that is in memory.
const IN_MEMORY: &[&str] = &["/run", "/dev/shm"];

/// The directories cannot be used.
#[derive(Debug, Error)]
pub(crate) enum DirsError {
    #[error("failed to make the directory `{}`", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error(
        "`{}` belongs to uid {owner} or may be written to by others: it must be root's alone",
        path.display()
    )]
    NotOurs { path: PathBuf, owner: u32 },
    #[error(
        "the path `{}` has one of the characters `:`, `,` and `\\`, which overlay file systems \
         give a meaning: choose another directory", .0.display()
    )]
    Characters(PathBuf),
    #[error("`{}` is a link: name the directory itself", .0.display())]
    Link(PathBuf),
    #[error("failed to look at `{}`", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error(
        "another driver serves `{}` from this work directory, or did and has not ended yet",
        .0.display()
    )]
    InUse(PathBuf),
    #[error("failed to lock `{}`", path.display())]
    Lock { path: PathBuf, source: io::Error },
}

/// The work directory.
#[derive(Clone, Debug)]
pub(crate) struct WorkDir(PathBuf);

impl WorkDir {
    /// Makes it, with the folders in it.
    pub(crate) fn open(path: &Path) -> Result<Self, DirsError> {
        plain(path)?;
        make(path, 0o755)?;
        let dir = Self(ours(path)?);
        make(&dir.containers(), 0o700)?;
        // What a dyno writes is nobody's to see, least of all to execute: it may have the bit that
        // makes who executes it the dyno's user.
        close(&dir.containers())?;
        let stacks = dir.0.join("stacks");
        make(&stacks, 0o700)?;
        close(&stacks)?;
        Ok(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    pub(crate) fn slugs(&self) -> PathBuf {
        self.0.join("slugs")
    }

    /// A short name for it.
    pub(crate) fn key(&self) -> String {
        key(&self.0)
    }
}

/// What a path is called where it would not fit.
fn key(path: &Path) -> String {
    let hash: [u8; 32] = Sha256::digest(path.as_os_str().as_bytes()).into();
    let mut start = [0; 8];
    start[2..].copy_from_slice(&hash[..6]);
    format!("{:012x}", u64::from_be_bytes(start))
}

/// The run directory where none is named.
pub(crate) fn default_run_dir() -> PathBuf {
    let in_memory = |folder: &&&str| {
        statfs(Path::new(folder)).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC)
    };
    let folder = IN_MEMORY.iter().find(in_memory).unwrap_or(&"/run");
    Path::new(folder).join(NAME)
}

/// The home of one driver: its dynos are here.
#[derive(Debug)]
pub(crate) struct Home {
    run_dir: PathBuf,
    path: PathBuf,
    /// As long as we live.
    _lock: Flock<File>,
    /// Homes of drivers that cannot come back, which are ours now.
    adopted: Vec<(PathBuf, Flock<File>)>,
}

impl Home {
    /// Takes the home of the driver at `socket`.
    pub(crate) fn open(
        run_dir: &Path,
        work_dir: &WorkDir,
        socket: Option<&Path>,
    ) -> Result<Self, DirsError> {
        plain(run_dir)?;
        make(run_dir, 0o700)?;
        let run_dir = ours(run_dir)?;
        let homes = run_dir.join(work_dir.key());
        make(&homes, 0o700)?;
        let socket = socket.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.into()));
        let name = match &socket {
            Some(path) => key(path),
            // Nobody finds it again.
            None => format!("nameless-{}", std::process::id()),
        };
        let path = homes.join(&name);
        let end = Instant::now() + LOOKED_AT;
        let lock = loop {
            if let Some(lock) = lock(&path)? {
                break lock;
            }
            if Instant::now() >= end {
                let socket = socket.clone().unwrap_or_else(|| PathBuf::from("a socket"));
                return Err(DirsError::InUse(socket));
            }
            thread::sleep(PAUSE);
        };
        make(&path.join("d"), 0o700)?;
        let text = socket.as_deref().unwrap_or(Path::new(""));
        let file = path.join("socket");
        File::create(&file)
            .and_then(|mut file| file.write_all(text.as_os_str().as_bytes()))
            .map_err(|source| DirsError::Make { path: file, source })?;
        Ok(Self {
            adopted: forsaken(&homes, &name)?,
            run_dir,
            path,
            _lock: lock,
        })
    }

    /// The directory that all homes are in.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Where a new dyno's directory is to be.
    pub(crate) fn dyno(&self, uid: u32, id: &str) -> PathBuf {
        self.path.join("d").join(format!("{uid}.{id}"))
    }

    /// Where an image is to be mounted.
    pub(crate) fn mount_point(&self, name: &str) -> PathBuf {
        self.path.join("m").join(name)
    }

    /// The directories of the dynos of this driver.
    pub(crate) fn dynos(&self) -> io::Result<Vec<PathBuf>> {
        dynos_of(&self.path)
    }

    /// Homes of other drivers that are not there now, but may come back: locked, for as long as
    /// it takes to look at them.
    pub(crate) fn absent(&self) -> io::Result<Vec<Absent>> {
        let homes = self.path.parent().unwrap_or(&self.path);
        let mut found = Vec::new();
        for entry in fs::read_dir(homes)? {
            let path = entry?.path();
            if path != self.path
                && path.join("d").is_dir()
                && let Ok(Some(lock)) = lock(&path)
            {
                found.push(Absent { path, _lock: lock });
            }
        }
        Ok(found)
    }

    /// Those of drivers that cannot come back.
    pub(crate) fn adopted_dynos(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for (home, _) in &self.adopted {
            found.extend(dynos_of(home)?);
        }
        Ok(found)
    }

    /// Removes what is empty of it, when the driver ends.
    pub(crate) fn tidy(&self) {
        for home in std::iter::once(&self.path).chain(self.adopted.iter().map(|(path, _)| path)) {
            remove_mount_points(&home.join("m"));
            if fs::remove_dir(home.join("d")).is_ok() {
                for file in ["socket", "lock"] {
                    drop(fs::remove_file(home.join(file)));
                }
                drop(fs::remove_dir(home));
            }
        }
        // Each only if it is empty.
        for folder in self.path.ancestors().skip(1).take(2) {
            drop(fs::remove_dir(folder));
        }
    }
}

/// The home of a driver that is not there.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) path: PathBuf,
    _lock: Flock<File>,
}

impl Absent {
    /// The directories of its dynos.
    pub(crate) fn dynos(&self) -> io::Result<Vec<PathBuf>> {
        dynos_of(&self.path)
    }
}

/// Removes the folders that images are mounted on. They are mounted for this driver alone, and
/// dynos have mounts of their own.
fn remove_mount_points(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        mounts::detach(&entry.path());
        // Not with what is in it: where it is still mounted, that is the stack.
        drop(fs::remove_dir(entry.path()));
    }
    drop(fs::remove_dir(folder));
}

fn dynos_of(home: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(home.join("d")) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The homes that no driver can come back to, locked.
fn forsaken(homes: &Path, own: &str) -> Result<Vec<(PathBuf, Flock<File>)>, DirsError> {
    let look = |source| DirsError::Look {
        path: homes.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(homes).map_err(look)? {
        let entry = entry.map_err(look)?;
        if entry.file_name().as_bytes() == own.as_bytes() {
            continue;
        }
        let socket = fs::read(entry.path().join("socket")).unwrap_or_default();
        let socket = Path::new(std::ffi::OsStr::from_bytes(&socket));
        let may_return = socket.parent().is_some_and(Path::is_dir);
        if !may_return && let Some(lock) = lock(&entry.path())? {
            found.push((entry.path(), lock));
        }
    }
    Ok(found)
}

/// Takes the lock of a home; `None` if somebody has it.
fn lock(home: &Path) -> Result<Option<Flock<File>>, DirsError> {
    make(home, 0o700)?;
    let path = home.join("lock");
    let failed = |source| DirsError::Lock {
        path: path.clone(),
        source,
    };
    let file = File::create(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

fn make(path: &Path, mode: u32) -> Result<(), DirsError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path);
    made.map_err(|source| DirsError::Make {
        path: path.to_owned(),
        source,
    })
}

/// Shuts a folder to everybody but root, whoever made it.
fn close(path: &Path) -> Result<(), DirsError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|source| DirsError::Make {
        path: path.to_owned(),
        source,
    })
}

/// The directory itself, if nobody but us can put something there, or something else in its
/// place: it is no link, and belongs to us, as do those above it, or they are as /tmp is.
fn ours(path: &Path) -> Result<PathBuf, DirsError> {
    let look = |path: &Path| {
        fs::symlink_metadata(path).map_err(|source| DirsError::Look {
            path: path.to_owned(),
            source,
        })
    };
    if look(path)?.is_symlink() {
        return Err(DirsError::Link(path.to_owned()));
    }
    let path = path.canonicalize().map_err(|source| DirsError::Look {
        path: path.to_owned(),
        source,
    })?;
    for (level, folder) in path.ancestors().enumerate() {
        let found = look(folder)?;
        let is_ours = found.uid() == Uid::effective().as_raw() || found.uid() == 0;
        let is_closed = found.mode() & 0o022 == 0;
        let is_sticky = found.mode() & 0o1000 != 0;
        if !is_ours || !(is_closed || (level > 0 && is_sticky)) {
            return Err(DirsError::NotOurs {
                path: folder.to_owned(),
                owner: found.uid(),
            });
        }
    }
    Ok(path)
}

fn plain(path: &Path) -> Result<(), DirsError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.iter().any(|byte| b":,\\".contains(byte)) {
        return Err(DirsError::Characters(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, socket: Option<&Path>) -> Result<Home, DirsError> {
        let work_dir = WorkDir::open(&folder.join("work")).unwrap();
        Home::open(&folder.join("run"), &work_dir, socket)
    }

    #[test]
    fn a_home_has_one_driver_at_a_time_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("a.sock");
        let home = open(folder.path(), Some(&socket)).unwrap();
        fs::create_dir(home.dyno(1000, "web-1")).unwrap();
        let error = open(folder.path(), Some(&socket)).unwrap_err();
        assert!(error.to_string().contains("a.sock"), "{error}");
        drop(home);
        let home = open(folder.path(), Some(&socket)).unwrap();
        assert_eq!(home.dynos().unwrap(), [home.dyno(1000, "web-1")]);
    }

    #[test]
    fn the_dynos_of_another_driver_are_left_alone_unless_it_cannot_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        let first = open(folder.path(), Some(&other.join("b.sock"))).unwrap();
        let dyno = first.dyno(1000, "web-1");
        fs::create_dir(&dyno).unwrap();
        let socket = folder.path().join("a.sock");
        assert!(
            open(folder.path(), Some(&socket))
                .unwrap()
                .adopted_dynos()
                .unwrap()
                .is_empty()
        );
        drop(first);
        assert!(
            open(folder.path(), Some(&socket))
                .unwrap()
                .adopted_dynos()
                .unwrap()
                .is_empty()
        );
        fs::remove_dir(&other).unwrap();
        let home = open(folder.path(), Some(&socket)).unwrap();
        assert!(home.dynos().unwrap().is_empty());
        assert_eq!(home.adopted_dynos().unwrap(), [dyno]);
    }

    #[test]
    fn a_driver_that_lives_is_not_absent() {
        let folder = tempfile::tempdir().unwrap();
        let socket = |name: &str| folder.path().join(name);
        let mine = open(folder.path(), Some(&socket("a.sock"))).unwrap();
        let other = open(folder.path(), Some(&socket("b.sock"))).unwrap();
        let dyno = other.dyno(1000, "web-1");
        fs::create_dir(&dyno).unwrap();
        assert!(mine.absent().unwrap().is_empty());
        drop(other);
        let absent = mine.absent().unwrap();
        assert_eq!(absent.len(), 1);
        assert_eq!(absent[0].dynos().unwrap(), [dyno]);
        drop(absent);
        open(folder.path(), Some(&socket("b.sock"))).unwrap();
    }

    #[test]
    fn what_is_empty_goes_with_the_driver() {
        let folder = tempfile::tempdir().unwrap();
        let home = open(folder.path(), None).unwrap();
        home.tidy();
        assert!(!folder.path().join("run").exists());
    }

    #[test]
    #[ignore = "needs root: it mounts"]
    fn a_stack_that_is_mounted_goes_with_the_driver_and_stays_as_it_is() {
        use nix::mount::{MsFlags, mount};
        let folder = tempfile::tempdir().unwrap();
        let home = open(folder.path(), None).unwrap();
        let stack = folder.path().join("stack");
        fs::create_dir_all(stack.join("etc")).unwrap();
        // The mount is that thread's.
        std::thread::scope(|scope| {
            let tidied = scope.spawn(|| {
                mounts::leave_host().unwrap();
                let at = home.mount_point("s@1");
                fs::create_dir_all(&at).unwrap();
                let none = None::<&str>;
                mount(Some(&stack), &at, none, MsFlags::MS_BIND, none).unwrap();
                home.tidy();
            });
            tidied.join().unwrap();
        });
        assert!(!folder.path().join("run").exists());
        assert!(stack.join("etc").exists());
    }

    #[test]
    fn a_link_in_the_place_of_the_run_directory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), folder.path().join("run"))
            .unwrap();
        let error = open(folder.path(), None).unwrap_err();
        assert!(matches!(error, DirsError::Link(_)), "{error}");
    }

    #[test]
    fn what_dynos_write_and_stacks_are_shut_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("work");
        for name in ["containers", "stacks"] {
            fs::create_dir_all(work.join(name)).unwrap();
        }
        let work = WorkDir::open(&work).unwrap();
        for name in ["containers", "stacks"] {
            let mode = fs::metadata(work.path().join(name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o700, "{name}");
        }
    }

    #[test]
    fn a_path_that_an_overlay_would_misread_is_refused() {
        let error = WorkDir::open(Path::new("/tmp/a:b")).unwrap_err();
        assert!(error.to_string().contains("another directory"), "{error}");
    }
}
