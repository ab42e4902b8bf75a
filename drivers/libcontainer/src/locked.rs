//! Whether a lock that was taken is a lock on anything.

use std::{fs, fs::File, io, os::unix::fs::MetadataExt as _, path::Path};

/// Whether the file, which is locked now, is still the one at this path. Who held the lock before
/// may have removed it, and then others lock another.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
