//! Removing a tree that a dyno has made, and that may be as deep as the disk allows.
//!
//! The standard library's way takes a descriptor, and a frame of the stack, for each level. Here
//! what lies deep is moved up first, so that two descriptors are enough for any tree. Nobody may
//! be at work in it any more.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Removes a file, a link, or a folder with everything in it; what is not there is removed.
///
/// # Errors
/// What the file system answers, in the middle of it perhaps: it can be called again.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => remove_folder(path),
        Ok(_) => gone(fs::remove_file(path)),
        Err(error) => gone(Err(error)),
    }
}

fn remove_folder(top: &Path) -> io::Result<()> {
    let mut moved = 0;
    loop {
        let mut found = false;
        for entry in fs::read_dir(top)? {
            found = true;
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                empty(&entry.path(), top, &mut moved)?;
                gone(fs::remove_dir(entry.path()))?;
            } else {
                gone(fs::remove_file(entry.path()))?;
            }
        }
        if !found {
            return gone(fs::remove_dir(top));
        }
    }
}

/// Removes the files in a folder, and moves the folders in it to the top.
fn empty(folder: &Path, top: &Path, moved: &mut u64) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            gone(fs::remove_file(entry.path()))?;
        } else if fs::remove_dir(entry.path()).is_err() {
            fs::rename(entry.path(), free_name(top, moved))?;
        }
    }
    Ok(())
}

/// A name that nothing in the top folder has.
fn free_name(top: &Path, moved: &mut u64) -> PathBuf {
    loop {
        *moved += 1;
        let name = top.join(format!(".gone-{moved}"));
        if fs::symlink_metadata(&name).is_err() {
            return name;
        }
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::{
        fcntl::{AT_FDCWD, OFlag, openat},
        sys::stat::{Mode, mkdirat},
    };

    use super::*;

    #[test]
    fn a_tree_that_is_deeper_than_there_are_descriptors_goes() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("top");
        fs::create_dir(&top).unwrap();
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut at = openat(AT_FDCWD, &top, flags, Mode::empty()).unwrap();
        // Each name is relative: the whole path is longer than any call takes.
        for _ in 0..30_000 {
            mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        drop(at);
        remove(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (top, other) = (folder.path().join("top"), folder.path().join("other"));
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        fs::create_dir_all(top.join(".gone-1")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::File::create(other.join("kept")).unwrap();
        symlink(&other, top.join("a/b/link")).unwrap();
        symlink(&other, top.join("link")).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists());
        assert!(other.join("kept").exists());
        remove(&top).unwrap();
    }
}
