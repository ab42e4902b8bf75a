//! Who follows a control directory: one process.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};

use hsup_driver_kit::locked;

/// Keeps others from following a directory, by a lock on it.
#[derive(Debug)]
pub(super) struct Claim {
    directory: File,
    is_locked: bool,
}

impl Claim {
    /// Claims the directory at `path`; `None` when another process has it.
    pub(super) fn of(path: &Path) -> io::Result<Option<Self>> {
        let directory = File::open(path)?;
        let is_locked = match directory.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => return Ok(None),
            // Some file systems have no locks: no reason to follow nothing there.
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, path = %path.display(), "control directory not locked");
                false
            }
        };
        Ok(Some(Self {
            directory,
            is_locked,
        }))
    }

    /// Whether nobody else can have it, too: not where there are no locks.
    pub(super) const fn is_exclusive(&self) -> bool {
        self.is_locked
    }

    /// Whether it is of the directory that is at `path` now.
    pub(super) fn is_of(&self, path: &Path) -> bool {
        locked::is_at(&self.directory, path)
    }
}
