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
//! cannot, it is copied, which takes as long as the slug is large.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{
                DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown, symlink,
            },
        },
    },
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, open_tree},
};
use thiserror::Error;

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

/// A slug, as it lies on the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slug<'a> {
    pub(crate) path: &'a Path,
    /// Who owns its files there.
    pub(crate) owner: u32,
}

/// Whether folders in `own`, on the disk, can be the writable layer of an overlay that is
/// mounted at `at`. They cannot where they are in an overlay themselves, as in a Docker container.
pub(crate) fn probe_at(own: &Path, at: &Path) -> Result<(), MountError> {
    let lower = own.join("lower");
    for folder in [&lower, at] {
        fs::create_dir_all(folder).map_err(failed("make", folder))?;
    }
    let result = app(None, own, &lower, at, 0).map(drop);
    detach(at);
    result
}

/// How a slug became the dyno's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapped {
    Mounted,
    /// Neither the kernel nor the file system could do that.
    Copied,
}

/// Mounts `/app` at `at`: `slug` as the property of `uid`, below a writable folder in `own`.
/// `lower` is an empty folder, to mount the slug on.
pub(crate) fn app(
    slug: Option<Slug<'_>>,
    own: &Path,
    lower: &Path,
    at: &Path,
    uid: u32,
) -> Result<Mapped, MountError> {
    let upper = own.join("upper");
    let work = own.join("work");
    for folder in [&upper, &work] {
        fs::DirBuilder::new()
            .mode(0o755)
            .create(folder)
            .map_err(failed("make", folder))?;
    }
    chown(&upper, Some(uid), Some(uid)).map_err(failed("give away", &upper))?;
    let mapped = match slug {
        None => Mapped::Mounted,
        Some(slug) if map(slug, lower, uid).is_ok() => Mapped::Mounted,
        Some(slug) => {
            copy(slug.path, &upper, uid).map_err(failed("copy the slug to", &upper))?;
            Mapped::Copied
        }
    };
    let options = [
        b"lowerdir=".as_slice(),
        lower.as_os_str().as_bytes(),
        b",upperdir=",
        upper.as_os_str().as_bytes(),
        b",workdir=",
        work.as_os_str().as_bytes(),
    ]
    .concat();
    mount(
        Some("overlay"),
        at,
        Some("overlay"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME,
        Some(OsStr::from_bytes(&options)),
    )
    .map_err(|errno| failed("mount /app at", at)(errno.into()))?;
    Ok(mapped)
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

fn map(slug: Slug<'_>, at: &Path, uid: u32) -> io::Result<()> {
    let tree = open_tree(CWD, slug.path, COPY)?;
    let users = user_namespace(slug.owner, uid)?;
    let flags = libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_attributes(&tree, flags, Some(&users), 0)?;
    move_mount(&tree, at)
}

/// A user namespace in which `inside` is `outside` here: what an id-mapped mount is made with.
fn user_namespace(inside: u32, outside: u32) -> io::Result<OwnedFd> {
    let pid = child_in_user_namespace()?;
    let map = format!("{inside} {outside} 1\n");
    let write = |file| {
        let mut file = fs::File::options()
            .write(true)
            .open(format!("/proc/{pid}/{file}"))?;
        file.write_all(map.as_bytes())
    };
    let made = write("uid_map")
        .and_then(|()| write("gid_map"))
        .and_then(|()| fs::File::open(format!("/proc/{pid}/ns/user")));
    // It has done what it was for.
    kill(pid, Signal::SIGKILL)?;
    while waitpid(pid, None) == Err(Errno::EINTR) {}
    Ok(made?.into())
}

/// A child that is in a user namespace of its own and waits to be killed.
#[expect(unsafe_code, reason = "clone(2) with a namespace is no library's")]
fn child_in_user_namespace() -> io::Result<Pid> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: as fork(2), of a process with one thread; the child calls nothing but pause(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        loop {
            // SAFETY: it takes nothing, and returns after a signal.
            unsafe { libc::pause() };
        }
    }
    Errno::result(pid)
        .map(|pid| Pid::from_raw(i32::try_from(pid).unwrap_or(-1)))
        .map_err(io::Error::from)
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

/// Copies a tree of folders, files and links, as the property of `uid`. What is a hard link to
/// something in it becomes a file of its own.
fn copy(from: &Path, to: &Path, uid: u32) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let found = entry.metadata()?;
        if found.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target, uid)?;
        } else if found.is_symlink() {
            symlink(fs::read_link(entry.path())?, &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
        lchown(&target, Some(uid), Some(uid))?;
        if !found.is_symlink() {
            fs::set_permissions(&target, fs::Permissions::from_mode(found.mode() & 0o777))?;
        }
    }
    Ok(())
}
