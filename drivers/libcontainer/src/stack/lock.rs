//! Locks between drivers, and between what uses a stack and what would remove it.
//!
//! All are flock(2): they go with their holder, however it ends. The lock of a fetch is a file
//! of its own, the lock of a stack in use is on the image or the directory itself.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::locked::is_at;

/// The exclusive right to fetch one version of a stack. Its file goes with it.
#[derive(Debug)]
pub(super) struct FetchLock {
    path: PathBuf,
    _file: File,
}

impl FetchLock {
    /// Takes the lock; `None` while another process, or another task of this one, has it.
    pub(super) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever held it may have removed the file since: then this is a lock on nothing.
            if is_at(&file, path)? {
                return Ok(Some(Self {
                    path: path.to_owned(),
                    _file: file,
                }));
            }
        }
    }
}

impl Drop for FetchLock {
    fn drop(&mut self) {
        // While the lock is held: whoever comes later makes a new file. If this one stays, nothing
        // is lost.
        drop(fs::remove_file(&self.path));
    }
}

/// Opens a stack's file or directory and shares the lock on it; `None` if it has just gone.
pub(super) fn share(path: &Path) -> io::Result<Option<File>> {
    let file = File::open(path)?;
    match file.try_lock_shared() {
        Ok(()) => {}
        // Only a process that removes the stack locks it alone, and a removal is not undone.
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    Ok(is_at(&file, path)?.then_some(file))
}

/// Opens a stack's file or directory and locks it alone; `None` while it is in use.
pub(super) fn alone(path: &Path) -> io::Result<Option<File>> {
    let file = File::open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_fetches() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s-1.lock");
        let lock = FetchLock::try_take(&path).unwrap().unwrap();
        assert!(FetchLock::try_take(&path).unwrap().is_none());
        drop(lock);
        assert!(!path.exists());
        assert!(FetchLock::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn the_lock_of_a_file_that_went_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s-1.lock");
        let early = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!is_at(&early, &path).unwrap());
        let _lock = FetchLock::try_take(&path).unwrap().unwrap();
        assert!(!is_at(&early, &path).unwrap());
    }

    #[test]
    fn many_may_use_what_one_may_remove() {
        let folder = tempfile::tempdir().unwrap();
        let used = [share(folder.path()), share(folder.path())].map(|file| file.unwrap().unwrap());
        assert!(alone(folder.path()).unwrap().is_none());
        for file in used {
            // Closed, it would stay locked while a process that another test spawns has it, too.
            file.unlock().unwrap();
        }
        let _alone = alone(folder.path()).unwrap().unwrap();
        assert!(share(folder.path()).unwrap().is_none());
    }
}
