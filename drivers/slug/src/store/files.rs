//! Where everything in a store is, and its locks.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use hsup_driver_kit::locked::is_at;
use tokio::time::sleep;

use crate::{error::SlugError, id::SlugId};

/// How often to look whether another process has finished with a slug.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The directories of a store.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) directory: PathBuf,
    pub(super) staging: PathBuf,
    pub(super) trees: PathBuf,
    pub(super) refs: PathBuf,
    pub(super) trash: PathBuf,
    locks: PathBuf,
}

/// A lock, until it is dropped.
#[derive(Debug)]
pub(super) struct Locked(#[expect(dead_code, reason = "held, not used")] File);

impl Layout {
    pub(super) fn open(directory: &Path) -> Result<Self, SlugError> {
        let layout = Self {
            directory: directory.to_owned(),
            staging: directory.join("staging"),
            trees: directory.join("trees"),
            refs: directory.join("refs"),
            trash: directory.join("trash"),
            locks: directory.join("locks"),
        };
        for path in [
            &layout.directory,
            &layout.staging,
            &layout.trees,
            &layout.refs,
            &layout.trash,
            &layout.locks,
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(SlugError::store("make", path))?;
        }
        Ok(layout)
    }

    pub(super) fn tree(&self, id: &SlugId) -> PathBuf {
        self.trees.join(id.to_string())
    }

    pub(super) fn has_tree(&self, id: &SlugId) -> bool {
        self.tree(id).exists()
    }

    /// Waits for the few calls of another.
    pub(super) fn lock(&self) -> Result<Locked, SlugError> {
        let path = self.directory.join("lock");
        let file = lock_file(&path).map_err(SlugError::store("open", &path))?;
        file.lock().map_err(SlugError::store("lock", &path))?;
        Ok(Locked(file))
    }

    /// Waits until nobody else fetches or unpacks this slug. Dropping the future ends that.
    pub(super) async fn wait_for(&self, id: &SlugId) -> Result<Locked, SlugError> {
        loop {
            if let Some(lock) = self.try_lock_id(id)? {
                return Ok(lock);
            }
            // flock(2) has no way to be told; a thread that waits in it could not be ended.
            sleep(LOOK_AGAIN).await;
        }
    }

    pub(super) fn try_lock_id(&self, id: &SlugId) -> Result<Option<Locked>, SlugError> {
        let path = self.locks.join(id.to_string());
        loop {
            let file = lock_file(&path).map_err(SlugError::store("open", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(SlugError::store("lock", &path)(error));
                }
            }
            // Who collects removes lock files, too: a lock on a removed one is none.
            if is_at(&file, &path) {
                return Ok(Some(Locked(file)));
            }
        }
    }

    /// Removes the file of a lock that the caller holds.
    pub(super) fn forget_lock(&self, id: &SlugId) {
        // One more than needed does no harm.
        drop(fs::remove_file(self.locks.join(id.to_string())));
    }

    /// The ids that have a file for their lock.
    pub(super) fn locked_ids(&self) -> Result<Vec<SlugId>, SlugError> {
        ids(&self.locks)
    }

    pub(super) fn tree_ids(&self) -> Result<Vec<SlugId>, SlugError> {
        ids(&self.trees)
    }

    /// A tree in use, unless it is not there (any more).
    pub(super) fn lock_tree(&self, id: &SlugId) -> Result<Option<OwnedFd>, SlugError> {
        let path = self.tree(id).join("root");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SlugError::store("open", &path)(error)),
        };
        // Only a process that removes it holds it alone, for as long as a rename takes.
        file.lock_shared()
            .map_err(SlugError::store("lock", &path))?;
        Ok(is_at(&file, &path).then(|| file.into()))
    }

    /// A tree that nobody uses, for as long as the lock is held; `None` if somebody does.
    pub(super) fn lock_unused_tree(&self, id: &SlugId) -> Result<Option<Locked>, SlugError> {
        lock_alone(&self.tree(id).join("root"))
    }

    /// Takes something out of the store at once, and removes it then.
    pub(super) fn discard(&self, path: &Path) -> Result<(), SlugError> {
        if let Some(trash) = self.throw_away(path)? {
            remove_tree(&trash).map_err(SlugError::store("remove", &trash))?;
        }
        Ok(())
    }

    /// Moves something to the trash; where to, if it was there.
    pub(super) fn throw_away(&self, path: &Path) -> Result<Option<PathBuf>, SlugError> {
        let bin = tempfile::Builder::new()
            .prefix("")
            .tempdir_in(&self.trash)
            .map_err(SlugError::store("write to", &self.trash))?;
        match fs::rename(path, bin.path().join("it")) {
            Ok(()) => Ok(Some(bin.keep())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SlugError::store("remove", path)(error)),
        }
    }
}

/// Holds the directory alone, unless somebody else holds it.
pub(super) fn lock_alone(path: &Path) -> Result<Option<Locked>, SlugError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SlugError::store("open", path)(error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(is_at(&file, path).then_some(Locked(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(SlugError::store("lock", path)(error)),
    }
}

/// Removes a tree, which another may remove at the same time, or somebody who was just killed
/// may write to for a moment more.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries < 100 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// The names in a directory that may go meanwhile.
pub(super) fn names(path: &Path) -> Result<Vec<String>, SlugError> {
    let failed = || SlugError::store("read", path);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed()(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed())?.file_name();
        names.extend(name.into_string());
    }
    Ok(names)
}

/// The ids among the names in a directory.
pub(super) fn ids(path: &Path) -> Result<Vec<SlugId>, SlugError> {
    let names = names(path)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

fn lock_file(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}
