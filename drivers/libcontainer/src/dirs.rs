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

mod home;

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::Uid,
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

pub(crate) use self::home::Home;

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
    if is_plain(path) {
        Ok(())
    } else {
        Err(DirsError::Characters(path.to_owned()))
    }
}

/// Whether a path means itself among the options of an overlay file system.
pub(crate) fn is_plain(path: &Path) -> bool {
    let mut bytes = path.as_os_str().as_bytes().iter();
    !bytes.any(|byte| b":,\\".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_place_of_the_run_directory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), folder.path().join("run"))
            .unwrap();
        let work_dir = WorkDir::open(&folder.path().join("work")).unwrap();
        let error = Home::open(&folder.path().join("run"), &work_dir, None).unwrap_err();
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
