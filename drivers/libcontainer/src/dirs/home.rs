//! The home of one driver in the run directory: whose it is, and the dynos in it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::time::Instant;

use super::{DirsError, WorkDir, key, make, ours, plain};
use crate::{locked::is_at, mounts};

/// How long somebody who only looks at a home may hold its lock, and how often we try meanwhile. Who
/// clears away there what is overdue (`forsaken.rs`) removes what dynos have written.
const LOOKED_AT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(10);

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
        Self::open_within(run_dir, work_dir, socket, LOOKED_AT)
    }

    fn open_within(
        run_dir: &Path,
        work_dir: &WorkDir,
        socket: Option<&Path>,
        patience: Duration,
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
        let end = Instant::now() + patience;
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
    let path = home.join("lock");
    let failed = |source| DirsError::Lock {
        path: path.clone(),
        source,
    };
    loop {
        match make(home, 0o700) {
            // It was there, and was gone when it was looked at.
            Err(DirsError::Make { source, .. })
                if source.kind() == io::ErrorKind::AlreadyExists && !is_no_folder(home) =>
            {
                continue;
            }
            made => made?,
        }
        let file = match File::create(&path) {
            // Its driver ended, and took it away just then.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            made => made.map_err(failed)?,
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Who had it may have removed the file since.
            Ok(lock) if is_at(&lock, &path).map_err(failed)? => return Ok(Some(lock)),
            Ok(_on_nothing) => {}
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(failed(errno.into())),
        }
    }
}

fn is_no_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, socket: Option<&Path>) -> Result<Home, DirsError> {
        let work_dir = WorkDir::open(&folder.join("work")).unwrap();
        let patience = Duration::from_millis(20);
        Home::open_within(&folder.join("run"), &work_dir, socket, patience)
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
    fn who_takes_a_home_from_drivers_that_end_has_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let served = std::sync::Mutex::new(());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let lock = loop {
                            if let Some(lock) = lock(&home).unwrap() {
                                break lock;
                            }
                        };
                        let alone = served.try_lock();
                        assert!(alone.is_ok(), "two have it");
                        thread::yield_now();
                        drop(alone);
                        // As a driver that ends tidies up.
                        fs::remove_file(home.join("lock")).unwrap();
                        drop(fs::remove_dir(&home));
                        drop(lock);
                    }
                });
            }
        });
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
        let second = || open(folder.path(), Some(&socket)).unwrap();
        assert!(second().adopted_dynos().unwrap().is_empty());
        drop(first);
        assert!(second().adopted_dynos().unwrap().is_empty());
        fs::remove_dir(&other).unwrap();
        let home = second();
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
}
