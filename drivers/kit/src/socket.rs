//! A listening unix socket that has its mode from the first moment.
//!
//! Decided here: how a socket comes to be reachable by nobody but who is meant to be. A
//! `chmod` after `bind` leaves a moment for others to connect in; a `umask` before it is the
//! whole process's, so a directory that another thread makes meanwhile is one that nobody
//! can enter. On Linux the file gets the mode of the socket's own inode, less the umask
//! (`unix_bind_bsd` in `net/unix/af_unix.c`), so that mode is set first.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
    path::Path,
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
    unistd::{Gid, Uid, fchownat},
};

/// A blocking socket that listens at `path`, where nothing is, with exactly `mode` (`0o600`).
///
/// # Errors
/// What the system refuses; `AddrInUse` when something is at `path`.
pub fn listen_at(path: &Path, mode: u32) -> io::Result<UnixListener> {
    listen_for(path, mode, None, None)
}

/// The same, which belongs to `user` and `group` before anybody can connect.
pub(crate) fn listen_for(
    path: &Path,
    mode: u32,
    user: Option<Uid>,
    group: Option<Gid>,
) -> io::Result<UnixListener> {
    let address = UnixAddr::new(path)?;
    let server = bind_closed(&address, mode)?;
    if user.is_some() || group.is_some() {
        fchownat(AT_FDCWD, path, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    // What the umask took is given back; before `listen` nobody can connect anyway.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    listen(&server, Backlog::MAXCONN)?;
    Ok(UnixListener::from(server))
}

fn bind_closed(address: &UnixAddr, mode: u32) -> nix::Result<OwnedFd> {
    let server = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    fchmod(&server, Mode::from_bits_truncate(mode))?;
    bind(server.as_raw_fd(), address)?;
    Ok(server)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use test_case::test_case;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test_case(0o600)]
    #[test_case(0o770)]
    fn the_socket_has_its_mode(mode: u32) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _listener = listen_at(&path, mode).unwrap();
        assert_eq!(mode_of(&path), mode);
        UnixStream::connect(&path).unwrap();
    }

    #[test_case(0o600)]
    #[test_case(0o770)]
    fn it_is_closed_to_others_before_anybody_could_close_it(mode: u32) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _server = bind_closed(&UnixAddr::new(&path).unwrap(), mode).unwrap();
        assert_eq!(mode_of(&path) & !mode, 0, "{:o}", mode_of(&path));
    }

    #[test]
    fn what_other_threads_make_meanwhile_has_its_own_mode() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        std::thread::scope(|scope| {
            let binding = scope.spawn(|| {
                for n in 0..500 {
                    listen_at(&dir.path().join(format!("{n}.sock")), 0o600).unwrap();
                }
            });
            while !binding.is_finished() {
                fs::create_dir(&made).unwrap();
                let mode = mode_of(&made);
                fs::remove_dir(&made).unwrap();
                assert_eq!(mode & 0o700, 0o700, "{mode:o}");
            }
        });
    }
}
