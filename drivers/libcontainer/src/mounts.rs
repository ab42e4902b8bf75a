//! The file systems of a dyno, made in its shim's own mount namespace.
//!
//! ```text
//!   /      = overlay, read-only:  skeleton (the dyno's /etc/passwd, mount points) over the stack
//!   /app   = overlay, writable:   a folder of the dyno's own over the slug, whose files are
//!            mapped to the dyno's user
//! ```
//!
//! The slug is unpacked once, and is nobody's and everybody's: an id-mapped mount
//! (`mount_setattr(2)`) shows its files as the dyno's own. Where the kernel or the file system
//! cannot, it is copied, which takes as long as the slug is large (`app.rs`).

mod app;

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, open_tree},
};
use thiserror::Error;

pub(crate) use self::app::{App, Mapped, Slug, app, probe_at};

/// A mount of what is there, which is nowhere yet.
const COPY: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// A file system of a dyno could not be made.
#[derive(Debug, Error)]
#[error("failed to {doing} `{path}`")]
pub(crate) struct MountError {
    doing: &'static str,
    path: String,
    source: io::Error,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MountError + use<> {
    let path = path.display().to_string();
    move |source| MountError {
        doing,
        path,
        source,
    }
}

/// Enters a mount namespace of our own, which sees what is mounted in the one that we leave,
/// and shows it nothing.
///
/// # Errors
/// Without the right to do so.
pub(crate) fn leave_host() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )?;
    Ok(())
}

/// Mounts the root of a dyno at `at`: `skeleton` over `stack`.
pub(crate) fn root(skeleton: &Path, stack: &Path, at: &Path) -> Result<(), MountError> {
    let options = [
        b"lowerdir=",
        skeleton.as_os_str().as_bytes(),
        b":",
        stack.as_os_str().as_bytes(),
    ]
    .concat();
    mount(
        Some("overlay"),
        at,
        Some("overlay"),
        MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
        Some(OsStr::from_bytes(&options)),
    )
    .map_err(|errno| failed("mount the stack at", at)(errno.into()))
}

/// A mount, which is nowhere yet, of the folder or file that a descriptor stands for. Only in the
/// mount namespace in which that was opened.
pub(crate) fn tree_of(what: &OwnedFd, writable: bool) -> io::Result<OwnedFd> {
    let whole = OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(what, c"", COPY | whole)?;
    let mut flags = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if !writable {
        flags |= libc::MOUNT_ATTR_RDONLY;
    }
    // Those that are mounted below it, too.
    set_attributes(&tree, flags, None, libc::AT_RECURSIVE)?;
    Ok(tree)
}

/// Mounts such a tree at `at`, in whichever namespace.
pub(crate) fn bind(tree: &OwnedFd, at: &Path) -> Result<(), MountError> {
    move_mount(tree, at).map_err(failed("bind at", at))
}

/// Unmounts, at once for whoever looks, and later for who still has something open.
pub(crate) fn detach(at: &Path) {
    // It may not be mounted.
    let _ = umount2(at, MntFlags::MNT_DETACH);
}

#[expect(unsafe_code, reason = "mount_setattr(2) has no wrapper")]
fn set_attributes(
    tree: &OwnedFd,
    attr_set: u64,
    users: Option<&OwnedFd>,
    more: i32,
) -> io::Result<()> {
    let userns_fd = users.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(u64::MAX));
    let attributes = libc::mount_attr {
        attr_set,
        attr_clr: 0,
        propagation: 0,
        userns_fd,
    };
    // SAFETY: the kernel reads as much of the structure as its size says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | more,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    Errno::result(result)?;
    Ok(())
}

fn move_mount(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", CWD, at, flags)?;
    Ok(())
}
