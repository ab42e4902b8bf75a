//! Sockets that were handed down to this process: `sd_listen_fds(3)`.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt},
};
use thiserror::Error;

/// The first descriptor of the convention.
const FIRST: RawFd = 3;

/// What was handed down, and has not been taken yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    count: u32,
    /// In the order of the descriptors; there may be fewer.
    names: Vec<String>,
}

/// There are several sockets, and none has the name that tells which is meant.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{count} sockets were handed down (LISTEN_FDS), and none of them is named `{name}` \
     (FileDescriptorName= of the socket unit)"
)]
pub struct NotNamed {
    count: u32,
    name: &'static str,
}

impl Handed {
    /// What the environment says was handed to the process `own_pid`: `LISTEN_FDS`, with
    /// `LISTEN_PID` absent or its own.
    pub fn find(env: impl Fn(&str) -> Option<OsString>, own_pid: u32) -> Option<Self> {
        let number = |name| env(name)?.to_str()?.parse::<u32>().ok();
        let meant_for_us = env("LISTEN_PID").is_none() || number("LISTEN_PID") == Some(own_pid);
        let count = number("LISTEN_FDS").filter(|count| *count > 0 && meant_for_us)?;
        let names = env("LISTEN_FDNAMES").unwrap_or_default();
        let names = names.to_string_lossy();
        let names = names.split(':').map(str::to_owned).collect();
        Some(Self { count, names })
    }

    /// The only descriptor, whatever its name, or of several the one with this name.
    ///
    /// # Errors
    /// When none of several has it.
    pub fn which(&self, name: &'static str) -> Result<RawFd, NotNamed> {
        if self.count == 1 {
            return Ok(FIRST);
        }
        let place = self.names.iter().position(|found| found == name);
        place
            .and_then(|place| RawFd::try_from(place).ok())
            .filter(|place| u32::try_from(*place).is_ok_and(|place| place < self.count))
            .map(|place| FIRST + place)
            .ok_or(NotNamed {
                count: self.count,
                name,
            })
    }

    /// The first descriptor, for whoever needs one socket.
    pub const fn first() -> RawFd {
        FIRST
    }
}

/// Takes over a unix socket that was handed down: it listens, and no child of ours gets it.
///
/// # Errors
/// When the descriptor is no unix stream socket that listens. It is left alone then.
#[expect(
    unsafe_code,
    reason = "a descriptor known by its number alone is adopted"
)]
pub fn adopt(descriptor: RawFd) -> io::Result<UnixListener> {
    // SAFETY: the number is only asked about. If nothing was handed down, it may be closed, or by
    // now be something of our own, which is not touched.
    let candidate = unsafe { BorrowedFd::borrow_raw(descriptor) };
    if !getsockopt(&candidate, sockopt::AcceptConn)? {
        return Err(io::Error::other("it does not listen"));
    }
    let is_unix = getsockname::<UnixAddr>(descriptor).is_ok();
    if !is_unix || getsockopt(&candidate, sockopt::SockType)? != SockType::Stream {
        return Err(io::Error::other("it is no unix stream socket"));
    }
    // SAFETY: it listens, which nothing of our own does yet: by the convention it was opened for
    // this process, and it is taken once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(UnixListener::from(descriptor))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::{fd::AsRawFd as _, unix::net::UnixStream},
    };

    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, bind, listen, socket};

    use super::*;

    fn handed(env: &[(&str, &str)]) -> Option<Handed> {
        let find = |name: &str| {
            let found = env.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(found.1))
        };
        Handed::find(find, 42)
    }

    #[test]
    fn what_is_meant_for_another_process_is_not_taken() {
        assert_eq!(handed(&[]), None);
        assert_eq!(handed(&[("LISTEN_FDS", "0")]), None);
        assert_eq!(handed(&[("LISTEN_FDS", "1"), ("LISTEN_PID", "41")]), None);
        assert!(handed(&[("LISTEN_FDS", "1"), ("LISTEN_PID", "42")]).is_some());
        assert!(handed(&[("LISTEN_FDS", "1")]).is_some());
    }

    #[test]
    fn one_socket_is_meant_and_of_several_the_one_with_the_name() {
        let one = handed(&[("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "hsup@shop.socket")]);
        assert_eq!(one.unwrap().which("control"), Ok(3));
        let two = handed(&[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web:control")]);
        assert_eq!(two.unwrap().which("control"), Ok(4));
        // More names than descriptors: the surplus is nobody's.
        let surplus = handed(&[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a:b:control")]);
        let error = surplus.unwrap().which("control").unwrap_err();
        assert!(error.to_string().contains("2 sockets"), "{error}");
        let nameless = handed(&[("LISTEN_FDS", "2")]);
        assert!(nameless.unwrap().which("control").is_err());
    }

    #[test]
    fn what_does_not_listen_is_left_alone() {
        let (one, other) = UnixStream::pair().unwrap();
        assert!(adopt(one.as_raw_fd()).is_err());
        std::io::Write::write_all(&mut &one, b"x").unwrap();
        drop(other);
    }

    #[test]
    fn a_listener_of_another_kind_is_left_alone() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = adopt(tcp.as_raw_fd()).unwrap_err();
        assert_eq!(error.to_string(), "it is no unix stream socket");
        drop(TcpStream::connect(tcp.local_addr().unwrap()).unwrap());
        tcp.accept().unwrap();

        let packets = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        bind(packets.as_raw_fd(), &UnixAddr::new_unnamed()).unwrap();
        listen(&packets, Backlog::new(1).unwrap()).unwrap();
        assert!(adopt(packets.as_raw_fd()).is_err());
        assert!(getsockopt(&packets, sockopt::AcceptConn).unwrap());
    }
}
