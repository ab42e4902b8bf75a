//! A listening unix socket that has its mode from the first moment, and whether one is stale.
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
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt,
            listen, socket, sockopt::PeerCredentials,
        },
        stat::{Mode, fchmod},
    },
    unistd::{Gid, Uid, fchownat},
};

/// The longest path that a socket can have, in bytes: `sun_path` without its end (unix(7)).
pub const SUN_PATH_MAX: usize = 107;

/// The longest path of a driver's socket, and of any other that hsup chooses, in bytes, as the
/// driver protocol has it (docs/driver-rules.md §7).
pub const SOCKET_PATH_MAX: usize = 100;

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

/// Who accepts connections at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Nobody: it is stale, or gone.
    ByNobody,
    /// Somebody: this process, where the kernel tells.
    By(Option<u32>),
}

/// Whether anybody accepts connections at the socket `path`, found out without waiting for it.
///
/// # Errors
/// What the system refuses, as to a user who may not connect.
pub fn served_by(path: &Path) -> io::Result<Served> {
    let client = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    match connect(client.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => {
            let peer = getsockopt(&client, PeerCredentials).ok();
            let pid = peer.and_then(|peer| u32::try_from(peer.pid()).ok());
            Ok(Served::By(pid.filter(|&pid| pid != 0)))
        }
        // Its queue is full.
        Err(Errno::EAGAIN) => Ok(Served::By(None)),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(Served::ByNobody),
        Err(errno) => Err(errno.into()),
    }
}

/// What keeps a socket from being made at a path.
#[derive(Debug)]
pub enum InTheWay {
    /// Something else than a socket is there.
    NotASocket,
    /// Somebody serves the socket that is there: this process, where the kernel tells.
    Served(Option<u32>),
    /// It cannot be found out what is there, or whether anybody serves it.
    Probe(io::Error),
    /// What is there is stale, and cannot be removed.
    Remove(io::Error),
}

/// Makes way for a socket at `path`: removes the one of a process that is gone, and nothing else.
///
/// # Errors
/// With what is still in the way.
pub fn make_way(path: &Path) -> Result<(), InTheWay> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(InTheWay::Probe(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(InTheWay::NotASocket),
        Ok(_) => {}
    }
    match served_by(path) {
        Ok(Served::By(pid)) => Err(InTheWay::Served(pid)),
        Ok(Served::ByNobody) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(InTheWay::Remove(error)),
            _ => Ok(()),
        },
        Err(error) => Err(InTheWay::Probe(error)),
    }
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
    fn who_serves_a_socket_is_found_out_of_one_that_does_not_answer_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        assert_eq!(served_by(&path).unwrap(), Served::ByNobody);
        let server = bind_closed(&UnixAddr::new(&path).unwrap(), 0o600).unwrap();
        assert_eq!(served_by(&path).unwrap(), Served::ByNobody);
        // It accepts none, and one is all that may wait: the first that asks.
        listen(&server, Backlog::new(0).unwrap()).unwrap();
        let own = Served::By(Some(std::process::id()));
        assert_eq!(served_by(&path).unwrap(), own);
        assert_eq!(served_by(&path).unwrap(), Served::By(None));
        drop(server);
        // A process that another test spawns meanwhile holds it too, until its `exec`.
        while served_by(&path).unwrap() != Served::ByNobody {}
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
