//! The folder of one `run` or `build`, and what becomes of those that were killed.
//!
//! A lock file in it is held for as long as its hsup lives, whatever ends that: a folder whose
//! lock is free is nobody's, and the next hsup removes it. Unless its driver still serves, for
//! then the dyno lingers, and the driver ends by itself. A folder without a lock file is not of
//! this kind, and left alone: that of a `start` is found again by its next life.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use hsup_driver_kit::{
    locked, orphans,
    socket::{self, Served},
};
use thiserror::Error;

use crate::{
    paths::{Paths, PathsError},
    state::SupervisorId,
};

const LOCK: &str = "lock";
/// What the lock is called until it is held.
const UNHELD: &str = "lock.new";

/// The folder could not be made.
#[derive(Debug, Error)]
pub enum MakeFolderError {
    /// No place for it.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// Its lock.
    #[error("failed to lock the runtime folder `{}`", path.display())]
    Lock {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A folder of our own; removed when this is dropped.
#[derive(Debug)]
pub(super) struct RunFolder {
    path: PathBuf,
    /// Closed in what is executed: a driver outlives hsup, and holds nothing.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder of this supervisor.
    ///
    /// # Errors
    /// When there is no place for it.
    pub(super) fn make(paths: &Paths, id: &SupervisorId) -> Result<Self, MakeFolderError> {
        let path = paths.run_dir(id)?;
        match lock(&path) {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err(source) => {
                // Without a look into it, for which there may be no descriptor either.
                drop(fs::remove_file(path.join(UNHELD)));
                drop(fs::remove_dir(&path));
                Err(MakeFolderError::Lock { path, source })
            }
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Locks a folder that is new. Nobody ever sees its lock free.
fn lock(folder: &Path) -> io::Result<File> {
    let unheld = folder.join(UNHELD);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unheld)?;
    file.try_lock()?;
    fs::rename(&unheld, folder.join(LOCK))?;
    Ok(file)
}

/// Removes the folders in `runs` that nobody needs any more, with the processes that their
/// drivers left.
pub(super) async fn sweep(runs: &Path) {
    let folders = match fs::read_dir(runs) {
        Ok(folders) => folders,
        Err(error) => {
            tracing::debug!(%error, "runtime folders not looked at");
            return;
        }
    };
    for folder in folders.flatten() {
        let path = folder.path();
        // Held until the folder is gone, so that no two sweep it.
        let Some(_lock) = abandoned(&path) else {
            continue;
        };
        let socket = Paths::driver_socket(&path);
        // Where it is not known, a driver may still be there.
        if matches!(socket::served_by(&socket), Ok(Served::ByNobody)) {
            tracing::info!(path = %path.display(), "removing what a killed hsup left");
            orphans::kill_left_by(&socket).await;
            remove(&path);
        }
    }
}

/// The lock of a folder whose hsup is gone; `None` for every other.
fn abandoned(folder: &Path) -> Option<File> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .ok()?;
    file.try_lock().ok()?;
    // Its hsup may have ended and removed it between the two.
    locked::is_at(&file, &path).then_some(file)
}

/// Removes a folder: its lock last, for without one nobody would ever remove the rest.
fn remove(folder: &Path) {
    let removed = fs::read_dir(folder).and_then(|entries| {
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else if entry.file_name() != LOCK {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir_all(folder)
    });
    if let Err(error) = removed {
        tracing::debug!(%error, path = %folder.display(), "runtime folder not removed");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_folder_that_somebody_may_need_is_left_alone() {
        let runs = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        let folder = |name: &str| {
            let path = runs.path().join(name);
            fs::create_dir_all(path.join("io")).unwrap();
            path
        };
        let (of_start, held) = (folder("of-start"), folder("held"));
        let (lingers, dead) = (folder("lingers"), folder("dead"));
        let _held = lock(&held).unwrap();
        // Closed, a lock would stay while a process that another test spawns has it, too.
        let let_go = |folder: &Path| lock(folder).unwrap().unlock().unwrap();
        let_go(&lingers);
        let _driver = UnixListener::bind(Paths::driver_socket(&lingers)).unwrap();
        let_go(&dead);
        drop(UnixListener::bind(Paths::driver_socket(&dead)).unwrap());
        // What another test spawns meanwhile holds it too, until its `exec`.
        while std::os::unix::net::UnixStream::connect(Paths::driver_socket(&dead)).is_ok() {}
        sweep(runs.path()).await;
        let left = [of_start, held, lingers, dead].map(|path| path.exists());
        assert_eq!(left, [true, true, true, false]);
    }
}
