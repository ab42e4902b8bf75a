//! Acting as another user, for a moment and with one thread: who connects to a socket, and who
//! opens a file, is told to the kernel by the thread that does.

use std::{io, os::unix::net::UnixStream, path::Path, thread};

use nix::unistd::{Gid, Uid, User};

/// Runs `act` as the user `uid`, in its own group and no other, in a thread of its own.
///
/// # Errors
/// When this process may not become that user.
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> io::Result<T> {
    let gid = group_of(uid);
    thread::scope(|scope| {
        let acting = scope.spawn(|| {
            become_user(uid, gid)?;
            Ok(act())
        });
        acting
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("it panicked")))
    })
}

/// A connection to `socket` that is that user's.
///
/// # Errors
/// When this process may not become that user, or that user may not connect.
pub fn connect(uid: u32, socket: &Path) -> io::Result<UnixStream> {
    as_user(uid, || UnixStream::connect(socket))?
}

/// The group that goes with a user; one of the same number where nobody knows the user.
pub fn group_of(uid: u32) -> u32 {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or(Gid::from_raw(uid), |user| user.gid).as_raw()
}

/// Makes this thread another user's, and leaves the others what they are.
#[expect(unsafe_code, reason = "libc's own calls change every thread")]
fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let none: *const libc::gid_t = std::ptr::null();
    // SAFETY: the calls change the credentials of this thread alone; the first is given no list
    // and the length of none, the others take numbers only.
    let changed = unsafe {
        libc::syscall(libc::SYS_setgroups, 0, none) == 0
            && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
            && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
    };
    if changed {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
